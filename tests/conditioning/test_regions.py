"""The MAGVIT sheet's properties 6-8: shares of the ten tasks, what a filled clip shows, and that it hides the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.conditioning import TASKS, TaskTables, task_index
from videogen.conditioning.regions import latent_region
from videogen.errors import UserError
from videogen.shapes import Compression, VideoShape

CLIP = Compression(4, 8, 8, first_alone=False)
CAUSAL = Compression(2, 4, 4)

UNKNOWN = {
    "frame_prediction": (15 / 16, 0.75),
    "interpolation": (14 / 16, 0.5),
    "outpaint_central": (0.75, 0.75),
    "outpaint_vertical": (0.5, 0.5),
    "outpaint_horizontal": (0.5, 0.5),
    "outpaint_dynamic": (0.5, 0.5),
    "inpaint_central": (0.25, 0.25),
    "inpaint_dynamic": (0.25, 0.25),
    "conditional_generation": (1.0, 1.0),
    "conditional_prediction": (15 / 16, 0.75),
}
"""Name -> shares of the pixels and of the codes that are not given (the sheet's table)."""


def clips(shape: VideoShape) -> np.ndarray:
    """One random clip for each task."""
    size = (len(TASKS), shape.frames, shape.height, shape.width, 3)
    return np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)


@pytest.mark.parametrize("name", TASKS)
def test_shares_are_those_of_the_paper(name):
    shape = VideoShape(16, 128, 128)
    pixels = TASKS[name].region(16, 128, 128)
    latents = latent_region(TASKS[name], shape, CLIP)
    assert latents.shape == (4, 16, 16)
    assert (1 - pixels.mean(), 1 - latents.mean()) == UNKNOWN[name]
    assert set(TASKS) == set(UNKNOWN)


@pytest.mark.parametrize(("frames", "compression"), [(9, CAUSAL), (8, Compression(2, 4, 4, first_alone=False))])
def test_codes_of_still_regions_are_those_whose_supervoxel_has_a_given_pixel(frames, compression):
    """Brute force over pixels, for a causal tokenizer and another, on sides that do not divide by four."""
    shape = VideoShape(frames, 24, 20)
    for task in TASKS.values():
        pixels, latents = task.region(frames, 24, 20), latent_region(task, shape, compression)
        if task.moving:
            assert latents.mean() == pytest.approx(pixels.mean(), abs=0.1)
            continue
        touched = np.zeros_like(latents)
        for t, y, x in np.argwhere(pixels):
            touched[compression.latent_of_frame(int(t)), y // 4, x // 4] = True
        np.testing.assert_array_equal(latents, touched)


def test_what_moves_goes_from_the_left_edge_to_the_right_one():
    strip = TASKS["outpaint_dynamic"].region(5, 8, 16)
    assert [int(np.flatnonzero(frame[0])[0]) for frame in strip] == [0, 2, 4, 6, 8]
    hole = ~TASKS["inpaint_dynamic"].region(5, 8, 16)
    np.testing.assert_array_equal(hole[:, 2:6], strip[:, 2:6])
    assert not hole[:, :2].any() and not hole[:, 6:].any()


@pytest.mark.parametrize(("frames", "compression"), [(9, CAUSAL), (8, CLIP)])
def test_given_pixels_stay_and_others_cannot_be_seen(frames, compression):
    shape = VideoShape(frames, 24, 24)
    tables, tasks = TaskTables(shape, compression), np.arange(len(TASKS))
    region = np.stack([task.region(frames, 24, 24) for task in TASKS.values()])[..., None]
    video = clips(shape)
    filled = jax.jit(tables.fill)(video, tasks)
    np.testing.assert_array_equal(np.where(region, filled, 0), np.where(region, video, 0))
    other = np.where(region, video, -video)
    np.testing.assert_array_equal(jax.jit(tables.fill)(other, tasks), filled)


def test_each_example_has_its_task():
    shape = VideoShape(9, 8, 8)
    tables, video = TaskTables(shape, CAUSAL), clips(shape)
    mixed = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    together = jax.jit(tables.fill)(video, mixed)
    for i, task in enumerate(mixed):
        np.testing.assert_allclose(together[i], tables.fill(video[i : i + 1], jnp.array([task]))[0], atol=1e-6)
        expected = latent_region(list(TASKS.values())[task], shape, CAUSAL)
        np.testing.assert_array_equal(tables.region(mixed)[i], expected.reshape(-1))


def test_time_is_a_ramp_between_given_frames_and_the_last_one_stays():
    shape = VideoShape(9, 8, 8)
    tables, video = TaskTables(shape, CAUSAL), clips(shape)[:2]
    filled = tables.fill(video, np.array([task_index("frame_prediction"), task_index("interpolation")]))
    np.testing.assert_array_equal(filled[0], np.broadcast_to(video[0, :1], video[0].shape))
    fraction = np.linspace(0, 1, 9)[:, None, None, None]
    np.testing.assert_allclose(filled[1], (1 - fraction) * video[1, 0] + fraction * video[1, -1], atol=1e-6)


def test_edges_are_repeated_and_holes_are_black():
    shape = VideoShape(9, 8, 8)
    tables, video = TaskTables(shape, CAUSAL), clips(shape)[:2]
    filled = tables.fill(video, np.array([task_index("outpaint_central"), task_index("inpaint_central")]))
    inside = video[0, :, 2:6, 2:6]
    np.testing.assert_array_equal(filled[0], np.pad(inside, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge"))
    assert (filled[1, :, 2:6, 2:6] == -1).all()


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="unknown task 'inpaint'.*inpaint_central"):
        task_index("inpaint")

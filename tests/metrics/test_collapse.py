"""Students against their teachers: known motion, saturation and distance of seeds, and what counts as collapsed."""

import jax.numpy as jnp
import numpy as np
import pytest

from videogen.metrics.collapse import collapse_ratios, collapsed, motion, saturation, seed_distance


def videos(seed: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(3, 5, 8, 8, 3)), jnp.float32)


TEACHER = videos(0), videos(1)


def test_measures_have_their_known_values():
    steps = jnp.arange(4.0)[None, :, None, None, None] * 0.1 * jnp.ones((2, 4, 4, 4, 3))
    np.testing.assert_allclose(motion(steps), 0.1, rtol=1e-5)
    np.testing.assert_array_equal(motion(steps[:, :1]), 0)
    colours = jnp.array([[1.0, 0.5, 0.25], [0.4, 0.4, 0.4], [0.0, 0.0, 0.0], [0.0, 0.8, 0.0]])
    np.testing.assert_allclose(saturation(jnp.broadcast_to(colours[None, None, None], (1, 2, 1, 4, 3))), (0.75 + 1) / 4)
    np.testing.assert_allclose(seed_distance(steps, steps + 0.3), 0.3, rtol=1e-5)


def test_the_teacher_itself_has_ratio_one_and_no_collapse():
    found = collapse_ratios(TEACHER, TEACHER)
    assert found == {"motion_ratio": 1, "saturation_ratio": 1, "seed_distance_ratio": 1, "collapse": 0}
    assert collapsed(found) == []


def test_repeating_the_first_frame_has_no_motion():
    still = tuple(jnp.repeat(video[:, :1], 5, axis=1) for video in TEACHER)
    found = collapse_ratios(still, TEACHER)
    assert found["motion_ratio"] == 0.0 and found["saturation_ratio"] == pytest.approx(1, abs=0.05)
    assert collapsed(found) == ["the motion is 0.00 of the teacher's"] and found["collapse"] == pytest.approx(
        9.966, abs=1e-3
    )


def test_one_video_for_all_seeds_and_screens_of_one_colour_are_named():
    one = collapse_ratios((TEACHER[0], TEACHER[0]), TEACHER)
    assert one["seed_distance_ratio"] == 0 and collapsed(one) == ["the distance of seeds is 0.00 of the teacher's"]
    blue = tuple(jnp.zeros_like(video).at[..., 2].set(1.0) for video in TEACHER)
    found = collapse_ratios(blue, TEACHER)
    assert found["motion_ratio"] == found["seed_distance_ratio"] == 0
    assert found["saturation_ratio"] == pytest.approx(1 / float(saturation(TEACHER[0]).mean()), rel=0.02)
    # A teacher of stills has no motion to lose.
    assert collapse_ratios(blue, blue)["motion_ratio"] == 1 and collapse_ratios(TEACHER, blue)["motion_ratio"] == 1000


def test_ratios_are_those_of_means_over_all_videos():
    half = tuple(0.5 + 0.5 * (video - 0.5) for video in TEACHER)
    found = collapse_ratios(half, TEACHER)
    assert found["motion_ratio"] == pytest.approx(0.5, rel=1e-5)
    assert found["seed_distance_ratio"] == pytest.approx(0.5, rel=1e-5) and found["collapse"] >= 1 - 1e-5
    assert collapsed({"motion_ratio": 0.49, "saturation_ratio": 1.51, "seed_distance_ratio": 0.5}) == [
        "the motion is 0.49 of the teacher's",
        "the saturation is 1.51 of the teacher's",
    ]

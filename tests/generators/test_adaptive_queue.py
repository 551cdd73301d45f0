"""Adaptive FIFO diffusion: the arithmetic of its windows, and a queue with an oracle that knows the true frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import layout_of
from videogen.conditioning import ChunkTokens, Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import FlowBesideTokens, FlowSampler
from videogen.generators.adaptive_queue import RENOISED
from videogen.generators.chunks import Slots, Windows, middles
from videogen.shapes import TokenGrid

WINDOW, PARTITIONS, CHANNELS = 3, 2, 2
GRID = TokenGrid(2 * WINDOW, 2, 2)
BASE = {"transformer": {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}, "patch": (1, 1, 1)}
BASE |= {"text": "joint", "times": "frame", "noise": {"process": {"name": "variance_preserving"}, "prediction": "v"}}
BASE["noise"]["process"] |= {"schedule": "scaled_linear", "zero_terminal_snr": True}
RESAMPLER = {"name": "perceiver", "width": 8, "depth": 1, "heads": 2, "head_width": 4}
SAMPLER = FlowSampler(
    steps=WINDOW * PARTITIONS,
    solver={"name": "dpm_2m", "stochastic": True},
    guidance_scale=1.0,
    extension="adaptive_queue",
)
TRUE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 2, 2, CHANNELS)), jnp.float32)


class Oracle(FlowBesideTokens):
    """Returns the true frames of the video, by the absolute time that its window begins with."""

    def predict(self, noisy, t, prepared, *, key=None):
        index = prepared.beside.at[:, None] + jnp.arange(noisy.shape[1])
        clean = jnp.take_along_axis(TRUE[: len(noisy)], index[:, :, None, None, None], axis=1)
        alpha, sigma = (scale[..., None, None, None] for scale in self.process.scales(t))
        return alpha * jnp.where(sigma > 0, (noisy - alpha * clean) / sigma, 0) - sigma * clean


@functools.cache
def model_of(kind: type = Oracle) -> FlowBesideTokens:
    settings = dict(base=BASE, resampler=RESAMPLER, queries=(2, 1, 1), chunk=WINDOW, context_width=4)
    return kind(CHANNELS, GRID.shape, **settings, rngs=nnx.Rngs(0))


def told(batch: int = 2) -> Conditioning:
    text = EncodedText(jnp.ones((batch, 2, 4)), jnp.ones((batch, 2), bool))
    count, at = jnp.full(batch, 20), jnp.zeros(batch, jnp.int32)
    return Conditioning(text, beside=ChunkTokens(jnp.ones((batch, 20, 1, 1, 8)), count, at))


def stepper(frames: int = 6, kind: type = Oracle):
    layout = layout_of(GRID.with_time(frames), channels=CHANNELS)
    return model_of(kind).stepper(layout, told(), jax.random.split(jax.random.key(5), 2), SAMPLER)


# Windows -------------------------------------------------------------------------------------------------------------


def test_windows_of_the_published_sizes():
    """TokensGen, property 3, and users, case 13."""
    found = Windows(13, 4)
    assert (found.steps, found.slots, found.ahead) == (52, 58, 6)
    assert found.starts == (0, 6, 13, 19, 26, 32, 39, 45) and found.bounds == (6, 13, 19, 26, 32, 39, 45, 52, 58)
    assert (found.first_start, found.rounds_before) == (45, 39)
    odd = Windows(17, 4)
    assert odd.starts == (0, 8, 17, 25, 34, 42, 51, 59) and odd.starts[-1] + 17 == odd.slots == 76


@pytest.mark.parametrize("window", [2, 3, 4, 7, 16])
@pytest.mark.parametrize("partitions", [1, 3])
def test_what_windows_write_tiles_the_queue_once(window, partitions):
    found = Windows(window, partitions)
    written = [slot for pair in zip(found.bounds, found.bounds[1:], strict=False) for slot in range(*pair)]
    assert written == [*range(found.ahead, found.slots)]
    for start, low, high in zip(found.starts, found.bounds, found.bounds[1:], strict=False):
        # Each frame that is written has cleaner ones before it in its window, half of it or more.
        assert start + window == high and low - start >= window // 2 and start >= 0


def test_other_numbers_of_steps_are_refused_with_the_two_nearest():
    assert Windows.of_steps(13, 52) == Windows(13, 4)
    with pytest.raises(UserError, match="50 is no multiple of 13; set sampler.steps to 39 or 52") as error:
        Windows.of_steps(13, 50)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="set sampler.steps to 13$"):
        Windows.of_steps(13, 5)
    with pytest.raises(UserError, match="7 is no multiple of 3; set sampler.steps to 6 or 9"):
        FlowSampler(steps=7, extension="adaptive_queue").check(model_of())


def test_slots_of_a_window():
    """Property 9: in range, rising with time, and beyond the right edge the last one again."""
    slots = Slots(13, 4)
    count = jnp.array([96])
    found = np.stack([slots.index(jnp.array([at]), count)[0] for at in range(400)])
    assert found.shape == (400, 5) and found.min() == 0 and found.max() == 95 and (np.diff(found, axis=0) >= 0).all()
    np.testing.assert_array_equal(found[[0, 3, 4, 13, 26]][:, 0], [0, 0, 1, 4, 8])
    np.testing.assert_array_equal(found[-1], [95] * 5)
    # Every latent frame of a window lies in one of its slots.
    for at in range(0, 40):
        assert slots.first(at) + 4 >= (at + 12) * 4 // 13
    np.testing.assert_allclose(slots.times(jnp.array([13]))[0], 13 + (np.arange(5) + 0.5) * 13 / 4 - 0.5)
    np.testing.assert_allclose(middles(2, 6), [1.0, 4.0])


# The queue -----------------------------------------------------------------------------------------------------------


def test_an_oracle_gives_the_true_frames_in_order():
    """Property 4: as many as were asked for, whatever noise the solver adds."""
    frames = 11
    layout = layout_of(GRID.with_time(frames), channels=CHANNELS)
    keys = jax.random.split(jax.random.key(5), 2)
    drawn = jax.jit(lambda: model_of().sample(layout, told(), keys, SAMPLER))()
    assert drawn.only.values.shape == (2, frames, 2, 2, CHANNELS)
    np.testing.assert_allclose(drawn.only.values, TRUE[:, :frames], atol=2e-4)


def noisy_queue(steps) -> tuple:
    """A full queue of anything, and the same with another first-order state."""
    queue = jax.eval_shape(steps.filled)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(np.abs(random.normal(size=x.shape)) + 0.1, jnp.float32), queue)


def test_windows_of_a_round_do_not_see_one_another():
    """Property 12: all at once, one after another, and written out by hand."""
    steps = stepper()
    queue, rounds = noisy_queue(steps), jnp.array([50, 50])
    one = jax.jit(lambda q: steps.denoised(q, rounds))(queue)
    at_once = jax.jit(lambda q: steps.denoised(q, rounds, over=lambda run, x: jax.vmap(run)(x)))(queue)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    windows = steps.windows
    expected, alone = jax.tree.map(np.array, queue), jax.jit(steps._window)
    for start, low, high in zip(windows.starts, windows.bounds, windows.bounds[1:], strict=False):
        window = alone(queue, jnp.full(2, start), rounds)
        for whole, part in zip(jax.tree.leaves(expected), jax.tree.leaves(window), strict=True):
            whole[:, low:high] = part[:, low - start : high - start]
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_window_reads_an_empty_slot():
    """Property 6: numbers that are none stay where they are, and are gone after as many rounds as there were."""
    steps = stepper()
    windows = steps.windows
    empty = jnp.arange(windows.slots) < windows.first_start
    wide = empty.reshape(1, -1, 1, 1, 1)
    queue = jax.tree.map(lambda x: jnp.where(wide, jnp.nan, x), jax.jit(steps.filled)())
    turn = jax.jit(lambda q, rounds: steps.moved(steps.denoised(q, rounds), rounds))
    for number in range(windows.first_start):
        there = windows.first_start - number
        assert np.isfinite(queue.sample[:, there:]).all() and np.isnan(queue.sample[:, :there]).all()
        queue = turn(queue, jnp.full(2, number))
    assert np.isfinite(queue.sample).all() and np.isfinite(queue.clean).all()


def test_the_state_moves_with_its_frames_and_a_new_frame_has_none():
    """Properties 7 and 8: the new frame is the last one with a little noise, of variance 1 where that has it."""
    steps = stepper()
    queue = noisy_queue(steps)
    moved = steps.moved(queue, jnp.array([9, 9]))
    for old, new in zip(jax.tree.leaves(queue), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(new[:, :-1], old[:, 1:])
    assert not moved.h[:, -1].any() and not moved.clean[:, -1].any()
    noise = (moved.sample[:, -1] - (1 - RENOISED) ** 0.5 * queue.sample[:, -1]) / RENOISED**0.5
    assert 0.3 < noise.std() < 2 and np.abs(noise[0] - noise[1]).max() > 0.1
    assert (1 - RENOISED) + RENOISED == 1.0
    again = steps.moved(queue, jnp.array([10, 10])).sample[:, -1]
    assert np.abs(again - moved.sample[:, -1]).max() > 1e-3


def test_examples_may_be_at_frames_of_their_own():
    state = model_of().begin(
        layout_of(GRID, channels=CHANNELS), told(), jax.random.split(jax.random.key(5), 2), SAMPLER
    )
    advance = jax.jit(lambda state, at: model_of().advance(state, None, at))
    both, first = advance(state, 0)[1].only.values, advance(state, jnp.array([0, 0]))[1].only.values
    np.testing.assert_allclose(both, first, atol=1e-6)
    np.testing.assert_allclose(both[:, 0], TRUE[:, 0], atol=2e-4)

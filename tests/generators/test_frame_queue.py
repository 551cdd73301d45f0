"""The queue of frames draws what per-frame sampling draws, and a queue as long as the video draws it exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import layout_of
from videogen import diffusion
from videogen.conditioning import Conditioning
from videogen.errors import UserError
from videogen.generators import FlowSampler, FlowTransformer
from videogen.shapes import TokenGrid

GRID, CHANNELS, FRAMES = TokenGrid(3, 2, 2), 2, 7
LAYOUT = layout_of(GRID, channels=CHANNELS)


class Oracle(FlowTransformer):
    """Knows the data to be 0.5 ± 0.3 in every frame by itself."""

    def predict(self, noisy, t, prepared, *, key=None):
        alpha, sigma = (diffusion.broadcast_right(scale, noisy) for scale in self.process.scales(t))
        clean = 0.5 + alpha * 0.09 / (alpha**2 * 0.09 + sigma**2) * (noisy - alpha * 0.5)
        return self.process.convert(clean, noisy, t, "x0", self.process.prediction)


SMALL = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}


def make(kind: type = Oracle, **settings) -> FlowTransformer:
    settings = {"times": "frame", "patch": (1, 1, 1), "noise": {"prediction": "x0"}, "classes": 3, **settings}
    return kind(CHANNELS, GRID.shape, SMALL, **settings, rngs=nnx.Rngs(0))


def keys(batch: int) -> jax.Array:
    return jax.random.split(jax.random.key(5), batch)


def draw(model: FlowTransformer, sampler: FlowSampler, frames: int) -> jax.Array:
    told = Conditioning(label=jnp.arange(2))
    state = jax.jit(lambda: model.begin(LAYOUT, told, keys(2), sampler))()
    advance, popped = jax.jit(lambda state, at: model.advance(state, None, at)), []
    sizes = {x.shape for x in jax.tree.leaves(state)}
    for at in range(frames):
        state, frame = advance(state, at)
        popped.append(frame.only.values[:, 0])
    # The memory is that of the queue, whatever came out of it.
    assert {x.shape for x in jax.tree.leaves(state)} == sizes
    return jnp.stack(popped, axis=1)


@pytest.mark.parametrize("solver", ["euler", "dpm_2m", "unipc"])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_frames_are_those_of_per_frame_sampling(solver, steps):
    """Seven frames through a queue of at most three, against a clip of seven whose frames have the same lag."""
    model, settings = make(), {"steps": steps, "solver": {"name": solver}, "guidance_scale": 1.0}
    lag = -(-steps // GRID.time)
    together = model.sample(
        layout_of(GRID.with_time(FRAMES), channels=CHANNELS),
        Conditioning(label=jnp.arange(2)),
        keys(2),
        FlowSampler(**settings, lag=lag),
    ).only.values
    np.testing.assert_allclose(draw(model, FlowSampler(**settings, extension="queue"), FRAMES), together, atol=1e-5)


def test_guidance_with_a_memory_moves_with_the_queue():
    sampler = FlowSampler(
        steps=6, guidance_scale=3.0, guidance={"name": "adaptive_projected", "eta": 1.0}, extension="queue"
    )
    assert np.isfinite(draw(make(), sampler, 4)).all()


def test_frames_see_only_those_in_the_queue_with_them():
    """A network: frames that come out first do not depend on the noise of frames that were not in the queue yet."""
    model = make(FlowTransformer)
    model.head.kernel.set_value(jax.random.normal(jax.random.key(0), model.head.kernel.get_value().shape))
    sampler = FlowSampler(steps=3, guidance_scale=1.0, extension="queue")
    long, short = draw(model, sampler, 4), draw(model, sampler, 2)
    np.testing.assert_array_equal(long[:, :2], short)
    assert np.abs(long[:, 0] - long[:, 3]).max() > 0.1


def test_a_model_of_one_time_per_clip_has_no_queue():
    with pytest.raises(UserError, match='times="frame"'):
        make(times="clip").begin(LAYOUT, Conditioning(label=jnp.arange(1)), keys(1), FlowSampler(extension="queue"))

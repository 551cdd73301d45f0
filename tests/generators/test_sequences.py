"""Block order and delayed levels: bijections with known values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import diffusion
from videogen.errors import UserError
from videogen.generators import FlowSampler, MaskGITSampler
from videogen.generators.sampling import BlockSampler
from videogen.generators.sequences import absent, block_order, delay, inverse, undelay
from videogen.heads.sampling import sample_categorical
from videogen.shapes import TokenGrid

GRID = TokenGrid(4, 4, 6)


@pytest.mark.parametrize("block", [(1, 1, 1), (1, 1, 6), (1, 2, 3), (2, 2, 2), (1, 4, 6), (4, 4, 6)])
def test_block_order_is_a_bijection_and_keeps_blocks_together(block):
    order = block_order(GRID, block)
    np.testing.assert_array_equal(np.sort(order), np.arange(GRID.tokens))
    np.testing.assert_array_equal(order[inverse(order)], np.arange(GRID.tokens))
    places = np.stack(np.unravel_index(order, GRID.shape), -1) // np.array(block)
    for together in places.reshape(-1, np.prod(block), 3):
        assert (together == together[0]).all()


def test_rows_and_whole_frames_are_raster_order():
    for block in ((1, 1, 1), (1, 1, 6), (1, 4, 6), (4, 4, 6)):
        np.testing.assert_array_equal(block_order(GRID, block), np.arange(GRID.tokens))


def test_a_block_must_divide_the_grid():
    with pytest.raises(UserError, match="along width does not divide into blocks of 4"):
        block_order(GRID, (1, 1, 4))


@pytest.mark.parametrize("block", [1, 3])
def test_delayed_levels_come_back_and_wait_for_the_levels_below(block):
    ids = jax.random.randint(jax.random.key(0), (2, 6, 3), 0, 9)
    delayed = delay(ids, block)
    assert delayed.shape == (2, 6 + 2 * block, 3)
    np.testing.assert_array_equal(undelay(delayed, block), ids)
    np.testing.assert_array_equal(delayed[:, block : block + 6, 1], ids[..., 1])
    np.testing.assert_array_equal(delayed[:, :block, 2], 0)
    np.testing.assert_array_equal(absent(6, 3, block), np.asarray(delay(jnp.ones((1, 6, 3), int), block)[0]) == 0)


def test_top_p_keeps_the_fewest_codes_that_hold_the_share():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    uniform = jnp.linspace(0, 0.9999, 1000)
    drawn = sample_categorical(uniform, jnp.broadcast_to(logits, (1000, 4)), top_p=0.75)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 1000, [0.625, 0.375, 0, 0], atol=2e-3)
    assert (sample_categorical(uniform, jnp.broadcast_to(logits, (1000, 4)), top_p=0.01) == 0).all()
    whole = sample_categorical(uniform, jnp.broadcast_to(logits, (1000, 4)))
    np.testing.assert_allclose(np.bincount(whole, minlength=4) / 1000, [0.5, 0.3, 0.15, 0.05], atol=2e-3)


def test_guidance_rises_along_the_clip_as_its_schedule_says():
    assert BlockSampler(guidance_scale=3.0).guidance(jnp.float32(0.1)) == 3.0
    rising = BlockSampler(guidance_scale=3.0, guidance_schedule="linear")
    np.testing.assert_allclose([rising.guidance(jnp.float32(t)) for t in (0, 0.25, 1)], [1, 1.5, 3], atol=1e-6)


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_a_sampler_that_cannot_draw_is_refused(bad):
    with pytest.raises(UserError):
        BlockSampler(**bad)


def test_what_a_sampler_does_when_it_is_told_nothing():
    """Plain sampling: the distribution as it is, without guidance; MaskGIT's and the flow's published beginnings."""
    assert BlockSampler() == BlockSampler(1.0, 0, 1.0, 1.0, "constant", None, None)
    assert MaskGITSampler() == MaskGITSampler(12, "cosine", 1.0, 1.0, 4.0, 0, 1.0, "constant", None, "confidence")
    flow = FlowSampler()
    assert (flow.steps, flow.build_solver(), flow.grid) == (50, diffusion.Euler(), {"name": "uniform"})
    assert (flow.shift, flow.guidance_scale, flow.lag, flow.extension) == (None, 5.0, 0, "window")
    assert flow.build_guidance() == diffusion.ClassifierFree(5.0)
    defaults = {
        diffusion.UniformGrid(): (1.0, 1.0, None, 0.0),
        diffusion.LinearQuadraticGrid(): (0.025,),
        diffusion.KarrasGrid(): (80.0, 0.002, 7.0),
        diffusion.LogSNRGrid(): (0.999, 0.001),
        diffusion.RisingClassifierFree(2.0): (2.0, 5.0),
        diffusion.AdaptiveProjected(2.0): (2.0, 0.0, -0.5, 2.5),
        diffusion.DDIM(): (0.0,),
        diffusion.EDM(): (0.5, "velocity", "", 80.0, 7.0),
        diffusion.VariancePreserving(): (0.5, "velocity", "", "cosine", 1000, 1.0, False),
        diffusion.LogitNormal(): (0.0, 1.0),
        diffusion.LogNormalSigma(): (-1.2, 1.2),
        diffusion.Mode(): (0.81,),
    }
    for part, values in defaults.items():
        assert dataclasses.astuple(part) == values
    assert diffusion.Rescale(diffusion.ClassifierFree(2.0)).share == 0.7

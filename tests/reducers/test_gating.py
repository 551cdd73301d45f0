"""The gate in front of an encoder: what it projects, and that its result is the whole grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.encoders.vit import Patches
from videogen.errors import UserError
from videogen.reducers.gating import PatchGate, gated_patches, pixel_change, structural_change

LAYER = Patches((1, 4, 4), 10, dtype=jnp.float32, rngs=nnx.Rngs(0))
RNG = np.random.default_rng(0)


def gated(gate, *pixels):
    return jax.jit(lambda *pixels: gated_patches(gate, LAYER, *pixels))(*pixels)


def clip(time=6, batch=2):
    """Frames in which one of the nine patches after another is new."""
    x = np.repeat(RNG.uniform(-1, 1, (batch, 1, 12, 12, 3)), time, axis=1)
    for t in range(1, time):
        row, column = divmod(t - 1, 3)
        x[:, t:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = RNG.uniform(-1, 1, (batch, 1, 4, 4, 3))
    return jnp.asarray(x, jnp.float32)


def test_the_change_of_a_patch_is_one_less_its_structural_similarity():
    x, y = RNG.uniform(-1, 1, (2, 1, 1, 1, 16, 3))
    a, b = (x + 1) / 2, (y + 1) / 2
    covariance = ((a - a.mean(-2, keepdims=True)) * (b - b.mean(-2, keepdims=True))).mean(-2)
    ma, mb = a.mean(-2), b.mean(-2)
    ssim = (2 * ma * mb + 1e-4) * (2 * covariance + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (a.var(-2) + b.var(-2) + 9e-4))
    flat = [jnp.asarray(v.reshape(1, 1, 1, -1), jnp.float32) for v in (x, y)]
    np.testing.assert_allclose(structural_change(*flat), 1 - ssim.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(pixel_change(*flat), np.sqrt(((a - b) ** 2).sum((-2, -1))), rtol=1e-5)
    assert float(jnp.abs(structural_change(flat[0], flat[0])).max()) < 1e-6


def test_unfolding_and_a_product_is_a_convolution_with_strides():
    x = clip()
    kernel = LAYER.linear.kernel.get_value().reshape(4, 4, 3, 10)
    frames = x.reshape(-1, 12, 12, 3)
    expected = jax.lax.conv_general_dilated(frames, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(LAYER(x).reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("by", ["ssim", "l2"])
@pytest.mark.parametrize("refresh", [None, 4])
def test_a_gate_that_is_always_open_is_no_gate(by, refresh):
    x = clip()
    found, said = gated(PatchGate(threshold=-1.0, by=by, refresh=refresh), x)
    np.testing.assert_array_equal(found, LAYER(x))
    assert float(said["projected"]) == 6 * 9 and float(said["over"]) == 0


@pytest.mark.parametrize("by", ["ssim", "l2"])
@pytest.mark.parametrize("budget", [None, 3])
def test_a_still_clip_projects_one_frame(by, budget):
    x = jnp.repeat(clip(1), 5, axis=1)
    found, said = gated(PatchGate(threshold=0.01, by=by, budget=budget), x)
    assert float(said["projected"]) == 9 and found.shape == (2, 5, 3, 3, 10)
    np.testing.assert_allclose(found, LAYER(x), atol=1e-6)


def test_a_refresh_projects_whole_frames():
    x = jnp.repeat(clip(1), 7, axis=1)
    for refresh, frames in ((3, 3), (7, 1), (1, 7)):
        found, said = gated(PatchGate(refresh=refresh, budget=2), x)
        assert float(said["projected"]) == 9 * frames
        np.testing.assert_allclose(found, LAYER(x), atol=1e-6)


def test_patches_that_changed_are_projected_and_the_others_repeat_the_frame_before():
    x = clip()
    found, said = gated(PatchGate(threshold=0.3, budget=2), x)
    assert float(said["projected"]) == 9 + 5 and float(said["over"]) == 0
    # Only one patch changes at a time, so nothing is missed.
    np.testing.assert_allclose(found, LAYER(x), atol=1e-6)
    # Of small changes none is seen.
    faint = jnp.concatenate([x[:, :1], x[:, :1] + 1e-3], axis=1)
    held, said = gated(PatchGate(threshold=0.3, budget=2), faint)
    np.testing.assert_array_equal(held[:, 1], held[:, 0])
    assert float(said["projected"]) == 9


def test_a_budget_takes_the_most_changed_and_counts_the_others():
    x = jnp.asarray(RNG.uniform(-1, 1, (2, 4, 12, 12, 3)), jnp.float32)
    gate = PatchGate(threshold=0.1, by="l2", budget=4)
    found, said = gated(gate, x)
    whole = LAYER(x).reshape(2, 4, 9, 10)
    patches = np.asarray(x).reshape(2, 4, 3, 4, 3, 4, 3).transpose(0, 1, 2, 4, 3, 5, 6).reshape(2, 4, 9, -1)
    change = np.linalg.norm(np.diff(patches, axis=1) / 2, axis=-1)
    expected = np.array(whole)
    for t in range(1, 4):
        rank = np.argsort(np.argsort(-change[:, t - 1], axis=-1), axis=-1)
        expected[:, t] = np.where((rank < 4)[..., None], whole[:, t], expected[:, t - 1])
    np.testing.assert_allclose(found.reshape(2, 4, 9, 10), expected, atol=1e-5)
    assert float(said["projected"]) == 9 + 3 * 4 and float(said["over"]) == 3 * 5


def test_the_gate_may_look_at_other_pixels_than_those_that_are_projected():
    x = clip()
    scaled = 3 * x + 1
    found, said = gated(PatchGate(threshold=0.3, budget=2), scaled, x)
    np.testing.assert_allclose(found, LAYER(scaled), atol=1e-5)
    assert float(said["projected"]) == 9 + 5
    with pytest.raises(UserError, match="do not divide into patches"):
        gated(PatchGate(), x[:, :, :11])
    with pytest.raises(UserError, match="unknown by of PatchGate 'ssmi'"):
        PatchGate(by="ssmi")

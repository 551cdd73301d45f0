"""Convolutions in time: both ways of computing them, paddings, streaming, resampling, per-frame norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import (
    AdaptiveGroupNorm,
    Convolution,
    DepthToSpace,
    FrameAttention,
    GroupNorm,
    ResidualBlock,
    Stream,
    average_pool,
    blur_pool,
    convolve,
    repeat,
)
from videogen.nn.convolution import EDGE
from videogen.parallel import cpu


def random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("time_padding", [0, 1])
def test_folded_and_direct_convolution_agree_with_gradients(monkeypatch, stride, time_padding):
    x, kernel = random(2, 5, 6, 4, 3), random(3, 3, 3, 3, 2)

    def run(platform: str):
        monkeypatch.setattr(cpu, "target_platform", lambda: platform)

        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel, stride, time_padding)))

        return convolve(x, kernel, stride, time_padding), jax.grad(loss, argnums=(0, 1))(x, kernel)

    for folded, direct in zip(*map(jax.tree.leaves, (run("cpu"), run("tpu"))), strict=True):
        np.testing.assert_allclose(folded, direct, atol=1e-4)


@pytest.mark.parametrize(("dilation", "stride"), [(1, (2, 2, 2)), (3, (1, 1, 1)), (2, (2, 1, 1))])
def test_given_sides_and_taps_that_are_apart(monkeypatch, dilation, stride):
    """Both forms against padding first and a kernel with zeros between its taps."""
    x, kernel = random(2, 9, 6, 5, 3), random(3, 3, 4, 3, 2)
    ends, sides = (1, 2), ((0, 1), (2, 1))
    spread = jnp.zeros((2 * dilation + 1, *kernel.shape[1:])).at[::dilation].set(kernel)
    padded = jnp.pad(x, [(0, 0), ends, *sides, (0, 0)])
    layout = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_general_dilated(padded, spread, stride, "VALID", dimension_numbers=layout)
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(cpu, "target_platform", lambda platform=platform: platform)
        np.testing.assert_allclose(convolve(x, kernel, stride, ends, sides, dilation), expected, atol=1e-4)


@pytest.mark.parametrize("padding", ["zero", "replicate", "same"])
def test_convolution_is_the_sum_over_its_taps(padding):
    x = random(2, 5, 4, 4, 3)
    convolution = Convolution(3, 2, padding=padding, rngs=nnx.Rngs(0))
    convolution.bias.set_value(jnp.array([1.0, -1.0]))
    before = {"zero": jnp.zeros_like(x[:, :2]), "replicate": x[:, [0, 0]], "same": jnp.zeros_like(x[:, :1])}[padding]
    after = [jnp.zeros_like(x[:, :1])] if padding == "same" else []
    padded = jnp.pad(jnp.concatenate([before, x, *after], 1), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = convolution.kernel.get_value()
    taps = [padded[:, i : i + 5, j : j + 4, k : k + 4] @ kernel[i, j, k] for i, j, k in np.ndindex(3, 3, 3)]
    np.testing.assert_allclose(convolution(x), sum(taps) + jnp.array([1.0, -1.0]), atol=1e-5)


def test_both_ends_are_repeated_and_frames_mirrored():
    """A kernel that sums its taps, on frames of which each is one number, and on rows 0, 1, 2."""
    convolution = Convolution(1, 1, padding=EDGE, border="mirror", bias=False, rngs=nnx.Rngs(0))
    convolution.kernel.set_value(jnp.ones((3, 3, 3, 1, 1)))
    frames = jnp.broadcast_to(jnp.asarray([1.0, 2, 4]).reshape(1, 3, 1, 1, 1), (1, 3, 3, 3, 1))
    np.testing.assert_allclose(convolution(frames)[0, :, 1, 1, 0], 9 * np.array([4.0, 7, 10]))
    np.testing.assert_allclose(convolution(frames)[0, :, 0, 0, 0], 9 * np.array([4.0, 7, 10]))
    rows = jnp.broadcast_to(jnp.arange(3.0).reshape(1, 1, 3, 1, 1), (1, 2, 3, 3, 1))
    np.testing.assert_allclose(convolution(rows)[0, 0, :, 1, 0], 9 * np.array([2.0, 3, 4]))


@pytest.mark.parametrize(
    ("operation", "out"),
    [
        (lambda x, s: Convolution(3, 3, padding="replicate", rngs=nnx.Rngs(0))(x, s), 9),
        (lambda x, s: Convolution(3, 3, stride=(2, 1, 1), rngs=nnx.Rngs(0))(x, s), 5),
        (lambda x, s: Convolution(3, 3, (4, 3, 3), stride=(2, 1, 1), rngs=nnx.Rngs(0))(x, s), 5),
        (lambda x, s: blur_pool(x, (2, 1, 1), "replicate", s), 5),
        (lambda x, s: DepthToSpace(3, 3, (3, 3, 3), stride=(2, 1, 1), padding="zero", rngs=nnx.Rngs(0))(x, s), 17),
    ],
)
def test_a_stream_goes_on_where_it_stopped(operation, out):
    x, cache, parts = random(1, 9, 4, 4, 3), None, []
    for start, stop in ((0, 3), (3, 5), (5, 9)):
        stream = Stream(cache)
        parts.append(operation(x[:, start:stop], stream))
        cache = stream.cache
    whole = operation(x, None)
    assert whole.shape[1] == out
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
@pytest.mark.parametrize("padding", ["zero", "replicate"])
def test_a_blurred_stream_equals_the_whole_for_every_stride_in_time(stride, padding):
    x, cache, parts = random(1, 1 + 4 * stride, 2, 2, 3), None, []
    for start, stop in ((0, 1 + stride), (1 + stride, 1 + 2 * stride), (1 + 2 * stride, 1 + 4 * stride)):
        stream = Stream(cache)
        parts.append(blur_pool(x[:, start:stop], (stride, 1, 1), padding, stream))
        cache = stream.cache
    whole = blur_pool(x, (stride, 1, 1), padding)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-6)
    # Frame 2·stride and the two before it.
    expected = 0.25 * x[:, 2 * stride - 2] + 0.5 * x[:, 2 * stride - 1] + 0.25 * x[:, 2 * stride]
    np.testing.assert_allclose(whole[:, 2], expected, atol=1e-6)


def test_group_norm_keeps_its_digits_far_from_zero():
    """A mean a thousand deviations away takes three of seven digits, not all of them."""
    x = 1000 + random(2, 1, 8, 8, 4)
    exact = np.asarray(x, np.float64).reshape(2, 64, 2, 2)
    expected = (exact - exact.mean((1, 3), keepdims=True)) / exact.std((1, 3), keepdims=True)
    np.testing.assert_allclose(GroupNorm(4, groups=2, rngs=nnx.Rngs(0))(x), expected.reshape(x.shape), atol=5e-4)


def test_group_norm_normalises_every_frame_alone():
    x = random(2, 3, 4, 5, 6) * jnp.arange(1.0, 4.0)[None, :, None, None, None] + 2
    norm = GroupNorm(6, groups=2, rngs=nnx.Rngs(0))
    norm.scale.set_value(jnp.arange(6.0))
    norm.shift.set_value(jnp.ones(6))
    groups = np.asarray(x).reshape(2, 3, 20, 2, 3)
    mean, std = groups.mean((2, 4), keepdims=True), groups.std((2, 4), keepdims=True)
    expected = ((groups - mean) / std).reshape(x.shape) * np.arange(6.0) + 1
    np.testing.assert_allclose(norm(x), expected, atol=1e-4)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_group_norm_over_time_normalises_all_frames_together():
    x = random(2, 3, 4, 5, 6) * jnp.arange(1.0, 4.0)[None, :, None, None, None] + 2
    groups = np.asarray(x).reshape(2, 60, 2, 3)
    mean, std = groups.mean((1, 3), keepdims=True), groups.std((1, 3), keepdims=True)
    found = GroupNorm(6, groups=2, over_time=True, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(found, ((groups - mean) / std).reshape(x.shape), atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_border_repeats_the_outermost_places(stride):
    layer = Convolution(2, 3, stride=(1, stride, stride), border="replicate", rngs=nnx.Rngs(0))
    inside = Convolution(2, 3, stride=(1, stride, stride), sides=((0, 0), (0, 0)), rngs=nnx.Rngs(0))
    x = random(1, 2, 4, 6, 2)
    around = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    np.testing.assert_allclose(layer(x), inside(jnp.asarray(around)), atol=1e-6)


def test_attention_to_the_past_sees_the_frame_and_earlier_ones():
    layer = FrameAttention(4, groups=2, past=True, rngs=nnx.Rngs(0))
    x = random(1, 3, 2, 2, 4)
    expected = []
    for i in range(3):
        y = layer.norm(x[:, : i + 1]).reshape(1, -1, 4)
        expected.append(x[:, i] + layer.attention(y)[:, -4:].reshape(1, 2, 2, 4))
    np.testing.assert_allclose(layer(x), jnp.stack(expected, 1), atol=1e-5)


def test_resampling_keeps_constants_and_counts_places():
    constant = jnp.full((1, 4, 6, 8, 2), 0.7)
    for pooled in (blur_pool(constant, (2, 2, 2)), average_pool(constant, (2, 2, 2))):
        assert pooled.shape == (1, 2, 3, 4, 2)
        np.testing.assert_allclose(pooled, 0.7, rtol=1e-6)
    assert blur_pool(constant[:, :1], (2, 2, 2)).shape == (1, 1, 3, 4, 2)
    x = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
    assert repeat(x, (2, 1, 2), drop_first=True)[0, :, 0, :, 0].tolist() == [[0, 0], [1, 1], [1, 1], [2, 2], [2, 2]]
    assert repeat(x, (2, 1, 1), drop_first=False).ravel().tolist() == [0, 0, 1, 1, 2, 2]


def test_blur_removes_what_would_alias():
    stripes = jnp.tile(jnp.array([1.0, -1.0]), 8).reshape(1, 1, 1, 16, 1)
    assert jnp.abs(blur_pool(stripes, (1, 1, 2))[..., 1:-1, :]).max() < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": "reflect"}, "unknown time padding"),
        ({"border": "wrap"}, "unknown border"),
        ({"stride": (4, 1, 1)}, "stride of 4 frames"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Convolution(3, 3, rngs=nnx.Rngs(0), **settings)


def test_adaptive_norm_scales_and_shifts_by_its_condition():
    norm = AdaptiveGroupNorm(4, 3, groups=2, factors=(1, 2, 2), rngs=nnx.Rngs(0))
    norm.modulation.kernel.set_value(random(3, 8))
    x, condition = random(2, 3, 4, 4, 4), random(2, 3, 2, 2, 3)
    scale, shift = np.split(np.asarray(condition @ random(3, 8)).repeat(2, 2).repeat(2, 3), 2, axis=-1)
    expected = np.asarray(norm.norm(x)) * (1 + scale) + shift
    np.testing.assert_allclose(norm(x, condition), expected, rtol=1e-4, atol=1e-5)


def test_absolute_adaptive_norm_multiplies_by_what_the_condition_gives():
    norm = AdaptiveGroupNorm(4, 3, groups=2, factors=(2, 1, 1), absolute=True, over_time=True, rngs=nnx.Rngs(0))
    norm.norm.scale.set_value(random(4))
    x = random(2, 5, 4, 4, 4)
    condition = jnp.broadcast_to(random(1, 3, 1, 1, 3), (2, 3, 4, 4, 3))
    # Of three frames the first stands for one, the others for two each.
    seen = np.asarray(norm.modulation(condition))[:, [0, 1, 1, 2, 2]]
    expected = np.asarray(norm.norm(x)) * seen[..., :4] + seen[..., 4:]
    np.testing.assert_allclose(norm(x, condition), expected, rtol=1e-4, atol=1e-5)
    # Of an even number every one stands for two.
    assert norm(random(2, 4, 4, 4, 4), condition[:, :2]).shape == (2, 4, 4, 4, 4)


def test_a_residual_block_whose_norms_learn_nothing():
    block = ResidualBlock(4, 4, groups=0, affine=False, border="mirror", padding=EDGE, rngs=nnx.Rngs(0))
    assert block.first_norm.scale is None and block.second_norm.scale is None
    assert block.first.border == block.second.border == "mirror" and block.first.padding == EDGE
    # The norm makes all lengths equal, so that the branch beside the skip path is the same.
    x = random(1, 2, 4, 4, 4)
    np.testing.assert_allclose(block(x) - x, block(8 * x) - 8 * x, atol=1e-4)


@pytest.mark.parametrize("outputs", [4, 6])
def test_a_residual_block_written_out(outputs):
    block = ResidualBlock(4, outputs, groups=2, rngs=nnx.Rngs(0))
    x = random(2, 3, 4, 4, 4)
    y = block.first(jax.nn.swish(block.first_norm(x)))
    y = block.second(jax.nn.swish(block.second_norm(y)))
    np.testing.assert_allclose(block(x), (x if outputs == 4 else block.skip(x)) + y, rtol=1e-5, atol=1e-6)
    assert (block.skip is None) == (outputs == 4) and block.first.bias is None


SHARED_COLUMNS = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from videogen.nn.convolution import Convolution
from videogen.parallel import activation_spec, batch_sharding, make_mesh
plain, halving = {"size": (3, 3, 3)}, {"size": (1, 3, 3), "stride": (1, 2, 2)}
layers = [Convolution(6, 6, **each, rngs=nnx.Rngs(0)) for each in (plain, halving, plain, plain)]
graph, params = nnx.split(nnx.List(layers))
x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4, 4, 6)), jnp.float32)
def loss(params, x):
    for layer in nnx.merge(graph, params):
        x = jax.nn.silu(layer(x))
    return jnp.mean(jnp.sin(x) ** 2)
step = lambda *given: jax.jit(jax.value_and_grad(loss, (0, 1)))(*given)
expected, mesh = step(params, x), make_mesh({"data": 2, "context": 2})
with jax.set_mesh(mesh):
    found = step(params, jax.device_put(x, batch_sharding(mesh, 2)))
    print([activation_spec(("height", "width"), (8, size))[1] for size in (2, 3, 4, 6)])
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * abs(b).max())
print("equal")
"""


def test_shared_columns_have_the_gradients_of_one_device(run_python):
    """Of 4 and 2 columns: where each device got a single one, gradients were wrong by more than their size."""
    result = run_python(SHARED_COLUMNS, devices=4)
    assert result.stdout.splitlines() == ["[None, None, 'context', 'context']", "equal"], result.stderr

"""The discriminator: any size, blur that keeps constants, independent examples, gradients everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.losses import StyleDiscriminator, VideoDiscriminator, r1_penalty
from videogen.losses.discriminators import Conv2D, ResidualBlock, VideoBlock, activation, blur
from videogen.nn import blur_pool


@functools.cache
def discriminator(height: int, width: int, dtype=jnp.float32) -> StyleDiscriminator:
    return StyleDiscriminator(height, width, channel_multiplier=1 / 128, dtype=dtype, rngs=nnx.Rngs(0))


def images(height: int, width: int, batch: int = 3) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, height, width, 3), minval=-1)


@pytest.mark.parametrize("size", [(16, 16), (32, 64), (17, 33)])
def test_one_logit_per_image_of_any_size(size):
    logits = jax.jit(discriminator(*size))(images(*size))
    assert logits.shape == (3,) and jnp.isfinite(logits).all()


def test_logits_are_float32_under_bfloat16():
    half = jax.jit(discriminator(16, 16, jnp.bfloat16))(images(16, 16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, jax.jit(discriminator(16, 16))(images(16, 16)), atol=0.05)


def test_an_image_is_judged_on_its_own():
    model, batch = jax.jit(discriminator(16, 16)), images(16, 16)
    changed = batch.at[0].set(-batch[0])
    logits, other = model(batch), model(changed)
    np.testing.assert_allclose(logits[1:], other[1:], rtol=1e-5)
    assert abs(float(logits[0] - other[0])) > 1e-4


def test_gradient_reaches_every_parameter_and_every_pixel():
    graph, state = nnx.split(discriminator(17, 33))
    batch = images(17, 33)

    def loss(state, batch):
        return jnp.sum(jnp.sin(nnx.merge(graph, state)(batch)))

    to_state, to_images = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_state):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    assert jnp.abs(to_images).max(axis=(0, 3)).min() > 0


def test_gradient_penalty_trains_the_discriminator():
    graph, state = nnx.split(discriminator(16, 16))
    batch = images(16, 16)
    gradient = jax.jit(jax.grad(lambda s: r1_penalty(nnx.merge(graph, s), batch)))(state)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert jnp.abs(gradient["from_rgb"]["kernel"].get_value()).max() > 0


def test_channels_follow_the_multiplier_up_to_the_maximum():
    model = nnx.eval_shape(lambda: StyleDiscriminator(256, 256, rngs=nnx.Rngs(0)))
    widths = [block.second.kernel.get_value().shape[-2:] for block in model.blocks]
    assert widths == [(64, 128), (128, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    narrow = nnx.eval_shape(
        lambda: StyleDiscriminator(64, 64, channel_multiplier=0.5, maximum_channels=160, rngs=nnx.Rngs(0))
    )
    assert [block.second.kernel.get_value().shape[-1] for block in narrow.blocks] == [160] * 4
    assert narrow.from_rgb.kernel.get_value().shape[-1] == 128


def test_refuses_small_and_other_sizes():
    with pytest.raises(UserError, match="at least 16"):
        discriminator(8, 32)
    with pytest.raises(UserError, match="frames of 16×16×3, got 16×20×3"):
        discriminator(16, 16)(images(16, 20))


def test_blur_keeps_constants_and_equals_a_convolution():
    constant = blur(jnp.full((1, 9, 8, 2), 0.7), padding=0)
    np.testing.assert_allclose(constant, 0.7, rtol=1e-6)
    x = np.asarray(images(9, 8))
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(kernel[i, j] * padded[:, i : i + 8, j : j + 7] for i in range(4) for j in range(4))
    np.testing.assert_allclose(blur(x, padding=1), expected, atol=1e-6)
    np.testing.assert_allclose(blur(x, padding=1, stride=2), expected[:, ::2, ::2], atol=1e-6)


def test_conv2d_equals_sums_over_taps():
    conv = Conv2D(3, 4, 3, stride=2, padding=1, rngs=nnx.Rngs(0))
    x = images(7, 8)
    conv.bias.set_value(jnp.arange(4.0))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = conv.kernel.get_value()
    taps = [padded[:, i : i + 7 : 2, j : j + 8 : 2] @ kernel[i, j] for i in range(3) for j in range(3)]
    np.testing.assert_allclose(conv(x), sum(taps) + jnp.arange(4.0), atol=1e-5)


@pytest.mark.slow
def test_a_video_discriminator_judges_clips_of_any_length_by_all_their_frames():
    model = VideoDiscriminator(8, 8, channels=4, multipliers=(1, 2), rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    clips = jax.random.uniform(jax.random.key(1), (2, 5, 8, 8, 3), minval=-1)
    assert model(clips[:, :1]).shape == (2,)

    def loss(state, clips):
        return jnp.sum(jnp.sin(nnx.merge(graph, state)(clips)))

    to_state, to_clips = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, clips)
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_state):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    assert jnp.abs(to_clips).max(axis=(2, 3, 4)).min() > 0
    # The penalty is the gradient of a gradient of the convolutions.
    penalty = jax.jit(jax.grad(lambda s: r1_penalty(nnx.merge(graph, s), clips)))(state)
    assert jnp.abs(penalty["input"]["kernel"].get_value()).max() > 0
    with pytest.raises(UserError, match="frames of 8×8×3"):
        model(clips[:, :, :4])


def test_the_activation_has_slope_a_fifth_and_keeps_the_variance():
    np.testing.assert_allclose(
        activation(jnp.array([-1.0, 0.0, 2.0])), np.sqrt(2) * np.array([-0.2, 0.0, 2.0]), rtol=1e-6
    )


def test_a_video_block_is_two_blurred_paths_over_the_root_of_two():
    block = VideoBlock(3, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3))
    path = activation(block.second(blur_pool(activation(block.first(x)), (2, 2, 2))))
    expected = (path + block.skip(blur_pool(x, (2, 2, 2)))) / np.sqrt(2)
    np.testing.assert_allclose(block(x), expected, rtol=1e-5, atol=1e-6)


def test_a_residual_block_is_two_blurred_paths_over_the_root_of_two():
    block = ResidualBlock(3, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    path = activation(block.second(blur(activation(block.first(x)), padding=2)))
    expected = (path + block.skip(blur(x, padding=1, stride=2))) / np.sqrt(2)
    np.testing.assert_allclose(block(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [StyleDiscriminator, VideoDiscriminator])
def test_every_layer_but_the_last_computes_in_the_dtype_asked_for(make):
    settings = {"channel_multiplier": 1 / 128} if make is StyleDiscriminator else {"channels": 2, "multipliers": (1, 2)}
    model = nnx.eval_shape(lambda: make(16, 16, **settings, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    layers = [(path, m) for path, m in nnx.iter_modules(model) if hasattr(m, "dtype")]
    assert len(layers) > 5
    for path, layer in layers:
        assert layer.dtype == (jnp.float32 if path == ("logit",) else jnp.bfloat16), path

"""Residual quantization: sums, gradients of every level, dropout, and vector-quantize-pytorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.quantizers.training import train
from videogen.errors import UserError
from videogen.quantizers import FiniteScalarQuantizer, ResidualQuantizer, build

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("vector_quantize_pytorch")

SIZE, WIDTH, LEVELS = 8, 4, 3
VQ = {"name": "vq", "size": SIZE, "width": WIDTH, "cosine": False, "codebook_update": "gradient"}


def make(base=VQ, levels=LEVELS, **settings) -> ResidualQuantizer:
    return build({"name": "residual", "base": base, "levels": levels, **settings}, rngs=nnx.Rngs(0))


def latents(count: int = 20) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, count, WIDTH))


def test_error_never_grows_where_every_codebook_has_the_zero_vector():
    quantizer = make()
    for level in quantizer.quantizers:
        level.codebook.set_value(level.codebook.get_value().at[0].set(0.0))
    ids = quantizer(latents()).indices
    errors = [jnp.sum((latents() - quantizer.lookup(ids[..., :n])) ** 2, -1) for n in range(LEVELS + 1)]
    for before, after in zip(errors[:-1], errors[1:], strict=True):
        assert (after <= before + 1e-5).all()
    assert errors[-1].mean() < 0.9 * errors[0].mean()


def test_first_levels_decode_to_the_truncated_sum():
    quantizer = make()
    ids = quantizer(latents()).indices
    total = 0
    for n, level in enumerate(quantizer.quantizers):
        total = total + level.lookup(ids[..., n : n + 1])
        np.testing.assert_allclose(quantizer.lookup(ids[..., : n + 1]), total, atol=1e-6)


def test_commitment_of_every_level_reaches_the_latents():
    """d commitment_m / dz = 2 β (residual after m) / n, for every level."""
    quantizer = make()
    ids = quantizer(latents()).indices
    gradient = jax.grad(lambda z: quantizer(z).losses["commitment"])(latents())
    left = [latents() - quantizer.lookup(ids[..., : m + 1]) for m in range(LEVELS)]
    np.testing.assert_allclose(gradient, 0.25 * 2 * sum(left) / latents().size, atol=1e-6)


def test_one_straight_through_gradient_for_the_sum():
    quantizer, z = make(), latents()[0, 0]
    np.testing.assert_allclose(jax.jacobian(lambda z: quantizer(z).latents)(z), np.eye(WIDTH), atol=1e-6)


def test_every_codebook_learns():
    quantizer = make()
    graph, params = nnx.split(quantizer)
    gradient = jax.grad(lambda p: nnx.merge(graph, p)(latents()).losses["codebook"])(params)
    for m in range(LEVELS):
        assert jnp.abs(gradient["quantizers"][m]["codebook"].get_value()).max() > 0


def test_dropout_keeps_first_levels_of_whole_clips_in_training_only():
    quantizer = make(dropout=1.0)
    z = jax.random.normal(jax.random.key(0), (40, 5, WIDTH))
    quantized = quantizer(z, key=jax.random.key(0), train=True)
    sums = np.stack([quantizer.lookup(quantized.indices[..., :n]) for n in range(1, LEVELS + 1)])
    kept = np.abs(sums - quantized.latents).max(-1) < 1e-5  # [levels, clips, tokens]
    assert kept.any(0).all()
    assert (kept == kept[:, :, :1]).all(), "all places of a clip keep the same levels"
    assert set(kept[:, :, 0].argmax(0)) == set(range(LEVELS))
    np.testing.assert_array_equal(quantizer(z).latents, quantizer.lookup(quantizer(z).indices))
    with pytest.raises(UserError, match="random key"):
        quantizer(z, train=True)


def test_half_the_clips_are_dropped_at_one_half():
    quantizer = make(dropout=0.5, levels=4)
    kept = quantizer.kept_levels(4000, jax.random.key(0)).sum(-1)
    np.testing.assert_allclose(np.bincount(kept, minlength=5) / 4000, [0, 0.125, 0.125, 0.125, 0.625], atol=0.03)


def test_values_losses_and_gradients_equal_the_oracle():
    quantizer = make(VQ | {"commitment_weight": 1.0})
    library = oracle.ResidualVQ(
        dim=WIDTH, codebook_size=SIZE, num_quantizers=LEVELS, learnable_codebook=True, ema_update=False,
        in_place_codebook_optimizer=None, rotation_trick=False, commitment_weight=1.0,
    )  # fmt: skip
    with torch.no_grad():
        for ours, theirs in zip(quantizer.quantizers, library.layers, strict=True):
            theirs._codebook.embed.copy_(torch.tensor(np.asarray(ours.codebook.get_value()))[None])
    z = np.array(latents())
    weight = np.random.default_rng(0).normal(size=z.shape).astype(np.float32)
    leaf = torch.tensor(z, requires_grad=True)
    codes, indices, losses = library.train()(leaf)
    # The library's loss of a level is its commitment, whose codes are not held, so it teaches the codebook too.
    ((codes * torch.tensor(weight)).sum() + losses.sum()).backward()

    def total(z):
        quantized = quantizer(z)
        return jnp.sum(quantized.latents * weight) + quantized.losses["commitment"], quantized

    gradient, quantized = jax.grad(total, has_aux=True)(jnp.asarray(z))
    np.testing.assert_array_equal(quantized.indices, indices.numpy())
    np.testing.assert_allclose(quantized.latents, codes.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(quantized.losses["commitment"], float(losses.detach().sum()), rtol=1e-5)
    np.testing.assert_allclose(quantized.losses["codebook"], float(losses.detach().sum()), rtol=1e-5)
    # The library passes the gradient of the sum once for each level, and not once.
    expected = leaf.grad.numpy() - (LEVELS - 1) * weight
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(weight).max())


def test_scaled_scalar_levels_refine_and_equal_the_oracle():
    """Residual FSQ: with 5 levels a cell is a quarter of the range; the library takes a fifth, and a soft clamp."""
    base = {"name": "fsq", "levels": [5, 5, 5], "bound": "clamp"}
    z = np.random.default_rng(0).uniform(-1, 1, (2, 50, 3)).astype(np.float32)
    assert jnp.abs(make(base, scale=0.25)(jnp.asarray(z)).latents - z).max() <= 0.25**LEVELS + 1e-6
    quantized = make(base, scale=0.2)(jnp.asarray(z))
    library = oracle.ResidualFSQ(levels=[5, 5, 5], num_quantizers=LEVELS, dim=3)
    codes, indices = library(torch.tensor(1.25 * np.arctanh(z / 1.25)))
    np.testing.assert_array_equal(quantized.indices, indices.numpy())
    np.testing.assert_allclose(quantized.latents, codes.detach().numpy(), atol=1e-6)


def test_one_level_is_its_base():
    base = FiniteScalarQuantizer([3, 4], bound="clamp")
    quantizer = make({"name": "fsq", "levels": [3, 4], "bound": "clamp"}, levels=1)
    z = latents()[..., :2]
    np.testing.assert_array_equal(quantizer(z).indices, base(z).indices)
    np.testing.assert_array_equal(quantizer(z).latents, base(z).latents)


def test_moving_averages_of_every_level_follow_their_residuals():
    quantizer = make(VQ | {"codebook_update": "ema", "decay": 0.5})
    z = latents(40)
    first = float(jnp.mean((quantizer(z).latents - z) ** 2))
    step = nnx.jit(lambda quantizer, z: train(quantizer, z).latents)
    for _ in range(15):
        step(quantizer, z)
    assert float(jnp.mean((quantizer(z).latents - z) ** 2)) < 0.6 * first

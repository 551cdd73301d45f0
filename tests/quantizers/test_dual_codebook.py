"""Two codebooks under one id: brute force, limits of the weight, first steps, and the k-means start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.quantizers import build
from videogen.quantizers.dual_codebook import spherical_means

DUAL = {"name": "dual_codebook", "size": 24, "widths": (5, 3)}


def make(**settings) -> nnx.Module:
    return build(DUAL | settings, rngs=nnx.Rngs(0))


def latents(seed: int = 1, shape=(2, 7, 8)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tables(quantizer) -> tuple[np.ndarray, np.ndarray]:
    codebook = np.asarray(quantizer.codebook.get_value(), np.float64)
    return unit(codebook[:, :5]), unit(codebook[:, 5:])


def distances(quantizer, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of every latent to all codes of each table, one by one."""
    semantic, pixel = tables(quantizer)
    z = z.reshape(-1, 8).astype(np.float64)
    pairs = (unit(z[:, :5]), semantic), (unit(z[:, 5:]), pixel)
    return tuple(((half[:, None] - table) ** 2).sum(-1) for half, table in pairs)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 7.0, 1e6])
def test_the_id_has_the_smallest_sum_of_both_distances(weight):
    quantizer = make(pixel_weight=weight)
    semantic, pixel = distances(quantizer, latents())
    expected = np.argmin(semantic + weight * pixel, axis=-1)
    np.testing.assert_array_equal(quantizer(latents()).indices.reshape(-1), expected)
    # At the ends one table alone decides.
    if weight in (0.0, 1e6):
        np.testing.assert_array_equal(expected, np.argmin(pixel if weight else semantic, axis=-1))


def test_one_id_gathers_from_both_tables_semantics_first():
    quantizer = make()
    quantized = quantizer(latents())
    ids = np.asarray(quantized.indices)[..., 0]
    semantic, pixel = tables(quantizer)
    np.testing.assert_allclose(quantized.latents, np.concatenate([semantic[ids], pixel[ids]], axis=-1), atol=1e-6)
    np.testing.assert_array_equal(quantized.latents, quantizer.lookup(quantized.indices))
    assert quantizer.vocabulary == (24,) and quantizer.width == quantizer.input_width == 8


def test_the_length_of_either_half_says_nothing():
    quantizer, scale = make(), np.float32([4.0] * 5 + [0.25] * 3)
    a, b = quantizer(latents()), quantizer(latents() * scale)
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_allclose(a.losses["commitment"], b.losses["commitment"], rtol=1e-5)


def test_losses_are_means_over_both_halves():
    quantizer = make(commitment_weight=0.5)
    semantic, pixel = distances(quantizer, latents())
    nearest = np.argmin(semantic + pixel, axis=-1)[:, None]
    expected = (np.take_along_axis(semantic, nearest, 1) + np.take_along_axis(pixel, nearest, 1)).mean() / 8
    losses = quantizer(latents()).losses
    np.testing.assert_allclose(losses["codebook"], expected, rtol=1e-5)
    np.testing.assert_allclose(losses["commitment"], 0.5 * expected, rtol=1e-5)


def test_in_a_step_of_plain_gradients_the_used_rows_of_both_tables_move_and_no_others():
    """Case 6: a codebook that learns nothing behind a straight-through output would go unnoticed."""
    quantizer = make()
    graph, state = nnx.split(quantizer)

    def loss(state):
        return sum(nnx.merge(graph, state)(latents()).losses.values())

    gradient = np.asarray(jax.grad(loss)(state)["codebook"].get_value())
    used = np.isin(np.arange(24), quantizer(latents()).indices)
    assert 2 < used.sum() < 24
    for half in (gradient[:, :5], gradient[:, 5:]):
        np.testing.assert_array_equal(np.abs(half).max(-1) > 0, used)


def test_straight_through_gradients_reach_both_halves_and_not_the_tables():
    quantizer = make()
    graph, state = nnx.split(quantizer)
    weight = latents(3)

    def loss(z, state):
        return jnp.sum(nnx.merge(graph, state)(z).latents * weight)

    to_latents, to_tables = jax.grad(loss, argnums=(0, 1))(jnp.asarray(latents()), state)
    # Through the unit vectors alone: orthogonal to each half, (w - u (u·w)) / |z|.
    for half in (slice(0, 5), slice(5, 8)):
        z, w = latents()[..., half], weight[..., half]
        u, length = unit(z), np.linalg.norm(z, axis=-1, keepdims=True)
        np.testing.assert_allclose(to_latents[..., half], (w - u * (u * w).sum(-1, keepdims=True)) / length, atol=1e-5)
    assert not np.any(to_tables["codebook"].get_value())


def first_update(quantizer, z: np.ndarray) -> None:
    found = quantizer(jnp.asarray(z), train=True)
    quantizer.update(found.update_sums, found.candidates, jax.random.key(5))


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_semantic_table_begins_with_means_once(update):
    """Two directions, many copies: every code becomes one of them; then only gradients or averages move it."""
    quantizer = make(kmeans=4, codebook_update=update)
    directions = unit(latents(2, (2, 5)))
    z = np.concatenate([directions[np.arange(60) % 2], latents(4, (60, 3))], axis=-1)[None]
    before = tables(quantizer)
    first_update(quantizer, z)
    assert int(quantizer.started.get_value()) == 1
    semantic, pixel = tables(quantizer)
    nearest = np.argmin(((semantic[:, None] - directions) ** 2).sum(-1), axis=-1)
    np.testing.assert_allclose(semantic, directions[nearest], atol=1e-5)
    assert set(nearest) == {0, 1}
    if update == "gradient":
        np.testing.assert_allclose(pixel, before[1], atol=1e-6)
        first_update(quantizer, latents(6))
        np.testing.assert_allclose(tables(quantizer)[0], semantic, atol=1e-6)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_start_is_not_lost_in_the_next_step(update):
    """Case 3: 100 vectors equal to a code; after start and one more update the code is still that."""
    quantizer = make(size=4, kmeans=3, codebook_update=update, decay=0.99)
    z = np.broadcast_to(latents(2, (8,)), (1, 100, 8))
    first_update(quantizer, z)
    first_update(quantizer, z)
    np.testing.assert_allclose(tables(quantizer)[0], np.broadcast_to(unit(z[0, 0, :5]), (4, 5)), atol=1e-5)


def test_padding_is_in_no_mean_of_the_start():
    far, near = unit(latents(2, (2, 5)))
    z = np.concatenate([np.where(np.arange(40)[:, None] % 2, far, near), latents(4, (40, 3))], axis=-1)[None]
    quantizer = make(kmeans=3)
    found = quantizer(jnp.asarray(z), train=True, exists=jnp.arange(40)[None] % 2 == 1)
    quantizer.update(found.update_sums, found.candidates, jax.random.key(5))
    np.testing.assert_allclose(tables(quantizer)[0], np.broadcast_to(far, (24, 5)), atol=1e-5)


def test_means_are_those_of_lloyds_rounds():
    vectors, weights = unit(latents(8, (30, 4))), np.ones(30, np.float32)
    start = np.asarray(spherical_means(vectors, weights, 3, 0, jax.random.key(0)))
    for _ in range(2):
        ids = np.argmax(vectors @ start.T, axis=-1)
        start = np.stack([unit(vectors[ids == k].sum(0)) if (ids == k).any() else start[k] for k in range(3)])
    np.testing.assert_allclose(spherical_means(vectors, weights, 3, 2, jax.random.key(0)), start, atol=1e-5)


def test_what_cannot_be_is_refused():
    for wrong in ({"widths": (5,)}, {"widths": (5, 0)}, {"pixel_weight": -1.0}, {"size": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} of quantizer"):
            make(**wrong)

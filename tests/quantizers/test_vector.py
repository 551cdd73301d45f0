"""Vector quantization: nearest codes, gradients, moving averages and the restart of dead codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.quantizers.training import train
from videogen.errors import UserError
from videogen.losses.entropy import entropy_penalty
from videogen.quantizers import VectorQuantizer
from videogen.quantizers.vector import poorly_coded

SIZE, WIDTH = 6, 3


def make(**settings) -> VectorQuantizer:
    return VectorQuantizer(SIZE, WIDTH, rngs=nnx.Rngs(0), **settings)


def latents(count: int = 40) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (2, count // 2, WIDTH))


def unit(x) -> np.ndarray:
    return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_euclidean_codes_are_the_nearest(update):
    quantizer = make(cosine=False, codebook_update=update)
    codes = np.asarray(quantizer.codebook.get_value())
    distance = ((np.asarray(latents())[..., None, :] - codes) ** 2).sum(-1)
    quantized = quantizer(latents())
    np.testing.assert_array_equal(quantized.indices[..., 0], distance.argmin(-1))
    np.testing.assert_array_equal(quantized.latents, codes[distance.argmin(-1)])


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_cosine_codes_have_the_smallest_angle_and_unit_length(update):
    quantizer = make(codebook_update=update)
    codes = 3 * jax.random.normal(jax.random.key(5), (SIZE, WIDTH))
    quantizer.codebook.set_value(codes)
    quantized = quantizer(latents())
    np.testing.assert_array_equal(quantized.indices[..., 0], (unit(latents()) @ unit(codes).T).argmax(-1))
    np.testing.assert_allclose(np.linalg.norm(quantized.latents, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(quantizer(7 * latents()).indices, quantized.indices)


def test_straight_through_gradient_is_the_identity():
    quantizer, z = make(cosine=False), latents()[0, 0]
    np.testing.assert_array_equal(jax.jacobian(lambda z: quantizer(z).latents)(z), np.eye(WIDTH))


def test_straight_through_gradient_of_cosine_codes_is_that_of_the_normalisation():
    quantizer, z = make(), latents()[0, 0]
    u, norm = unit(z), float(jnp.linalg.norm(z))
    expected = (np.eye(WIDTH) - np.outer(u, u)) / norm
    np.testing.assert_allclose(jax.jacobian(lambda z: quantizer(z).latents)(z), expected, atol=1e-5)


def losses(quantizer):
    graph, state = nnx.split(quantizer)
    return lambda state, z: nnx.merge(graph, state)(z).losses, state


def test_commitment_pulls_the_latents_only():
    quantizer, z = make(cosine=False, codebook_update="gradient", commitment_weight=0.25), latents()
    evaluate, state = losses(quantizer)
    to_state, to_z = jax.grad(lambda s, z: evaluate(s, z)["commitment"], argnums=(0, 1))(state, z)
    np.testing.assert_allclose(to_z, 2 * 0.25 * (z - quantizer(z).latents) / z.size, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(to_state["codebook"].get_value(), 0)


def test_codebook_loss_pulls_the_used_codes_only():
    quantizer, z = make(cosine=False, codebook_update="gradient"), latents()
    evaluate, state = losses(quantizer)
    to_state, to_z = jax.grad(lambda s, z: evaluate(s, z)["codebook"], argnums=(0, 1))(state, z)
    np.testing.assert_array_equal(to_z, 0)
    ids = np.asarray(quantizer(z).indices).ravel()
    expected = np.zeros((SIZE, WIDTH))
    np.add.at(expected, ids, 2 * (quantizer.codebook.get_value()[ids] - z.reshape(-1, WIDTH)) / z.size)
    np.testing.assert_allclose(to_state["codebook"].get_value(), expected, atol=1e-6)


@pytest.mark.parametrize("cosine", [True, False])
def test_averages_take_no_gradient_and_have_no_codebook_loss(cosine):
    quantizer = make(cosine=cosine)
    assert set(quantizer(latents()).losses) == {"commitment"}
    assert not jax.tree.leaves(nnx.state(quantizer, nnx.Param))


@pytest.mark.parametrize("cosine", [True, False])
def test_moving_averages_written_out(cosine):
    """Three steps against a loop over single latents."""
    quantizer = make(cosine=cosine, decay=0.8)
    codes, counts, sums = np.array(quantizer.codebook.get_value()), np.zeros(SIZE), np.zeros((SIZE, WIDTH))
    for step in range(3):
        z = np.array(jax.random.normal(jax.random.key(step), (11, WIDTH)))
        train(quantizer, jnp.asarray(z))
        z = unit(z) if cosine else z
        ids = [int(np.argmin(((row - codes) ** 2).sum(-1))) for row in z]
        counts, sums = 0.8 * counts, 0.8 * sums
        for row, i in zip(z, ids, strict=True):
            counts[i] += 0.2
            sums[i] += 0.2 * row
        smoothed = (counts + 1e-5) / (counts.sum() + SIZE * 1e-5) * counts.sum()
        codes = np.where(counts[:, None] > 0, sums / smoothed[:, None], codes)
        codes = unit(codes) if cosine else codes
        np.testing.assert_allclose(quantizer.codebook.get_value(), codes, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(quantizer.counts.get_value(), counts, rtol=1e-5)


def test_averages_converge_to_the_cluster_means_and_smoothing_keeps_the_total():
    quantizer = make(cosine=False, decay=0.5)
    centres = 10 * np.eye(SIZE, WIDTH) + 5 * np.eye(SIZE, WIDTH, -3) + np.arange(SIZE)[:, None] * 3
    quantizer.codebook.set_value(jnp.asarray(centres + 0.3, jnp.float32))
    noise = 0.1 * np.random.default_rng(0).normal(size=(SIZE, 20, WIDTH))
    z = jnp.asarray(centres[:, None] + noise, jnp.float32)
    for _ in range(30):
        quantized = train(quantizer, z)
    np.testing.assert_array_equal(quantized.indices[..., 0], np.arange(SIZE)[:, None].repeat(20, 1))
    np.testing.assert_allclose(quantizer.codebook.get_value(), z.mean(1), rtol=1e-4)
    smoothed = np.asarray(quantizer.sums.get_value() / quantizer.codebook.get_value())
    np.testing.assert_allclose(smoothed.sum(0), float(quantizer.counts.get_value().sum()), rtol=1e-5)


@pytest.mark.parametrize("cosine", [True, False])
def test_a_code_that_was_never_used_keeps_its_place(cosine):
    quantizer = make(cosine=cosine)
    before = np.array(quantizer.codebook.get_value())
    z = jnp.asarray(before[:2]).repeat(4, 0)
    train(quantizer, z)
    np.testing.assert_allclose(quantizer.codebook.get_value()[2:], before[2:], atol=1e-6)


@pytest.mark.parametrize("cosine", [True, False])
def test_a_code_no_longer_used_keeps_its_place(cosine):
    """5,000 steps without a use: long after its averages have vanished in float32."""
    quantizer = make(cosine=cosine)
    start = quantizer.codebook.get_value()
    train(quantizer, start)
    graph, state = nnx.split(quantizer)

    @jax.jit
    def many(state):
        def step(_, state):
            quantizer = nnx.merge(graph, state)
            train(quantizer, start[:1])
            return nnx.state(quantizer)

        return jax.lax.fori_loop(0, 5000, step, state)

    quantizer = nnx.merge(graph, many(state))
    assert float(quantizer.counts.get_value()[1]) < 1e-20
    np.testing.assert_allclose(quantizer.lookup(jnp.arange(SIZE)[:, None]), start, rtol=0.02)


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("cosine", [True, False])
def test_restart_replaces_exactly_the_dead_codes(cosine, update):
    settings = {"cosine": cosine, "codebook_update": update, "decay": 0.5}
    quantizer = make(restart_threshold=0.75, **settings)
    untouched = make(**settings)
    z = jnp.asarray(quantizer.codebook.get_value())[jnp.array([0, 0, 0, 1, 2, 2])] + 0.01
    # After one step the averages are 1.5, 0.5, 1, 0, 0, 0: codes 1, 3, 4 and 5 fall below 0.75.
    train(quantizer, z, key=jax.random.key(0))
    train(untouched, z)
    codes, expected = quantizer.codebook.get_value(), untouched.codebook.get_value()
    np.testing.assert_array_equal(codes[jnp.array([0, 2])], expected[jnp.array([0, 2])])
    batch = unit(z) if cosine else np.asarray(z)
    for dead in (1, 3, 4, 5):
        assert np.abs(batch - codes[dead]).max(-1).min() < 1e-6, dead
    np.testing.assert_allclose(quantizer.counts.get_value(), [1.5, 1, 1, 1, 1, 1], rtol=1e-6)
    if update == "ema":
        # Restarted averages stand for the new code, so that the next step does not pull it back.
        np.testing.assert_allclose(quantizer.sums.get_value()[3], codes[3], rtol=1e-5)


def test_restarted_code_has_time_to_be_found():
    """A latent far from all others comes back in every fourth batch: its restarted code is still there."""
    quantizer = make(cosine=False, decay=0.9, restart_threshold=0.3)
    far = jnp.full((1, WIDTH), 5.0)
    step_of = nnx.jit(lambda quantizer, z, key: train(quantizer, z, key=key))
    for step in range(40):
        step_of(quantizer, latents(60).at[:1].set(far) if step % 4 == 0 else latents(60), jax.random.key(step))
        if step > 8:
            assert np.abs(quantizer.codebook.get_value() - far).max(-1).min() < 1


def test_restart_follows_its_key_and_needs_one():
    codes = []
    for seed in (0, 0, 1):
        quantizer = make(restart_threshold=10.0)
        train(quantizer, latents(), key=jax.random.key(seed))
        codes.append(np.asarray(quantizer.codebook.get_value()))
    np.testing.assert_array_equal(codes[0], codes[1])
    assert np.abs(codes[0] - codes[2]).max() > 1e-3
    with pytest.raises(UserError, match="random key"):
        train(make(restart_threshold=10.0), latents())


def test_restarts_keep_a_collapsed_codebook_alive():
    """All codes but one start far away; with restarts every code comes into use, without them none does."""
    z = latents(60)
    usage = {}
    for threshold in (0.0, 0.5):
        quantizer = make(cosine=False, decay=0.5, restart_threshold=threshold)
        quantizer.codebook.set_value(jnp.full((SIZE, WIDTH), 100.0).at[0].set(0.0))
        step_of = nnx.jit(lambda quantizer, key: train(quantizer, z, key=key))
        for step in range(8):
            quantized = step_of(quantizer, jax.random.key(step))
        usage[threshold] = int((quantized.statistics["counts"] > 0).sum())
    assert usage == {0.0: 1, 0.5: SIZE}


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from videogen.parallel import batch_sharding, make_mesh
from tests.quantizers.training import train
from videogen.quantizers import VectorQuantizer

z = jax.random.normal(jax.random.key(0), (8, 5, 3))
graph, start = nnx.split(VectorQuantizer(16, 3, restart_threshold=0.02, rngs=nnx.Rngs(0)))

@jax.jit
def step(state, z):
    quantizer = nnx.merge(graph, state)
    quantized = train(quantizer, z, key=jax.random.key(1))
    return nnx.state(quantizer), quantized

plain_state, plain = step(start, z)
assert (plain_state["counts"].get_value() == 0.02).any()
mesh = make_mesh({"data": 2, "fsdp": 4})
with jax.set_mesh(mesh):
    state, quantized = step(start, jax.device_put(z, batch_sharding(mesh, len(z))))
np.testing.assert_array_equal(quantized.statistics["counts"], plain.statistics["counts"])
np.testing.assert_array_equal(quantized.indices, plain.indices)
for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(plain_state), strict=True):
    copies = [np.asarray(shard.data) for shard in a.addressable_shards]
    if a.is_fully_replicated:
        assert all((copy == copies[0]).all() for copy in copies)
    np.testing.assert_allclose(a, b, atol=1e-6)
"""


@pytest.mark.slow
def test_updates_and_restarts_span_the_mesh(run_python):
    result = run_python(SHARDED, devices=8)
    assert result.returncode == 0, result.stderr


def test_rotation_estimator_turns_the_gradient():
    quantizer, z = make(cosine=False, estimator="rotation"), latents()[0, 0]
    jacobian = jax.jacobian(lambda z: quantizer(z).latents)(z)
    np.testing.assert_allclose(jacobian @ z, quantizer(z).latents, rtol=1e-4, atol=1e-6)


def test_entropy_term_is_that_of_the_softmax_of_distances():
    quantizer, z = make(cosine=False, codebook_update="gradient", entropy_weight=0.1, temperature=0.5), latents()
    distance = jnp.sum((z.reshape(-1, 1, WIDTH) - quantizer.codebook.get_value()) ** 2, -1)
    expected = 0.1 * entropy_penalty(-distance / 0.5)
    np.testing.assert_allclose(quantizer(z).losses["entropy"], expected, rtol=1e-4)


@pytest.mark.parametrize("cosine", [True, False])
def test_codes_and_gradients_equal_vector_quantize_pytorch(cosine):
    torch, oracle = pytest.importorskip("torch"), pytest.importorskip("vector_quantize_pytorch")
    quantizer, z = make(cosine=cosine, commitment_weight=0.5), np.array(latents())
    library = oracle.VectorQuantize(WIDTH, SIZE, use_cosine_sim=cosine, commitment_weight=0.5, rotation_trick=False)
    library.train()
    library._codebook.embed.copy_(torch.tensor(np.asarray(quantizer.codebook.get_value()))[None])
    weight = np.random.default_rng(0).normal(size=z.shape).astype(np.float32)
    leaf = torch.tensor(z, requires_grad=True)
    codes, indices, loss = library(leaf, freeze_codebook=True)
    ((codes * torch.tensor(weight)).sum() + 100 * loss.sum()).backward()

    def total(z: jax.Array) -> tuple[jax.Array, object]:
        quantized = quantizer(z)
        return jnp.sum(quantized.latents * weight) + 100 * sum(quantized.losses.values()), quantized

    gradient, quantized = jax.grad(total, has_aux=True)(jnp.asarray(z))
    np.testing.assert_array_equal(quantized.indices[..., 0], indices.numpy())
    np.testing.assert_allclose(quantized.latents, codes.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(sum(quantized.losses.values()), float(loss.detach().sum()), rtol=1e-4)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_restarts_draw_latents_in_proportion_to_their_squared_error():
    drawn = poorly_coded(jnp.array([0.0, 1.0, 3.0, 0.0, 6.0]), 20_000, jax.random.key(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, [0, 0.1, 0.3, 0, 0.6], atol=0.015)


def test_candidates_carry_the_squared_error_of_their_code():
    quantizer, z = make(cosine=False, restart_threshold=1.0), latents()
    quantized = quantizer(z, key=jax.random.key(0), train=True)
    expected = np.sum((np.asarray(z) - np.asarray(quantized.latents)) ** 2, -1).reshape(-1)
    np.testing.assert_allclose(quantized.candidates["error"], expected, rtol=1e-5)
    np.testing.assert_array_equal(quantized.candidates["latents"], z.reshape(-1, WIDTH))


def test_without_restarts_no_latents_are_kept():
    quantized = make(restart_threshold=0.0)(latents(), train=True)
    assert quantized.candidates == {} and set(quantized.update_sums) == {"counts", "latents"}
    assert make(codebook_update="gradient")(latents(), train=True).update_sums == {}

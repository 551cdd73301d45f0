"""Clips against texts: values of the contrastive loss, its laws, and gradients over devices and micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import losses
from videogen.errors import UserError
from videogen.losses import LogitScale, Outputs, Pass, contrastive_loss, momentum_contrast, positives
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape
from videogen.training.optimizers import build_optimizer

B, WIDTH = 8, 5
SETTING = losses.Setting(VideoShape(1, 8, 8), tokens=1, code_width=1, steps=10)


def units(seed: int, count: int = B, width: int = WIDTH) -> jax.Array:
    x = jax.random.normal(jax.random.key(seed), (count, width))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def term(**settings):
    return losses.build({"match": {"name": "contrastive", "weight": 1.0, **settings}}, SETTING)["match"]


def value(term, passes, features, micro=None):
    return term.value(
        {}, Outputs(passes, features=features), jax.random.key(0), jnp.zeros((), int), micro or MicroBatch()
    )


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_equal_embeddings_cost_the_logarithm_of_their_number(scale):
    same = jnp.broadcast_to(units(0, 1), (B, WIDTH))
    assert float(contrastive_loss(same, same, scale)) == pytest.approx(2.0794415, rel=1e-5)
    # However many are right.
    assert float(contrastive_loss(same, same, scale, positives(jnp.arange(B) // 2))) == pytest.approx(
        np.log(8), rel=1e-5
    )


def test_identical_pairs_and_orthogonal_others_cost_nothing_at_last():
    own = jnp.eye(B)
    for scale in (1.0, 5.0):
        expected = np.log1p((B - 1) * np.exp(-scale))
        assert float(contrastive_loss(own, own, scale)) == pytest.approx(expected, rel=1e-5)
    assert float(contrastive_loss(own, own, 100.0)) == pytest.approx(0, abs=1e-6)


def test_it_is_the_published_formula():
    clips, texts = np.float64(units(0)), np.float64(units(1))
    logits = clips @ texts.T / 0.07
    expected = 0.0
    for i in range(B):
        expected -= logits[i, i] - np.log(np.exp(logits[i]).sum()) + logits[i, i] - np.log(np.exp(logits[:, i]).sum())
    assert float(contrastive_loss(units(0), units(1), 1 / 0.07)) == pytest.approx(expected / (2 * B), rel=1e-5)


def test_permutation_and_exchange_change_nothing():
    clips, texts, order = units(0), units(1), jax.random.permutation(jax.random.key(2), B)
    own = float(contrastive_loss(clips, texts, 10.0))
    assert float(contrastive_loss(clips[order], texts[order], 10.0)) == pytest.approx(own, rel=1e-6)
    assert float(contrastive_loss(texts, clips, 10.0)) == pytest.approx(own, rel=1e-6)


def test_several_right_ones_share_the_target():
    ids = jnp.array([[5, 6], [7, 8], [5, 6]])
    same = positives(jnp.array([0, 1, 1]), ids)
    assert same.tolist() == [[True, False, True], [False, True, True], [True, True, True]]
    clips, texts = units(0, 3), units(1, 3)
    logits, total = 4.0 * np.float64(clips @ texts.T), 0.0
    for x in (logits, logits.T):
        logs = x - np.log(np.exp(x).sum(1, keepdims=True))
        total -= (logs[0, [0, 2]].mean() + logs[1, [1, 2]].mean() + logs[2].mean()) / 3
    assert float(contrastive_loss(clips, texts, 4.0, same)) == pytest.approx(total / 2, rel=1e-5)
    # The same caption twice with vectors that are equal, too: each has half of both, which no training can better.
    own = jnp.array([[1.0, 0], [0, 1.0], [1.0, 0]])
    found = contrastive_loss(own, own, 100.0, positives(jnp.array([0, 1, 0])))
    assert float(found) == pytest.approx(2 / 3 * np.log(2), rel=1e-5)


def test_two_views_of_the_text_are_the_mean_of_two_losses():
    clips, features = units(0), {"scale": jnp.float32(10.0)}
    passes = {"subtitle": Pass(clips, units(1)), "caption": Pass(clips, units(2))}
    found, metrics = value(term(reads=("subtitle", "caption")), passes, features)
    own = [float(contrastive_loss(clips, p.target, 10.0)) for p in passes.values()]
    assert float(found) == pytest.approx(np.mean(own), rel=1e-6)
    assert float(metrics["match_chance"]) == pytest.approx(np.log(B), rel=1e-6)
    assert float(metrics["match_scale"]) == pytest.approx(10.0)
    right = [np.mean(np.argmax(clips @ p.target.T, 1) == np.arange(B)) for p in passes.values()]
    assert float(metrics["match_accuracy"]) == pytest.approx(np.mean(right))


class Towers(nnx.Module):
    """Two matrices and the scale, from numbers."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.clips, self.texts = nnx.Linear(6, WIDTH, rngs=rngs), nnx.Linear(7, WIDTH, rngs=rngs)
        self.scale = LogitScale(rngs=rngs)

    def loss(self, clips, texts, ids, micro):
        found = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (self.clips(clips), self.texts(texts))]
        features = {"scale": self.scale(), "same_text": {"contrastive": ids}}
        return value(term(), {"contrastive": Pass(*found)}, features, micro)[0]


CLIPS, TEXTS = jax.random.normal(jax.random.key(5), (B, 6)), jax.random.normal(jax.random.key(6), (B, 7))
IDS = jnp.array([1, 2, 3, 1, 4, 50_000, 50_001, 50_000])[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(count):
    graph, state = nnx.split(Towers())

    def loss(state, number, count, known=None):
        micro = MicroBatch(number, count, known)
        rows = [MicroBatch.split(x, count)[number] for x in (CLIPS, TEXTS, IDS)]
        return nnx.merge(graph, state).loss(*rows, micro), micro.means

    (whole, _), expected = jax.value_and_grad(loss, has_aux=True)(state, 0, 1)
    firsts = [loss(state, number, count)[1] for number in range(count)]
    known = jax.tree.map(lambda *means: sum(means) / count, *firsts)
    parts = [jax.value_and_grad(loss, has_aux=True)(state, number, count, known) for number in range(count)]
    # Each micro-batch has the loss of the whole batch; that of its own rows would be another one.
    for (own, _), _ in parts:
        assert float(own) == pytest.approx(float(whole), rel=1e-6)
    found = jax.tree.map(lambda *grads: sum(grads) / count, *[grads for _, grads in parts])
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * float(jnp.abs(b).max()), err_msg=str(path))


def test_micro_batches_of_equal_embeddings_have_the_loss_of_the_batch():
    same, ids = jnp.broadcast_to(units(0, 1), (4, WIDTH)), {"scale": jnp.float32(1.0)}
    known = [jnp.broadcast_to(units(0, 1), (8, WIDTH))] * 2
    found, _ = value(term(), {"contrastive": Pass(same, same)}, ids, MicroBatch(1, 2, known))
    assert float(found) == pytest.approx(2.0794415, rel=1e-5)


ON_DEVICES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tests.losses.test_contrastive import CLIPS, IDS, TEXTS, Towers
from videogen.nn import MicroBatch
from videogen.parallel import batch_sharding, make_mesh

graph, state = nnx.split(Towers())

@jax.jit
def gradient(state, *rows):
    return jax.value_and_grad(lambda state: nnx.merge(graph, state).loss(*rows, MicroBatch()))(state)

expected = gradient(state, CLIPS, TEXTS, IDS)
for count in (1, 2, 8):
    mesh = make_mesh({"data": count}, jax.devices()[:count])
    with jax.set_mesh(mesh):
        rows = [jax.device_put(x, batch_sharding(mesh, len(x))) for x in (CLIPS, TEXTS, IDS)]
        found = gradient(state, *rows)
    assert len(rows[0].sharding.device_set) == count
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * float(jnp.abs(b).max()))
"""


@pytest.mark.slow
def test_devices_give_the_gradient_of_one(run_python):
    done = run_python(ON_DEVICES, devices=8)
    assert done.returncode == 0, done.stderr


def test_the_scale_starts_and_stays_where_it_should():
    scale = LogitScale(rngs=nnx.Rngs(0))
    assert float(scale.logarithm.get_value()) == pytest.approx(2.6593, abs=5e-5)
    assert float(scale()) == pytest.approx(1 / 0.07, rel=1e-6)
    scale.logarithm.set_value(jnp.float32(5.0))
    scale.clamp()
    assert float(scale.logarithm.get_value()) == pytest.approx(4.6052, abs=5e-5)
    of_trajectories = LogitScale(smallest=2.0, largest=1000.0, rngs=nnx.Rngs(0))
    of_trajectories.logarithm.set_value(jnp.float32(-1.0))
    of_trajectories.clamp()
    assert float(of_trajectories()) == pytest.approx(2.0)
    with pytest.raises(UserError, match="between smallest and largest"):
        LogitScale(start=200.0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_leaves_the_scale_alone(name):
    params = {"scale": {"logarithm": jnp.float32(np.log(1 / 0.07))}, "map": {"kernel": jnp.ones((3, 3))}}
    settings = {"name": name, "learning_rate": 0.1, "warmup": 0, "schedule": "constant", "final": 1.0, "horizon": None}
    settings |= {"b1": 0.9, "b2": 0.99, "weight_decay": 0.1, "clip": 0.0, "adam_share": 1.0}
    transform, _ = build_optimizer(settings, 10)
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    assert float(updates["scale"]["logarithm"]) == 0.0
    if name == "adamw":
        np.testing.assert_allclose(updates["map"]["kernel"], -0.01, rtol=1e-5)


def test_a_loss_at_chance_is_one_line():
    def said(loss):
        return term().warning({"match": loss, "match_chance": 4.852})

    assert "match 4.8520 is ln(batch) = 4.8520" in said(4.852) and "\n" not in said(4.852)
    assert said(4.852 * 1.009) and said(4.852 * 0.991)
    assert said(4.852 * 0.98) is None and said(4.852 * 1.02) is None


def test_momentum_keys():
    queries, keys = units(0), units(1)
    logits = np.float64(queries @ keys.T) / 0.07
    expected = -np.mean(np.diagonal(logits) - np.log(np.exp(logits).sum(1)))
    assert float(momentum_contrast(queries, keys)) == pytest.approx(expected, rel=1e-5)
    # Further keys are wrong ones, and a key gets no gradient.
    same = jnp.broadcast_to(units(0, 1), (B, WIDTH))
    assert float(momentum_contrast(same, same, others=same[:4])) == pytest.approx(np.log(B + 4), rel=1e-5)
    to_keys = jax.grad(lambda keys: momentum_contrast(queries, keys))(keys)
    to_queries = jax.grad(lambda queries: momentum_contrast(queries, keys))(queries)
    assert float(jnp.abs(to_keys).max()) == 0.0 and float(jnp.linalg.norm(to_queries, axis=1).min()) > 0

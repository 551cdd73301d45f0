"""What training leaves out at random: conditionings, channels, input codes. In evaluation nothing is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import codes_of, latents_of, layout_of
from videogen.conditioning import Conditioning, EncodedText, NullableContext
from videogen.generators import FlowTransformer, MaskedTransformer, NextBlockTransformer
from videogen.heads import Categorical
from videogen.shapes import TokenGrid

GRID, BATCH = TokenGrid(2, 2, 2), 400
SIZE = dict(width=16, layers=1, heads=2, mlp_width=8)
KINDS = ("masked", "next_block", "flow")


@functools.cache
def make(kind: str, dropout: float = 0.0, **settings):
    transformer = {**SIZE, "dropout": dropout}
    settings = {"transformer": transformer, "context_width": 4, "condition_drop": 0.0, **settings}
    if kind == "flow":
        model = FlowTransformer(3, GRID.shape, patch=(1, 1, 1), **settings, rngs=nnx.Rngs(0))
        # A fresh network passes nothing on.
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        key = jax.random.key(1)
        return nnx.merge(graph, jax.tree.map(lambda x: x + 0.2 * jax.random.normal(key, x.shape), params), rest)
    kind = {"masked": MaskedTransformer, "next_block": NextBlockTransformer}[kind]
    return kind((16,), GRID.shape, **settings, rngs=nnx.Rngs(0))


def clips(kind: str, batch: int = BATCH):
    if kind == "flow":
        return latents_of(jax.random.normal(jax.random.key(7), (batch, *GRID.shape, 3)))
    return codes_of(jax.random.randint(jax.random.key(7), (batch, *GRID.shape, 1), 0, 16), GRID, 16)


def text(batch: int = BATCH) -> Conditioning:
    return Conditioning(EncodedText(jax.random.normal(jax.random.key(0), (batch, 3, 4)), jnp.ones((batch, 3), bool)))


def loss(model, kind: str, *, train: bool = True, seed: int = 0, batch: int = BATCH):
    return model.loss(clips(kind, batch), text(batch), jax.random.key(seed), train=train)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_conditionings_are_dropped_at_their_rate_in_training_alone(kind, monkeypatch):
    seen, original = [], NullableContext.__call__

    def record(self, conditioning):
        seen.append(~np.asarray(conditioning.text.mask).any(-1))
        return original(self, conditioning)

    monkeypatch.setattr(NullableContext, "__call__", record)
    model = make(kind, condition_drop=0.3)
    loss(model, kind)
    loss(model, kind, seed=1)
    loss(model, kind, train=False)
    one, other, evaluated = seen
    assert abs(one.mean() - 0.3) < 0.08 and (one != other).any() and not evaluated.any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_works_in_training_alone(kind):
    """The same weights and keys, with and without: another loss in training, the same in evaluation."""
    with_it, without = (make(kind, dropout=rate) for rate in (0.5, 0.0))
    assert abs(loss(with_it, kind, batch=8) - loss(without, kind, batch=8)) > 1e-4
    np.testing.assert_allclose(*(loss(m, kind, train=False, batch=8) for m in (with_it, without)), rtol=1e-6)


def test_input_codes_are_replaced_at_their_rate_by_any_code(monkeypatch):
    """Targets stay; a code that is drawn may be any of the vocabulary, 0 and the last among them."""
    model, seen = make("next_block", token_drop=0.4), []
    original = NextBlockTransformer.features

    def record(self, ids, *rest, **call):
        seen.append(np.asarray(ids)[..., 0])
        return original(self, ids, *rest, **call)

    monkeypatch.setattr(NextBlockTransformer, "features", record)
    loss(model, "next_block")
    loss(model, "next_block", train=False)
    true = np.asarray(model.sequence(clips("next_block").only.values, GRID))[..., 0]
    shown, evaluated = seen
    np.testing.assert_array_equal(evaluated, true)
    # One in 16 of the draws is the true code.
    assert abs((shown != true).mean() - 0.4 * 15 / 16) < 0.03
    drawn = np.bincount(shown[shown != true], minlength=16)
    assert len(drawn) == 16 and (np.abs(drawn / drawn.sum() - 1 / 16) < 0.03).all()


def test_targets_of_replaced_codes_are_the_true_ones(monkeypatch):
    """With every input replaced, the loss is that of the true codes under what is predicted."""
    model = make("next_block", token_drop=1.0)
    features = jnp.zeros((BATCH, GRID.tokens, SIZE["width"])) + jnp.arange(16.0)
    monkeypatch.setattr(NextBlockTransformer, "features", lambda self, *a, **k: features)
    true = model.sequence(clips("next_block").only.values, GRID)
    logits = jax.nn.log_softmax(model.head.logits(features, None)[0])
    np.testing.assert_allclose(loss(model, "next_block"), -jnp.take_along_axis(logits, true, -1).mean(), rtol=1e-5)


def test_accuracy_is_the_share_of_right_codes(monkeypatch):
    """A network that names the true code of every second example: half of the corrupted places are right."""
    model, codes = make("masked"), clips("masked")
    right = (
        20.0 * jax.nn.one_hot(codes.only.values[..., 0], 16) * (jnp.arange(BATCH) % 2 == 0)[:, None, None, None, None]
    )
    wrong = 20.0 * jax.nn.one_hot((codes.only.values[..., 0] + 1) % 16, 16)
    shown = jnp.where(right.any(-1, keepdims=True), right, wrong)
    monkeypatch.setattr(Categorical, "logits", lambda self, *a: [shown])
    key = jax.random.key(3)
    value, metrics = model.loss(codes, text(), key, train=False)
    # Examples have other numbers of corrupted places, so the share is near a half and the loss follows from it.
    assert abs(metrics["accuracy"] - 0.5) < 0.06 and 0.4 < metrics["mask_ratio"] < 0.65
    np.testing.assert_allclose(value, 20 * (1 - metrics["accuracy"]), rtol=1e-3)


@pytest.mark.slow
def test_training_and_sampling_shift_their_times(monkeypatch):
    from videogen import diffusion
    from videogen.generators import FlowSampler

    times = {}

    def remember(self, noisy, t, prepared, *, key=None):
        times.setdefault(self.shift, []).append(np.asarray(t))
        return jnp.zeros_like(noisy)

    monkeypatch.setattr(FlowTransformer, "predict", remember)
    sampler = FlowSampler(steps=4, guidance_scale=1.0)
    for shift in (1.0, 3.0):
        model = FlowTransformer(
            3, GRID.shape, SIZE, patch=(1, 1, 1), context_width=4, noise={"shift": shift}, rngs=nnx.Rngs(0)
        )
        loss(model, "flow", batch=8)
        with jax.disable_jit():
            model.sample(layout_of(GRID, channels=3), text(2), jax.random.split(jax.random.key(0), 2), sampler)
    plain, shifted = times[1.0], times[3.0]
    np.testing.assert_allclose(shifted[0], diffusion.shift_time(plain[0], 3.0), rtol=1e-4)
    drawn = [t[0] for t in shifted[1:]]
    np.testing.assert_allclose(drawn, diffusion.shift_time(np.array([1, 0.75, 0.5, 0.25]), 3.0), rtol=1e-6)
    # The sampler's own shift takes the place of the model's.
    times.clear()
    with jax.disable_jit():
        model.sample(
            layout_of(GRID, channels=3),
            text(2),
            jax.random.split(jax.random.key(0), 2),
            FlowSampler(4, shift=2.0, guidance_scale=1.0),
        )
    drawn = [t[0] for t in times[3.0]]
    np.testing.assert_allclose(drawn, diffusion.shift_time(np.array([1, 0.75, 0.5, 0.25]), 2.0), rtol=1e-6)

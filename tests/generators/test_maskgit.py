"""MaskGIT decoding against a second writing of it, number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generators.clips import layout_of
from videogen.conditioning import Conditioning
from videogen.generators import MaskedTransformer, MaskGITSampler
from videogen.generators.maskgit import decode
from videogen.heads import Categorical
from videogen.heads.categorical import draw_levels
from videogen.heads.sampling import guide
from videogen.shapes import TokenGrid

PLACES, VOCABULARY = 9, (7, 5)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def logits_of(ids):
    """Of a place from the ids of all: any function will do."""
    table = np.random.default_rng(0).normal(size=(PLACES, 13, sum(VOCABULARY))) * 2
    seen = np.asarray(ids).sum((-1, -2)) % 13
    return table[:, int(seen)] if seen.ndim == 0 else table[:, seen].swapaxes(0, 1)


def draws_of(logits, keys, sampler):
    """Draws from the logits of both levels side by side."""
    return draw_levels(jnp.split(logits, [VOCABULARY[0]], axis=-1), [None, None], keys, sampler)


def oracle(key, sampler: MaskGITSampler, steps_seen: list) -> np.ndarray:
    """One example, all places unknown, in float64 and loops."""
    mask = np.array(VOCABULARY)
    ids, unknown, total = np.tile(mask, (PLACES, 1)), np.ones(PLACES, bool), sampler.steps
    for k in range(total):
        steps_seen.append(unknown.copy())
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, k))
        uniform = np.asarray(jax.random.uniform(draw_key, ids.shape))
        gumbel = np.asarray(jax.random.gumbel(noise_key, (PLACES,)))
        left = 1 - (k + 1) / total
        temperature = sampler.final_temperature + left * (sampler.temperature - sampler.final_temperature)
        logits, confidence = logits_of(ids) / temperature, np.zeros(PLACES)
        for level, part in enumerate(np.split(logits, np.cumsum(VOCABULARY)[:-1], -1)):
            for place in np.flatnonzero(unknown):
                # Cut choices are drawn from the most likely down, others in the order of the codes.
                order = np.argsort(-part[place])[: sampler.top_k] if sampler.top_k else np.arange(VOCABULARY[level])
                shares = np.cumsum(np.exp(log_softmax(part[place][order])))
                ids[place, level] = order[int((shares <= uniform[place, level] * shares[-1]).sum())]
                confidence[place] += log_softmax(part[place])[ids[place, level]]
        confidence = np.where(unknown, confidence + sampler.choice_temperature * left * gumbel, np.inf)
        count = int(np.floor(np.cos(np.pi / 2 * (k + 1) / total) * PLACES + 1e-9))
        count = 0 if k + 1 == total else min(max(count, total - 1 - k), unknown.sum() - 1)
        unknown = np.isin(np.arange(PLACES), np.argsort(confidence)[:count])
        ids[unknown] = mask
    return ids


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.5, "final_temperature": 0.5, "choice_temperature": 0.0},
        {"choice_temperature": 3.0},
        {"top_k": 2, "choice_temperature": 1.0},
        {"temperature": 0.5, "final_temperature": 2.0, "choice_temperature": 2.0, "top_k": 3},
    ],
    ids=str,
)
def test_every_pass_is_that_of_the_oracle(settings):
    sampler, keys, seen = MaskGITSampler(steps=5, **settings), jax.random.split(jax.random.key(5), 3), []

    def network(ids, unknown):
        seen.append(np.asarray(unknown))
        return jnp.asarray(logits_of(ids), jnp.float32)

    def draw(values, unknown, keys, how):
        return draws_of(network(values, unknown), keys, how)

    start = jnp.broadcast_to(jnp.array(VOCABULARY), (3, PLACES, 2))
    with jax.disable_jit():  # the loop is one in Python, whose passes can be looked at
        drawn = decode(draw, start, jnp.ones((3, PLACES), bool), keys, sampler)
    for example, key in enumerate(keys):
        passes = []
        np.testing.assert_array_equal(drawn[example], oracle(key, sampler, passes))
        np.testing.assert_array_equal([unknown[example] for unknown in seen], passes)


def test_noise_and_temperature_reach_their_final_values_in_the_last_step():
    """A step alone is the last one: no noise, whatever its scale, and the final temperature."""
    keys, start = jax.random.split(jax.random.key(0), 2), jnp.broadcast_to(jnp.array(VOCABULARY), (2, PLACES, 2))
    cold = MaskGITSampler(steps=1, temperature=50.0, final_temperature=1e-3, choice_temperature=50.0)
    logits = logits_of(start[0])
    both = jnp.asarray(np.stack([logits] * 2), jnp.float32)

    def draw(values, unknown, keys, how):
        return draws_of(both, keys, how)

    drawn = decode(draw, start, jnp.ones((2, PLACES), bool), keys, cold)
    best = [part.argmax(-1) for part in np.split(logits, [VOCABULARY[0]], -1)]
    np.testing.assert_array_equal(drawn, np.stack([np.stack(best, -1)] * 2))


def test_guidance_moves_away_from_the_unconditional():
    """(1 + lambda)·conditional - lambda·unconditional, the conditional half first."""
    given, null = jax.random.normal(jax.random.key(0), (2, 4, 5))
    np.testing.assert_allclose(guide(given, null, 3.5), 3.5 * given - 2.5 * null, atol=1e-5)


def test_a_guided_masked_transformer_draws_what_the_label_has_and_no_label_has_not(monkeypatch):
    from flax import nnx

    from videogen.conditioning import NULL_LABEL

    grid = TokenGrid(1, 2, 2)
    transformer = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}
    model = MaskedTransformer((4,), grid.shape, transformer, context_width=8, classes=3, rngs=nnx.Rngs(0))

    def features(self, ids, conditioning, **call):
        # With a label codes 1 and 2 are as likely, without one code 1 is.
        row = jnp.where(
            (conditioning.label == NULL_LABEL)[:, None], jnp.array([0.0, 4, 0, 0]), jnp.array([0.0, 4, 4, 0])
        )
        return jnp.broadcast_to(row[:, None], (len(row), grid.tokens, 4))

    monkeypatch.setattr(MaskedTransformer, "features", features)
    monkeypatch.setattr(Categorical, "logits", lambda self, features: [features])
    conditioning, keys = Conditioning(label=jnp.array([0, 2])), jax.random.split(jax.random.key(0), 2)
    sampler = MaskGITSampler(steps=2, guidance_scale=21.0)
    np.testing.assert_array_equal(
        model.sample(layout_of(grid, model.head.vocabulary), conditioning, keys, sampler).only.values, 2
    )

"""Soft captions: as many words as a clip has, masked behind the end, and equal to a loop that stops there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.encoders.decoders import Decoder
from videogen.errors import UserError
from videogen.reducers import of_grid
from videogen.reducers.soft_captions import GreedyCaptioner, SoftCaptions, soft_tokens

RNG = np.random.default_rng(0)


class Counter:
    """Says as many words as the prompt's first channel sums to; word i of a clip is (i, mean of its prompt, …)."""

    width = 3

    def begin(self, prompt, exists):
        total = jnp.sum(jnp.where(exists[..., None], prompt, 0), axis=1)
        return jnp.round(total[:, 0]), total, jnp.zeros(len(prompt))

    def next(self, state):
        words, total, said = state
        return (words, total, said + 1), total + said[:, None], said >= words


def test_there_are_as_many_tokens_as_words():
    prompt = jnp.zeros((4, 2, 3)).at[:, 0, 0].set(jnp.array([0.0, 2.0, 5.0, 9.0]))
    hidden, there = soft_tokens(Counter(), prompt, jnp.ones((4, 2), bool), 6)
    assert there.sum(1).tolist() == [0, 2, 5, 6] and hidden.shape == (4, 6, 3)
    np.testing.assert_array_equal(hidden[2, :5, 0], 5 + np.arange(5))
    assert not hidden[~there].any()
    # More room changes nothing but the end.
    longer, more = soft_tokens(Counter(), prompt, jnp.ones((4, 2), bool), 9)
    np.testing.assert_array_equal(longer[:3, :6], hidden[:3])
    assert more.sum(1).tolist() == [0, 2, 5, 9]


def decoder():
    sizes = dict(width=8, layers=2, heads=2, hidden=12, key_value_heads=1, head_width=4)
    return Decoder(vocabulary_size=11, **sizes, rngs=nnx.Rngs(3))


def test_words_of_a_decoder_are_those_of_a_loop_without_caches_that_stops_at_the_end():
    model = decoder()
    model.embedding.table.set_value(jnp.asarray(RNG.normal(size=(11, 8)), jnp.float32))
    prompt = jnp.asarray(RNG.normal(size=(3, 5, 8)), jnp.float32)
    exists = jnp.array([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    free = jax.jit(lambda prompt, exists: soft_tokens(GreedyCaptioner(model, 99, 6), prompt, exists, 6))
    hidden, there = free(prompt, exists)
    assert there.all()
    alone = jax.jit(lambda x: model.tokens(x))
    words = []
    for example, length in enumerate((5, 3, 4)):
        x, said = prompt[example : example + 1, :length], []
        for word in range(6):
            y = alone(jnp.pad(x, ((0, 0), (0, 11 - x.shape[1]), (0, 0))))
            said.append(int(jnp.argmax(model.scores(y[:, x.shape[1] - 1 : x.shape[1]]))))
            x = jnp.concatenate([x, model.embedding(jnp.array([[said[-1]]]))], axis=1)
            y = alone(jnp.pad(x, ((0, 0), (0, 11 - x.shape[1]), (0, 0))))
            np.testing.assert_allclose(hidden[example, word], y[0, x.shape[1] - 1], atol=1e-4)
        words.append(said)
    end = words[0][2]
    stopped, there = jax.jit(lambda p, e: soft_tokens(GreedyCaptioner(model, end, 6), p, e, 6))(prompt, exists)
    lengths = [said.index(end) if end in said else 6 for said in words]
    assert there.sum(1).tolist() == lengths
    for example, length in enumerate(lengths):
        np.testing.assert_allclose(stopped[example, :length], hidden[example, :length], atol=1e-5)


def test_clips_become_their_averages_and_their_words():
    model = SoftCaptions(2, 3, 4, frames=2, side=2, longest=5, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(2, 6, 4, 4, 2)), jnp.float32)
    exists = jnp.array([[True] * 6, [True] * 4 + [False] * 2])
    found, said = jax.jit(lambda x, e: model(of_grid(x, e), Counter()))(x, exists)
    assert found.shape == (2, 3 * (8 + 5))
    prompt = model.read(x.reshape(2, 3, 2, 2, 2, 2, 2, 2).mean((4, 6)).reshape(6, 8, 2))
    hidden, there = soft_tokens(Counter(), prompt, jnp.ones((6, 8), bool), 5)
    there = there.reshape(2, 3, 5) & jnp.array([[True] * 3, [True, True, False]])[..., None]
    parts = np.asarray(found.x).reshape(2, 3, 13, 4)
    base = np.asarray(model.keep(x.reshape(2, 3, 2, 2, 2, 2, 2, 2).mean((4, 6)).reshape(2, 3, 8, 2)))
    np.testing.assert_allclose(parts[0, :, :8], base[0], atol=1e-5)
    words = np.where(np.asarray(there)[..., None], model.project(hidden.reshape(2, 3, 5, 3)), 0)
    np.testing.assert_allclose(parts[:, :, 8:], words, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(found.mask).reshape(2, 3, 13)[:, :, 8:], there)
    assert float(said["words"]) == pytest.approx(float(there.sum() / 5))


def test_what_does_not_fit_is_refused():
    clip = of_grid(jnp.zeros((1, 6, 4, 4, 2)))
    with pytest.raises(UserError, match="6 frames do not divide into clips of 4"):
        SoftCaptions(2, 3, 4, rngs=nnx.Rngs(0))(clip, Counter())
    with pytest.raises(UserError, match="a captioner of width 3 does not fit these projections of 5"):
        SoftCaptions(2, 5, 4, frames=2, rngs=nnx.Rngs(0))(clip, Counter())

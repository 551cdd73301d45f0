"""Sequences that end: the id behind the last token, what exists, what is learned, and what decoding makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import codes_of, layout_of
from tests.parameters import with_random_parameters
from videogen import generators, tasks
from videogen.conditioning import Conditioning
from videogen.configs import nbp
from videogen.errors import UserError
from videogen.generators import BlockSampler, NextBlockTransformer
from videogen.shapes import TokenGrid
from videogen.tokenizers import Tokenizer
from videogen.tokens import Tokens

GRID, IDS = TokenGrid(2, 2, 3), 6
END = IDS
GREEDY = BlockSampler(temperature=1e-3)
NOTHING = Conditioning()


def make(layers: int, width: int = 16, **settings) -> NextBlockTransformer:
    transformer = {"width": width, "layers": layers, "heads": 2, "mlp_width": 32}
    head = {"name": "categorical", "special": ("end",), "bias": True}
    return with_random_parameters(
        nnx.eval_shape(
            lambda: NextBlockTransformer((IDS,), GRID.shape, transformer, head=head, **settings, rngs=nnx.Rngs(0))
        ),
        seed=0,
    )


@functools.cache
def counting() -> NextBlockTransformer:
    """A model set by hand: behind id i comes i + 1, behind the last id the end, behind the end id 2, and 0 is first."""
    graph, state = nnx.split(make(layers=0))
    model = nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))
    model.norm.scale.set_value(jnp.ones(16))
    model.start_vectors.set_value(jnp.eye(1, 16, k=15))
    model.head.inputs.table.table.set_value(jnp.eye(IDS + 1, 16))
    follows = [*range(1, IDS + 1), 2]
    kernel = jnp.zeros((16, IDS + 1)).at[jnp.arange(IDS + 1), jnp.array(follows)].set(10.0).at[15, 0].set(10.0)
    model.head.logits_of.kernel.set_value(kernel)
    return model


def keys(batch: int) -> jax.Array:
    return jax.random.split(jax.random.key(5), batch)


def loss(model, tokens):
    return jax.jit(lambda tokens: model.loss(tokens, NOTHING, jax.random.key(0), train=False))(tokens)


def counted(lengths, behind: int = 0) -> Tokens:
    """Clips that end at the ids of ``lengths``, with some id behind the end."""
    place = jnp.arange(GRID.tokens)
    exists = place < jnp.array(lengths)[:, None]
    ids = jnp.where(exists, place % IDS, behind)[..., None]
    return codes_of(ids, GRID, IDS, exists=exists.reshape(-1, *GRID.shape))


def test_what_is_drawn_exists_up_to_the_end():
    drawn = counting().sample(layout_of(GRID, (IDS,)), NOTHING, keys(2), GREEDY).only
    assert drawn.exists.shape == (2, *GRID.shape) and drawn.values.dtype == jnp.int32
    np.testing.assert_array_equal(drawn.exists.reshape(2, -1), [[True] * IDS + [False] * IDS] * 2)
    np.testing.assert_array_equal(drawn.values.reshape(2, -1), [[0, 1, 2, 3, 4, 5] + [0] * 6] * 2)


def test_every_example_ends_where_it_does():
    """The prefix decides: after ids 2 and 5 three codes and none are left."""
    prefix = codes_of(jnp.array([[1] * 5 + [2], [1] * 5 + [5]])[..., None], TokenGrid(1, 2, 3), IDS)
    drawn = counting().sample(layout_of(GRID, (IDS,)), NOTHING, keys(2), GREEDY, prefix).only
    np.testing.assert_array_equal(
        drawn.values.reshape(2, -1), [[1] * 5 + [2, 3, 4, 5, 0, 0, 0], [1] * 5 + [5] + [0] * 6]
    )
    np.testing.assert_array_equal(drawn.exists.reshape(2, -1).sum(1), [9, 6])
    bits = Tokens.of(video=drawn).bits()
    np.testing.assert_allclose(bits, np.array([9, 6]) * np.log2(IDS), rtol=1e-6)


def test_the_end_is_learned_and_nothing_behind_it():
    whole, ended = counted([IDS]), counted([IDS], behind=4)
    value, metrics = loss(counting(), whole)
    assert float(metrics["accuracy"]) == 1.0 and float(value) < 1e-3
    assert float(loss(counting(), ended)[0]) == float(value)
    # Too early, the model misses the end; later, it draws one where the codes begin again, and misses the true one.
    for length, missed in ((4, 1), (8, 2)):
        accuracy = loss(counting(), counted([length]))[1]["accuracy"]
        assert float(accuracy) == pytest.approx(1 - missed / (length + 1), rel=1e-6)
    # Clips of full length have no end to learn: with and without a mask they are the same.
    full = counted([GRID.tokens])
    alone = codes_of(full.only.values, GRID, IDS)
    assert float(loss(counting(), full)[0]) == pytest.approx(float(loss(counting(), alone)[0]), rel=1e-6)


def test_what_is_counted_are_the_tokens_that_exist_and_the_end():
    model, tokens = make(layers=1), counted([3, 7, GRID.tokens])
    ids = np.array(tokens.only.values).reshape(3, -1)
    for row, length in enumerate((3, 7)):
        ids[row, length] = END
    logits = jax.jit(lambda ids: model.head.logits(model.features(ids, NOTHING, GRID))[0])(ids[..., None])
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids[..., None], -1)[..., 0]
    learned = np.arange(GRID.tokens) <= np.array([3, 7, GRID.tokens])[:, None]
    assert float(loss(model, tokens)[0]) == pytest.approx(nll[learned].mean(), rel=1e-5)
    # Tokens that are not kept end a sequence as well.
    segment = tokens.only
    kept = Tokens.single(segment.values, tokens.layout, kept=segment.exists)
    assert float(loss(model, kept)[0]) == pytest.approx(nll[learned].mean(), rel=1e-5)


def test_cached_decoding_is_the_full_forward_up_to_the_end():
    model = make(layers=1)
    # About as likely as the codes, the end comes early in some clips and never in others.
    model.head.logits_of.kernel.set_value(0.3 * jax.random.normal(jax.random.key(1), (16, IDS + 1)))
    sampler = BlockSampler(temperature=1.0)
    drawn = jax.jit(lambda keys: model.sample(layout_of(GRID, (IDS,)), NOTHING, keys, sampler))(keys(16)).only
    exists = np.asarray(drawn.exists).reshape(16, -1)
    lengths = exists.sum(1)
    assert lengths.min() < GRID.tokens / 2 and lengths.max() == GRID.tokens
    ids = np.where(exists, np.asarray(drawn.values).reshape(16, -1), END)
    logits = jax.jit(lambda ids: model.head.logits(model.features(ids, NOTHING, GRID))[0])(ids[..., None])
    for place in range(GRID.tokens):
        own = jax.vmap(lambda key, p=place: jax.random.fold_in(key, p))(keys(16))
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (1, 1)))(own)[:, 0, 0]
        cumulative = np.cumsum(np.asarray(jax.nn.softmax(logits[:, place])), -1)
        again = (cumulative <= np.asarray(uniform)[:, None] * cumulative[:, -1:]).sum(-1)
        alive = place <= lengths
        np.testing.assert_array_equal(again[alive], ids[alive, place])


class Sums(Tokenizer):
    """Decodes to the sum of the ids that it may see."""

    drops = True

    def lookup(self, tokens):
        return tokens.only.values.astype(jnp.float32)

    def decode(self, latents, kept=None):
        return jnp.where(kept[..., None], latents, 0).sum(axis=(1, 2, 3)) / 100


def test_decoding_does_not_see_what_does_not_exist():
    totals = [Sums().detokenize(counted([5, 3], behind)) for behind in (0, 4)]
    np.testing.assert_allclose(totals[0][:, 0], [0.1, 0.03], rtol=1e-6)
    np.testing.assert_array_equal(*totals)


def test_what_cannot_end_is_refused():
    with pytest.raises(UserError, match=r"needs block=\(1, 1, 1\)"):
        make(layers=1, block=(1, 1, 3))
    with pytest.raises(UserError, match="clips of full length, or a head with special"):
        NextBlockTransformer(
            (IDS,), GRID.shape, {"width": 8, "layers": 0, "heads": 1, "mlp_width": 8}, rngs=nnx.Rngs(0)
        ).loss(counted([4]), NOTHING, jax.random.key(0))
    head = {"name": "categorical", "special": ("end",)}
    masked = {"name": "masked", "head": head, "transformer": {"width": 8, "layers": 0, "heads": 1, "mlp_width": 8}}
    with pytest.raises(UserError, match="a masked generator predicts all places at once"):
        generators.build(masked, vocabulary=(IDS,), grid=GRID.shape, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="a prefix in which tokens are missing"):
        make(layers=0).sample(layout_of(GRID, (IDS,)), NOTHING, keys(1), GREEDY, counted([4]))
    config = nbp.get_config("stage=generator,size=debug,block=token")
    config.model.head.special = ("end",)
    with pytest.raises(UserError, match="this tokenizer decodes whole clips of tokens only"):
        tasks.build(config)

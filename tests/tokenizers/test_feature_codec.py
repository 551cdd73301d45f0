"""The codec of feature maps: published sizes, ids, frames apart, frames that are missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import quantizers, tokenizers
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokens import Tokens

FSQ = {"name": "fsq", "levels": (5, 5, 5, 5), "bound": "symmetric"}
SMALL = {"name": "feature_codec", "size": (7, 6), "channels": 6, "width": 8, "multipliers": (1, 2), "blocks": 1}
SMALL |= {"quantizer": FSQ, "norm_groups": 4}


@pytest.fixture(scope="module")
def codec():
    return tokenizers.build(SMALL, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(1), (2, 3, 7, 6, 6))


@pytest.mark.parametrize(("size", "queries"), [((34, 28), (4, 3)), ((64, 64), (8, 8))])
def test_published_sizes(size, queries):
    """Property 1: 512 × 34 × 28 gives 4 × 3 ids of 625 for a frame, 512 × 64 × 64 gives 8 × 8; decoding gives the
    shape that was encoded."""
    config = {**SMALL, "size": size, "channels": 512, "width": 128, "multipliers": (1, 2, 4, 8), "norm_groups": 32}

    def through(features):
        codec = tokenizers.build(config, rngs=nnx.Rngs(0))
        assert codec.grid_sides == queries and codec.vocabulary == (625,)
        latents, tokens, *_ = codec.bottleneck(codec.encode(features))
        return tokens.only.values, codec.decode(latents)

    ids, decoded = jax.eval_shape(through, jnp.zeros((1, 2, *size, 512)))
    assert ids.shape == (1, 2, queries[0] * queries[1], 1) and decoded.shape == (1, 2, *size, 512)


def test_all_625_ids_come_back():
    """Property 2: the id of the code of an id is that id, through the sigmoid-shaped bound."""
    quantizer = quantizers.build(FSQ, rngs=None)
    ids = jnp.arange(625)[:, None]
    codes = quantizer.lookup(ids)
    # The latent of a code is on the inside of the bound: shrunk a little, for ±1 are reached at infinity.
    found = quantizer(jnp.arctanh(codes * 0.99))
    np.testing.assert_array_equal(found.indices, ids)
    np.testing.assert_array_equal(found.latents, codes)


def test_the_bound_is_that_of_the_paper():
    """``round((L - 1)·sigmoid(z))`` of the paper is ``symmetric`` at z / 2, at every z but the borders of rounding."""
    quantizer = quantizers.build(FSQ, rngs=None)
    z = jax.random.normal(jax.random.key(0), (500, 4)) * 3
    levels = jnp.floor(4 * jax.nn.sigmoid(z) + 0.5)
    np.testing.assert_array_equal(quantizer(z / 2).latents, levels / 2 - 1)


def test_ids_and_shapes(codec, features):
    latents, tokens, *_ = codec.bottleneck(codec.encode(features))
    assert tokens.layout == codec.layout(VideoShape(3, 0, 0))
    assert dict(tokens.only.layout.sides) == {"time": 3, "query": 9}
    ids = np.asarray(tokens.only.values)
    assert ids.min() >= 0 and ids.max() < 625 and len(np.unique(ids)) > 1
    np.testing.assert_array_equal(codec.lookup(tokens), latents)
    assert codec.decode(latents).shape == features.shape


def test_frames_are_coded_and_decoded_apart(codec, features):
    whole, alone = codec.encode(features).values, codec.encode(features[:, 1:2]).values
    np.testing.assert_allclose(whole[:, 1:2], alone, atol=1e-5)
    latents = codec.bottleneck(codec.encode(features))[0]
    np.testing.assert_allclose(codec.decode(latents)[:, 2:], codec.decode(latents[:, 2:]), atol=1e-5)


def test_missing_frames_are_decoded_as_the_last_one_there_is(codec, features):
    latents, tokens, *_ = codec.bottleneck(codec.encode(features))
    exists = jnp.ones(tokens.only.values.shape[:-1], bool).at[0, 1:].set(False)
    tokens = Tokens.single(tokens.only.values, tokens.layout, exists=exists)
    found = codec.decode(codec.lookup(tokens), **codec.seen(tokens))
    whole = codec.decode(latents)
    np.testing.assert_allclose(found[0], jnp.broadcast_to(whole[0, :1], whole[0].shape), atol=1e-5)
    np.testing.assert_allclose(found[1], whole[1], atol=1e-5)


def test_the_loss_is_of_the_features_and_reaches_every_parameter(codec, features):
    def loss(codec):
        latents = codec.bottleneck(codec.encode(features), train=True)[0]
        ((decoded, target),) = codec.compare(None, latents, features, None).passes.values()
        np.testing.assert_array_equal(target, features)
        return jnp.mean((decoded - target) ** 2)

    grads = jax.tree.leaves(nnx.grad(loss)(codec))
    assert all(float(jnp.abs(g).max()) > 0 for g in grads)


def test_features_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="cannot be halved 3 times"):
        tokenizers.build({**SMALL, "multipliers": (1, 1, 1, 1)}, rngs=nnx.Rngs(0))

"""Properties of the sheets of LARP and One-D-Piece beyond what every tokenizer promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, make, model_of, video_of
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import build
from videogen.tokenizers.lengths import first
from videogen.tokenizers.one_d import DROPPED

CONFIG = CONFIGS["larp"]


@functools.cache
def influence_of_frames_on_latents() -> np.ndarray:
    """``[queries, frames]``"""
    latents = jax.jit(jax.jacrev(lambda v: jnp.sum(jnp.sin(model_of("larp").encode(v).values), -1)[0]))
    return np.asarray(jnp.abs(latents(video_of("larp"))).max((1, 3, 4, 5)))


@pytest.mark.parametrize("queries", [1, 5, 256])
def test_the_number_of_codes_is_free(queries):
    model = nnx.eval_shape(lambda: build(CONFIG | {"queries": queries}, rngs=nnx.Rngs(0)))
    video = jax.ShapeDtypeStruct((2, *CONFIG["clip"], 3), jnp.float32)
    graph, state = nnx.split(model)
    codes = jax.eval_shape(lambda s, v: nnx.merge(graph, s).tokenize(v), state, video)
    assert codes.only.values.shape == (2, queries, 1) and codes.layout.only.sides == (("query", queries),)
    assert model.layout(VideoShape(*CONFIG["clip"])) == codes.layout
    assert jax.eval_shape(lambda s, c: nnx.merge(graph, s).detokenize(c), state, codes).shape == video.shape


def test_a_fresh_decoder_gives_zeros():
    model = build(CONFIG, rngs=nnx.Rngs(0))
    latents = jax.random.normal(jax.random.key(0), (2, CONFIG["queries"], model.quantizer.width))
    np.testing.assert_array_equal(jax.jit(model.decode)(latents), np.zeros((2, *CONFIG["clip"], 3)))


def test_every_code_may_depend_on_every_frame():
    """Documents the difference to the causal family: the last frame alters all codes."""
    assert (influence_of_frames_on_latents() > 1e-6).all()


def test_every_pixel_may_depend_on_every_code():
    model = model_of("larp")
    latents = jax.random.normal(jax.random.key(0), (1, CONFIG["queries"], model.quantizer.width))
    patches = jax.jit(jax.jacrev(lambda x: jnp.sum(jnp.sin(model.decode(x)), (0, 4))))(latents)
    assert np.abs(patches).max((3, 5)).min() > 0


def test_codes_have_an_order_and_patches_have_places():
    """The decoder tells codes apart by their positions, and the encoder patches by theirs."""
    model = model_of("larp")
    latents = jax.random.normal(jax.random.key(0), (1, CONFIG["queries"], model.quantizer.width))
    decode, encode = jax.jit(model.decode), jax.jit(lambda v: model.encode(v).values)
    assert np.abs(decode(latents) - decode(latents[:, ::-1])).max() > 1e-3
    video = video_of("larp")
    # Whole patches change places.
    swapped = jnp.roll(video, CONFIG["patch"][2], axis=3)
    assert np.abs(encode(video) - encode(swapped)).max() > 1e-3


def test_draws_differ_in_training_only():
    model = make(CONFIG, quantizer={"name": "stochastic", "size": 32, "width": 6, "temperature": 0.5})
    latents = jax.jit(model.encode)(video_of("larp"))

    def ids(seed, train):
        return model.bottleneck(latents, key=jax.random.key(seed), train=train)[1].only.values

    assert (ids(0, True) != ids(1, True)).any()
    np.testing.assert_array_equal(ids(0, False), ids(1, False))


def test_other_clips_are_refused_with_the_remedy():
    frames, height, width = CONFIG["clip"]
    for clip in ((2 * frames, height, width), (1, height, width), (frames, height, 2 * width)):
        with pytest.raises(UserError, match="clips of 4×8×8 as a whole, got .*; set data.clip"):
            model_of("larp").encode(jnp.zeros((1, *clip, 3)))


def test_a_patch_that_does_not_divide_the_clip_is_named():
    with pytest.raises(UserError, match=r"3·k frames, got 4"):
        make(CONFIG, patch=(3, 4, 4))


ORDERED = CONFIGS["one_d"]
QUERIES = ORDERED["queries"]


@functools.cache
def ordered(dropped: str):
    return make(ORDERED, dropped=dropped)


def latents_of(model, count: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, QUERIES, model.quantizer.width))


@pytest.mark.parametrize("dropped", DROPPED)
def test_the_first_codes_alone_decode_and_the_others_are_not_seen(dropped):
    model = ordered(dropped)
    decode = jax.jit(model.decode)
    latents = latents_of(model, QUERIES)
    # One example of every length.
    kept = first(jnp.arange(1, QUERIES + 1), (QUERIES, QUERIES))
    shown = decode(latents, kept)
    np.testing.assert_array_equal(decode(jnp.where(kept[..., None], latents, 7.0), kept), shown)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(jnp.sin(model.decode(z, kept)))))(latents)
    assert (np.abs(gradient).max(-1) > 0).tolist() == kept.tolist()
    np.testing.assert_allclose(shown[-1], decode(latents)[-1], atol=1e-5 * np.abs(shown).max())


def test_hidden_codes_are_as_if_the_sequence_were_shorter():
    """Truncation, as published, and a mask are one thing; so the place of a code does not depend on their number."""
    model = ordered("hidden")
    latents = latents_of(model)
    kept = first(jnp.full(2, 3), (2, QUERIES))
    expected = jax.jit(model.decode)(latents[:, :3])
    np.testing.assert_allclose(jax.jit(model.decode)(latents, kept), expected, atol=1e-5 * np.abs(expected).max())


def test_replaced_codes_are_a_learned_vector():
    model = ordered("replaced")
    latents, kept = latents_of(model), first(jnp.full(2, 3), (2, QUERIES))
    graph, state = nnx.split(model)
    gradient = jax.jit(jax.grad(lambda s, k: jnp.sum(jnp.sin(nnx.merge(graph, s).decode(latents, k)))))
    assert np.abs(gradient(state, kept)["no_code"][...]).max() > 1e-4
    np.testing.assert_array_equal(gradient(state, jnp.ones_like(kept))["no_code"][...], 0)
    assert make(ORDERED, dropped="hidden").no_code is None


def test_the_quantizer_learns_from_codes_that_are_dropped():
    """Tail drop acts behind the quantizer: losses and statistics count all codes (One-D-Piece section 4)."""
    model = ordered("replaced")
    video = video_of("one_d")
    encoded = jax.jit(model.encode)(video)
    drawn = (model.bottleneck(encoded, key=jax.random.key(seed), train=True) for seed in range(20))
    _, tokens, dropped, measured = next(found for found in drawn if not found[1].only.kept.all())
    _, whole, all_of_them, _ = model.bottleneck(encoded)
    assert whole.only.kept is None
    np.testing.assert_array_equal(tokens.only.values, whole.only.values)
    for name in all_of_them:
        np.testing.assert_allclose(dropped[name], all_of_them[name], rtol=1e-6)
    assert measured["counts"].sum() == len(video) * QUERIES


def test_as_many_codes_as_are_asked_for():
    model, video = ordered("replaced"), video_of("one_d")
    for count in (1, 4, QUERIES):
        tokens = jax.jit(model.tokenize, static_argnums=1)(video, count)
        np.testing.assert_array_equal(tokens.only.kept.sum(-1), count)
        assert tokens.only.kept[:, :count].all()
        np.testing.assert_allclose(tokens.bits(), count * 6)
    np.testing.assert_array_equal(tokens.only.values, model.tokenize(video).only.values)
    for count in (0, QUERIES + 1):
        with pytest.raises(UserError, match=f"has 1 … {QUERIES} tokens for a clip, and {count} are asked for"):
            model.encode(video, count)


def test_codes_of_a_clip_decode_to_its_reconstruction():
    """The decoder sees what the quantizer says, and nothing else (a public re-implementation gave it the latents)."""
    model, video = ordered("replaced"), video_of("one_d")
    encoded = model.encode(video)
    latents, tokens, *_ = model.bottleneck(encoded)
    np.testing.assert_allclose(model.detokenize(tokens), jnp.clip(model.decode(latents), -1, 1), atol=1e-5)


def test_tokens_are_not_mixed_on_their_way_to_the_quantizer():
    """Code i is a function of query i alone once the encoder is done: no reshape mixes positions."""
    model = ordered("hidden")
    width = model.queries.shape[1]
    x = jax.random.normal(jax.random.key(1), (1, QUERIES, width))
    jacobian = jax.jacrev(lambda x: model.to_code(model.encoder_norm(x)).sum(-1)[0])(x)[:, 0]
    assert (np.abs(jacobian).max(-1) > 0).tolist() == np.eye(QUERIES, dtype=bool).tolist()


def test_an_unknown_way_to_drop_is_named():
    with pytest.raises(UserError, match="unknown dropped of tokenizer 'one_d' 'gone'; known: hidden, replaced"):
        build(ORDERED | {"dropped": "gone"}, rngs=nnx.Rngs(0))


def test_fresh_queries_have_the_published_scale_unless_told_otherwise():
    many = {key: value for key, value in ORDERED.items() if key != "query_scale"} | {"queries": 4000}
    for config, scale in ((many, 0.02), (many | {"query_scale": 1.0}, 1.0)):
        assert float(build(config, rngs=nnx.Rngs(0)).queries.get_value().std()) == pytest.approx(scale, rel=0.02)

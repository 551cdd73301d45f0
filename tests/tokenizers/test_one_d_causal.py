"""A row of codes for every latent frame: what it sees, first codes of every frame, long videos in constant memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from videogen.data.bits import Packing
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import CausalOneD
from videogen.tokenizers.lengths import first
from videogen.tokenizers.long import LongVideos

NETWORK = {"width": 12, "layers": 2, "heads": 2, "mlp_width": 24}
CODES = {"name": "fsq", "levels": (5, 5)}


def make(seed: int = 0, **changes) -> CausalOneD:
    parts = {"encoder": NETWORK, "decoder": NETWORK, "quantizer": CODES}
    settings = {"queries": 4, **parts, "window": 2, "query_scale": 1.0} | changes
    abstract = nnx.eval_shape(lambda: CausalOneD((8, 8), (2, 4, 4), **settings, rngs=nnx.Rngs(0)))
    return with_random_parameters(abstract, seed)


@pytest.fixture(scope="module")
def model() -> CausalOneD:
    return make()


def video(frames: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (1, frames, 8, 8, 3)), jnp.float32)


def test_layout_and_grid(model):
    layout = model.layout(VideoShape(5, 8, 8))
    assert layout.only.sides == (("time", 3), ("query", 4)) and layout.only.vocabulary == (25,)
    assert model.layout(VideoShape(1, 8, 8)).tokens == 4
    with pytest.raises(UserError, match="codes frames of 8×8 as a whole, got 8×12"):
        model.layout(VideoShape(5, 8, 12))
    with pytest.raises(UserError, match="must have 1 \\+ 2·k frames"):
        model.layout(VideoShape(4, 8, 8))


def test_a_layer_sees_the_window_and_no_further(model):
    """Two layers of windows of 2 reach 2 latent frames back, so latent 4 sees latents 2 to 4 alone."""

    def of_last(x: jax.Array) -> jax.Array:
        return jnp.sin(model.encode(x).values[:, -1]).sum()

    gradient = jnp.abs(jax.jit(jax.grad(of_last))(video(9))).max((0, 2, 3, 4))
    # Latent k > 0 is made of frames 2k - 1 and 2k.
    assert (gradient[:3] == 0).all() and (gradient[3:] > 0).all()


def test_long_videos_in_chunks_of_any_length_equal_the_whole_in_constant_memory(model):
    clip = video(17)
    whole = jax.jit(model.encode)(clip).values
    latents = model.quantizer(whole).latents
    pixels = jax.jit(model.decode)(latents)
    encode, decode = jax.jit(model.encode_chunk), jax.jit(model.decode_chunk)
    sizes = []
    for cuts in ((1, 3, 9, 17), (5, 7, 9, 11, 13, 15, 17)):
        found, drawn, coder, decoder, start = [], [], None, None, 0
        for stop in cuts:
            coder, encoded = encode(coder, clip[:, start:stop])
            at = slice(sum(f.shape[1] for f in found), None)
            found.append(encoded.values)
            decoder, part = decode(decoder, latents[:, at][:, : encoded.values.shape[1]])
            drawn.append(part)
            sizes.append(sum(leaf.size for leaf in jax.tree.leaves((coder, decoder))))
            start = stop
        np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=2e-5)
        np.testing.assert_allclose(jnp.concatenate(drawn, axis=1), pixels, atol=2e-5)
    assert len(set(sizes)) == 1
    assert model.growing == ()


def test_every_frame_decodes_from_its_first_codes(model):
    clip = video(5)
    asked = model.tokenize(clip, 2)
    assert asked.only.kept.shape == (1, 3, 4) and (asked.only.kept == (jnp.arange(4) < 2)).all()
    encoded = model.encode(clip)
    latents = model.bottleneck(encoded)[0]
    kept = first(jnp.array([2]), (1, 3, 4))
    gradient = jax.jit(jax.grad(lambda x: jnp.sin(model.decode(x, kept)).sum()))(latents)
    assert (gradient[:, :, 2:] == 0).all() and (jnp.abs(gradient[:, :, :2]).max(-1) > 0).all()
    np.testing.assert_array_equal(model.detokenize(asked), jnp.clip(model.decode(latents, kept), -1, 1))
    with pytest.raises(UserError, match="has 1 … 4 tokens for a frame, and 5 are asked for"):
        model.encode(clip, 5)
    packing = Packing(asked.layout, model.kept_by(2))
    content = packing.pack({"video": np.asarray(asked.only.values[0])}, np.asarray(asked.kept[0]))
    # 2 bits for a number of 4, and 5 bits of each of 3 · 2 codes.
    assert len(content) == 4


def test_what_stands_for_a_code_may_be_learned():
    replaced = make(dropped="replaced")
    clip, kept = video(3), first(jnp.array([1]), (1, 2, 4))
    latents = replaced.bottleneck(replaced.encode(clip))[0]
    of_some = replaced.decode(latents, kept)
    np.testing.assert_allclose(of_some, replaced.decode(latents.at[:, :, 1:].add(7.0), kept), atol=1e-5)
    replaced.no_code.set_value(-replaced.no_code.get_value())
    assert jnp.abs(replaced.decode(latents, kept) - of_some).max() > 1e-3


def test_a_window_of_one_frame_keeps_nothing():
    lone = make(window=1)
    clip = video(5)
    cache, first_part = lone.encode_chunk(None, clip[:, :3])
    cache, rest = lone.encode_chunk(cache, clip[:, 3:])
    whole = lone.encode(clip).values
    np.testing.assert_allclose(jnp.concatenate([first_part.values, rest.values], axis=1), whole, atol=2e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(cache.keys) if leaf.ndim == 5) == 0


@pytest.mark.slow
def test_81_frames_take_the_memory_of_a_clip(model):
    clip = np.asarray(video(81))
    videos = LongVideos(model, VideoShape(5, 8, 8))
    coded = videos.encode(clip)
    assert coded.shape == (1, 41, 4, 1)
    tokens = jax.jit(model.tokenize)(clip)
    np.testing.assert_array_equal(coded, tokens.only.values)
    np.testing.assert_allclose(videos.decode(coded), jax.jit(model.detokenize)(tokens), atol=5e-5)


def test_tokens_are_not_mixed_on_their_way_to_the_quantizer(model):
    """Users' notes on tokens, case 1: input i of the quantizer depends on register i alone, in the order they stand."""
    seen = []

    class Noted(nnx.Module):
        def __init__(self, layer):
            self.layer = layer

        def __call__(self, x):
            seen.append(x)
            return self.layer(x)

    noted = make()
    noted.to_code = Noted(noted.to_code)
    values = noted.encode(video(3)).values
    np.testing.assert_allclose(values, noted.to_code.layer(seen[0]), atol=1e-6)
    assert seen[0].shape == (1, 2, 4, 12)

    def of_one(x: jax.Array) -> jax.Array:
        return jnp.sin(noted.to_code.layer(x))[0, 1, 2].sum()

    gradient = jnp.abs(jax.grad(of_one)(seen[0])).max(-1)[0]
    assert gradient[1, 2] > 0 and gradient.sum() == gradient[1, 2]

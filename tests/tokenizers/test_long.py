"""Videos beyond the trained length: windows that are exact inside, in constant memory and two programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tokenizers.test_invariants import CONFIGS, FIXED, SIDE, frames_of, make, model_of
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers.long import LongVideos, lengths
from videogen.tokens import Segment, Tokens

CODELESS = {"kl": CONFIGS["cvivit"] | {"quantizer": {"name": "gaussian", "width": 4}}}


def long_of(name: str) -> LongVideos:
    model = make(CODELESS[name]) if name in CODELESS else model_of(name)
    return LongVideos(model, VideoShape(frames_of("cvivit" if name in CODELESS else name), SIDE, SIDE))


def tokens_of(model, values: np.ndarray) -> Tokens:
    return Tokens.of(video=Segment(jnp.asarray(values), model.layout_of(values.shape[1:-1]).only))


def video_of(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (1, frames, SIDE, SIDE, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "name", ["convolutional", "cdt", pytest.param("convolutional, blurred", marks=pytest.mark.slow)]
)
def test_convolutions_give_what_the_whole_gives(name):
    model, videos = model_of(name), long_of(name)
    video = video_of(model.compression.frames(2 * videos.window + 1))
    codes = videos.encode(video)
    np.testing.assert_array_equal(codes, jax.jit(model.tokenize)(jnp.asarray(video)).only.values)
    if name == "cdt":  # whose decoder draws
        return
    whole = jax.jit(model.detokenize)(tokens_of(model, codes))
    np.testing.assert_allclose(videos.decode(codes), whole, atol=1e-4)


@pytest.mark.parametrize("name", ["cvivit", pytest.param("omnitokenizer", marks=pytest.mark.slow), "the guide's"])
def test_attention_goes_by_windows_that_are_exact_inside(name):
    """The whole past was seen, which in training never was so long: reconstructions lost ten decibels in minutes."""
    model, videos = model_of(name), long_of(name)
    latents, overlap = videos.window, videos.window // 2
    frames = model.compression.frames
    video = video_of(frames(latents + 2 * (latents - overlap)))
    codes = videos.encode(video)
    # The first window is that of a clip in training.
    clip = jax.jit(model.tokenize)(jnp.asarray(video[:, : videos.frames])).only.values
    np.testing.assert_array_equal(codes[:, :latents], clip)
    # Later latents see no further back than their window, and all that is in it.
    last = latents + (latents - overlap)
    seen_from = last - overlap
    other = video.copy()
    other[:, : frames(seen_from)] = video_of(frames(seen_from), seed=1)
    np.testing.assert_array_equal(videos.encode(other)[:, last:], codes[:, last:])
    pixels = videos.decode(codes)
    changed = codes.copy()
    changed[:, :seen_from] = (changed[:, :seen_from] + 1) % model.vocabulary[0]
    after = videos.decode(changed)
    np.testing.assert_array_equal(after[:, frames(last) :], pixels[:, frames(last) :])
    assert np.abs(after[:, : frames(last)] - pixels[:, : frames(last)]).max() > 1e-3
    whole = jax.jit(model.detokenize)(tokens_of(model, codes[:, :latents]))
    np.testing.assert_allclose(pixels[:, : videos.frames], whole, atol=1e-4)


@pytest.mark.parametrize("name", ["cvivit", "convolutional"])
def test_a_video_of_any_length_takes_two_programs_in_each_direction(name, caplog):
    with caplog.at_level("INFO", logger="absl"):
        videos = long_of(name)
    assert ("sees the whole past" in caplog.text) == bool(videos.model.growing)
    for frames in (3, videos.frames, 40, 77):
        assert videos.decode(videos.encode(video_of(frames)), frames).shape[1] == frames
    assert videos._run._cache_size() == 4


@pytest.mark.parametrize("name", ["magvit", *(name for name in FIXED if name != "tokenflow")])
def test_clips_that_are_coded_as_a_whole_take_window_after_window(name):
    model, videos = model_of(name), long_of(name)
    video = video_of(2 * videos.frames)
    codes = videos.encode(video[:, : videos.frames + 1])
    first = jax.jit(model.tokenize)(jnp.asarray(video[:, : videos.frames])).only.values
    np.testing.assert_array_equal(codes[:, : videos.window], first)
    assert codes.shape[1] == 2 * videos.window
    assert videos.decode(codes, videos.frames + 1).shape[1] == videos.frames + 1


@pytest.mark.slow
def test_latents_of_a_tokenizer_without_codes_come_back():
    videos = long_of("kl")
    video = video_of(videos.frames)
    latents = videos.encode(video)
    np.testing.assert_allclose(latents, videos.model.tokenize(jnp.asarray(video)).only.values, atol=1e-4)
    np.testing.assert_allclose(
        videos.decode(latents), videos.model.detokenize(tokens_of(videos.model, latents)), atol=1e-4
    )


def test_windows_cover_all_latents():
    assert list(lengths(3, 4, 2)) == [4] and list(lengths(8, 4, 2)) == [4, 2, 2] and list(lengths(9, 4, 0)) == [4, 4, 4]


def test_no_video_is_refused_by_name():
    with pytest.raises(UserError, match="got uint8"):
        long_of("cvivit").encode(np.zeros((1, 9, SIDE, SIDE, 3), np.uint8))

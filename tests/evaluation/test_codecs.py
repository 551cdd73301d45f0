"""Codecs keep the shape, lose more the stronger they are, and tokenizers are given numbers of frames that they take."""

import numpy as np
import pytest
from av.error import FFmpegError
from flax import nnx

from videogen.errors import UserError
from videogen.evaluation import codecs

STRENGTHS = {"jpeg": (90, 40, 10, 2), "h264": (10, 25, 38, 51), "downsample": (1, 2, 4, 8)}


def clip(frames, height=48, width=65):
    """Coloured noise, smooth enough to be coded."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (frames, height // 6 + 1, width // 6 + 1, 3))
    large = small.repeat(6, axis=1).repeat(6, axis=2)[:, :height, :width]
    return np.clip(large + generator.integers(-9, 10, large.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("frames", [1, 5])
def test_more_strength_more_loss(name, frames):
    video, errors = clip(frames), []
    for strength in STRENGTHS[name]:
        coded = codecs.build(f"{name}:{strength}")(video)
        assert coded.shape == video.shape and coded.dtype == np.uint8
        errors.append(np.square(coded.astype(float) - video).mean())
    assert (np.diff(errors) > 0).all(), errors


def test_identity_and_no_downsampling_change_nothing():
    video = clip(2)
    np.testing.assert_array_equal(codecs.build("identity")(video), video)
    np.testing.assert_array_equal(codecs.build("downsample:1")(video), video)


def test_downsampling_averages():
    video = np.zeros((1, 4, 4, 3), np.uint8)
    video[0, :2, :2] = [[[200] * 3, [100] * 3], [[0] * 3, [100] * 3]]
    assert codecs.build("downsample:4")(video).max() == 25
    assert codecs.build("downsample:2")(video)[0, 0, 0, 0] == 100


@pytest.mark.parametrize(
    "text",
    ["jpeg", "jpeg:0", "jpeg:96", "webp:0", "webp:101", "jpeg:x", "h264:52", "jepg:10", "downsample:", "jpeg:-1"],
)
def test_strengths_that_there_are_not(text):
    with pytest.raises(UserError, match="codec") as error:
        codecs.build(text)
    assert "\n" not in str(error.value)


class Odd(nnx.Module):
    """Takes 1 + 2·k frames."""

    def layout(self, shape):
        if shape.frames % 2 == 0:
            raise UserError("1 + 2·k frames")


def test_a_tokenizer_is_given_a_number_of_frames_that_it_takes(monkeypatch):
    seen = []

    def reconstructor(model):
        return lambda video: seen.append(video.shape[1]) or 255 - video

    monkeypatch.setattr(codecs, "reconstructor", reconstructor)
    video = clip(8)
    np.testing.assert_array_equal(codecs.of_tokenizer(Odd(), 5)(video), 255 - video)
    assert seen == [5, 3]
    seen.clear()
    np.testing.assert_array_equal(codecs.of_tokenizer(Odd(), 5)(video[:2]), 255 - video[:2])
    assert seen == [3]


class Never(nnx.Module):
    def layout(self, shape):
        raise UserError(f"no clip of {shape.height} rows")


def test_a_size_that_a_tokenizer_cannot_take_is_its_own_message(monkeypatch):
    monkeypatch.setattr(codecs, "reconstructor", lambda model: None)
    with pytest.raises(UserError, match="no clip of 48 rows"):
        codecs.of_tokenizer(Never(), 5)(clip(1))


def test_the_smallest_and_largest_strengths_are_taken_and_hevc_is_not_h264():
    video = clip(1, 64, 64)
    for text in ("webp:1", "webp:100", "jpeg:1", "jpeg:95", "h264:0", "h264:51", "hevc:0"):
        assert codecs.build(text)(video).shape == video.shape
    assert (codecs.h264(video, 40).frames != codecs.hevc(video, 40).frames).any()


def test_what_ffmpeg_cannot_do_is_one_line(monkeypatch):
    def broken(*arguments, **settings):
        raise FFmpegError(1, "not implemented")

    monkeypatch.setattr(codecs, "write_video", broken)
    with pytest.raises(UserError, match="cannot write and read a clip by libx265 at 51: .*not implemented"):
        codecs.build("hevc:51")(clip(1))

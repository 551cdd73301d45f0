"""Reads one clip's worth of frames and sound out of an encoded video.

Only the window that is wanted is decoded, found by seeking. Nothing the header promises is believed: when
the window turns out to lie beyond what can be decoded, an earlier one is tried, and the sample is given up
when not even the first frames are good. Frames are chosen by their time stamps. Nothing is ever padded or
repeated to fill up a clip.
"""

import dataclasses
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float32, UInt8

from videogen.data.clip import Clip, interpolation
from videogen.data.source import SampleError

PIXEL_BUDGET = 2**28
"""Default of the most pixels decoded for one clip: 129 frames of 1080p, or 32 of 4K."""

_REFERENCE_FRAMES = 16
"""Frames a decoder may hold at once, however short the clip."""
_MAGIC = {4: b"ftyp", 0: (b"\x1a\x45\xdf\xa3", b"RIFF", b"GIF8")}
_TIME_TOLERANCE = 1e-4
_AUDIO_LEAD = 0.1  # seconds: the first packets after a seek lack their predecessors

Encoded = str | os.PathLike | bytes
"""A file, or the content of one."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A clip: its frames, their rate and the time (seconds) of the first."""

    video: UInt8[np.ndarray, "time height width 3"]
    fps: float
    start: float


class _Stopped(Exception):
    """Decoding ended before the window was full: at ``time`` in seconds, because of ``reason``."""

    def __init__(self, time: float, reason: str):
        super().__init__(reason)
        self.time = time
        self.reason = reason


def decode_clip(
    encoded: Encoded, name: str, clip: Clip, rng: np.random.Generator | None, pixel_budget: int = PIXEL_BUDGET
) -> Decoded:
    """Decodes one window of a video, resized and cropped.

    Args:
      encoded: the video.
      name: what to call it in errors.
      clip: how many frames, how large, and at what rate; without a rate, consecutive frames.
      rng: chooses the window and the crop; both are centred without it.
      pixel_budget: most pixels (width × height × frames at the file's own rate) to decode.

    Raises:
      SampleError: no clip can be had; the reason is a few words.
    """
    with _open(encoded, name) as container:
        if not container.streams.video:
            raise SampleError(name, "no video stream")
        stream = container.streams.video[0]
        # With frame threads, how many frames of a damaged file survive would depend on the machine.
        stream.codec_context.thread_count = 1
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        span = (clip.frames - 1) / (clip.fps or rate)
        _check_size(stream, name, max(span * rate + 1, _REFERENCE_FRAMES), pixel_budget)
        first, end = _extent(container, stream)
        latest = end - span - 0.5 / rate
        while True:
            start = first if latest - first < 1 / rate else _choose(first, latest, rng)
            try:
                pictures = _window(container, stream, clip, rate, start, start == first)
                video = clip.crop(pictures, rng)
                return Decoded(video, clip.fps or rate, start)
            except _Stopped as stopped:
                if start == first:
                    raise SampleError(name, stopped.reason) from None
                # What follows the stop is lost; halving ends the search also where time stamps are uneven.
                latest = min(stopped.time - span - 0.5 / rate, (first + start) / 2)


def decode_audio(
    encoded: Encoded, name: str, start: float, seconds: float, rate: int
) -> Float32[np.ndarray, "samples 1"]:
    """Decodes ``seconds · rate`` samples of mono sound in [-1, 1] from ``start`` (seconds) on.

    Where the track is shorter than the picture, it is silent.

    Raises:
      SampleError: there is no audio stream, or it cannot be decoded.
    """
    out = np.zeros(round(seconds * rate), np.float32)
    with _open(encoded, name) as container:
        if not container.streams.audio:
            raise SampleError(name, "no audio stream")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        try:
            container.seek(int(max(start - _AUDIO_LEAD, 0) / stream.time_base), stream=stream)
            for frame in itertools.chain(container.decode(stream), [None]):  # None: what the resampler kept back
                for piece in resampler.resample(frame):
                    sound = piece.to_ndarray()[0]
                    begin = round(((piece.time or 0.0) - start) * rate)
                    if begin >= len(out):
                        return out[:, None]
                    low, high = max(begin, 0), min(begin + len(sound), len(out))
                    if low < high:
                        out[low:high] = sound[low - begin : high - begin]
        except av.FFmpegError as error:
            raise SampleError(name, "decode error in the audio stream") from error
    return out[:, None]


def _open(encoded: Encoded, name: str) -> av.container.InputContainer:
    """Opens a container, or says what is wrong with it."""
    size = len(encoded) if isinstance(encoded, bytes) else None
    try:
        size = os.path.getsize(encoded) if size is None else size
        if size == 0:
            raise SampleError(name, "empty file")
        return av.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else str(encoded), metadata_errors="replace")
    except av.FFmpegError as error:
        known = any(_head(encoded)[at:].startswith(magic) for at, magic in _MAGIC.items())
        raise SampleError(name, "index missing / truncated" if known else "not a video container") from error
    except OSError as error:
        raise SampleError(name, f"unreadable file ({error.strerror})") from error


def _head(encoded: Encoded) -> bytes:
    if isinstance(encoded, bytes):
        return encoded[:16]
    with Path(encoded).open("rb") as file:
        return file.read(16)


def _check_size(stream: av.VideoStream, name: str, frames: float, pixel_budget: int) -> None:
    """Refuses a size that is unknown or too large, before anything is decoded."""
    height, width = stream.codec_context.height, stream.codec_context.width
    if height < 1 or width < 1:
        raise SampleError(name, "size unknown or too large")
    if height * width * frames > pixel_budget:
        raise SampleError(name, f"above the pixel budget ({width}x{height})")


def _extent(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[float, float]:
    """When the stream begins and is said to end, in seconds."""
    unit = float(stream.time_base)
    first = (stream.start_time or 0) * unit
    if stream.duration:
        return first, first + stream.duration * unit
    if container.duration:
        return first, first + container.duration / av.time_base
    stamps = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    container.seek(0)
    return first, max(stamps, default=0) * unit


def _choose(low: float, high: float, rng: np.random.Generator | None) -> float:
    return (low + high) / 2 if rng is None else float(rng.uniform(low, high))


def _window(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    clip: Clip,
    rate: float,
    start: float,
    from_first: bool,
) -> UInt8[np.ndarray, "time h w 3"]:
    """The frames of the window at ``start``, covering the clip's size.

    Raises:
      _Stopped: the window cannot be filled.
    """
    frames = _frames(container, stream, rate, start, from_first)
    chosen: list[np.ndarray] = []
    held, held_time, count = None, start, 0
    for count, (time, frame) in enumerate(frames, 1):  # noqa: B007 (the last count is used below)
        if held is None and from_first:
            start = time
        if held is None and time > start + 1 / rate:
            raise _Stopped(start, "seeking went too far")
        if clip.fps is None:
            if time >= start - 0.5 / rate:
                chosen.append(_picture(frame, clip))
        else:
            # The frame on show at a moment is the last that began before it.
            _show(chosen, held, time, start, clip)
        held, held_time = frame, time
        if len(chosen) == clip.frames:
            return np.stack(chosen)
    end = held_time + 1 / rate
    if clip.fps is not None and held is not None:
        _show(chosen, held, end, start, clip)
        if len(chosen) == clip.frames:
            return np.stack(chosen)
    wish = f"{clip.frames} frames" + (f" at {clip.fps:g} fps" if clip.fps else "")
    raise _Stopped(end, f"too short, {count} frames where a clip needs {wish}")


def _show(chosen: list[np.ndarray], held: av.VideoFrame | None, until: float, start: float, clip: Clip) -> None:
    """Appends ``held`` for every wanted moment before ``until``."""
    picture = None
    while held is not None and len(chosen) < clip.frames:
        if start + len(chosen) / clip.fps >= until - _TIME_TOLERANCE:
            break
        picture = _picture(held, clip) if picture is None else picture
        chosen.append(picture)


def _frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    rate: float,
    start: float,
    from_first: bool,
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yields (time, frame) from the key frame before ``start`` on, as long as they are good."""
    time, count, packet = start - 1 / rate, 0, None
    try:
        container.seek(0 if from_first else int(start / stream.time_base), stream=stream)
        begun = from_first
        for packet in container.demux(stream):
            for frame in packet.decode():
                # After a seek, frames before the key frame refer to pictures that were never decoded.
                begun = begun or frame.key_frame
                if not begun:
                    continue
                time = frame.time if frame.time is not None else time + 1 / rate
                if frame.is_corrupt:
                    raise _Stopped(time, f"decode error at frame {count}")
                yield time, frame
                count += 1
    except (av.FFmpegError, OSError):
        truncated = packet is not None and packet.is_corrupt and stream.frames > count
        reason = f"truncated, {count} of {stream.frames} frames" if truncated else f"decode error at frame {count}"
        raise _Stopped(time + 1 / rate, reason) from None


def _picture(frame: av.VideoFrame, clip: Clip) -> UInt8[np.ndarray, "h w 3"]:
    """A frame upright, as 8-bit RGB, resized to cover the clip."""
    turns = round(frame.rotation / 90) % 4
    upright = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    height, width = clip.cover(*upright)
    if turns % 2:
        height, width = width, height
    rgb = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        interpolation=interpolation(frame.height, height),
        src_color_range=frame.color_range,
        threads=1,
    )
    return np.rot90(rgb.to_ndarray(), turns)

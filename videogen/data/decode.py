"""Reads one clip's worth of frames and sound out of an encoded video, or a picture as a clip of one frame.

Only the window that is wanted is decoded, found by seeking; where what a seek finds cannot be trusted, the file is
decoded from its beginning, so that a window equals the same frames of the whole. Nothing the header promises is
believed: when the window turns out to lie beyond what can be decoded, an earlier one is tried, and the sample is given
up when not even the first frames are good. Frames are chosen by their time stamps and shrunk one by one. Nothing is
padded or repeated to fill up a clip.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from jaxtyping import Float32, UInt8

from videogen.data.clip import Clip
from videogen.data.media import PIXEL_BUDGET, Encoded, border, open_bytes, open_container
from videogen.data.picture import is_still, still_coding, upright
from videogen.data.source import SampleError
from videogen.data.video import Stopped, Untrusted, Video, open_video

_AUDIO_LEAD = 0.1  # seconds: the first packets after a seek lack their predecessors
SEEK_LEAD = 4  # frames: containers seek by decoding times, which run ahead of those of showing


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A clip: its frames, their rate and the time (seconds) of the first.

    Attributes:
      times: when each frame is first shown in the file, in seconds from the file's first frame; equal where a frame is
        shown again to keep a rate.
    """

    video: UInt8[np.ndarray, "time height width 3"]
    fps: float
    start: float
    times: Float32[np.ndarray, "time"]


def decoded_clip(chosen: list[np.ndarray], times: list[float], fps: float, start: float, first: float) -> Decoded:
    """A clip of frames with their times in the stream, which begins at ``first``."""
    return Decoded(np.stack(chosen), fps, start, (np.array(times) - first).astype(np.float32))


def still_clip(video: np.ndarray, clip: Clip, rng: np.random.Generator | None) -> Decoded:
    """The clip of a picture."""
    return Decoded(clip.fit(video[None], rng), clip.fps or 1.0, 0.0, np.zeros(1, np.float32))


def decode_clip(
    encoded: Encoded, name: str, clip: Clip, rng: np.random.Generator | None, pixel_budget: int = PIXEL_BUDGET
) -> Decoded:
    """Decodes one window of a video, resized and cropped.

    Args:
      encoded: the video or picture.
      name: what to call it in errors.
      clip: how many frames, how large, and at what rate; without a rate, consecutive frames.
      rng: chooses the window and the crop; both are centred without it.
      pixel_budget: most pixels a decoder may hold (16 × width × height of a frame).

    Raises:
      SampleError: no clip can be had; the reason is a few words.
    """
    with open_video(encoded, name, pixel_budget) as video:
        if isinstance(video, np.ndarray):
            if clip.frames > 1:
                raise SampleError(name, f"too short, 1 frames where a clip needs {clip.frames} frames")
            return still_clip(video, clip, rng)
        first, end = video.extent()
        span = (clip.frames - 1) / (clip.fps or video.rate)
        latest = end - span - 0.5 / video.rate
        while True:
            start = first if latest - first < 1 / video.rate else clip.start(first, latest, rng)
            try:
                return _window(video, clip, start if start > first else None, rng)
            except Stopped as stopped:
                if start == first:
                    raise SampleError(name, stopped.reason) from None
                # What follows the stop is lost; halving ends the search also where time stamps are uneven.
                latest = min(stopped.time - span - 0.5 / video.rate, (first + start) / 2)


def decode_beginning(
    encoded: Encoded, name: str, clip: Clip, needed: int | None = None, pixel_budget: int = PIXEL_BUDGET
) -> Decoded:
    """Decodes the first frames of a video, chosen by time and fitted like those of ``decode_clip``; central crop.

    Args:
      encoded: the video or picture.
      name: what to call it in errors.
      clip: how many frames, how large, and at what rate.
      needed: frames that must be there; those beyond may be missing, and repeat the last. By default all.
      pixel_budget: most pixels a decoder may hold.

    Raises:
      SampleError: it cannot be read, or has fewer than the ``needed`` frames.
    """
    needed = clip.frames if needed is None else max(needed, 1)
    with open_video(encoded, name, pixel_budget) as video:
        if isinstance(video, np.ndarray):
            chosen, rate, reason = [clip.fit(video[None], None)[0]], clip.fps or 1.0, "it is a picture"
            times = [0.0]
        else:
            try:
                return _window(video, clip, None, None)
            except Stopped as stopped:
                chosen, rate, reason = stopped.chosen, clip.fps or video.rate, stopped.reason
                times = stopped.times
        if len(chosen) < needed:
            raise SampleError(name, f"too short, {needed} frames at {rate:g} fps are needed ({reason})")
        missing = clip.frames - len(chosen)
        return decoded_clip(chosen + chosen[-1:] * missing, times + times[-1:] * missing, rate, 0.0, times[0])


def decode_fitted(encoded: Encoded, name: str, clip: Clip, most_pixels: int = PIXEL_BUDGET) -> Decoded:
    """All frames of a video, chosen by time and fitted like those of ``decode_clip``; central crop.

    Args:
      encoded: the video or picture.
      name: what to call it in errors.
      clip: how large, and at what rate; its number of frames does not matter.
      most_pixels: most pixels of all fitted frames together.

    Raises:
      SampleError: it cannot be read to its end, or is too long.
    """
    longest = max(most_pixels // (clip.height * clip.width), 1)
    with open_video(encoded, name, PIXEL_BUDGET) as video:
        if isinstance(video, np.ndarray):
            return still_clip(video, clip, None)
        try:
            _window(video, dataclasses.replace(clip, frames=longest + 1), None, None)
        except Stopped as stopped:
            if not stopped.chosen or not stopped.reason.startswith("too short"):
                raise SampleError(name, stopped.reason) from None
            return decoded_clip(stopped.chosen, stopped.times, clip.fps or video.rate, 0.0, stopped.times[0])
        raise SampleError(name, f"more than {longest} frames of {clip.height}×{clip.width}; cut it into shorter videos")


def decode_whole(
    encoded: Encoded, name: str, most_pixels: int
) -> tuple[UInt8[np.ndarray, "time height width 3"], float]:
    """Every frame at the size of the first, upright with square pixels, and the frame rate (1 of a picture).

    Raises:
      SampleError: it cannot be read to its end, or all frames together have more than ``most_pixels``.
    """
    with open_video(encoded, name, PIXEL_BUDGET) as video:
        if isinstance(video, np.ndarray):
            return video[None], 1.0
        frames: list[np.ndarray] = []
        try:
            for _, frame in video.frames(None):
                frames.append(upright(frame, video.aspect, lambda *size: frames[0].shape[:2] if frames else size))
                if len(frames) * frames[0].shape[0] * frames[0].shape[1] > most_pixels:
                    raise SampleError(name, f"more than {most_pixels:,} pixels; use fewer or smaller frames")
        except Stopped as stopped:
            raise SampleError(name, stopped.reason) from None
        if not frames:
            raise SampleError(name, "no frame")
        return np.stack(frames), video.rate


def frame_rate(encoded: Encoded, name: str) -> float:
    """The rate that consecutive frames of a video have; 1 of a picture.

    Raises:
      SampleError: it cannot be opened.
    """
    with open_video(encoded, name, PIXEL_BUDGET) as video:
        return 1.0 if isinstance(video, np.ndarray) else video.rate


def coding(encoded: Encoded, name: str) -> dict[str, Any]:
    """How a file is stored, by its header: ``container``, ``codec``, ``size`` of its frames and ``fps``; of a picture
    the first three, its format standing for both.

    Raises:
      SampleError: it cannot be opened.
    """
    with border(name), open_bytes(encoded, name) as file:
        head = file.read(16)
        file.seek(0)
        if not is_still(head):
            with contextlib.closing(Video(file, name, PIXEL_BUDGET)) as video:
                return video.coding()
        return still_coding(file)


def decode_audio(
    encoded: Encoded, name: str, start: float, seconds: float, rate: int
) -> Float32[np.ndarray, "samples 1"]:
    """Decodes ``seconds · rate`` samples of mono sound in [-1, 1] from ``start`` (seconds) on.

    Where the track is shorter than the picture, it is silent.

    Raises:
      SampleError: there is no audio stream, or it cannot be decoded.
    """
    out = np.zeros(round(seconds * rate), np.float32)
    with border(name), open_bytes(encoded, name) as file, open_container(file, name, PIXEL_BUDGET) as container:
        stream = next((s for s in container.streams.audio if s.codec_context is not None), None)
        if stream is None:
            raise SampleError(name, "unknown audio codec" if container.streams.audio else "no audio stream")
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
        except (av.FFmpegError, OSError) as error:
            raise SampleError(name, "decode error in the audio stream") from error
    return out[:, None]


def covering(video: Video, clip: Clip) -> Callable[[int, int], tuple[int, int]]:
    """The size that frames of a size are fitted at, refused where a decoder could not hold it."""

    def size(height: int, width: int) -> tuple[int, int]:
        fitted = clip.cover(height, width)
        video.check_size(*fitted)
        return fitted

    return size


def _window(video: Video, clip: Clip, start: float | None, rng: np.random.Generator | None) -> Decoded:
    """The clip that begins at ``start`` (``None``: with the first frame), by seeking where that can be trusted.

    Raises:
      Stopped: the window cannot be filled.
    """
    for lead in () if start is None else (0.0, SEEK_LEAD / video.rate):
        with contextlib.suppress(Untrusted):
            return _filled(video, clip, start, video.frames(start, lead), rng)
    return _filled(video, clip, start, video.frames(None), rng)


def _filled(
    video: Video,
    clip: Clip,
    start: float | None,
    frames: Iterator[tuple[float, av.VideoFrame]],
    rng: np.random.Generator | None,
) -> Decoded:
    period = 1 / video.rate
    cut, chosen, times = clip.cutter(rng), [], []
    held, held_time, count, begin = None, start or 0.0, 0, start
    tolerance, earliest, size = video.tolerance, video.first, covering(video, clip)

    def show(frame: av.VideoFrame, since: float, until: float) -> None:
        """Appends a frame for every wanted moment before ``until``; without a rate once."""
        picture = None
        while len(chosen) < clip.frames:
            if clip.fps and begin + len(chosen) / clip.fps >= until - tolerance:
                break
            picture = cut(upright(frame, video.aspect, size)) if picture is None else picture
            chosen.append(picture)
            times.append(since)
            if not clip.fps:
                break

    try:
        for count, (time, frame) in enumerate(frames, 1):  # noqa: B007 (used below)
            if held is None:
                earliest = time if begin is None else earliest
                begin = time if begin is None else max(begin, time)
            if clip.fps is None:
                if time >= begin - 0.5 * period:
                    begin = begin if chosen else time
                    show(frame, time, time + period)
            elif held is not None and time > begin + tolerance:
                # The frame on show at a moment is the last that began before it; the clip begins with one.
                begin = begin if chosen else held_time
                show(held, held_time, time)
            held, held_time = frame, time
            if len(chosen) == clip.frames:
                return decoded_clip(chosen, times, clip.fps or video.rate, begin, earliest)
        if clip.fps is not None and held is not None:
            begin = begin if chosen else held_time
            show(held, held_time, held_time + period)
        if len(chosen) == clip.frames:
            return decoded_clip(chosen, times, clip.fps or video.rate, begin, earliest)
    except Stopped as stopped:
        stopped.chosen, stopped.times = chosen, times
        raise
    wish = f"{clip.frames} frames" + (f" at {clip.fps:g} fps" if clip.fps else "")
    stopped = Stopped(held_time + period, f"too short, {count} frames where a clip needs {wish}")
    stopped.chosen, stopped.times = chosen, times
    raise stopped

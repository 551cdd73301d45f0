"""Frames spread over a whole video, each with the time at which it is shown."""

import collections
import contextlib
from collections.abc import Iterable, Iterator

import av
import numpy as np
from jaxtyping import Float

from videogen.data.clip import Clip
from videogen.data.decode import SEEK_LEAD, Decoded, covering, decoded_clip, still_clip
from videogen.data.media import PIXEL_BUDGET, Encoded
from videogen.data.picture import upright
from videogen.data.source import SampleError
from videogen.data.video import Stopped, Untrusted, Video, open_video

_SEEK_GAP = 2.0
"""Seconds between frames from which on each of them is sought."""


def decode_spread(
    encoded: Encoded,
    name: str,
    clip: Clip,
    rng: np.random.Generator | None,
    pixel_budget: int = PIXEL_BUDGET,
    part: tuple[float, float | None] = (0.0, None),
) -> Decoded:
    """Decodes frames spread over a whole video (``Clip.moments``), or over a part of it; no other is kept.

    Frames far apart are sought, and where what a seek finds cannot be trusted, the file is decoded from its beginning.

    Args:
      encoded: the video or picture.
      name: what to call it in errors.
      clip: how many frames, how large, and at most at what rate.
      rng: chooses the crop; it is central without it.
      pixel_budget: most pixels a decoder may hold.
      part: its first and last moment in seconds from the first frame; ``None`` is the end.

    Raises:
      SampleError: it cannot be read, has too few frames, or ends before the part begins.
    """
    with open_video(encoded, name, pixel_budget) as video:
        if isinstance(video, np.ndarray):
            if clip.frames > 1:
                raise SampleError(name, f"too short, 1 frames where a clip needs {clip.frames} frames")
            return still_clip(video, clip, rng)
        first, end = video.extent()
        low = first + part[0]
        while True:
            high = end if part[1] is None else min(end, first + part[1])
            if high <= low:
                raise SampleError(name, f"it ends at {end - first:.1f} s, before {part[0]:g} s")
            moments = clip.moments(high - low, video.rate)
            if moments is None:
                found = round((high - low) * video.rate)
                raise SampleError(name, f"too short, {found} frames where a clip needs {clip.frames} frames")
            try:
                return _at(video, clip, low + moments, rng)
            except Stopped as stopped:
                # The header promised more than there is.
                if stopped.time >= end:
                    raise SampleError(name, stopped.reason) from None
                end = stopped.time


def _at(video: Video, clip: Clip, moments: Float[np.ndarray, "frames"], rng: np.random.Generator | None) -> Decoded:
    """The frames on show at rising moments of the stream.

    Raises:
      Stopped: it ends before the last.
    """
    if np.diff(moments).min(initial=np.inf) > _SEEK_GAP:
        with contextlib.suppress(Untrusted):
            return _fitted(video, clip, _sought(video, moments), rng)
    return _fitted(video, clip, _on_show(video, video.frames(None), moments), rng)


def _fitted(
    video: Video, clip: Clip, frames: Iterator[tuple[float, av.VideoFrame]], rng: np.random.Generator | None
) -> Decoded:
    cut, size, chosen, times = clip.cutter(rng), covering(video, clip), [], []
    for time, frame in frames:
        chosen.append(cut(upright(frame, video.aspect, size)))
        times.append(time)
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0 else clip.fps or video.rate
    return decoded_clip(chosen, times, rate, times[0], video.first)


def _on_show(
    video: Video, frames: Iterator[tuple[float, av.VideoFrame]], moments: Iterable[float]
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Of each of some rising moments the last frame that began before it."""
    held, waiting = None, collections.deque(moments)
    for time, frame in frames:
        while waiting and held is not None and time > waiting[0] + video.tolerance:
            waiting.popleft()
            yield held
        if not waiting:
            return
        held = time, frame
    end = video.first if held is None else held[0] + 1 / video.rate
    while waiting and waiting[0] < end + video.tolerance:
        waiting.popleft()
        yield held
    if waiting:
        raise Stopped(end, f"too short, it ends at {end - video.first:.1f} s")


def _sought(video: Video, moments: Float[np.ndarray, "frames"]) -> Iterator[tuple[float, av.VideoFrame]]:
    """The same, each found by a seek.

    Raises:
      Untrusted: a seek cannot be trusted, or key frames are so far apart that all frames are decoded faster.
    """
    left = (moments[-1] - moments[0]) * video.rate + len(moments)

    def counted(frames: Iterator[tuple[float, av.VideoFrame]]) -> Iterator[tuple[float, av.VideoFrame]]:
        nonlocal left
        for entry in frames:
            left -= 1
            if left < 0:
                raise Untrusted
            yield entry

    for moment in moments:
        with contextlib.closing(video.frames(moment, SEEK_LEAD / video.rate)) as frames:
            yield from _on_show(video, counted(frames), [moment])

"""The frames of a video one after another, at an even rate: no more than one of them is held."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from videogen.data.clip import Clip
from videogen.data.decode import covering
from videogen.data.media import PIXEL_BUDGET, Encoded
from videogen.data.picture import upright
from videogen.data.source import SampleError
from videogen.data.video import Stopped, open_video

Shown = tuple[UInt8[np.ndarray, "height width 3"], float]
"""A frame, and the second at which it is on show."""


def decode_stream(encoded: Encoded, name: str, clip: Clip, pixel_budget: int = PIXEL_BUDGET) -> Iterator[Shown]:
    """Frame k is that on show at second k / ``clip.fps`` of the video: the last one that began by then.

    Args:
      encoded: the video or picture, which is one frame.
      name: what to call it in errors.
      clip: how large, and at what rate; without one every frame is given at its own time.
      pixel_budget: most pixels a decoder may hold.

    Raises:
      SampleError: it cannot be read, or not further; frames that are good come before.
    """
    with open_video(encoded, name, pixel_budget) as video:
        if isinstance(video, np.ndarray):
            yield clip.fit(video[None], None)[0], 0.0
            return
        cut, size, held, count, begin, time = clip.cutter(None), covering(video, clip), None, 0, None, 0.0
        try:
            for time, frame in video.frames(None):
                begin = time if begin is None else begin
                if clip.fps is None:
                    yield cut(upright(frame, video.aspect, size)), time - begin
                    continue
                while held is not None and begin + count / clip.fps < time - video.tolerance:
                    yield cut(upright(held, video.aspect, size)), count / clip.fps
                    count += 1
                held = frame
        except Stopped as stopped:
            raise SampleError(name, f"{stopped.reason}, at {stopped.time - (begin or 0.0):.1f} s") from None
        end = time + 1 / video.rate
        while held is not None and begin + count / clip.fps < end - video.tolerance:
            yield cut(upright(held, video.aspect, size)), count / clip.fps
            count += 1

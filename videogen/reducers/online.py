"""Decisions that are taken while frames arrive, from the past alone and with memory of fixed size."""

import collections

import jax
import numpy as np
from jaxtyping import Float

from videogen.errors import UserError
from videogen.reducers.time import cut, depth_scores

WINDOW = 32
"""Frames that statistics are taken over."""


class ChangeTrigger:
    """``segmenters.transitions``, frame by frame: whether the frame before turns out to begin a new scene.

    Args:
      window: frames.
    """

    def __init__(self, window: int = WINDOW):
        # The frame before and those before that; the first frame of a stream is none of them.
        self._past: collections.deque[float] = collections.deque(maxlen=window + 1)
        self._frames = 0

    def push(self, dropped: float) -> bool:
        """Takes the share of tokens of the next frame that were dropped."""
        found = self._frames > 2 and self._low() and self._past[-1] < np.float32(dropped)
        if self._frames:
            self._past.append(np.float32(dropped))
        self._frames += 1
        return bool(found)

    def _low(self) -> bool:
        """Whether the frame before is a local minimum from the left, far below the mean of those before it."""
        *before, last = self._past
        values = np.array(before, np.float32)
        low = last < values.mean(dtype=np.float32) - values.std(dtype=np.float32)
        return bool(low and last <= values[-1])


class SceneCutter:
    """Scenes of a stream by the depth of valleys of the likeness of neighbouring frames (VideoLLaMB, section 3.1; that
    statistics are of the last frames alone is ours).

    A cut is known once the likeness behind it is: one frame after the scene has begun. Frames before the first count as
    alike.

    Args:
      window: likenesses that depth scores, their mean and their deviation are of.
      shortest, longest: frames of a scene; a longer one is cut where it reaches that.
      floor: depth score that a cut has at least, so that noise is none.
    """

    def __init__(self, window: int = WINDOW, *, shortest: int = 2, longest: int = 64, floor: float = 0.02):
        if not 1 <= shortest <= longest:
            raise UserError(f"a scene has 1 … longest frames, got {shortest} … {longest}")
        self._alike: collections.deque[float] = collections.deque([1.0] * window, maxlen=window)
        self._shortest, self._longest, self._floor = shortest, longest, floor
        self._begin = self._frames = 0
        self._last: np.ndarray | None = None

    @property
    def begin(self) -> int:
        """The first frame of the scene that goes on."""
        return self._begin

    def push(self, features: Float[np.ndarray, "width"]) -> tuple[int, int] | None:
        """Takes the features of the next frame; the first frame of the scene that has ended, and that behind its last;
        ``None``: none has."""
        now = np.asarray(features, np.float32)
        now = now / max(float(np.linalg.norm(now)), 1e-12)
        if self._last is not None:
            self._alike.append(float(now @ self._last))
        self._last, self._frames = now, self._frames + 1
        # The frame before the last one begins the next scene.
        if self._cut() and self._frames - 2 - self._begin >= self._shortest:
            return self._ended(self._frames - 2)
        if self._frames - self._begin > self._longest:
            return self._ended(self._frames - 1)
        return None

    def finish(self) -> tuple[int, int] | None:
        """The scene that the end of the stream ends."""
        return self._ended(self._frames) if self._frames > self._begin else None

    def _cut(self) -> bool:
        """Whether there is a cut in front of the frame before the last one."""
        if self._frames < 3 or self._alike[-2] > self._alike[-1]:
            return False
        cuts, depth = _depth(np.array(self._alike, np.float32))
        return bool(cuts[-2]) and float(depth[-2]) >= self._floor

    def _ended(self, stop: int) -> tuple[int, int]:
        scene = (self._begin, stop)
        self._begin = stop
        return scene


@jax.jit
def _depth(alike: Float[np.ndarray, "window"]) -> tuple[jax.Array, jax.Array]:
    """Which places are cuts, and their depth scores."""
    return cut(alike, "depth", most=len(alike)), depth_scores(alike)

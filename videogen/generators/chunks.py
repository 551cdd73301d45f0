"""The arithmetic of long videos made of chunks: windows over a queue of frames, and the tokens that cover a window."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from videogen.errors import UserError


@dataclasses.dataclass(frozen=True)
class Windows:
    """Overlapping windows over a queue of frames at rising noise levels (TokensGen; FIFO-Diffusion's look-ahead).

    The queue has ``ahead`` slots of frames without noise and a slot for each of ``window`` · ``partitions`` steps. Two
    windows to a partition denoise it; each writes only its later half, so that every frame sees cleaner ones.

    Attributes:
      window: latent frames of a window.
      partitions: windows, side by side, that hold all steps.
    """

    window: int
    partitions: int

    @classmethod
    def of_steps(cls, window: int, steps: int) -> "Windows":
        """The windows for so many steps.

        Raises:
          UserError: steps are no multiple of the window; it names the two nearest that are.
        """
        if steps % window or not steps:
            below = steps // window * window
            near = " or ".join(str(count) for count in (below, below + window) if count)
            raise UserError(
                f"a queue with windows of {window} latent frames takes window × partitions steps, and {steps} is no "
                f"multiple of {window}; set sampler.steps to {near}"
            )
        return cls(window, steps // window)

    @property
    def steps(self) -> int:
        """Steps of a frame from noise to data."""
        return self.window * self.partitions

    @property
    def ahead(self) -> int:
        """Slots of clean frames: half a window, rounded down."""
        return self.window // 2

    @property
    def slots(self) -> int:
        """Slots of the queue."""
        return self.ahead + self.steps

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where what each window writes begins, and the end of the queue."""
        halves = [(self.ahead + p * self.window, (p + 1) * self.window) for p in range(self.partitions)]
        return (*(bound for pair in halves for bound in pair), self.slots)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first slot of each window: it ends where what it writes ends."""
        return tuple(end - self.window for end in self.bounds[1:])

    @property
    def first_start(self) -> int:
        """The slot that the first frame of a video is in at first, when all of the queue before it is empty."""
        return self.slots - self.window

    @property
    def rounds_before(self) -> int:
        """Rounds until the first frame is clean: steps less the window."""
        return self.steps - self.window


@dataclasses.dataclass(frozen=True)
class Slots:
    """Which condensed tokens a window sees.

    Attributes:
      chunk: latent frames of a chunk.
      slots: of a chunk, along time.
    """

    chunk: int
    slots: int

    @property
    def seen(self) -> int:
        """Slots that a window as long as a chunk sees: it may lie across two chunks."""
        return self.slots + 1

    def index(self, at: Int[Array, "batch"], count: Int[Array, "batch"]) -> Int[Array, "batch seen"]:
        """The slots of a window that begins with latent frame ``at``; behind the last one, that one again.

        Args:
          at: of the whole video.
          count: how many slots there are.
        """
        return jnp.clip(self.first(at)[:, None] + jnp.arange(self.seen), 0, count[:, None] - 1)

    def first(self, at: Int[Array, "batch"]) -> Int[Array, "batch"]:
        """The slot that holds a latent frame."""
        return at * self.slots // self.chunk

    def times(self, at: Int[Array, "batch"]) -> Float[Array, "batch seen"]:
        """The middle of what each slot of a window stands for, in latent frames of the video; beyond the last one they
        go on."""
        slot = self.first(at)[:, None] + jnp.arange(self.seen)
        return (slot + 0.5) * (self.chunk / self.slots) - 0.5


def middles(count: int, length: int) -> Float[np.ndarray, "count"]:
    """The middles of ``count`` equal parts of ``length`` places."""
    return (np.arange(count, dtype=np.float32) + 0.5) * length / count - 0.5

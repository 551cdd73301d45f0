"""Clips of several sizes in one run: a batch is of one bucket, and which one is a pure function of seed and step."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from videogen.data.clip import Clip
from videogen.data.source import proportions
from videogen.errors import UserError
from videogen.shapes import VideoShape

LONGEST_PERIOD = 100_000
"""Steps after which the shares are exact, at most."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Batches of one size.

    Attributes:
      clip: the size of its clips.
      batch_size: videos per batch in the whole job.
      share: its share of the steps, relative to those of the other buckets.
    """

    clip: Clip
    batch_size: int
    share: float = 1.0

    @property
    def shape(self) -> VideoShape:
        """The shape of its clips."""
        return VideoShape(self.clip.frames, self.clip.height, self.clip.width)


def read_buckets(section: Mapping[str, Any]) -> tuple[Bucket, ...]:
    """The buckets of a ``config.data``: ``buckets = ((frames, height, width, batch_size, share), …)``.

    Without any, the one bucket of ``clip`` and ``batch_size``. All buckets have the clip's frames per second.

    Raises:
      UserError: an entry that is no such five numbers, or two buckets of one size.
    """
    clip = section["clip"]
    fps = clip["fps"] or None
    entries = section.get("buckets", ())
    if not entries:
        return (Bucket(Clip(clip["frames"], clip["height"], clip["width"], fps), section["batch_size"]),)
    buckets = []
    for number, entry in enumerate(entries):
        five = isinstance(entry, list | tuple) and len(entry) == 5
        if not five or not all(isinstance(value, int) for value in entry[:4]) or entry[3] < 1:
            raise UserError(
                f"data.buckets[{number}] must be (frames, height, width, batch_size, share), four positive whole "
                f"numbers and a share, got {entry}"
            )
        frames, height, width, batch_size, share = entry
        buckets.append(Bucket(Clip(frames, height, width, fps), batch_size, share))
    if len({bucket.clip for bucket in buckets}) < len(buckets):
        raise UserError("data.buckets has two buckets of one clip size; join their shares")
    return tuple(buckets)


class BucketSchedule:
    """Which bucket every step uses, and how many videos all steps before it have used.

    The steps are cut into periods in which every bucket has exactly its share; their order is drawn anew for each
    period. So the schedule is known at any step without going through those before.

    Args:
      batch_sizes: videos per batch of each bucket, in the whole job.
      shares: of the steps, relative to each other.
      seed: decides the order.

    Raises:
      UserError: a share that is not positive, or shares without a common measure.
    """

    def __init__(self, batch_sizes: Sequence[int], shares: Sequence[float], seed: int):
        weights = proportions(shares, "bucket needs a positive share")
        self._period = sum(weights)
        if self._period > LONGEST_PERIOD:
            raise UserError(f"the shares of data.buckets are exact only after {self._period:,} steps; round {shares}")
        self._sizes = np.asarray(batch_sizes)
        self._members = np.repeat(np.arange(len(weights)), weights)
        self._videos = int(self._sizes[self._members].sum())
        self._seed = seed

    def _order(self, period: int) -> Int[np.ndarray, "steps"]:
        return np.random.default_rng([self._seed, period]).permutation(self._members)

    def bucket(self, step: int) -> int:
        """The number of the bucket that ``step`` uses."""
        period, place = divmod(step, self._period)
        return int(self._order(period)[place])

    def position(self, step: int) -> int:
        """Videos that the whole job has used before ``step``."""
        period, place = divmod(step, self._period)
        return period * self._videos + int(self._sizes[self._order(period)[:place]].sum())

    def step(self, position: int) -> int:
        """The step before which ``position`` videos were used.

        Raises:
          UserError: no batch begins there.
        """
        period, rest = divmod(position, self._videos)
        before = np.cumsum([0, *self._sizes[self._order(period)]])
        place = int(np.searchsorted(before, rest))
        if before[place] != rest:
            raise UserError(f"no batch begins after {position} videos; were the batch sizes changed?")
        return period * self._period + place

"""Clips of several sizes in one run: a batch is of one bucket, and which one is a pure function of seed and step."""

import dataclasses
import itertools
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


def read_phases(section: Mapping[str, Any], buckets: int) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """The phases of a ``config.data``: ``phases = ((first step, (share of each bucket, …)), …)``.

    Before the first of them the buckets have their own shares.

    Raises:
      UserError: an entry that is no such pair, or steps that do not rise.
    """
    phases = []
    for number, entry in enumerate(section.get("phases") or ()):
        pair = isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], list | tuple)
        if not pair or not isinstance(entry[0], int) or len(entry[1]) != buckets:
            raise UserError(f"data.phases[{number}] must be (first step, shares of the {buckets} buckets), got {entry}")
        phases.append((entry[0], tuple(entry[1])))
    starts = [start for start, _ in phases]
    if any(later <= start for start, later in itertools.pairwise([0, *starts])):
        raise UserError(f"the first steps of data.phases must be above 0 and rise, got {starts}")
    return tuple(phases)


class BucketSchedule:
    """Which bucket every step uses, and how many videos all steps before it have used.

    The steps are cut into periods in which every bucket has exactly its share; their order is drawn anew for each
    period. So the schedule is known at any step without going through those before. Shares may change at named steps,
    each of which begins a period.

    Args:
      batch_sizes: videos per batch of each bucket, in the whole job.
      shares: of the steps, relative to each other.
      seed: decides the order.
      phases: ``(first step, shares)`` from which step on there are other shares; of a bucket that is left out then 0.

    Raises:
      UserError: a share that is not positive (negative, in a phase), or shares without a common measure.
    """

    def __init__(
        self,
        batch_sizes: Sequence[int],
        shares: Sequence[float],
        seed: int,
        phases: Sequence[tuple[int, Sequence[float]]] = (),
    ):
        first = _Periods(batch_sizes, list(range(len(shares))), shares, [seed])
        self._phases = [(0, 0, first)]
        for number, (start, shares) in enumerate(phases, 1):
            before, position, periods = self._phases[-1]
            used = [bucket for bucket, share in enumerate(shares) if share]
            own = _Periods(batch_sizes, used, [shares[bucket] for bucket in used], [seed, number])
            self._phases.append((start, position + periods.position(start - before), own))

    def _of_step(self, step: int) -> tuple[int, int, "_Periods"]:
        return next(phase for phase in reversed(self._phases) if phase[0] <= step)

    def bucket(self, step: int) -> int:
        """The number of the bucket that ``step`` uses."""
        start, _, periods = self._of_step(step)
        return periods.bucket(step - start)

    def position(self, step: int) -> int:
        """Videos that the whole job has used before ``step``."""
        start, position, periods = self._of_step(step)
        return position + periods.position(step - start)

    def step(self, position: int) -> int:
        """The step before which ``position`` videos were used.

        Raises:
          UserError: no batch begins there.
        """
        start, first, periods = next(phase for phase in reversed(self._phases) if phase[1] <= position)
        step = periods.step(position - first)
        if step is None:
            raise UserError(f"no batch begins after {position} videos; were the batch sizes changed?")
        return start + step


class _Periods:
    """A schedule of constant shares, from its own step 0 on.

    Args:
      batch_sizes: of all buckets.
      buckets: the numbers of those that occur.
      shares: theirs.
      seeds: decide the order.
    """

    def __init__(self, batch_sizes: Sequence[int], buckets: list[int], shares: Sequence[float], seeds: list[int]):
        weights = proportions(shares, "bucket needs a positive share")
        self._period = sum(weights)
        if self._period > LONGEST_PERIOD:
            raise UserError(f"the shares of data.buckets are exact only after {self._period:,} steps; round {shares}")
        self._sizes = np.asarray(batch_sizes)
        self._members = np.repeat(buckets, weights)
        self._videos = int(self._sizes[self._members].sum())
        self._seeds = seeds

    def _order(self, period: int) -> Int[np.ndarray, "steps"]:
        return np.random.default_rng([*self._seeds, period]).permutation(self._members)

    def bucket(self, step: int) -> int:
        period, place = divmod(step, self._period)
        return int(self._order(period)[place])

    def position(self, step: int) -> int:
        period, place = divmod(step, self._period)
        return period * self._videos + int(self._sizes[self._order(period)[:place]].sum())

    def step(self, position: int) -> int | None:
        period, rest = divmod(position, self._videos)
        before = np.cumsum([0, *self._sizes[self._order(period)]])
        place = int(np.searchsorted(before, rest))
        return period * self._period + place if before[place] == rest else None

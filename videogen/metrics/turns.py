"""How well a model that watches a stream takes its turns: what it says, and when (VideoLLM-online; Chen et al., 2024).

A turn begins where the one before ends: frames at which nothing is said, then an answer behind one frame.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from videogen.errors import UserError


def answer_perplexity(log_probabilities: Float[np.ndarray, "tokens"]) -> float:
    """``exp`` of minus the mean log-probability (nats) of the tokens of an answer; at least 1."""
    if not len(log_probabilities):
        raise UserError("an answer without tokens has no perplexity")
    return math.exp(-float(np.mean(log_probabilities)))


def leading_share(right: Sequence[bool] | Bool[np.ndarray, "targets"]) -> float:
    """The share of targets before the first wrong one, in [0, 1]."""
    right = np.asarray(right, bool)
    if not len(right):
        raise UserError("a turn without targets has no share of right ones")
    return float(len(right) if right.all() else np.argmin(right)) / len(right)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a model predicted of one turn.

    Attributes:
      separator: the probability of silence behind each frame that was looked at, at least up to ``speaks``.
      speaks: the frame behind which the answer stands, from 0.
      right: which tokens of the answer are the likeliest ones where the true ones before them are given.
      log_probabilities: of these tokens, in nats.
      fps: frames per second of the stream.
      threshold: the model is silent while silence is at least so probable.
    """

    separator: Float[np.ndarray, "frames"]
    speaks: int
    right: Bool[np.ndarray, "tokens"]
    log_probabilities: Float[np.ndarray, "tokens"]
    fps: float
    threshold: float = 0.8

    @property
    def silent(self) -> Bool[np.ndarray, "frames"]:
        """At which frames the model says nothing."""
        return np.asarray(self.separator) >= self.threshold

    @property
    def targets(self) -> Bool[np.ndarray, "targets"]:
        """Which targets of the turn are right: silent frames, then the answer, which begins where the model speaks."""
        if not 0 <= self.speaks < len(self.separator):
            raise UserError(f"the answer stands behind frame {self.speaks} of the {len(self.separator)} looked at")
        right = np.array(self.right, bool)
        right[:1] &= ~self.silent[self.speaks]
        return np.concatenate([self.silent[: self.speaks], right])

    @property
    def time_difference(self) -> float:
        """Seconds between the frames at which the model and the truth first speak; of a model that never speaks the
        length that was looked at."""
        if self.silent.all():
            return len(self.separator) / self.fps
        return abs(int(np.argmin(self.silent)) - self.speaks) / self.fps

    def describe(self) -> dict[str, float]:
        """``perplexity``, ``time_difference`` (seconds), ``correctness`` (share of the answer before its first wrong
        token) and ``fluency`` (share of all targets before the first mistake)."""
        return {
            "perplexity": answer_perplexity(np.asarray(self.log_probabilities)),
            "time_difference": self.time_difference,
            "correctness": leading_share(self.right),
            "fluency": leading_share(self.targets),
        }


def mean_of_turns(turns: Sequence[Turn]) -> dict[str, float]:
    """The mean over turns of everything that ``Turn.describe`` says.

    Raises:
      UserError: there is no turn.
    """
    if not turns:
        raise UserError("there is no turn to judge")
    found = [turn.describe() for turn in turns]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def spoken_events(speaks: Sequence[int], events: Sequence[int], within: int) -> tuple[int, int]:
    """How many events are spoken about, and how often something is said where nothing happens.

    An event is spoken about at its frame or up to ``within`` frames later; nobody can speak of it before. Everything
    that is said belongs to one event at most, the earliest that is left.

    Args:
      speaks: frames at which something is said, rising.
      events: frames at which something happens, rising.
      within: frames.
    """
    left = list(speaks)
    for event in events:
        found = next((frame for frame in left if event <= frame <= event + within), None)
        if found is not None:
            left.remove(found)
    return len(speaks) - len(left), len(left)

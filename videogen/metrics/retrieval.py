"""Retrieval between texts and videos: recall at K in percent, ranks, their sum; ties, NaN and captions by one rule.

Float64 on the host. Higher scores are better. A tie is worth the chance that a random order of the tied items finds a
right one among the first K, so that no order of the data can change a number.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from videogen.errors import UserError, near_matches

AT = (1, 5, 10)
"""K of the recalls that are reported; R-Sum is the sum of these."""

CAPTION_RULES = {
    "all": "every caption is a query",
    "first": "the first caption of every video is a query, the others are left out",
}
"""What is asked of videos with several captions. Captions that are joined to a paragraph are one caption."""

DUAL_SOFTMAX = "re-ranked by dual softmax, which uses all queries of the test set"
"""What stands beside every number of scores that ``dual_softmax`` has changed."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the right items of queries stand.

    Attributes:
      greater: wrong items with a higher score than the best right one.
      equal: items with its score, right ones among them.
      right: right items among these.
      finite: queries whose scores are all finite; the others are misses.
      items: that are ranked.
    """

    greater: Int[np.ndarray, "queries"]
    equal: Int[np.ndarray, "queries"]
    right: Int[np.ndarray, "queries"]
    finite: Bool[np.ndarray, "queries"]
    items: int

    @classmethod
    def of(cls, scores: Num[np.ndarray, "queries items"], right: Bool[np.ndarray, "queries items"]) -> "Places":
        """Of scores, and which items answer which query.

        Raises:
          UserError: the shapes differ, or a query has no right item.
        """
        scores, right = np.asarray(scores, np.float64), np.asarray(right, bool)
        if scores.ndim != 2 or scores.shape != right.shape or not scores.size:
            raise UserError(f"scores and right items are both [queries, items], got {scores.shape} and {right.shape}")
        if missing := np.flatnonzero(~right.any(1)).tolist():
            raise UserError(f"query {missing[0]} has no right item: leave queries without one out")
        finite = np.isfinite(scores).all(1)
        known = np.where(finite[:, None], scores, 0.0)
        best = np.where(right, known, -np.inf).max(1, keepdims=True)
        equal = known == best
        return cls((known > best).sum(1), equal.sum(1), (equal & right).sum(1), finite, scores.shape[1])

    def hits(self, k: int) -> Float[np.ndarray, "queries"]:
        """The chance of every query that a right item is among the first ``k``.

        With one right item it is ``clip((k - greater) / equal, 0, 1)``.
        """
        taken = np.clip(k - self.greater, 0, self.equal)
        missed = np.ones(len(taken))
        for i in range(int(self.right.max())):
            left = np.maximum(self.equal - taken - i, 0) / np.maximum(self.equal - i, 1)
            missed *= np.where(i < self.right, left, 1.0)
        return np.where(self.finite, 1.0 - missed, 0.0)

    def ranks(self) -> Float[np.ndarray, "queries"]:
        """The expected rank of the first right item, from 1; a query that is not finite has the last one."""
        return np.where(self.finite, self.greater + (self.equal + 1) / (self.right + 1), float(self.items))

    def measured(self) -> dict[str, float]:
        """``recall_at_K`` in percent, ``recall_sum``, ``median_rank``, ``queries``, and ``not_finite``: how many."""
        found = {f"recall_at_{k}": 100 * float(self.hits(k).mean()) for k in AT}
        found |= {"recall_sum": sum(found.values()), "median_rank": float(np.median(self.ranks()))}
        return {**found, "queries": len(self.finite), "not_finite": int((~self.finite).sum())}

    @property
    def broken(self) -> list[int]:
        """The numbers of the queries that are not finite."""
        return np.flatnonzero(~self.finite).tolist()


def by_text(
    scores: Num[np.ndarray, "captions videos"], owners: Sequence[int] | Int[np.ndarray, "captions"], rule: str = "all"
) -> Places:
    """Text-to-video retrieval.

    Args:
      scores: of every caption with every video.
      owners: the video of each caption.
      rule: of ``CAPTION_RULES``.

    Raises:
      UserError: an unknown rule.
    """
    asked = chosen(owners, rule)
    return Places.of(np.asarray(scores)[asked], _right(owners, np.asarray(scores).shape)[asked])


def by_video(
    scores: Num[np.ndarray, "captions videos"], owners: Sequence[int] | Int[np.ndarray, "captions"], rule: str = "all"
) -> Places:
    """Video-to-text retrieval: a video is found when any caption of it is; videos without a caption ask nothing.

    Args:
      scores: of every caption with every video.
      owners: the video of each caption.
      rule: of ``CAPTION_RULES``: which captions are ranked.

    Raises:
      UserError: an unknown rule.
    """
    ranked = chosen(owners, rule)
    right = _right(owners, np.asarray(scores).shape)[ranked].T
    there = right.any(1)
    return Places.of(np.asarray(scores)[ranked].T[there], right[there])


def chosen(owners: Sequence[int] | Int[np.ndarray, "captions"], rule: str) -> Int[np.ndarray, "chosen"]:
    """The captions that a rule takes; raises ``UserError`` where there is no such rule."""
    if rule not in CAPTION_RULES:
        raise UserError(f"unknown caption rule {rule!r}{near_matches(rule, CAPTION_RULES)}")
    owners = np.asarray(owners)
    return np.arange(len(owners)) if rule == "all" else np.sort(np.unique(owners, return_index=True)[1])


def dual_softmax(scores: Num[np.ndarray, "queries items"], scale: float = 100.0) -> Float[np.ndarray, "queries items"]:
    """Scores times a prior: the share that a query has of each item among all queries, times their number (CAMoE;
    Cheng et al., 2021). A uniform prior is 1 and changes nothing. Label the results with ``DUAL_SOFTMAX``.

    Args:
      scores: of all queries of a test set. Queries that are not finite have no part in the prior and stay as they are.
      scale: scores are multiplied by it in the softmax; the trained logit scale.
    """
    scores = np.asarray(scores, np.float64)
    finite = np.isfinite(scores).all(1)
    if not finite.any():
        return scores
    logits = scale * scores[finite]
    prior = np.exp(logits - logits.max(0))
    found = scores.copy()
    found[finite] = scores[finite] * prior / prior.mean(0)
    return found


def _right(owners: Any, shape: tuple[int, int]) -> Bool[np.ndarray, "captions videos"]:
    owners = np.asarray(owners)
    if owners.shape != shape[:1] or owners.min() < 0 or owners.max() >= shape[1]:
        raise UserError(f"every one of {shape[0]} captions belongs to one of {shape[1]} videos, numbered from 0")
    return owners[:, None] == np.arange(shape[1])

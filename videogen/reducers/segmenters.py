"""Where a video is cut into segments, by name; and when a stream gives a reason to speak (X1, S3)."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.building import check_fields
from videogen.ranges import Count, Finite, OneOf
from videogen.reducers.time import cut, jensen_shannon, segments, still_windows
from videogen.reducers.tokens import unit

RULES = ("fixed", "lowest", "depth", "still", "distribution")
"""Every so many frames (CenterCLIP, LangDC); where neighbours are least alike (TDC); at deep valleys of their likeness
(VideoLLaMB); so that most places stand still (HoliTom); where distributions of features are far apart (GRT)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A rule that cuts a clip.

    Attributes:
      rule: one of ``RULES``.
      length: of ``fixed``: frames of a segment.
      most: of ``lowest`` and ``depth``: cuts at most, the strongest ones.
      threshold: of ``still`` the cosine above which a place stands still, of ``distribution`` the Jensen-Shannon
        divergence (nats) from which frames are of two segments; 0.8 and 0.4 as published.
      longest: frames of a segment at most, longer ones are cut again; ``None``: any number. TDC has 8.
    """

    rule: Annotated[str, OneOf(*RULES)] = "depth"
    length: Count = 8
    most: Count = 15
    threshold: Finite = 0.8
    longest: Count | None = None

    def __post_init__(self):
        check_fields(self)

    def cuts(self, features: Float[Array, "frames places width"]) -> Bool[Array, "transitions"]:
        """Between which frames and the next there is a cut.

        Args:
          features: of a clip; rules of whole frames compare the means over places.
        """
        frames = features.shape[0]
        if self.rule == "fixed":
            return jnp.arange(1, frames) % self.length == 0
        vectors = unit(features)
        if self.rule == "still":
            return still_windows((vectors[1:] * vectors[:-1]).sum(-1), self.threshold)[1][1:]
        means = features.astype(jnp.float32).mean(1)
        if self.rule == "distribution":
            outcomes = jax.nn.softmax(means, axis=-1)
            return jensen_shannon(outcomes[1:], outcomes[:-1]) >= self.threshold
        means = unit(means)
        return cut((means[1:] * means[:-1]).sum(-1), self.rule, self.most)

    def __call__(self, features: Float[Array, "frames places width"]) -> Int[Array, "frames"]:
        """The number of the segment of every frame, from 0."""
        found = segments(self.cuts(features))
        return found if self.longest is None else chunked(found, self.longest)


def chunked(segment: Int[Array, "frames"], longest: int) -> Int[Array, "frames"]:
    """Segments of at most ``longest`` frames: longer ones are cut again, from their first frame on."""
    frames = jnp.arange(len(segment))
    begins = jnp.concatenate([jnp.ones(1, bool), segment[1:] != segment[:-1]])
    first = jax.lax.cummax(jnp.where(begins, frames, 0))
    return jnp.cumsum((frames - first) % longest == 0) - 1


def agreed(votes: Sequence[Bool[Array, "transitions"]], least: int = 2) -> Bool[Array, "transitions"]:
    """The cuts that at least so many rules find (TrajViT: two of three)."""
    return jnp.sum(jnp.stack(list(votes)), axis=0) >= least


def transitions(dropped: Float[Array, "frames"], window: int = 32) -> Bool[Array, "frames"]:
    """At which frames of a stream the frame before turns out to begin a new scene, so that open questions are asked
    again (TimeChat-Online; the rule is ours).

    A scene begins at a frame whose share of dropped tokens (``DifferentialDrop``) is a local minimum, and below the
    mean less one standard deviation of the ``window`` frames before it. That is known one frame later. The first frame
    is never dropped and counts for nothing.

    Args:
      dropped: share of the tokens of every frame that were dropped.
      window: frames.
    """
    dropped, frames = dropped.astype(jnp.float32), jnp.arange(len(dropped))
    before = (frames[None] < frames[:, None]) & (frames[None] >= frames[:, None] - window) & (frames[None] > 0)
    count = jnp.maximum(before.sum(1), 1)
    mean = jnp.where(before, dropped, 0.0).sum(1) / count
    spread = jnp.sqrt(jnp.where(before, (dropped[None] - mean[:, None]) ** 2, 0.0).sum(1) / count)
    low = before.any(1) & (dropped < mean - spread)
    falls = dropped <= jnp.concatenate([dropped[:1], dropped[:-1]])
    found = low[:-1] & falls[:-1] & (dropped[:-1] < dropped[1:])
    return jnp.concatenate([jnp.zeros(1, bool), found])

"""Does a text belong to a video: negatives of the batch, and the loss of their scores (All-in-one, VIOLET)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from videogen.losses.terms import Scalar, Setting, Term
from videogen.nn import Mean, mean_where, whole
from videogen.ranges import Positive, Weight


def numbered(rows: Shaped[Array, "batch tokens"]) -> Int[Array, "batch"]:
    """A number of every row that rows with equal entries share, such as identical captions: the first of them."""
    return jnp.argmax((rows[:, None] == rows[None]).all(-1), axis=1)


def negatives(
    keys: Array, videos: Int[Array, "batch"], captions: Int[Array, "batch"], count: int
) -> tuple[Int[Array, "batch count"], Bool[Array, "batch count"]]:
    """Texts of the batch that do not belong to a video: places of examples with another video and another caption.

    Args:
      keys: a random key of each example.
      videos: the number of the video of each example; two captions of one video share it.
      captions: the number of the caption; identical ones share it (``numbered``).
      count: of each example, all different.

    Returns:
      Places in the batch, and which of them there are: a batch may have fewer that differ.
    """
    other = (videos[:, None] != videos[None]) & (captions[:, None] != captions[None])
    chance = jax.vmap(lambda key: jax.random.uniform(key, (len(videos),)))(keys)
    value, index = jax.lax.top_k(jnp.where(other, chance, -1.0), min(count, len(videos)))
    missing = ((0, 0), (0, count - index.shape[1]))
    return jnp.pad(index, missing), jnp.pad(value >= 0, missing)


def matching_loss(
    scores: Float[Array, "batch candidates"],
    target: Int[Array, "batch"],
    there: Bool[Array, "batch candidates"] | None = None,
    temperature: float = 1.0,
    mean: Mean = whole,
) -> Scalar:
    """Cross-entropy of the softmax over candidates, mean over the examples that have at least two; 0 without any.

    Equal scores give the logarithm of the number of candidates: log 4 for 1 of 4, log 2 for yes or no.

    Args:
      scores: of each candidate; of yes or no those of both.
      target: the right candidate.
      there: which candidates there are; ``None``: all. The right one always is.
      temperature: scores are divided by it; 0.05 in VIOLET.
      mean: from means over these examples to means over the whole batch.
    """
    scores = scores.astype(jnp.float32) / temperature
    judged = None
    if there is not None:
        scores, judged = jnp.where(there, scores, -1e30), there.sum(1) > 1
    own = jnp.take_along_axis(scores, target[:, None], axis=1)[:, 0]
    return mean_where(jax.nn.logsumexp(scores, axis=1) - own, judged, mean)


class Matching(Term):
    """Cross-entropy of the right candidate, the term ``matching``: 1 of 4 (VIOLET) or yes and no (All-in-one).

    Args:
      reads: the pass whose prediction are scores ``[batch, candidates]``, whose target is the right one ``[batch]``,
        with ``exists`` where candidates are missing (``negatives``).
      temperature: scores are divided by it; 0.05 in VIOLET.
    """

    def __init__(
        self,
        weight: Weight | Mapping[str, Any],
        setting: Setting,
        *,
        reads: str = "matching",
        temperature: Positive = 1.0,
    ):
        super().__init__(weight, setting)
        self.reads, self.temperature = reads, temperature

    def value(self, modules, outputs, key, step, micro):
        found = self.compared(outputs)
        loss = matching_loss(found.prediction, found.target, found.exists, self.temperature, micro.mean)
        scores = found.prediction if found.exists is None else jnp.where(found.exists, found.prediction, -jnp.inf)
        judged = None if found.exists is None else found.exists.sum(1) > 1
        right = mean_where((jnp.argmax(scores, axis=1) == found.target) * 1.0, judged, micro.mean)
        return loss, {f"{self.label}_accuracy": right}

"""Clips against texts, each against all of the batch: the symmetric contrastive loss, its scale, momentum keys.

The softmax runs over the whole batch, so the loss is no mean over examples: the rows of all micro-batches are found
before its gradient (``MicroBatch.gathered``), and devices compute it of the logical batch, never of their own rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.losses.terms import Scalar, Setting, Term
from videogen.nn import FULL, constant, parameter
from videogen.ranges import Positive, Weight

START, LARGEST = 1 / 0.07, 100.0
"""The scale of CLIP (Radford et al., 2021, section 2.5) at first and at most; stored as ln, 2.6593 and 4.6052."""

SCALE, SAME_CLIP, SAME_TEXT = "scale", "same_clip", "same_text"
"""Names in ``Outputs.features`` of what ``Contrastive`` reads."""

NEAR = 0.01
"""A loss within this share of ln(batch) has learned nothing."""


class LogitScale(nnx.Module):
    """What cosines are multiplied by before the softmax; the inverse of a temperature.

    Its logarithm is the parameter, ``logarithm``: weight decay, which matrices alone have, leaves it alone.

    Args:
      start: the scale at first.
      largest: after every update (``clamp``) it is at most this; CLIP's 100, TrajViT's 1000.
      smallest: and at least this; TrajViT's 2; ``None``: any.
    """

    def __init__(
        self, start: Positive = START, largest: Positive = LARGEST, smallest: Positive | None = None, *, rngs: nnx.Rngs
    ):
        if not (smallest or 0.0) <= start <= largest:
            raise UserError(f"a scale starts between smallest and largest: {smallest} ≤ {start} ≤ {largest}")
        self.least = None if smallest is None else math.log(smallest)
        self.most = math.log(largest)
        self.logarithm = parameter(rngs, (), (), constant(math.log(start)))

    def __call__(self) -> Scalar:
        """The scale."""
        return jnp.exp(self.logarithm.get_value())

    def clamp(self) -> None:
        """Brings the logarithm back into its range; to be called after each update."""
        self.logarithm.set_value(jnp.clip(self.logarithm.get_value(), self.least, self.most))


def positives(
    *numbers: Int[Array, "batch"] | Int[Array, "batch tokens"],
) -> Bool[Array, "batch batch"]:
    """Which text describes which clip: that of the same place, and those that share a number with it.

    Args:
      numbers: of every example, such as that of its clip, or the ids of its caption; equal ones are the same.
    """
    found = jnp.eye(len(numbers[0]), dtype=bool)
    for own in numbers:
        rows = own.reshape(len(own), -1)
        found |= (rows[:, None] == rows[None]).all(-1)
    return found


def contrastive_loss(
    clips: Float[Array, "batch width"],
    texts: Float[Array, "batch width"],
    scale: Scalar | float,
    same: Bool[Array, "batch batch"] | None = None,
) -> Scalar:
    """``-1/2B Σ_i [log softmax_j(s c_i·t_j)_i + log softmax_j(s t_i·c_j)_i]`` in nats (CLIP; Radford et al., 2021).

    All embeddings equal give ln B; identical pairs that are orthogonal to all others go to 0 as the scale grows.

    Args:
      clips: unit vectors of the whole batch.
      texts: unit vectors; that of the same place is of the same pair.
      scale: inverse temperature.
      same: which pairs of clip and text are right where that is more than the own one: the target of each row is
        shared evenly among its right ones. ``None``: the own alone.
    """
    logits = scale * jnp.matmul(clips.astype(jnp.float32), texts.astype(jnp.float32).T, precision=FULL)
    same = jnp.eye(len(logits), dtype=bool) if same is None else same
    total = jnp.zeros(())
    for axis in (0, 1):
        targets = same / same.sum(axis, keepdims=True)
        total -= jnp.sum(targets * jax.nn.log_softmax(logits, axis)) / len(logits)
    return total / 2


def momentum_contrast(
    queries: Float[Array, "batch width"],
    keys: Float[Array, "batch width"],
    temperature: float = 0.07,
    others: Float[Array, "queue width"] | None = None,
) -> Scalar:
    """InfoNCE of queries among keys of a momentum copy, mean over the queries (MoCo; He et al., 2020).

    In Selective S4 (Wang et al., 2023) the query is a short masked clip, and its key a long masked clip of the same
    video: long-short masked contrastive learning.

    Args:
      queries: unit vectors of the trained network, of the whole batch.
      keys: unit vectors of the copy, which get no gradient; that of the same place is the right one.
      temperature: cosines are divided by it.
      others: further keys, all wrong.
    """
    found = keys if others is None else jnp.concatenate([keys, others])
    found = jax.lax.stop_gradient(found.astype(jnp.float32))
    logits = jnp.matmul(queries.astype(jnp.float32), found.T, precision=FULL) / temperature
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))


class Contrastive(Term):
    """The symmetric contrastive loss over the whole batch: the term ``contrastive``.

    It reads ``features["scale"]``; where they are there, ``features["same_clip"]`` ``[batch]``, equal for two examples
    of one clip, and ``features["same_text"]``, ``{pass: ids [batch, tokens]}``, equal for equal texts.

    Args:
      reads: the pass whose prediction are unit vectors of clips and whose target those of texts; or several, one of
        every view of the text (VidLA: subtitles and captions), whose mean is the loss.
    """

    def __init__(
        self, weight: Weight | Mapping[str, Any], setting: Setting, *, reads: str | Sequence[str] = "contrastive"
    ):
        super().__init__(weight, setting)
        self.passes = (reads,) if isinstance(reads, str) else tuple(reads)
        if not self.passes:
            raise UserError("contrastive reads at least one pass: losses.TERM.reads=NAME")
        self.reads = self.passes[0] if len(self.passes) == 1 else ""

    def value(self, modules, outputs, key, step, micro):
        scale, features = outputs.features[SCALE], outputs.features
        losses, right = [], []
        for name in self.passes:
            compared = self.named(outputs, name)
            clips, texts = (micro.gathered(x) for x in (compared.prediction, compared.target))
            numbers = [features.get(SAME_CLIP), features.get(SAME_TEXT, {}).get(name)]
            numbers = [micro.gathered(x) for x in numbers if x is not None]
            same = positives(*numbers) if numbers else jnp.eye(len(clips), dtype=bool)
            losses.append(contrastive_loss(clips, texts, scale, same))
            best = jnp.argmax(clips @ texts.T, axis=1)
            right.append(jnp.mean(jnp.take_along_axis(same, best[:, None], axis=1)))
        chance = jnp.log(jnp.float32(len(clips)))
        metrics = {"accuracy": sum(right) / len(right), "chance": chance, "scale": scale}
        return sum(losses) / len(losses), {f"{self.label}_{name}": value for name, value in metrics.items()}

    def warning(self, metrics):
        loss, chance = metrics[self.label], metrics[f"{self.label}_chance"]
        if abs(loss - chance) > NEAR * chance:
            return None
        return (
            f"the loss {self.label} {loss:.4f} is ln(batch) = {chance:.4f}, that of equal embeddings: no clip is told "
            "from another; look at the data (are captions those of their clips?) and the learning rate"
        )


class MomentumContrast(Term):
    """``momentum_contrast`` of the whole batch: the term ``momentum_contrast``.

    Args:
      reads: the pass whose prediction are the queries and whose target are the keys of the momentum copy.
      temperature: cosines are divided by it.
    """

    def __init__(
        self,
        weight: Weight | Mapping[str, Any],
        setting: Setting,
        *,
        reads: str = "windows",
        temperature: Positive = 0.07,
    ):
        super().__init__(weight, setting)
        self.reads, self.temperature = reads, temperature

    def value(self, modules, outputs, key, step, micro):
        compared = self.compared(outputs)
        queries, keys = (micro.gathered(x) for x in (compared.prediction, compared.target))
        right = jnp.argmax(queries @ keys.T, axis=1) == jnp.arange(len(queries))
        metrics = {
            f"{self.label}_accuracy": jnp.mean(right),
            f"{self.label}_chance": jnp.log(jnp.float32(len(queries))),
        }
        return momentum_contrast(queries, keys, self.temperature), metrics

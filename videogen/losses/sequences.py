"""Cross-entropy of ids: answers of a language model, words and codes of masked places, one or several budgets."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.losses.terms import Scalar, Setting, Term
from videogen.nn import Mean, mean_where, whole
from videogen.ranges import Weight


def negative_log_likelihood(logits: Float[Array, "*places ids"], ids: Int[Array, "*places"]) -> Float[Array, "*places"]:
    """``-log softmax(logits)[id]`` of every place in nats, float32.

    Raises:
      UserError: there are not as many places of ids as of logits.
    """
    if logits.shape[:-1] != ids.shape:
        raise UserError(
            f"logits of {list(logits.shape[:-1])} places have no targets of {list(ids.shape)}: bring the ids to the "
            "grid of the predictions"
        )
    logits = logits.astype(jnp.float32)
    own = jnp.take_along_axis(logits, ids[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - own


def cross_entropy(
    logits: Float[Array, "*places ids"],
    ids: Int[Array, "*places"],
    labelled: Bool[Array, "*places"] | None = None,
    mean: Mean = whole,
) -> Scalar:
    """Mean over the places that are labelled, 0 where none is.

    Args:
      logits: of a head.
      ids: what they should be; those at other places change nothing.
      labelled: places that count: masked ones, those of an answer; ``None``: all.
      mean: from means over these examples to means over the whole batch.
    """
    return mean_where(negative_log_likelihood(logits, ids), labelled, mean)


def log_probability(
    logits: Float[Array, "batch places ids"], ids: Int[Array, "batch places"], labelled: Bool[Array, "batch places"]
) -> Float[Array, "batch"]:
    """The log-probability of every answer in nats: the sum over its tokens."""
    return -jnp.sum(jnp.where(labelled, negative_log_likelihood(logits, ids), 0.0), axis=1)


def mean_over_scales(values: Sequence[Scalar] | Mapping[Any, Scalar]) -> Scalar:
    """The mean of the losses at several budgets of tokens (Matryoshka Multimodal Models; Cai et al., 2024).

    Args:
      values: one of each budget.

    Raises:
      UserError: there is none.
    """
    found = list(values.values()) if isinstance(values, Mapping) else list(values)
    if not found:
        raise UserError("a mean over scales needs the loss of at least one")
    return sum(found) / len(found)


class CrossEntropy(Term):
    """Cross-entropy of ids in nats, mean over the labelled places: the term ``cross_entropy``.

    It is the loss of sequences over a unified vocabulary (OmniVid), of masked visual tokens (VIOLET, E-ViLM; the pass
    of masked places) and of masked words. Of several passes, such as one at every budget of tokens, it is the mean
    (Matryoshka).

    Args:
      reads: the pass whose prediction are logits and whose target are ids, with ``exists`` where it is labelled; or
        several.
    """

    def __init__(self, weight: Weight | Mapping[str, Any], reads: str | Sequence[str], setting: Setting):
        super().__init__(weight, setting)
        self.passes = (reads,) if isinstance(reads, str) else tuple(reads)
        if not self.passes:
            raise UserError("cross_entropy reads at least one pass: losses.TERM.reads=NAME")
        self.reads = self.passes[0] if len(self.passes) == 1 else ""

    def value(self, modules, outputs, key, step, micro):
        values, right = [], []
        for compared in [self.named(outputs, name) for name in self.passes]:
            values.append(cross_entropy(compared.prediction, compared.target, compared.exists, micro.mean))
            hits = (jnp.argmax(compared.prediction, axis=-1) == compared.target) * 1.0
            right.append(mean_where(hits, compared.exists, micro.mean))
        return mean_over_scales(values), {f"{self.label}_accuracy": mean_over_scales(right)}

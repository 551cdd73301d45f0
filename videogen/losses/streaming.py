"""The loss of a model that watches a stream: what it says, and that it says nothing (VideoLLM-online; Chen et al.,
2024)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.losses.sequences import negative_log_likelihood
from videogen.losses.terms import Scalar, Setting, Term
from videogen.nn import Mean, mean_where, whole
from videogen.ranges import Weight


def streaming_targets(
    ids: Int[Array, "batch tokens"],
    frame: Int[Array, "batch tokens"],
    said: Bool[Array, "batch tokens"],
    separator: int,
) -> tuple[Int[Array, "batch tokens"], Bool[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """What each place of a stream is to predict, where that is a token of an answer, and where it is silence.

    Silence is predicted by the last token of every frame behind which the model says nothing.

    Args:
      ids: of the words; any at visual tokens.
      frame: the number of the frame of a visual token; -1 of words and padding.
      said: words that the model says, the end of what it says among them.
      separator: the id that stands for silence.
    """
    after = [jnp.concatenate([x[:, 1:], jnp.full_like(x[:, :1], end)], axis=1) for x, end in ((ids, 0), (frame, -1))]
    answer = jnp.concatenate([said[:, 1:], jnp.zeros_like(said[:, :1])], axis=1)
    silent = (frame >= 0) & (after[1] != frame) & ~answer
    return jnp.where(silent, separator, after[0]), answer, silent


def streaming_loss(
    logits: Float[Array, "batch tokens ids"],
    targets: Int[Array, "batch tokens"],
    answer: Bool[Array, "batch tokens"],
    silent: Bool[Array, "batch tokens"],
    silence: float = 1.0,
    mean: Mean = whole,
) -> Scalar:
    """Cross-entropy over answers, plus ``silence`` times that over silent frames, over the number of places of both.

    The arguments behind ``logits`` are those that ``streaming_targets`` gives; without a labelled place it is 0.
    """
    weights = jnp.where(answer, 1.0, jnp.where(silent, silence, 0.0))
    return mean_where(weights * negative_log_likelihood(logits, targets), answer | silent, mean)


def first_speech(
    separator: Float[Array, "batch frames"], threshold: float, exists: Bool[Array, "batch frames"] | None = None
) -> Int[Array, "batch"]:
    """The first frame at which a model speaks, the number of frames where at none.

    Args:
      separator: the probability of silence behind every frame; the model is silent while it is at least …
      threshold: … this.
      exists: frames that were looked at; ``None``: all.
    """
    speaks = separator < threshold
    speaks = speaks if exists is None else speaks & exists
    looked = separator.shape[1] if exists is None else exists.sum(1)
    return jnp.where(speaks.any(1), jnp.argmax(speaks, axis=1), looked)


class Streaming(Term):
    """Cross-entropy of answers and of silence, mean over the places of both: the term ``streaming``.

    Args:
      reads: the pass whose prediction are logits, whose target are ids, and whose ``exists`` is where they are labelled
        (``streaming_targets``: ``answer | silent``); ``Outputs.features["silent"]`` says where that is silence.
      silence: how much a silent frame counts beside a token of an answer.
    """

    def __init__(
        self, weight: Weight | Mapping[str, Any], setting: Setting, *, reads: str = "stream", silence: Weight = 1.0
    ):
        super().__init__(weight, setting)
        self.reads, self.silence = reads, silence

    def value(self, modules, outputs, key, step, micro):
        found = self.compared(outputs)
        if "silent" not in outputs.features:
            raise UserError(f"losses.{self.label} needs the feature 'silent', which this task does not give")
        silent = outputs.features["silent"]
        arguments = found.prediction, found.target, found.exists & ~silent, silent
        loss = streaming_loss(*arguments, self.silence, micro.mean)
        right = (jnp.argmax(found.prediction, axis=-1) == found.target) * 1.0
        named = {"answer": found.exists & ~silent, "silence": silent}
        shares = {
            f"{self.label}_{name}_accuracy": mean_where(right, where, micro.mean) for name, where in named.items()
        }
        return loss, shares

"""Losses of answers: their likelihood, and preferring right ones to wrong ones; which slots of rows count."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videogen import building
from videogen.building import check_fields
from videogen.errors import UserError
from videogen.language import TokenStream
from videogen.losses import preference_loss, preference_margin
from videogen.ranges import Positive, Weight

Pair = tuple[Float[Array, "samples"], Float[Array, "samples"]]


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A loss with a weight.

    Attributes:
      weight: of the mean.
    """

    weight: Weight = 1.0

    def __post_init__(self):
        check_fields(self)


class Answers(Weighted):
    """Cross-entropy of the answers and of the markers behind them, the mean over ids in nats."""


@dataclasses.dataclass(frozen=True)
class Preference(Weighted):
    """Preference optimisation (``losses.preference``): p0 is the frozen part ``reference``, and wrong answers are the
    text ``wrong`` of a batch.

    Attributes:
      beta: how far p may move from p0.
    """

    beta: Positive = 0.1

    def value(self, right: Pair, wrong: Pair) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over samples, and metrics, from the log-probabilities of both answers, by the model and by p0."""
        margin = preference_margin(right[0], wrong[0], right[1], wrong[1])
        loss = preference_loss(margin, self.beta).mean()
        return loss, {"preference": loss, "margin": margin.mean(), "preferred": (margin > 0).mean() * 1.0}


ANSWER_LOSSES = {"answers": Answers, "preference": Preference}
"""Public name -> class."""


def build_answer_losses(
    section: Mapping[str, Mapping[str, Any]], table: Mapping[str, Any] = ANSWER_LOSSES
) -> dict[str, Any]:
    """The losses of ``config.losses = {term: {name, weight, …}}`` with a weight, by their names in ``table``."""
    found = {}
    building.check_value("losses", Mapping, section)
    for term in section:
        building.check_value(f"losses.{term}", Mapping, section[term])
        built = building.build(table, section[term], "loss of answers")
        if built.weight:
            found[section[term]["name"]] = built
    return found


@dataclasses.dataclass(frozen=True)
class Scores:
    """Negative log-likelihoods in nats of the ids of rows, and which count."""

    values: Float[Array, "rows slots"]
    counted: Bool[Array, "rows slots"]

    @property
    def log_probability(self) -> Float[Array, "rows"]:
        """Of the answer of each row."""
        return -jnp.where(self.counted, self.values, 0.0).sum(1)


def answered(stream: TokenStream, number: int, packed: int) -> Bool[Array, "rows slots"]:
    """Which slots are of samples whose answer has any ids; ``number`` is that of its segment."""
    rows = jnp.arange(len(stream.ids))[:, None]
    there = jnp.zeros((len(stream.ids), packed), bool).at[rows, stream.sample].max(stream.source == number)
    return jnp.take_along_axis(there, stream.sample, axis=1)


def instead(batch: Mapping[str, Any], name: str, other: str) -> dict[str, Any]:
    """The batch with another text in the place of one.

    Raises:
      UserError: the data have no such text.
    """
    if f"{other}_ids" not in batch:
        raise UserError(f"preference needs the text {other!r} of every sample, which the data do not have")
    return {**batch, **{f"{name}_{kind}": batch[f"{other}_{kind}"] for kind in ("ids", "mask")}}


def first_questions(batch: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The batch with the first question of each sample, of texts with these names."""
    texts = {f"{name}_{kind}" for name in names for kind in ("ids", "mask")}
    return {name: x[:, 0] if name in texts and x.ndim == 3 else x for name, x in batch.items()}

"""How far vectors at the places that count are from what they should be: masked features, masked pixels."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp

from videogen.losses.terms import Setting, Term
from videogen.nn import l2_normalize, mean_where
from videogen.ranges import OneOf, Weight


class Regression(Term):
    """The distance of a pass at the places that exist, mean over these, 0 without any: the term ``regression``.

    Args:
      reads: the pass whose prediction and target are vectors ``[batch, *places, channels]``.
      objective: ``l2``, the mean squared difference, or ``cosine``, 1 - the cosine of both.
    """

    def __init__(
        self,
        weight: Weight | Mapping[str, Any],
        reads: str,
        setting: Setting,
        *,
        objective: Annotated[str, OneOf("l2", "cosine")] = "l2",
    ):
        super().__init__(weight, setting)
        self.reads, self.objective = reads, objective

    def value(self, modules, outputs, key, step, micro):
        compared = self.compared(outputs)
        ours, theirs = (x.astype(jnp.float32) for x in (compared.prediction, compared.target))
        if self.objective == "l2":
            distance = jnp.square(ours - theirs)
        else:
            distance = 1 - jnp.sum(l2_normalize(ours) * l2_normalize(theirs), axis=-1)
        return mean_where(distance, compared.exists, micro.mean), {}

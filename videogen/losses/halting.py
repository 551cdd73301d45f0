"""Learning which tokens are not needed (KARL; Duggal et al., 2025, section 4)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from videogen.losses.terms import Setting, Term
from videogen.nn import mean_where
from videogen.ranges import Weight


class Halting(Term):
    """Binary cross-entropy of logits that a token is not needed, mean over the tokens that exist.

    Args:
      reads: the pass whose prediction are logits, whose target is 1 where a token is not needed and 0 where it is.
    """

    def __init__(self, weight: Weight | Mapping[str, Any], reads: str, setting: Setting):
        super().__init__(weight, setting)
        self.reads = reads

    def value(self, modules, outputs, key, step, micro):
        compared = self.compared(outputs)
        logits, halt = (x.astype(jnp.float32) for x in (compared.prediction, compared.target))
        return mean_where(jax.nn.softplus(logits) - halt * logits, compared.exists, micro.mean), {}

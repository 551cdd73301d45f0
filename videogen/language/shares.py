"""How often each layout of a length group is drawn, which may change at named steps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from videogen.errors import UserError, shown


class Shares:
    """The shares of layouts as a function of the step alone.

    Args:
      given: of each layout a number, or ``((first step, share), …)`` with steps that rise from 0.

    Raises:
      UserError: no such numbers, or a step at which all are 0.
    """

    def __init__(self, given: Sequence[Any]):
        pairs = [self._pairs(share) for share in given]
        self.starts = np.array(sorted({start for own in pairs for start, _ in own}), np.int32)
        table = [[[share for first, share in own if first <= start][-1] for own in pairs] for start in self.starts]
        self.table = np.array(table, np.float32)
        if self.table.min() < 0 or not self.table.any(axis=1).all():
            raise UserError(f"shares of layouts are at least 0, and never all 0 at once, got {given}")

    @staticmethod
    def _pairs(share: Any) -> list[tuple[int, float]]:
        if isinstance(share, int | float) and not isinstance(share, bool):
            return [(0, float(share))]
        pairs = [tuple(pair) for pair in share] if isinstance(share, list | tuple) else []
        starts = [pair[0] for pair in pairs if len(pair) == 2]
        if not starts or len(starts) < len(pairs) or starts[0] != 0 or starts != sorted(set(starts)):
            raise UserError(
                f"the share of a layout is a number or ((0, share), (later step, share), …), got {shown(share)}"
            )
        return pairs

    def at(self, step: Int[Array, ""] | int) -> Float[Array, "layouts"]:
        """The shares at a step; they add up to 1."""
        row = jnp.asarray(self.table)[jnp.searchsorted(jnp.asarray(self.starts), step, side="right") - 1]
        return row / row.sum()

    def draw(self, step: Int[Array, ""] | int, key: jax.Array, shape: Sequence[int]) -> Int[Array, "..."]:
        """Numbers of layouts."""
        return jax.random.choice(key, self.table.shape[1], shape, p=self.at(step))

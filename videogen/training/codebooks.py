"""The gradients of codebooks: their norms, and a word where one gets none."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from videogen.training.optimizers import is_frozen

NORM = "gradient_norm_of_"
"""How the metrics of ``codebook_norms`` begin."""

PATIENCE = 100
"""Steps without a gradient after which a codebook is named."""


def codebook_norms(grads: Any, frozen: Sequence[str]) -> dict[str, Float[Array, ""]]:
    """The norm of the gradient of every codebook that learns, by ``NORM`` and the path of its parameter.

    The norm of the whole network hides a table that no loss reaches.

    Args:
      grads: of a parameter group.
      frozen: the dotted paths in it that do not learn.
    """
    found = {}
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        if str(path[-1].key).startswith("codebook") and not is_frozen(path, frozen):
            found[NORM + "_".join(str(part.key) for part in path)] = optax.tree.norm(grad)
    return found


class CodebookWatch:
    """Names every codebook whose gradient was exactly 0 in so many steps in a row, once."""

    def __init__(self):
        self.steps: dict[str, int] = {}

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        """One line for each codebook to be named after a step with these metrics."""
        found = []
        for name in (name for name in metrics if name.startswith(NORM)):
            self.steps[name] = 0 if float(metrics[name]) else self.steps.get(name, 0) + 1
            if self.steps[name] == PATIENCE:
                found.append(
                    f"the codebook {name.removeprefix(NORM)} has had no gradient for {PATIENCE} steps: no loss with a "
                    "weight above 0 reaches it; raise the weight of its codebook loss, or let it move by averages "
                    "(codebook_update=ema)"
                )
        return found

"""The error of poses in space: the mean distance of their joints from where they should be."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from videogen.losses.terms import Scalar, Setting, Term
from videogen.nn.micro_batches import mean_where
from videogen.ranges import Natural, Weight


def joint_errors(
    found: Float[Array, "*any joints 3"], wanted: Float[Array, "*any joints 3"], root: int
) -> Float[Array, "*any joints"]:
    """The distance of every joint from where it should be, both told from the ``root`` of their own pose.

    Equal poses give 0, and so does a shift of the whole body. The gradient of a joint that is right is 0.
    """
    found, wanted = (x.astype(jnp.float32) - x[..., root : root + 1, :].astype(jnp.float32) for x in (found, wanted))
    squared = jnp.sum((found - wanted) ** 2, axis=-1)
    apart = squared > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def mean_joint_error(
    found: Float[Array, "*any joints 3"],
    wanted: Float[Array, "*any joints 3"],
    root: int,
    exists: Bool[Array, "*any"] | None = None,
) -> Scalar:
    """MPJPE: the mean over the joints, the root included, and all poses that exist, in the units of the data."""
    return mean_where(joint_errors(found, wanted, root), exists)


class JointError(Term):
    """The mean per-joint position error: the term ``joint_error``.

    Args:
      reads: the pass of poses ``[batch, frames, joints, 3]``.
      root: the joint that the others are told from.
    """

    def __init__(
        self, weight: Weight | Mapping[str, Any], setting: Setting, *, reads: str = "poses", root: Natural = 0
    ):
        super().__init__(weight, setting)
        self.reads, self.root = reads, root

    def value(self, modules, outputs, key, step, micro):
        compared = self.compared(outputs)
        errors = joint_errors(compared.prediction, compared.target, self.root)
        return mean_where(errors, compared.exists, micro.mean), {}

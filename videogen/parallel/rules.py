"""One table from logical axis names to mesh axes, for parameters and activations alike."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from videogen.parallel.mesh import BATCH_AXES, batch_axes, on_mesh

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": BATCH_AXES,
    "sequence": "context",
    "time": None,
    "height": None,
    "width": "context",
    # parameters
    "mlp": "tensor",
    "heads": "tensor",
    "vocabulary": "tensor",
    "embed": None,
    "layers": None,
}
"""Logical axis -> mesh axis. A name that is absent is not sharded; FSDP takes the largest free axis."""

GRID_AXES = {1: ("time", "height", "width"), 3: ("height", "width", "time")}
"""Logical names of a token grid's axes, by the place of time among the array's axes."""

SMALLEST_FSDP_SIZE = 2**14
"""Parameters with fewer elements are replicated: gathering them costs more than it saves."""


FEWEST_COLUMNS = 2
"""Columns of a grid that a device has at least: of single ones XLA's gradients of convolutions are wrong."""


def _axes_size(mesh_shape: dict[str, int], axes: str | tuple[str, ...]) -> int:
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh_shape.get(name, 1) for name in names)


def activation_spec(axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """The partition of an activation on the entered mesh; axes that the mesh does not divide stay whole.

    A batch that it does not divide is shared by some of the data-parallel axes (``mesh.batch_axes``). A width stays
    whole where a device would get a single column.
    """
    mesh_shape = dict(jax.sharding.get_abstract_mesh().shape)
    spec = []
    for name, size in zip(axes, shape, strict=True):
        target = batch_axes(mesh_shape, size) if name == "batch" else RULES.get(name) if name else None
        parts = _axes_size(mesh_shape, target) if target else 1
        shared = target and size % parts == 0 and (name != "width" or size >= FEWEST_COLUMNS * parts)
        spec.append(target if shared else None)
    return PartitionSpec(*spec)


def constrain(x: Shaped[Array, "..."], *axes: str | None, shape: Sequence[int] | None = None) -> Shaped[Array, "..."]:
    """Constrains an activation's sharding by the logical names of its axes; a no-op outside a mesh.

    Args:
      x: the activation.
      *axes: their names.
      shape: the sizes that decide which axes are sharded; ``None``: those of ``x``.
    """
    if not on_mesh():
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(axes, shape or x.shape))


def parameter_spec(
    shape: tuple[int, ...], axes: tuple[str | None, ...] | None, mesh_shape: dict[str, int]
) -> PartitionSpec:
    """The partition of one parameter: its logical axes by the rules, then FSDP over the largest free axis.

    Axes that the mesh does not divide stay whole, so every mesh can hold every parameter.
    """
    axes = axes or (None,) * len(shape)
    spec: list[Any] = []
    for name, size in zip(axes, shape, strict=True):
        target = RULES.get(name) if name else None
        spec.append(target if target and size % _axes_size(mesh_shape, target) == 0 else None)
    fsdp = mesh_shape.get("fsdp", 1)
    if fsdp > 1 and math.prod(shape) >= SMALLEST_FSDP_SIZE:
        free = [i for i, size in enumerate(shape) if spec[i] is None and axes[i] != "layers" and size % fsdp == 0]
        if free:
            spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*spec)


def shardings(state: nnx.State, mesh: Mesh, *, fsdp: bool = True) -> Any:
    """A plain nested dict of ``NamedSharding``, one per variable, from the ``axes`` each variable carries.

    Without ``fsdp`` no variable is spread over that mesh axis.
    """
    mesh_shape = dict(mesh.shape) | ({} if fsdp else {"fsdp": 1})

    def sharding(variable: nnx.Variable) -> NamedSharding:
        spec = parameter_spec(variable.get_value().shape, variable.get_metadata().get("axes"), mesh_shape)
        return NamedSharding(mesh, spec)

    tree = jax.tree.map(sharding, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree

"""Computing on the mesh that modules lie on: rows of a batch shared by its devices, results back on the host."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from videogen.parallel.mesh import BATCH_AXES, batch_sharding


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays are laid out on; ``None`` where they are on one device, or in the host's memory."""
    for leaf in jax.tree.leaves(tree):
        sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


@contextlib.contextmanager
def inside(mesh: Mesh | None) -> Iterator[None]:
    """What is compiled in the body is laid out on the mesh; without one on the device of its arguments."""
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield


def padded(tree: Any, mesh: Mesh | None) -> Any:
    """Host arrays whose last row is repeated until all data-parallel devices have equally many rows.

    What is computed of the rows added is to be left out.
    """
    if mesh is None:
        return tree
    shares = math.prod(mesh.shape[axis] for axis in BATCH_AXES)

    def pad(rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        return np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % shares, axis=0)])

    return jax.tree.map(pad, tree)


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Host arrays, the same in every process, with their rows on the devices that share them (``batch_sharding``).

    Rows that they cannot share evenly are shared by some mesh axes, along the others all devices have the same. Without
    a mesh the arrays stay as they are.
    """
    if mesh is None:
        return tree

    def put(rows: Any) -> jax.Array:
        rows = np.asarray(rows)
        return jax.make_array_from_callback(rows.shape, batch_sharding(mesh, len(rows)), rows.__getitem__)

    return jax.tree.map(put, tree)

"""Where the arrays of a run go as they are read: on one device, or spread over a mesh; as they are, or converted."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from videogen.errors import UserError
from videogen.parallel.mesh import AXES, make_mesh
from videogen.runs.checkpoints import abstract_state
from videogen.tasks.base import DTYPES
from videogen.training.state import State, frozen_shardings, state_shardings


def mesh_of_sizes(mesh: Mesh | Mapping[str, int] | None) -> Mesh | None:
    """A mesh, or the one of these sizes over all devices of the job; ``None`` stays.

    Raises:
      UserError: a mesh of other axes than ``parallel.mesh.AXES``, or sizes that the devices do not have.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        return make_mesh(mesh)
    if mesh.axis_names != AXES:
        raise UserError(f"the mesh has the axes {mesh.axis_names}, not {AXES}; parallel.make_mesh builds one")
    return mesh


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices and dtype of what is read.

    Attributes:
      mesh: ``None``: the first device.
      dtype: a name in ``tasks.base.DTYPES`` that parameters, but not those of quantizers, are converted to; ``None``:
        they stay as they are.
      frozen: a name in ``state.FROZEN_LAYOUTS``.
    """

    mesh: Mesh | None = None
    dtype: str | None = None
    frozen: str = "sharded"

    @property
    def as_ever(self) -> bool:
        """Whether neither a mesh nor a dtype was asked for."""
        return self.mesh is None and self.dtype is None

    def of_state(self, modules: dict[str, nnx.Module], state: State) -> State:
        """``ShapeDtypeStruct`` of every array of an abstract state, as it is to be read."""
        shardings = _one_device(state) if self.mesh is None else state_shardings(modules, state, self.mesh)
        dtypes = {part: self._dtypes(tree, part in ("params", "ema")) for part, tree in state.items()}
        return _abstract(state, dtypes, shardings)

    def of_weights(self, modules: dict[str, nnx.Module], tree: dict[str, Any]) -> dict[str, Any]:
        """The same of ``params`` and ``variables`` alone."""
        rest = {"step": jax.ShapeDtypeStruct((), jnp.int32), "optimizer": dict.fromkeys(modules, {}), "ema": {}}
        placed = self.of_state(modules, rest | tree)
        return {part: placed[part] for part in tree}

    def of_frozen(self, name: str, module: nnx.Module) -> Any:
        """The same of the arrays of a frozen module."""
        state = nnx.state(module)
        tree = nnx.to_pure_dict(state)
        shardings = _one_device(tree)
        if self.mesh is not None:
            shardings = frozen_shardings({name: module}, self.mesh, self.frozen)[name]
        kinds = jax.tree.map(lambda v: isinstance(v, nnx.Param), state, is_leaf=lambda x: isinstance(x, nnx.Variable))
        return _abstract(tree, self._dtypes(tree, nnx.to_pure_dict(kinds)), shardings)

    def _dtypes(self, tree: Any, parameters: Any) -> Any:
        """The dtype of every array of a tree; ``parameters`` says which are some, or that all or none are."""
        parameters = jax.tree.map(lambda x: parameters, tree) if isinstance(parameters, bool) else parameters

        def dtype(path: tuple, x: Any, is_parameter: bool) -> Any:
            # Quantizers compute in float32: rounded codebooks would give other codes.
            of_quantizer = any(getattr(part, "key", None) == "quantizer" for part in path)
            converted = self.dtype and is_parameter and not of_quantizer and jnp.issubdtype(x.dtype, jnp.floating)
            return DTYPES[self.dtype] if converted else x.dtype

        return jax.tree_util.tree_map_with_path(dtype, tree, parameters)


def _one_device(tree: Any) -> Any:
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: here, tree)


def _abstract(tree: Any, dtypes: Any, shardings: Any) -> Any:
    converted = jax.tree.map(lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype), tree, dtypes)
    return abstract_state(converted, shardings)

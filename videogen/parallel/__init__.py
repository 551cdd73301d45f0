"""Meshes and logical-axis rules: where every parameter and activation lives."""

from videogen.parallel.mesh import AXES, batch_sharding, make_mesh, mesh_axis_size
from videogen.parallel.rules import RULES, constrain, parameter_spec, shardings

__all__ = [
    "AXES",
    "RULES",
    "batch_sharding",
    "constrain",
    "make_mesh",
    "mesh_axis_size",
    "parameter_spec",
    "shardings",
]

"""Weights as safetensors: nested dicts of arrays on one side, flat dotted names on the other."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as save_bytes

from videogen.configuration import read_file
from videogen.errors import UserError


def save_weights(path: epath.PathLike, tree: Any) -> None:
    """Writes a nested dict of arrays; the names are the dotted paths."""
    flat = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    # Written under another name and moved: a reader never sees half a file.
    target = epath.Path(path)
    temporary = target.parent / (target.name + ".part")
    temporary.write_bytes(save_bytes(flat))
    temporary.replace(target)


def load_weights(path: epath.PathLike, structure: Any) -> Any:
    """Reads weights into the nested structure of ``structure`` (arrays or ``ShapeDtypeStruct``).

    Raises:
      UserError: the file is missing, damaged, or its names and shapes are not those of the structure.
    """
    flat = read_tensors(path)
    wanted = {_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(structure)}
    wrong = sorted(wanted.keys() ^ flat.keys())
    wrong += sorted(k for k in wanted.keys() & flat.keys() if tuple(wanted[k].shape) != flat[k].shape)
    if wrong:
        raise UserError(f"{path} does not fit its config: {len(wrong)} tensors differ, the first is {wrong[0]!r}")
    for name, leaf in wanted.items():
        if _kind(flat[name].dtype) != _kind(leaf.dtype):
            raise UserError(f"{path}: the tensor {name!r} has {flat[name].dtype} values where {leaf.dtype} is needed")
    return jax.tree_util.tree_map_with_path(lambda p, leaf: flat[_name(p)].astype(leaf.dtype), structure)


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name.

    Raises:
      UserError: the file is missing, damaged, or has values of a type that is not known here.
    """
    try:
        entries = deserialize(read_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is no valid safetensors file ({error})") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: the tensor {name!r} has values of the unknown type {entry['dtype']}")
        tensors[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


_DTYPES = {
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BOOL": "bool",
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}


def _kind(dtype: Any) -> str:
    """Between types of one kind values may be rounded, between kinds they would become others."""
    return next(kind.__name__ for kind in (jnp.floating, jnp.integer, jnp.bool_) if jnp.issubdtype(dtype, kind))


def hash_weights(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a nested dict of arrays, in a fixed order."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(tree), key=lambda item: _name(item[0])):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{_name(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _name(path: tuple) -> str:
    return ".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)

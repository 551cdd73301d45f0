"""Weights as safetensors: nested dicts of arrays on one side, flat dotted names on the other."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as save_bytes

from videogen.configuration import check_plain_file, is_remote, read_file
from videogen.errors import UserError


def save_weights(path: epath.PathLike, tree: Any, metadata: dict[str, str] | None = None) -> None:
    """Writes a nested dict of arrays; the names are the dotted paths.

    Args:
      path: of the safetensors file, which is replaced as a whole.
      tree: the arrays.
      metadata: what its header says beside them.
    """
    flat = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    # Written under another name and moved: a reader never sees half a file.
    target = epath.Path(path)
    temporary = target.parent / (target.name + ".part")
    temporary.write_bytes(save_bytes(flat, metadata))
    temporary.replace(target)


def load_weights(path: epath.PathLike, structure: Any, mapped: bool = False) -> Any:
    """Reads weights into the nested structure of ``structure`` (arrays or ``ShapeDtypeStruct``).

    Args:
      path: a safetensors file.
      structure: what the file must hold.
      mapped: give views of the mapped file (``map_tensors``) rather than arrays in memory.

    Raises:
      UserError: the file is missing, damaged, or its names and shapes are not those of the structure.
    """
    flat = map_tensors(path) if mapped else read_tensors(path)
    wanted = {_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(structure)}
    wrong = sorted(wanted.keys() ^ flat.keys())
    wrong += sorted(k for k in wanted.keys() & flat.keys() if tuple(wanted[k].shape) != flat[k].shape)
    if wrong:
        raise UserError(f"{path} does not fit its config: {len(wrong)} tensors differ, the first is {wrong[0]!r}")
    for name, leaf in wanted.items():
        if _kind(flat[name].dtype) != _kind(leaf.dtype):
            raise UserError(f"{path}: the tensor {name!r} has {flat[name].dtype} values where {leaf.dtype} is needed")
    # A view of another float type stays as it is: who reads a part of it converts that part (``place_weights``).
    return jax.tree_util.tree_map_with_path(
        lambda p, leaf: flat[_name(p)] if mapped else flat[_name(p)].astype(leaf.dtype), structure
    )


def place_weights(tree: Any, abstract: Any) -> Any:
    """Arrays on the devices: each device is given its part of an array, and no other part is read or converted.

    Args:
      tree: arrays of the host, such as views of a mapped file; the same in every process.
      abstract: ``ShapeDtypeStruct`` of each, with the dtype it is converted to and its sharding.
    """

    def place(array: np.ndarray, goal: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(
            goal.shape, goal.sharding, lambda index: np.array(array[index], dtype=goal.dtype)
        )

    return jax.tree.map(place, tree, abstract)


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
        tensors[name] = np.frombuffer(entry["data"], _dtype(path, name, entry["dtype"])).reshape(entry["shape"])
    return tensors


def map_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, as views of the mapped file: only what is used of them is read.

    A remote file is read whole.

    Raises:
      UserError: as for ``read_tensors``.
    """
    if is_remote(path):
        return read_tensors(path)
    check_plain_file(path)
    try:
        with safe_open(path, framework="numpy"), open(path, "rb") as file:  # the first refuses a damaged file
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
    except SafetensorError as error:
        raise UserError(f"{path} is no valid safetensors file ({error})") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    header.pop("__metadata__", None)
    content = np.asarray(np.memmap(path, np.uint8, "r"))
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        tensors[name] = content[first:last].view(_dtype(path, name, entry["dtype"])).reshape(entry["shape"])
    return tensors


def _dtype(path: epath.PathLike, name: str, dtype: str) -> Any:
    if dtype not in _DTYPES:
        raise UserError(f"{path}: the tensor {name!r} has values of the unknown type {dtype}")
    return _DTYPES[dtype]


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


PIECE = 2**26
"""Bytes of an array on several devices that are brought to the host at a time."""


def hash_weights(tree: Any, read: Callable[[Any], np.ndarray] = np.asarray) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a nested dict of arrays, in a fixed order.

    Args:
      tree: the arrays; one that is spread over devices is never whole on one of them, nor on the host.
      read: brings (a piece of) an array to the host.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(tree), key=lambda item: _name(item[0])):
        digest.update(f"{_name(path)} {leaf.dtype} {leaf.shape}".encode())
        for piece in _pieces(leaf):
            digest.update(np.ascontiguousarray(read(piece)).tobytes())
    return digest.hexdigest()


def _pieces(array: Any) -> Iterator[Any]:
    """An array in memory order: as a whole, or where it is spread over devices by rows."""
    if not isinstance(array, jax.Array) or array.is_fully_replicated or not array.ndim:
        yield array
        return
    rows = max(PIECE * len(array) // (math.prod(array.shape) * array.dtype.itemsize), 1)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _name(path: tuple) -> str:
    return ".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)

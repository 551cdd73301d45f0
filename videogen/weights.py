"""Weights as safetensors: nested dicts of arrays on one side, flat dotted names on the other."""

import hashlib
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save as save_bytes

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
    path = epath.Path(path)
    try:
        flat = load_bytes(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except SafetensorError as error:
        raise UserError(f"{path} is no valid safetensors file ({error})") from error
    wanted = {_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(structure)}
    wrong = sorted(wanted.keys() ^ flat.keys())
    wrong += sorted(k for k in wanted.keys() & flat.keys() if tuple(wanted[k].shape) != flat[k].shape)
    if wrong:
        raise UserError(f"{path} does not fit its config: {len(wrong)} tensors differ, the first is {wrong[0]!r}")
    return jax.tree_util.tree_map_with_path(lambda p, leaf: flat[_name(p)].astype(leaf.dtype), structure)


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

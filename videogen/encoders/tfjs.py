"""Weights of TensorFlow.js: a manifest that names tensors, and files of their values, often of 8 bits each."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from videogen.errors import UserError, shown

DTYPES = {"float32": "<f4", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "float16": "<f2", "bool": "u1"}


def read_manifest(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a ``…weights_manifest.json`` by name; the files of values lie beside it.

    A quantised value is ``stored · scale + min``, as float32.

    Raises:
      UserError: a file is missing or damaged, or the manifest says more or less than the files hold.
    """
    path = Path(path)
    try:
        groups = json.loads(path.read_text())
        return {name: array for group in groups for name, array in _group(path, group).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {shown(error)}; unpack the package again") from error


def _group(path: Path, group: dict[str, Any]) -> dict[str, np.ndarray]:
    names = [str(name) for name in group["paths"]]
    if any(Path(name).name != name for name in names):
        raise UserError(f"{path} is refused: it names a file in another folder")
    data, at, tensors = b"".join((path.parent / name).read_bytes() for name in names), 0, {}
    for entry in group["weights"]:
        shape, quantised = [int(n) for n in entry["shape"]], entry.get("quantization")
        kind = np.dtype(DTYPES[quantised["dtype"] if quantised else entry["dtype"]])
        count = math.prod(shape)
        if min(shape, default=0) < 0 or at + count * kind.itemsize > len(data):
            raise UserError(f"{path} is refused: the tensor {shown(entry['name'])} ends beyond the files")
        values = np.frombuffer(data, kind, count, at).reshape(shape)
        at += count * kind.itemsize
        if quantised and "scale" in quantised:
            values = (values * np.float64(quantised["scale"]) + np.float64(quantised["min"])).astype(np.float32)
        tensors[str(entry["name"])] = values
    if at != len(data):
        raise UserError(f"{path} is refused: the files have {len(data)} bytes, and its tensors {at}")
    return tensors

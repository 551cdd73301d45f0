"""Published weights as they lie on a disk: a safetensors file, a torch archive, or the folder of a checkpoint."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from videogen.configuration import check_plain_file
from videogen.encoders.archives import read_archive
from videogen.errors import UserError

FOLDER_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
"""What a folder's weights are called, in the order they are looked for; with ``.index.json`` they are in parts."""


class Weights(Mapping[str, np.ndarray]):
    """The tensors of one checkpoint by name, read when they are asked for.

    Args:
      path: a safetensors file, a torch archive (``archives``), or a folder with one of ``FOLDER_FILES``, whole
        or with the index of its parts.
      files: names of files of the folder that are read instead, together.

    Attributes:
      path: what was given.
      sources: the files that are read.

    Raises:
      UserError: a file is missing or damaged, or the index names a file that is not beside it.
    """

    def __init__(self, path: str | Path, files: Sequence[str] = ()):
        self.path = Path(path)
        self.sources = [self.path / name for name in files] or _sources(self.path)
        self._read = {source: self._names(source) for source in self.sources if source.suffix != ".json"}
        self._file_of = {name: source for source, names in self._read.items() for name in names}

    def _names(self, source: Path) -> dict[str, np.ndarray | None]:
        """Names, with the arrays themselves where they are views of a mapped file."""
        if source.suffix == ".safetensors":
            return dict.fromkeys(_use(source, lambda file: list(file.keys())))
        arrays = read_archive(source)
        # Training programs store the weights beside their state; these are all that is wanted of it.
        inner = {name.removeprefix("state_dict."): a for name, a in arrays.items() if name.startswith("state_dict.")}
        return inner or arrays

    def __getitem__(self, name: str) -> np.ndarray:
        source = self._file_of[name]
        array = self._read[source][name]
        return _use(source, lambda file: file.get_tensor(name)) if array is None else array

    def __contains__(self, name: object) -> bool:
        # Without reading the tensor.
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    @property
    def metadata(self) -> dict[str, str]:
        """What the headers of safetensors files say beside the tensors, text by name; empty for archives of torch.

        Raises:
          UserError: a file is damaged.
        """
        files = [source for source in self.sources if source.suffix == ".safetensors"]
        return {key: text for each in files for key, text in (_use(each, lambda file: file.metadata()) or {}).items()}

    def hash(self) -> str:
        """SHA-256 over the settings (``config.json``, if there is one) and the files that are read."""
        config = self.path / "config.json"
        digest = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
        for source in self.sources:
            with source.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def read_config(directory: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
      UserError: it is unreadable, or no dictionary.
    """
    path = Path(directory) / "config.json"
    check_plain_file(path)
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; give the folder of a checkpoint") from error
    if not isinstance(config, dict):
        raise UserError(f"cannot read {path}: it is no dictionary; give the folder of a checkpoint")
    return config


def refuse_unpublished(config: Mapping[str, Any], fixed: Mapping[str, Any], kind: str) -> None:
    """Refuses a ``config.json`` that has another value than those that were published.

    Args:
      config: what it says; what it leaves out is taken to be as published.
      fixed: settings that no published model has otherwise, and that networks here do not have.
      kind: the class of the model, for the message.

    Raises:
      UserError: names the setting and both values.
    """
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise UserError(f"{kind} with {name}={config[name]!r} is not one that was published: {value!r} is known")


def _sources(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            return [index, *_parts(index)]
    raise UserError(f"{path} is no file, and no folder with {' or '.join(FOLDER_FILES)} (or the index of its parts)")


def _parts(index: Path) -> list[Path]:
    try:
        names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"cannot read {index}: {error!r}; download the checkpoint again") from error
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names the file {name!r}, which is not in {index.parent}")
    return sorted(index.parent / name for name in names)


def _use(path: Path, use: Any) -> Any:
    try:
        with safe_open(path, framework="numpy") as file:
            return use(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; download the checkpoint again") from error

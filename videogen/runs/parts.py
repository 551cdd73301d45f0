"""Finished batches of a long command, kept beside its output: a killed command goes on where it stopped."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from videogen.configuration import replace_text

KEY = "key.json"


class Parts:
    """The folder ``OUT.part`` of a command that writes ``OUT``: a .npz file for each finished batch.

    Called with the name of a batch and what computes it, it gives the arrays, from the file where there is one. What
    another command has left there is removed with a warning.

    Args:
      out: the output of the command.
      key: JSON values by name, of everything that decides the arrays.
    """

    def __init__(self, out: epath.PathLike, key: Mapping[str, Any]):
        out = epath.Path(out)
        self.folder, self.read = out.parent / f"{out.name}.part", 0
        key = json.loads(json.dumps(key))
        if self.folder.exists() and (found := self._found()) != key:
            changed = [name for name in key if name not in found or found[name] != key[name]]
            logging.warning(
                "%s was left by a command with another %s; it is removed, and all is computed anew",
                self.folder,
                changed[0] if changed else "key",
            )
            self.folder.rmtree()
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / KEY, json.dumps(key) + "\n")

    def _found(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / KEY).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def __call__(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of a batch.

        Args:
          name: of the batch among those of the command, usable as a file name.
          compute: gives them.
        """
        path = self.folder / f"{name}.npz"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                found = dict(arrays)
            self.read += 1
            return found
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            pass  # not there, or damaged: computed again
        arrays, content = {key: np.asarray(array) for key, array in compute().items()}, io.BytesIO()
        np.savez(content, **arrays)
        # Under another name first: a reader never sees half a file.
        unfinished = self.folder / f"{name}.unfinished"
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
        return arrays

    def remove(self) -> None:
        """Removes the folder, once the output is written; says how much of it was used."""
        if self.read:
            logging.info("%d batches were finished by an earlier start", self.read)
        self.folder.rmtree()

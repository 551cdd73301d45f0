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


class FinishedBatches:
    """The folder ``OUT.parts`` of a command that writes ``OUT``: a .npz file for each finished batch.

    Called with the name of a batch and what computes it, it gives the arrays, from the file where there is one. What
    another command has left there is named in a warning and not used.

    Args:
      out: the output of the command.
      key: JSON values by name, of everything that decides the arrays.
    """

    def __init__(self, out: epath.PathLike, key: Mapping[str, Any]):
        out = epath.Path(out)
        self.folder, self.read = out.parent / f"{out.name}.parts", 0
        self._key, self._ready = json.loads(json.dumps(key)), False
        self._own, self._earlier = set(), set()
        if not self.folder.exists():
            return
        found = self._key_there()
        self._ready = found == self._key
        if not self._ready:
            changed = [name for name, value in self._key.items() if name not in found or found[name] != value]
            logging.warning(
                "%s was left by a command with another %s; it is not used, and replaced",
                self.folder,
                changed[0] if changed else "key",
            )

    @property
    def found(self) -> bool:
        """Whether an earlier start of the same command has left batches."""
        return self._ready

    def _key_there(self) -> dict[str, Any]:
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
            if not self._ready:
                raise FileNotFoundError(path)
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                found = dict(arrays)
            self.read += 1
            # A command may go through its batches twice.
            self._earlier |= {name} - self._own
            return found
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            pass  # not there, or damaged: computed again
        arrays, content = {key: np.asarray(array) for key, array in compute().items()}, io.BytesIO()
        np.savez(content, **arrays)
        self._make_folder()
        # Under another name first: a reader never sees half a file.
        unfinished = self.folder / f"{name}.unfinished"
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
        self._own.add(name)
        return arrays

    def _make_folder(self) -> None:
        """Made with the first batch: a command that is refused leaves nothing behind."""
        if self._ready:
            return
        if self.folder.exists():
            self.folder.rmtree()
        self.folder.mkdir(parents=True)
        replace_text(self.folder / KEY, json.dumps(self._key) + "\n")
        self._ready = True

    def remove(self) -> None:
        """Removes the folder, once the output is written; says how much of it was used."""
        if self._earlier:
            logging.info("%d batches were finished by an earlier start", len(self._earlier))
        if self._ready:
            self.folder.rmtree()

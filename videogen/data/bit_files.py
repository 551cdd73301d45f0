"""A directory of clips as bits: a file for each, of nothing but its bits, and ``meta.json`` with what they share."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videogen.configuration import read_file
from videogen.data.bits import KEPT, Packing
from videogen.data.captions import clean_text
from videogen.data.records import new_directory
from videogen.data.token_files import META, describe
from videogen.errors import UserError
from videogen.tokens import Layout

KIND = "bits"
SUFFIX = ".bits"


class BitWriter:
    """Writes clips as bits; use it in a ``with`` block, whose clean end completes the directory.

    Args:
      directory: made here; must not exist.
      layout: of the tokens of every clip.
      meta: what all clips share, as ``data.tokens.TokenWriter`` takes it.
      kept: which tokens may be left out, a name in ``bits.KEPT``.

    Raises:
      UserError: the directory exists or cannot be made, or the tokens are no codes.
    """

    def __init__(self, directory: str | os.PathLike, layout: Layout, meta: Mapping[str, Any], kept: str):
        self._packing, self._clips = Packing(layout, kept), []
        self._directory = new_directory(directory)
        self.meta = {**meta, "format": 1, "kind": KIND, "kept": kept}
        self.meta["segments"] = describe(layout, {name: [] for name in layout.names})

    def __enter__(self) -> "BitWriter":
        return self

    def write(self, tokens: Mapping[str, np.ndarray], caption: str = "", label: int | None = None) -> None:
        """Writes the file of a clip; arguments as for ``TokenWriter.write``."""
        kept = []
        for name, segment in self._packing.layout.segments:
            masks = [np.asarray(tokens[f"{name}/{m}"], bool) for m in ("exists", "kept") if f"{name}/{m}" in tokens]
            kept.append(np.logical_and.reduce([np.ones(segment.shape, bool), *masks]).reshape(-1))
        content = self._packing.pack(tokens, np.concatenate(kept))
        name = f"{len(self._clips):06d}{SUFFIX}"
        # Under another name until it is whole, as the files of an unfinished cache are.
        (self._directory / f"{name}.draft").write_bytes(content)
        about = {"caption": clean_text(caption), **({} if label is None else {"label": label})}
        self._clips.append({"file": name, "bytes": len(content), "checksum": zlib.crc32(content), **about})

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            return
        if not self._clips:
            raise UserError(f"no clip was written to {self._directory}; check the source")
        for clip in self._clips:
            (self._directory / f"{clip['file']}.draft").replace(self._directory / clip["file"])
        draft = self._directory / f"{META}.draft"
        draft.write_text(json.dumps({**self.meta, "count": len(self._clips), "clips": self._clips}, indent=1) + "\n")
        draft.replace(self._directory / META)


class BitReader:
    """Reads what ``BitWriter`` wrote.

    Args:
      directory: with ``meta.json``.

    Raises:
      UserError: there is no such directory, or ``meta.json`` does not say what is needed.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        try:
            meta = json.loads(read_file(self.directory / META))
            right = meta["kind"] == KIND and meta["kept"] in KEPT
            self.clip = (meta["frames"], meta["height"], meta["width"])
            right &= all(isinstance(length, int) and 0 < length < 2**31 for length in self.clip)
            self.clips = [(str(c["file"]), int(c["bytes"]), int(c["checksum"])) for c in meta["clips"]]
            self.fps, self.made_by = float(meta["fps"] or 0), str(meta["tokenizer_hash"])
            self.kept, self.segments = meta["kept"], dict(meta["segments"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            right = False
        if not right:
            raise UserError(f"{self.directory} is no directory of bits; videogen.tokenize --format=bits writes one")

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, layout: Layout) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """The codes of each clip by segment, and which tokens are kept.

        Args:
          layout: of the tokens of such clips; it is not believed to be that of the directory.

        Raises:
          UserError: the tokens are others, or a file is missing, damaged, or reaches outside the directory.
        """
        if describe(layout, {name: [] for name in layout.names}) != self.segments:
            raise UserError(f"the clips in {self.directory} have other tokens than this tokenizer makes")
        packing = Packing(layout, self.kept)
        for name, size, checksum in self.clips:
            if Path(name).name != name:
                raise UserError(f"{self.directory / META} names a file outside its directory: {name!r}"[:300])
            content = read_file(self.directory / name)
            if len(content) != size or zlib.crc32(content) != checksum:
                raise UserError(f"{self.directory / name} is damaged: its checksum differs; write the clips again")
            yield packing.unpack(content)

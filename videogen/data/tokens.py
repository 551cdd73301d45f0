"""The token cache: clips as tokens of one tokenizer, so that generators train without decoding video.

The cache is keyed by the hash of the tokenizer's weights; tokens mean nothing to another tokenizer. It is a
directory of little-endian arrays, which are memory-mapped: reading a clip costs the same however large the
cache is, and all worker processes share one copy in memory.

* ``SEGMENT.bin``: the tokens of one clip after another: bits, codes of 1, 2 or 4 bytes, or float32;
* ``SEGMENT.exists.bin``, ``SEGMENT.kept.bin``: which tokens exist and are kept, as bits, where there are such masks;
* ``captions.bin``: the UTF-8 of one caption after another, and ``caption_ends.bin``: ``int64 [count]``;
* ``labels.bin``: ``int32 [count]``, -1 where there is none;
* ``checksums.bin``: ``uint32 [count]``, the CRC-32 of a clip's tokens, masks, caption and label, one after another;
* ``meta.json``: what the tokens are, and what they were made from. Written last: a directory without it is unfinished,
  and refused.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videogen.data.captions import clean_text
from videogen.data.clip import Clip
from videogen.data.records import new_directory
from videogen.data.source import SampleError, Source, held_out
from videogen.data.token_files import (
    FORMAT,
    MASKS,
    META,
    PREFIX,
    TOKENIZER,
    describe,
    layout_of,
    read_meta,
    stored,
    wrong_values,
)
from videogen.errors import UserError
from videogen.tokens import Layout

_FILES = ("captions", "caption_ends", "labels", "checksums")


class TokenWriter:
    """Writes a token cache; use it in a ``with`` block, whose clean end completes the cache.

    Args:
      directory: made here; must not exist.
      layout: of the tokens of every clip.
      meta: ``tokenizer_hash``, ``frames``, ``height``, ``width``, ``fps`` of the clips, ``classes`` where they have
        labels, and ``made_from``: the ``source`` config, ``clip`` and ``split`` of the videos; ``format``, ``count``,
        ``segments`` and ``space`` are added.
      space: of latents, one of ``token_files.SPACES``; codes are raw.

    Raises:
      UserError: the directory exists or cannot be made.
    """

    def __init__(self, directory: str | os.PathLike, layout: Layout, meta: Mapping[str, Any], space: str = "raw"):
        self._directory, self._layout = new_directory(directory), layout
        self.meta = {**meta, "format": FORMAT, "space": space, "checksums": True, "count": 0}
        self._text_bytes = 0

    def __enter__(self) -> "TokenWriter":
        self._files = {name: (self._directory / f"{name}.bin").open("wb") for name in _FILES}
        return self

    def write(self, tokens: Mapping[str, np.ndarray], caption: str = "", label: int | None = None) -> None:
        """Appends the tokens of one clip.

        Args:
          tokens: values of every segment by its name, and its masks as ``SEGMENT/exists`` and ``SEGMENT/kept``, which
            all clips have or none.
          caption: of the clip.
          label: of the clip; ``None``: it has none.

        Raises:
          UserError: shapes or masks unlike those of the layout and of the clips before, codes outside the vocabulary,
            values that are not finite, or a label that is none of the classes.
        """
        tokens = {name: np.asarray(array) for name, array in tokens.items()}
        if "segments" not in self.meta:
            masks = {name: [mask for mask in MASKS if f"{name}/{mask}" in tokens] for name in self._layout.names}
            self.meta["segments"] = describe(self._layout, masks)
            self._arrays = stored(self.meta)
            self._files |= {name: (self._directory / a.file).open("wb") for name, a in self._arrays.items()}
        if set(tokens) != set(self._arrays):
            raise UserError(f"the clips of this token cache have {', '.join(self._arrays)}, got {', '.join(tokens)}")
        for name, array in self._arrays.items():
            if tokens[name].shape != array.shape:
                raise UserError(f"{name} of this token cache is {list(array.shape)}, got {list(tokens[name].shape)}")
        for name, segment in self._layout.segments:
            if wrong := wrong_values(tokens[name], segment):
                raise UserError(wrong)
        classes = self.meta.get("classes", ())
        if classes and (label is None or not 0 <= label < len(classes)):
            raise UserError(f"label {label} is none of the {len(classes)} classes")
        packed = {name: array.pack(tokens[name]) for name, array in self._arrays.items()}
        text, number = clean_text(caption).encode(), np.array(-1 if label is None else label, "<i4").tobytes()
        self._text_bytes += len(text)
        for name, content in packed.items():
            self._files[name].write(content)
        self._files["captions"].write(text)
        self._files["caption_ends"].write(np.array(self._text_bytes, "<i8").tobytes())
        self._files["labels"].write(number)
        self._files["checksums"].write(np.array(_checksum(*packed.values(), text, number), "<u4").tobytes())
        self.meta["count"] += 1

    def __exit__(self, kind, error, trace) -> None:
        for file in self._files.values():
            file.close()
        if kind is not None:
            return
        if not self.meta["count"]:
            raise UserError(f"no clip was written to {self._directory}; check the source")
        draft = self._directory / f"{META}.draft"
        draft.write_text(json.dumps(self.meta, indent=1) + "\n")
        draft.replace(self._directory / META)


class TokenSource(Source):
    """The clips of a token cache as codes.

    Instead of ``video`` a sample has ``tokens/SEGMENT``, int32 ``[*sides, levels]`` or float32 ``[*sides, channels]``,
    and the masks ``tokens/SEGMENT/exists`` and ``/kept`` where there are some. It has ``caption``; where the cache has
    classes ``label``; where it tells the rate of the clips ``fps``.

    Args:
      clip: must be the clip the cache was made of, its ``fps`` aside.
      seed: unused, nothing is random about reading tokens.
      split: both splits hold all clips unless ``holdout`` keeps some for 'eval'.
      path: the directory of the cache.
      tokenizer_hash: the tokenizer that will decode the tokens; ``None`` does not compare.
      holdout: share of the captions (of the clips, where they have none) that only 'eval' has, by their hash.
      uncaptioned: whether models of text may train on it although no clip has a caption.

    Attributes:
      meta: what the cache says about itself.
      layout: of the tokens of a clip.

    Raises:
      UserError: no complete cache, or one of another tokenizer or clip size.
    """

    field = "tokens"

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        tokenizer_hash: str | None = None,
        holdout: float = 0.0,
        uncaptioned: bool = False,
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if not 0 <= holdout < 1:
            raise UserError(f"holdout is a share of the clips in [0, 1), got {holdout}")
        self.uncaptioned = uncaptioned
        self.keeps_apart = bool(holdout)
        self.meta = read_meta(path)
        self.layout = layout_of(self.meta)
        self.made_from = self.meta.get("made_from")
        self.classes = tuple(self.meta.get("classes", ()))
        self._path = path
        self._check(path, tokenizer_hash)
        count = self.meta["count"]
        self._arrays = stored(self.meta)
        rows = {name: array.row for name, array in self._arrays.items()}
        self._tokens = {
            name: _Mapped(Path(path) / self._arrays[name].file, dtype, (count, *shape))
            for name, (shape, dtype) in rows.items()
        }
        self._ends = _Mapped(Path(path) / "caption_ends.bin", "<i8", (count,))
        self._labels = _Mapped(Path(path) / "labels.bin", "<i4", (count,))
        # Caches of earlier versions have none.
        checked = self.meta.get("checksums")
        self._checksums = _Mapped(Path(path) / "checksums.bin", "<u4", (count,)) if checked else None
        self._text = _Mapped(Path(path) / "captions.bin", "u1", (int(self._ends.values[-1]),))
        self._rows: range | np.ndarray = range(count)
        if holdout:
            keys = (self._caption(row) or str(row) for row in range(count))
            self._rows = np.flatnonzero([held_out(key, holdout) == (split == "eval") for key in keys])
        self.captioned = int(np.count_nonzero(np.diff(self._ends.values, prepend=0)))

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        kinds = {name: np.int32 if layout.vocabulary else np.float32 for name, layout in self.layout.segments}
        return {f"{PREFIX}{name}": (array.shape, kinds.get(name, bool)) for name, array in self._arrays.items()}

    @property
    def fps(self) -> float | None:
        """The rate of the clips that were encoded, whatever ``clip.fps`` asks for."""
        return self.meta.get("fps")

    def _check(self, path: str, tokenizer_hash: str | None) -> None:
        made_by = self.meta["tokenizer_hash"]
        if tokenizer_hash is not None and made_by != tokenizer_hash:
            remedy = "write the cache again with this tokenizer"
            if self.meta.get("space") == "normalised":
                remedy = f"the tokenizer of its normalised latents is {Path(path) / TOKENIZER}"
            raise UserError(
                f"the token cache {path} was made by tokenizer {made_by[:12]}, the generator has "
                f"{tokenizer_hash[:12]}; {remedy}"
            )
        sizes = [(getattr(self.clip, side), self.meta[side]) for side in ("frames", "height", "width")]
        if any(ours != theirs for ours, theirs in sizes):
            ours, theirs = ("x".join(map(str, side)) for side in zip(*sizes, strict=True))
            raise UserError(f"the token cache {path} holds clips of {theirs}, data.clip asks for {ours}")

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads the tokens of one clip; nothing about that is random.

        Raises:
          SampleError: they are not what was written, or cannot be.
        """
        row = int(self._rows[index])
        rows, label = {name: mapped.values[row] for name, mapped in self._tokens.items()}, self._labels.values[row]
        name = f"{self._path}, clip {row}"
        if self._checksums is not None:
            found = _checksum(*(array.tobytes() for array in rows.values()), self._text_of(row), label.tobytes())
            if found != self._checksums.values[row]:
                raise SampleError(name, "damaged: its checksum differs")
        arrays = {segment: array.unpack(rows[segment]) for segment, array in self._arrays.items()}
        for segment, layout in self.layout.segments:
            arrays[segment] = arrays[segment].astype(np.int32 if layout.vocabulary else np.float32, copy=False)
            if wrong := wrong_values(arrays[segment], layout):
                raise SampleError(name, wrong)
        sample = {f"{PREFIX}{segment}": array for segment, array in arrays.items()}
        sample["caption"] = self._caption(row)
        if self.classes:
            if not 0 <= label < len(self.classes):
                raise SampleError(name, f"label {label} is none of the {len(self.classes)} classes")
            sample["label"] = int(label)
        if self.meta.get("fps"):
            sample["fps"] = float(self.meta["fps"])
        return sample

    def caption(self, index: int) -> str:
        return self._caption(int(self._rows[index]))

    def _caption(self, row: int) -> str:
        return self._text_of(row).decode(errors="replace")

    def _text_of(self, row: int) -> bytes:
        start = int(self._ends.values[row - 1]) if row else 0
        return self._text.values[start : int(self._ends.values[row])].tobytes()


def _checksum(*parts: bytes) -> int:
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


class _Mapped:
    """A memory-mapped array; worker processes map the file themselves instead of being sent its content."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]):
        self._arguments = path, dtype, shape
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise UserError(f"{path} has {size} of {expected} bytes; write the token cache again")
        try:
            # An empty file cannot be mapped.
            mapped = np.memmap(path, dtype, "r", shape=shape) if expected else np.empty(shape, dtype)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        # Slices of a plain view cost a fraction of a memmap's.
        self.values = np.asarray(mapped)

    def __reduce__(self) -> tuple:
        return _Mapped, self._arguments

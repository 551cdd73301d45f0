"""The token cache: clips as codes of one tokenizer, so that generators train without decoding video.

The cache is keyed by the hash of the tokenizer's weights; codes mean nothing to another tokenizer. It is a
directory of little-endian arrays, which are memory-mapped: reading a clip costs the same however large the
cache is, and all worker processes share one copy in memory.

* ``indices.bin``: the codes of one clip after another, ``uint16`` or ``int32 [count, *grid]``;
* ``captions.bin``: the UTF-8 of one caption after another, and ``caption_ends.bin``: ``int64 [count]``;
* ``labels.bin``: ``int32 [count]``, -1 where there is none;
* ``checksums.bin``: ``uint32 [count]``, the CRC-32 of a clip's codes, caption and label, one after another;
* ``meta.json``: what the codes are, and what they were made from. Written last: a directory without it is unfinished,
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
from jaxtyping import Int

from videogen.data.captions import clean_text
from videogen.data.clip import Clip
from videogen.data.records import new_directory
from videogen.data.source import SampleError, Source, held_out
from videogen.errors import UserError

META = "meta.json"
_FILES = ("indices", "captions", "caption_ends", "labels", "checksums")
_DTYPES = ("<u2", "<i4")


class TokenWriter:
    """Writes a token cache; use it in a ``with`` block, whose clean end completes the cache.

    Args:
      directory: made here; must not exist.
      meta: ``tokenizer_hash``, ``vocabulary`` (codes per level), ``frames``, ``height``, ``width``, ``fps``
        of the clips, ``classes`` where they have labels, and ``made_from``: the ``source`` config, ``clip`` and
        ``split`` of the videos; ``count``, ``dtype`` and ``grid``, the shape [time, height, width, levels] of a clip's
        codes, are added.

    Raises:
      UserError: the directory exists or cannot be made.
    """

    def __init__(self, directory: str | os.PathLike, meta: Mapping[str, Any]):
        self._directory = new_directory(directory)
        dtype = "<u2" if max(meta["vocabulary"]) <= 2**16 else "<i4"
        self.meta = {**meta, "dtype": dtype, "checksums": True, "count": 0}
        self._text_bytes = 0

    def __enter__(self) -> "TokenWriter":
        self._files = {name: (self._directory / f"{name}.bin").open("wb") for name in _FILES}
        return self

    def write(
        self,
        indices: Int[np.ndarray, "time height width levels"],
        caption: str = "",
        label: int | None = None,
    ) -> None:
        """Appends the codes of one clip.

        Raises:
          UserError: a grid unlike that of the clips before, codes outside the vocabulary, or a label that is
            none of the classes.
        """
        indices = np.asarray(indices)
        vocabulary, classes = self.meta["vocabulary"], self.meta.get("classes", ())
        grid = self.meta.setdefault("grid", [*indices.shape[:3], len(vocabulary)])
        if list(indices.shape) != grid:
            raise UserError(f"the codes of this token cache are {grid}, got {list(indices.shape)}")
        if indices.min() < 0 or (indices >= np.array(vocabulary)).any():
            raise UserError(f"codes outside the vocabulary {vocabulary}")
        if classes and (label is None or not 0 <= label < len(classes)):
            raise UserError(f"label {label} is none of the {len(classes)} classes")
        text, codes = clean_text(caption).encode(), indices.astype(self.meta["dtype"]).tobytes()
        number = np.array(-1 if label is None else label, "<i4").tobytes()
        self._text_bytes += len(text)
        self._files["indices"].write(codes)
        self._files["captions"].write(text)
        self._files["caption_ends"].write(np.array(self._text_bytes, "<i8").tobytes())
        self._files["labels"].write(number)
        self._files["checksums"].write(np.array(_checksum(codes, text, number), "<u4").tobytes())
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

    A sample has ``indices int32 [time, height, width, levels]`` instead of ``video``, and ``caption``; where
    the cache has classes ``label``; where it tells the rate of the clips ``fps``.

    Args:
      clip: must be the clip the cache was made of, its ``fps`` aside.
      seed: unused, nothing is random about reading codes.
      split: both splits hold all clips unless ``holdout`` keeps some for 'eval'.
      path: the directory of the cache.
      tokenizer_hash: the tokenizer that will decode the codes; ``None`` does not compare.
      holdout: share of the captions (of the clips, where they have none) that only 'eval' has, by their hash.
      uncaptioned: whether models of text may train on it although no clip has a caption.

    Attributes:
      meta: what the cache says about itself.

    Raises:
      UserError: no complete cache, or one of another tokenizer or clip size.
    """

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
        self.meta = _read_meta(Path(path))
        self.made_from = self.meta.get("made_from")
        self.classes = tuple(self.meta.get("classes", ()))
        self._path = path
        self._check(path, tokenizer_hash)
        count = self.meta["count"]
        self._codes = _Mapped(Path(path) / "indices.bin", self.meta["dtype"], (count, *self.meta["grid"]))
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
    def fps(self) -> float | None:
        """The rate of the clips that were encoded, whatever ``clip.fps`` asks for."""
        return self.meta.get("fps")

    def _check(self, path: str, tokenizer_hash: str | None) -> None:
        made_by = self.meta["tokenizer_hash"]
        if tokenizer_hash is not None and made_by != tokenizer_hash:
            raise UserError(
                f"the token cache {path} was made by tokenizer {made_by[:12]}, the generator has "
                f"{tokenizer_hash[:12]}; write the cache again with this tokenizer"
            )
        sizes = [(getattr(self.clip, side), self.meta[side]) for side in ("frames", "height", "width")]
        if any(ours != theirs for ours, theirs in sizes):
            ours, theirs = ("x".join(map(str, side)) for side in zip(*sizes, strict=True))
            raise UserError(f"the token cache {path} holds clips of {theirs}, data.clip asks for {ours}")

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads the codes of one clip; nothing about that is random.

        Raises:
          SampleError: they are not what was written, or beyond the vocabulary.
        """
        row = int(self._rows[index])
        codes, label = self._codes.values[row], self._labels.values[row]
        name = f"{self._path}, clip {row}"
        if self._checksums is not None:
            found = _checksum(codes.tobytes(), self._text_of(row), label.tobytes())
            if found != self._checksums.values[row]:
                raise SampleError(name, "damaged: its checksum differs")
        if (codes < 0).any() or (codes >= np.array(self.meta["vocabulary"])).any():
            raise SampleError(name, f"codes beyond the vocabulary {self.meta['vocabulary']}")
        sample = {"indices": codes.astype(np.int32), "caption": self._caption(row)}
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


def _checksum(codes: bytes, text: bytes, label: bytes) -> int:
    return zlib.crc32(label, zlib.crc32(text, zlib.crc32(codes)))


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


def _read_meta(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UserError(f"no directory {directory}; set data.source.path to a token cache")
    if not (directory / META).exists():
        raise UserError(f"{directory} is no complete token cache (no {META}); remove it and write it again")
    try:
        meta = json.loads((directory / META).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{directory / META} cannot be read; write the token cache again") from None
    if not isinstance(meta, dict):
        raise UserError(f"{directory} is no token cache: its {META} is no JSON object")
    missing = set(_FIELDS) - set(meta)
    if missing:
        raise UserError(f"{directory} is no token cache: its {META} has no {', '.join(sorted(missing))}")
    wrong = [name for name, right in _FIELDS.items() if not right(meta[name])]
    wrong += ["classes"] if not _texts(meta.get("classes", [])) else []
    wrong += ["fps"] if not (meta.get("fps") is None or _positive(meta["fps"])) else []
    wrong += ["made_from"] if not isinstance(meta.get("made_from", {}), dict) else []
    if wrong or len(meta["vocabulary"]) != meta["grid"][-1]:
        name = wrong[0] if wrong else "vocabulary"
        raise UserError(f"{directory / META} has a wrong {name}: {meta[name]!r}; write the token cache again"[:300])
    return meta


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**62


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


_FIELDS = {
    "tokenizer_hash": lambda value: isinstance(value, str),
    "vocabulary": lambda value: isinstance(value, list) and bool(value) and all(map(_whole, value)),
    "grid": lambda value: isinstance(value, list) and len(value) == 4 and all(map(_whole, value)),
    "dtype": lambda value: value in _DTYPES,
    "count": _whole,
    "frames": _whole,
    "height": _whole,
    "width": _whole,
}
"""What every ``meta.json`` says, and what that must be."""

"""A directory of records with random access: array_record files and a ``meta.json`` that says what they are.

A record is a JSON header and a payload of bytes. ``meta.json`` is written last, so a directory whose writing
was cut off is recognised, and refused.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_data_source, array_record_module

from videogen.data.source import SampleError
from videogen.errors import UserError

META = "meta.json"
SHARD_BYTES = 2**31
"""A new file is begun beyond this size."""


def check_new(directory: str | os.PathLike) -> None:
    """Raises ``UserError`` where a data set cannot be written, for something is there already."""
    if os.path.lexists(directory):
        raise UserError(f"{directory} exists already; choose another directory or remove it")


def new_directory(directory: str | os.PathLike) -> Path:
    """Makes the directory of a data set; what is already there is never written over.

    Raises:
      UserError: it exists or cannot be made.
    """
    path = Path(directory)
    check_new(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {directory}: {error.strerror}") from None
    return path


class RecordWriter:
    """Writes a new directory of records; use it in a ``with`` block, whose clean end completes the directory.

    Args:
      directory: made here; must not exist.
      meta: what the records are; ``count`` is added.

    Raises:
      UserError: the directory exists.
    """

    def __init__(self, directory: str | os.PathLike, meta: Mapping[str, Any]):
        self._directory = new_directory(directory)
        self.meta = dict(meta)
        self._count = 0
        self._shards = 0
        self._bytes = 0
        self._writer = None

    def __enter__(self) -> "RecordWriter":
        return self

    def write(self, header: Mapping[str, Any], payload: bytes) -> None:
        """Appends a record."""
        if self._writer is None:
            name = f"records-{self._shards:05d}.array_record"
            self._writer = array_record_module.ArrayRecordWriter(str(self._directory / name), "group_size:1")
            self._shards += 1
        encoded = json.dumps(header, ensure_ascii=False).encode()
        self._writer.write(struct.pack("<I", len(encoded)) + encoded + payload)
        self._count += 1
        self._bytes += len(encoded) + len(payload)
        if self._bytes >= SHARD_BYTES:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes = None, 0

    def __exit__(self, kind, error, trace) -> None:
        self._end_shard()
        if kind is None:
            draft = self._directory / f"{META}.draft"
            draft.write_text(json.dumps(self.meta | {"count": self._count}, indent=1) + "\n")
            draft.replace(self._directory / META)


class Records:
    """Reads a directory of records.

    Args:
      directory: what a ``RecordWriter`` wrote.
      kind: what ``meta["kind"]`` must say.

    Attributes:
      meta: what was given to the writer, and ``count``.

    Raises:
      UserError: the directory is missing, incomplete or of another kind.
    """

    def __init__(self, directory: str | os.PathLike, kind: str):
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"no directory {directory}; set data.source.path to a directory of {kind}")
        if not (directory / META).exists():
            raise UserError(f"{directory} is no complete directory of {kind} (no {META}); write it again")
        try:
            self.meta = json.loads((directory / META).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{directory / META} cannot be read; write the directory again") from None
        if not isinstance(self.meta, dict) or not isinstance(self.meta.get("count"), int):
            raise UserError(f"{directory / META} does not say how many records there are; write the directory again")
        if self.meta.get("kind") != kind:
            raise UserError(f"{directory} holds {self.meta.get('kind')!r}, not {kind!r}")
        self._directory = directory
        files = sorted(str(file) for file in directory.glob("records-*.array_record"))
        self._source = open_records(files)
        if len(self._source) != self.meta["count"]:
            raise UserError(f"{directory} has {len(self._source)} of {self.meta['count']} records; write it again")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], bytes]:
        """The header and payload of a record.

        Raises:
          SampleError: the record is damaged.
        """
        try:
            record = self._source[index]
            (size,) = struct.unpack_from("<I", record)
            header = json.loads(record[4 : 4 + size])
        except (ValueError, IndexError, RuntimeError, OSError, RecursionError, struct.error) as error:
            raise SampleError(f"{self._directory}, record {index}", "damaged record") from error
        if not isinstance(header, dict):
            raise SampleError(f"{self._directory}, record {index}", "damaged record")
        return header, record[4 + size :]


def open_records(files: Sequence[str]) -> Sequence[bytes]:
    """The records of array_record files, one file after another.

    Raises:
      UserError: a file is damaged or cut off; the message names it.
    """
    if not files:
        return ()
    for file in files:
        try:
            # One by one: the errors of the library name no file.
            array_record_module.ArrayRecordReader(file).close()
        except (ValueError, IndexError, RuntimeError, OSError) as error:
            reason = str(error).split(";")[0].splitlines() or ["cut off"]
            raise UserError(f"{file} is damaged ({reason[0]}); write it again") from None
    return array_record_data_source.ArrayRecordDataSource(list(files))

"""Opens encoded video and sound as files of known containers, and nothing else.

What a file says about itself opens no other file and no network, and whatever goes wrong with it is a
``SampleError`` with the reason.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

import av

from videogen.data.source import SampleError
from videogen.errors import UserError

DEMUXERS = "mov,matroska,webm,avi,gif,mpegts,mpeg,asf,flv,ogg,wav"
"""The containers that are read; playlists and lists of other files are none."""

REFERENCE_FRAMES = 16
"""Frames a decoder may hold at once, however short the clip."""

PIXEL_BUDGET = 2**28
"""Default of the most pixels a decoder may hold: 16 frames of 4096 × 4096."""

Encoded = str | os.PathLike | bytes
"""A file, or the content of one."""

_MAGIC = {4: (b"ftyp", b"moov", b"mdat"), 0: (b"\x1a\x45\xdf\xa3", b"RIFF", b"GIF8")}


@contextlib.contextmanager
def border(name: str) -> Iterator[None]:
    """Makes a ``SampleError`` of sample ``name`` from whatever a decoder raises inside."""
    try:
        yield
    except (SampleError, UserError):
        raise
    except MemoryError as error:
        raise SampleError(name, "needs more memory than there is") from error
    except Exception as error:  # decoders promise no types: KeyError, ValueError, UnicodeDecodeError, … were seen
        said = getattr(error, "strerror", None) or type(error).__name__
        raise SampleError(name, f"cannot be decoded ({said})") from error


@contextlib.contextmanager
def open_bytes(encoded: Encoded, name: str) -> Iterator[BinaryIO]:
    """The content of a regular file, or of bytes, as an open file.

    Raises:
      SampleError: it is empty, no regular file, or cannot be read.
    """
    if isinstance(encoded, bytes):
        if not encoded:
            raise SampleError(name, "empty file")
        yield io.BytesIO(encoded)
        return
    try:
        status = os.stat(encoded)
        if not stat.S_ISREG(status.st_mode):
            raise SampleError(name, "no regular file")
        if not status.st_size:
            raise SampleError(name, "empty file")
        file = open(encoded, "rb")  # noqa: SIM115 (closed below)
    except (OSError, ValueError) as error:
        raise SampleError(name, f"unreadable file ({getattr(error, 'strerror', None) or error})") from error
    with file:
        yield file


PICTURES = (".jpeg", ".jpg", ".png", ".webp")
"""Endings of the names of pictures."""


def open_container(file: BinaryIO, name: str, pixel_budget: int) -> av.container.InputContainer:
    """Opens a container, or says what is wrong with it.

    Args:
      file: its content, open for reading.
      name: what to call it in errors.
      pixel_budget: decoders refuse frames of which they could not hold ``REFERENCE_FRAMES`` in so many pixels, or in
        ``PIXEL_BUDGET``, whichever is more: up to that the size is known, and can be named.
    """
    options = {
        "format_whitelist": DEMUXERS,
        "protocol_whitelist": "file",
        "max_pixels": str(max(pixel_budget, PIXEL_BUDGET) // REFERENCE_FRAMES),
    }
    try:
        return av.open(file, options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        file.seek(0)
        head = file.read(16)
        known = any(head[at:].startswith(magic) for at, magic in _MAGIC.items())
        other = "not a picture" if name.lower().endswith(PICTURES) else "not a video container"
        raise SampleError(name, "index missing / truncated" if known else other) from error

"""Small files of every container that is read, and seeded damage to their bytes.

``python -m tests.attacks.media_mutations COUNT`` decodes COUNT mutations of each; every one must give a clip of the
right size or a ``SampleError``, within seconds.
"""

import io
import sys
import time
import wave
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image

from videogen.data.clip import Clip
from videogen.data.decode import decode_audio, decode_beginning, decode_clip
from videogen.data.source import SampleError

LONGEST = 20.0
"""Seconds that reading a file of some kilobytes may take on a busy machine."""

CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mov": ("qtrle", "rgb24"),
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "ts": ("libx264", "yuv420p"),
}
FORMATS = {"mkv": "matroska", "ts": "mpegts"}


def _video(kind: str) -> bytes:
    content = io.BytesIO()
    codec, pix_fmt = CODECS[kind]
    noise = np.random.default_rng(0).integers(0, 256, (4, 20, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(content, "w", format=FORMATS.get(kind, kind)) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 32, 48, pix_fmt, 5
        for i in range(20):
            picture = np.ascontiguousarray(noise[:, 4 * i : 4 * i + 48])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()


def _picture(kind: str) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(noise).save(content, kind.upper(), **({"exif": Image.Exif()} if kind == "jpeg" else {}))
    return content.getvalue()


def _sound() -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).bytes(8000))
    return content.getvalue()


def files() -> dict[str, bytes]:
    """Kind -> the content of a sound file of that kind."""
    pictures = {kind: _picture(kind) for kind in ("png", "jpeg", "webp")}
    return {kind: _video(kind) for kind in CODECS} | pictures | {"wav": _sound()}


def mutations(content: bytes, count: int) -> Iterator[bytes]:
    """Bytes changed at up to 12 places, in every second one within the header; one in ten is cut off as well."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        changed = bytearray(content)
        within = len(changed) if seed % 2 else min(len(changed), 1500)
        for place in rng.integers(within, size=rng.integers(1, 13)):
            changed[place] = rng.integers(256)
        yield bytes(changed[: rng.integers(len(changed)) if seed % 10 == 0 else None])


def attack(kind: str, content: bytes, count: int) -> int:
    """Decodes mutations of a file; returns how many were refused.

    Raises:
      AssertionError: one gave something else than a clip or a ``SampleError``, or took too long.
    """
    refused = 0
    for number, changed in enumerate(mutations(content, count)):
        clip = Clip(1 if kind in ("png", "jpeg", "webp") else 4, 16, 16, (None, 5.0, 24.0)[number % 3])
        began = time.monotonic()
        try:
            if kind == "wav":
                assert decode_audio(changed, kind, 0.1, 0.2, 8000).shape == (1600, 1)
            elif number % 5 == 0:
                assert decode_beginning(changed, kind, clip, needed=1).video.shape == (clip.frames, 16, 16, 3)
            else:
                decoded = decode_clip(changed, kind, clip, np.random.default_rng(number))
                assert decoded.video.shape == (clip.frames, 16, 16, 3) and np.isfinite(decoded.start)
                assert 0 < decoded.fps < 1000
        except SampleError as error:
            assert error.name == kind and error.reason
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{kind}, mutation {number}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - began < LONGEST, f"{kind}, mutation {number} took too long"
    return refused


if __name__ == "__main__":
    for kind, content in files().items():
        print(kind, attack(kind, content, int(sys.argv[1])), "refused", flush=True)

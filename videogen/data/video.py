"""An open video: what its header says and is believed, and its frames in order of time.

Where what a seek finds cannot be trusted to equal the whole decode, the file is read from its beginning.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.frame import PictureType

from videogen.data.media import REFERENCE_FRAMES, Encoded, border, open_bytes, open_container
from videogen.data.picture import Rgb, is_still, read_still
from videogen.data.source import SampleError

_RATES = (0.05, 250.0)
"""Frames per second that a header is believed."""
_DEFAULT_RATE = 25.0
_TIME_TOLERANCE = 1e-4
_TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the transparency of WebM, which FFmpeg's own leave out."""


class Stopped(Exception):
    """Decoding ended before the window was full: at ``time`` in seconds, because of ``reason``, with ``chosen`` frames
    and their ``times``."""

    def __init__(self, time: float, reason: str):
        super().__init__(reason)
        self.time = time
        self.reason = reason
        self.chosen: list[np.ndarray] = []
        self.times: list[float] = []


class Untrusted(Exception):
    """What was found by seeking may not equal the same frames decoded from the beginning."""


@contextlib.contextmanager
def open_video(encoded: Encoded, name: str, pixel_budget: int) -> Iterator["Video | Rgb"]:
    """A video, or a picture's frame; inside, whatever goes wrong with the file is a ``SampleError``."""
    with border(name), open_bytes(encoded, name) as file:
        head = file.read(16)
        file.seek(0)
        if is_still(head):
            yield read_still(file, name, pixel_budget // REFERENCE_FRAMES)
        else:
            with contextlib.closing(Video(file, name, pixel_budget)) as video:
                yield video


class Video:
    """An open video.

    Attributes:
      rate: frames per second.
      time_base: unit of its time stamps, in seconds.
      tolerance: time stamps that differ by so many seconds are the same.
      aspect: width of a pixel by its height, ``None`` where the file does not say.
    """

    def __init__(self, file: BinaryIO, name: str, pixel_budget: int):
        self._file, self._name, self._pixel_budget = file, name, pixel_budget
        self._container: av.container.InputContainer | None = None
        self._rewind()
        self.time_base = float(self._stream.time_base)
        self.rate = self._believed_rate()
        # Time stamps are rounded to the container's unit.
        self.tolerance = min(max(self.time_base, _TIME_TOLERANCE), 0.2 / self.rate)
        self.aspect = self._stream.sample_aspect_ratio
        height, width = self._stream.codec_context.height, self._stream.codec_context.width
        if height < 1 or width < 1:
            raise SampleError(name, "size unknown or too large")
        self.check_size(height, width)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def check_size(self, height: int, width: int) -> None:
        """Refuses frames of which a decoder could not hold as many as it may need."""
        if height * width * REFERENCE_FRAMES > self._pixel_budget:
            reason = f"above the pixel budget ({width}x{height}), see data.source.pixel_budget"
            raise SampleError(self._name, reason)

    def _rewind(self) -> None:
        """Opens the container anew: the one way to the beginning that no container refuses."""
        if self._container is not None:
            self._container.close()
        self._file.seek(0)
        self._container = open_container(self._file, self._name, self._pixel_budget)
        self._fresh = True
        streams = self._container.streams.video
        self._stream = next((s for s in streams if s.codec_context is not None), None)
        if self._stream is None:
            raise SampleError(self._name, "unknown codec" if streams else "no video stream")
        self._decoder = self._stream.codec_context
        if {key.lower(): value for key, value in self._stream.metadata.items()}.get("alpha_mode") == "1":
            self._decoder = av.CodecContext.create(_TRANSPARENT[self._decoder.name], "r")
        # With frame threads, how many frames of a damaged file survive would depend on the machine.
        self._decoder.thread_count = 1

    def _believed_rate(self) -> float:
        stream = self._stream
        rates = [stream.average_rate, stream.guessed_rate]
        if stream.frames and stream.duration:
            rates.append(stream.frames / float(stream.duration * stream.time_base))
        low, high = _RATES
        return next((float(rate) for rate in rates if rate and low <= rate <= high), _DEFAULT_RATE)

    def coding(self) -> dict[str, Any]:
        """How it is stored, as ``decode.coding`` gives it."""
        context = self._stream.codec_context
        size = f"{context.height}x{context.width}"
        container = self._container.format.name.split(",")[0]
        return {"container": container, "codec": context.codec.name, "size": size, "fps": round(self.rate, 3)}

    @property
    def first(self) -> float:
        """When the stream begins, in seconds."""
        return (self._stream.start_time or 0) * self.time_base

    def extent(self) -> tuple[float, float]:
        """When the stream begins and is said to end, in seconds."""
        stream, container, first = self._stream, self._container, self.first
        if stream.duration:
            return first, first + stream.duration * self.time_base
        if container.duration:
            return first, first + container.duration / av.time_base
        last = first
        self._fresh = False
        with contextlib.suppress(av.FFmpegError, OSError):
            for packet in container.demux(stream):
                if packet.pts is not None:
                    last = max(last, (packet.pts + (packet.duration or 0)) * self.time_base)
        return first, last

    def frames(self, start: float | None, lead: float = 0.0) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields (time, frame) from the beginning, or a key frame before ``start`` - ``lead``, while they are good.

        Raises:
          Stopped: decoding failed.
          Untrusted: what follows the seek may not be what the whole decode gives.
        """
        time, count, packet = (start or 0.0) - 1 / self.rate, 0, None
        try:
            key = self._seek(start, lead) if start is not None else self._begin()
            for packet in self._container.demux(self._stream):
                if start is not None and key is None:
                    key = _time_of_key(packet)
                for frame in self._decoder.decode(packet):
                    if start is not None and not _follows(frame, key, self.time_base):
                        continue
                    time = self._time(frame, time + 1 / self.rate)
                    if frame.is_corrupt:
                        raise Stopped(time, f"decode error at frame {count}")
                    if start is not None and not count and time > start + self.tolerance:
                        raise Untrusted
                    self.check_size(frame.height, frame.width)
                    yield time, frame
                    count += 1
        except (av.FFmpegError, OSError):
            if start is not None and not count:
                raise Untrusted from None
            truncated = packet is not None and packet.is_corrupt and self._stream.frames > count
            frames = f"{count} of {self._stream.frames} frames"
            reason = f"truncated, {frames}" if truncated else f"decode error at frame {count}"
            raise Stopped(time + 1 / self.rate, reason) from None
        if start is not None and not count:
            raise Untrusted

    def _time(self, frame: av.VideoFrame, otherwise: float) -> float:
        """When a frame is shown, in seconds."""
        # AVI has decoding times alone; the times of showing that FFmpeg guesses from them are out of order.
        stamp = frame.dts if self._container.format.name == "avi" else frame.pts
        return otherwise if stamp is None else stamp * self.time_base

    def _begin(self) -> None:
        if not self._fresh:
            self._rewind()
        self._fresh = False

    def _seek(self, start: float, lead: float) -> None:
        """Goes to a key frame before ``start`` - ``lead``."""
        self._begin()
        if self._container.format.name == "gif":
            raise Untrusted
        try:
            earliest = self._stream.start_time or 0
            place = max(int((start - lead) / self._stream.time_base), earliest)
            self._container.seek(place, stream=self._stream)
        except (av.FFmpegError, OSError, OverflowError):
            raise Untrusted from None


def _time_of_key(packet: av.Packet) -> int:
    """When the frame of the first packet after a seek is shown, in units of the stream."""
    if not packet.is_keyframe or packet.pts is None:
        raise Untrusted
    return packet.pts


def _follows(frame: av.VideoFrame, key: int, unit: float) -> bool:
    """Whether a frame is not before the key frame of a seek: those refer to pictures that were never decoded."""
    if frame.pts is None:
        raise Untrusted
    time = round(frame.time / unit)
    if time == key and frame.pict_type in (PictureType.P, PictureType.B):
        raise Untrusted
    return time >= key

"""Decoded frames and picture files as upright 8-bit RGB with square pixels.

Every frame is shown as players show it: turned and mirrored by its display matrix or EXIF orientation, stretched where
its pixels are not square, transparency over white, HDR mapped to the standard range. Untagged frames of 720 rows or
more have the BT.709 matrix, smaller ones BT.601. Interlaced material is not separated: both fields stay in one frame.
"""

import struct
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import Colorspace, ColorTrc
from jaxtyping import Float, UInt8, UInt16
from PIL import Image, ImageOps

from videogen.data.clip import interpolation, resize
from videogen.data.source import SampleError

BACKGROUND = 255
"""Grey level (white) that shows through transparent pixels."""

STILLS = ("PNG", "JPEG", "WEBP")
_STILL_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_HD_ROWS = 720
_WIDEST_PIXEL = 4  # pixel aspects beyond this, or below its inverse, are not believed
_WHITE = 203.0  # nits of diffuse white in HDR, ITU-R BT.2408
_KNEE = 0.7  # linear light that the tone mapping leaves alone, of white at 1
_FROM_BT2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593])  # of BT.2020

Rgb = UInt8[np.ndarray, "h w 3"]
Size = Callable[[int, int], tuple[int, int]]
"""Height and width as shown -> those wanted."""


def upright(frame: av.VideoFrame, aspect: Fraction | None, size: Size) -> Rgb:
    """A frame as players show it, resized.

    Args:
      frame: the decoded frame.
      aspect: width of a pixel by its height; ``None`` or absurd values are 1.
      size: gives the size wanted from the size as shown.
    """
    swapped, flips = orientation(frame)
    width = shown_width(frame.width, aspect)
    height, width = size(*((width, frame.height) if swapped else (frame.height, width)))
    rgb = _rgb(frame, *((width, height) if swapped else (height, width)))
    return (rgb.swapaxes(0, 1) if swapped else rgb)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def shown_width(width: int, aspect: Fraction | None) -> int:
    """The width of a frame with square pixels."""
    believed = aspect and 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL
    return max(round(width * aspect), 1) if believed else width


def orientation(frame: av.VideoFrame) -> tuple[bool, tuple[bool, bool]]:
    """Whether rows and columns are swapped, and then which of the two axes are flipped."""
    try:
        entry = frame.side_data.get("DISPLAYMATRIX")
    except (KeyError, ValueError):  # there is side data of a type that PyAV does not know
        turns = round(frame.rotation / 90) % 4
        return bool(turns % 2), ((turns in (1, 2)), (turns in (2, 3)))
    if entry is None:
        return False, (False, False)
    a, b, _, c, d = struct.unpack("<5i", bytes(entry)[:20])
    if abs(a) >= abs(b):
        return False, (d < 0, a < 0)
    return True, (b < 0, c < 0)


def _rgb(frame: av.VideoFrame, height: int, width: int) -> Rgb:
    """A frame as it is stored, resized."""
    method = interpolation(frame.height, height)
    settings = {"width": width, "height": height, "interpolation": method, "threads": 1}
    if not frame.format.is_rgb:
        settings["src_color_range"] = frame.color_range
        if frame.colorspace == _UNSPECIFIED and frame.height >= _HD_ROWS:
            settings["src_colorspace"] = Colorspace.ITU709
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        return tone_mapped(frame.reformat(format="rgb48le", **settings).to_ndarray(), frame.color_trc)
    if frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components):
        # Before resizing: what hides behind transparent pixels must not bleed into their neighbours.
        whole = {key: settings[key] for key in settings if key.startswith("src_")}
        opaque = over_background(frame.reformat(format="rgba", threads=1, **whole).to_ndarray())
        return resize(opaque[None], height, width)[0]
    return frame.reformat(format="rgb24", **settings).to_ndarray()


def over_background(rgba: UInt8[np.ndarray, "*any h w 4"]) -> UInt8[np.ndarray, "*any h w 3"]:
    """Composites transparency over ``BACKGROUND``."""
    rgb, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
    return ((rgb * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8)


def tone_mapped(rgb: UInt16[np.ndarray, "h w 3"], transfer: int) -> Rgb:
    """HDR of BT.2020 as sRGB: light up to 70 % of diffuse white (203 nits) is kept, what is brighter rolls off.

    Args:
      rgb: coded values, 16 bits each.
      transfer: ``ColorTrc.SMPTE2084`` (PQ, ITU-R BT.2100) or ``ARIB_STD_B67`` (HLG, shown at 1000 nits).
    """
    coded = rgb / 65535
    light = (_pq_nits(coded) if transfer == ColorTrc.SMPTE2084 else _hlg_nits(coded)) / _WHITE
    light = np.clip(light @ _FROM_BT2020.T, 0, None)
    rolled = 1 - (1 - _KNEE) * np.exp(-np.clip(light - _KNEE, 0, None) / (1 - _KNEE))
    light = np.where(light <= _KNEE, light, rolled)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * np.clip(srgb, 0, 1)).astype(np.uint8)


def _pq_nits(coded: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    root = coded ** (1 / 78.84375)
    return 10_000 * (np.clip(root - 0.8359375, 0, None) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)


def _hlg_nits(coded: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    return 1000 * scene * (scene @ _LUMINANCE)[..., None] ** 0.2


def is_still(head: bytes) -> bool:
    """Whether a file that begins so is a picture."""
    return head.startswith(_STILL_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read_still(file: BinaryIO, name: str, most_pixels: int) -> Rgb:
    """A png, jpg or webp file as one upright frame; of an animation the first.

    Raises:
      SampleError: it has more than ``most_pixels``.
    """
    with warnings.catch_warnings(action="ignore"), Image.open(file, formats=STILLS) as picture:
        width, height = picture.size
        if width * height > most_pixels:
            raise SampleError(name, f"above the pixel budget ({width}x{height}), see data.source.pixel_budget")
        shown = ImageOps.exif_transpose(picture)
        if shown.mode.startswith("I"):  # 16-bit grey
            grey = np.asarray(shown, np.int64).clip(0, 65535) // 257
            return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)
        return over_background(np.asarray(shown.convert("RGBA")))


def still_coding(file: BinaryIO) -> dict[str, str]:
    """Container, codec and size (height and width as stored) of a picture file, as ``decode.coding`` gives them."""
    with warnings.catch_warnings(action="ignore"), Image.open(file, formats=STILLS) as picture:
        kind, (width, height) = picture.format.lower(), picture.size
        return {"container": kind, "codec": kind, "size": f"{height}x{width}"}

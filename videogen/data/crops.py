"""Two centre crops of pictures that published numbers were made with; they give other pixels, so each has a name.

``adm`` halves with a box filter while the shorter side is at least twice the wanted one, then resizes it bicubically,
both sides rounded, and rounds the place of the crop down (guided-diffusion). ``torchvision`` resizes once, bilinear
with antialiasing, cuts off the fraction of the longer side, and rounds the place of the crop half to even.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Size = tuple[int, int]
"""Height and width in pixels."""


def adm(height: int, width: int, side: int) -> tuple[list[Size], Size]:
    """The sizes that a picture goes through, and top and left of the crop."""
    sizes = []
    while min(height, width) >= 2 * side:
        height, width = height // 2, width // 2
        sizes.append((height, width))
    scale = side / min(height, width)
    height, width = round(height * scale), round(width * scale)
    return [*sizes, (height, width)], ((height - side) // 2, (width - side) // 2)


def torchvision(height: int, width: int, side: int) -> tuple[list[Size], Size]:
    """The size that a picture is resized to, and top and left of the crop."""
    longer = int(side * max(height, width) / min(height, width))
    height, width = (side, longer) if height <= width else (longer, side)
    return [(height, width)], (round((height - side) / 2), round((width - side) / 2))


CROPS = {"adm": (adm, Image.Resampling.BICUBIC), "torchvision": (torchvision, Image.Resampling.BILINEAR)}
"""Name -> where the crop lies, and the filter of the last resizing."""


def centre_crop(picture: UInt8[np.ndarray, "height width 3"], side: int, rule: str) -> UInt8[np.ndarray, "side side 3"]:
    """The square of so many pixels that a rule of ``CROPS`` cuts out of a picture."""
    place, last = CROPS[rule]
    sizes, (top, left) = place(*picture.shape[:2], side)
    image = Image.fromarray(np.ascontiguousarray(picture))
    for i, (height, width) in enumerate(sizes):
        image = image.resize((width, height), last if i == len(sizes) - 1 else Image.Resampling.BOX)
    return np.asarray(image)[top : top + side, left : left + side]

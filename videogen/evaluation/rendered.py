"""Words drawn in many fonts and sizes onto moving shapes and onto frames of videos: a test of text without a download.

A set is decided by its seed. Sizes are drawn evenly over the bins of a setting. The fonts are those that matplotlib
carries.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont

from videogen.data.clip import Clip
from videogen.data.folders import VIDEOS
from videogen.data.shapes_source import ShapesSource
from videogen.data.video_io import Frames, read_beginning
from videogen.errors import UserError
from videogen.evaluation.instances import Box, Sample, Word
from videogen.evaluation.tokbench import EDGES

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmtt10"),
)

WORDS = (
    "about", "above", "across", "after", "again", "almost", "along", "always", "animal", "answer", "around", "autumn",
    "basket", "bakery", "before", "between", "bottle", "bridge", "bright", "butter", "camera", "candle", "carpet",
    "castle", "center", "change", "cheese", "circle", "coffee", "corner", "cotton", "dinner", "doctor", "dragon",
    "engine", "evening", "fabric", "family", "farmer", "finger", "flower", "forest", "friend", "garden", "ginger",
    "golden", "harbor", "history", "holiday", "honest", "hotel", "island", "jacket", "journey", "kitchen", "ladder",
    "lemon", "letter", "library", "little", "machine", "market", "meadow", "mirror", "monday", "morning", "mountain",
    "music", "number", "office", "orange", "paper", "pencil", "people", "picture", "planet", "pocket", "quarter",
    "railway", "river", "school", "second", "silver", "simple", "spring", "station", "summer", "sunday", "table",
    "theater", "ticket", "travel", "tunnel", "village", "violin", "winter", "window", "wonder", "yellow",
)  # fmt: skip

LARGEST = 0.15
"""Of the height of the picture: how high a word is at most."""

TRIES, CONTRAST, MARGIN = 40, 90, 1
"""Places that are tried for a word; grey levels between it and what is behind it; pixels of the box around its ink."""


@dataclasses.dataclass(frozen=True)
class RenderedSet:
    """Pictures and videos with words on them.

    Attributes:
      setting: side in pixels, which decides the bins that sizes are drawn from.
      pictures, videos: how many of each.
      frames: of a video.
      words: in each, where there is room.
      seed: decides everything.
      folder: videos whose frames every second background is taken from; without, all are moving shapes.
    """

    setting: int
    pictures: int = 64
    videos: int = 8
    frames: int = 8
    words: int = 12
    seed: int = 0
    folder: str | None = None

    def __len__(self) -> int:
        return self.pictures + self.videos

    @functools.cached_property
    def files(self) -> Sequence[Path]:
        """The videos of the folder.

        Raises:
          UserError: it has none.
        """
        if self.folder is None:
            return ()
        found = sorted(path for path in Path(self.folder).rglob("*") if path.suffix.lower() in VIDEOS)
        if not found:
            raise UserError(f"no video in {self.folder}; name a folder of videos to draw words on, or none")
        return found

    def describe(self) -> dict[str, object]:
        """What the set is, for the record of a result."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("setting", "folder")}
        listed = "\n".join(f"{path.name} {path.stat().st_size}" for path in self.files)
        backgrounds = {"videos": len(self.files), "hash": hashlib.sha256(listed.encode()).hexdigest()[:16]}
        # Its version decides the edges of letters.
        drawn_by = f"Pillow {PIL.__version__}"
        return {"name": "rendered", **fields, "drawn_by": drawn_by, "backgrounds": backgrounds if listed else "shapes"}

    def __getitem__(self, index: int) -> Sample:
        """The sample of a place; pictures come first."""
        rng, picture = np.random.default_rng((self.seed, index)), index < self.pictures
        frames = self._background(index, 1 if picture else self.frames)
        kind = "pictures" if picture else "videos"
        words = _drawn(frames, self.words, EDGES["text", kind][self.setting], rng)
        return Sample(f"{index:05}", "rendered", frames, words, [()] * len(frames))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def _background(self, index: int, frames: int) -> Frames:
        clip = Clip(frames=frames, height=self.setting, width=self.setting)
        if self.files and index % 2 == 0:
            return np.array(read_beginning(self.files[index // 2 % len(self.files)], clip))
        return np.array(ShapesSource(clip=clip, seed=self.seed, split="eval")[index]["video"])


def _drawn(frames: Frames, count: int, edges: Sequence[float], rng: np.random.Generator) -> list[list[Word]]:
    """Draws words onto the frames, which are changed; in a video each moves along a line.

    Returns:
      The words of every frame.
    """
    taken: list[np.ndarray] = []
    found: list[list[Word]] = [[] for _ in frames]
    for number in range(count):
        text, font = _text(rng), FONTS[rng.integers(len(FONTS))]
        place = int(rng.integers(len(edges) - 1))
        size = rng.uniform(edges[place], min(edges[place + 1], LARGEST)) * len(frames[0])
        ink = _ink(font, text, size)
        boxes = _path(frames, (ink[3] - ink[1], ink[4] - ink[2]), taken, rng)
        if boxes is None:
            continue
        taken.append(boxes)
        colour = _colour(frames, boxes, rng)
        for frame, words, box in zip(frames, found, boxes, strict=True):
            _write(frame, text, ink, box, colour)
            whole: Box = tuple(float(v) for v in box + np.array([-MARGIN, -MARGIN, MARGIN, MARGIN]))
            words.append(Word(whole, text, (whole[3] - whole[1]) / frame.shape[0], f"{number}"))
    return found


def _text(rng: np.random.Generator) -> str:
    """A word in small letters, with a capital or in capitals, or a number."""
    word = WORDS[rng.integers(len(WORDS))]
    style = int(rng.integers(4))
    return (word, word.capitalize(), word.upper(), str(rng.integers(100, 100_000)))[style]


@functools.lru_cache(256)
def _font(name: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _ink(name: str, text: str, height: float) -> tuple[ImageFont.FreeTypeFont, int, int, int, int]:
    """The font in which the ink of a text has this height, and left, top, right and bottom of the ink."""
    _, top, _, bottom = _font(name, 100).getbbox(text)
    font = _font(name, round(max(height - 2 * MARGIN, 3) * 100 / (bottom - top), 1))
    return (font, *(int(v) for v in font.getbbox(text)))


def _path(
    frames: Frames, size: tuple[int, int], taken: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray | None:
    """Boxes of the ink in every frame, ``[time, 4]``, that keep clear of those of other words; ``None``: no room."""
    wide, high = size
    room = np.array([frames.shape[2] - wide, frames.shape[1] - high]) - 2 * MARGIN
    if (room <= 0).any():
        return None
    for _ in range(TRIES):
        start, end = rng.uniform(0, room, (2, 2))
        end = start + (end - start) * 0.2
        steps = np.linspace(0, 1, len(frames))[:, None]
        corner = np.round(start + (end - start) * steps).astype(int) + MARGIN
        boxes = np.concatenate([corner, corner + (wide, high)], axis=1)
        if all(_apart(boxes, other) for other in taken):
            return boxes
    return None


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    gap = 2 * MARGIN + 2
    beside = (a[:, 0] >= b[:, 2] + gap) | (b[:, 0] >= a[:, 2] + gap)
    return bool((beside | (a[:, 1] >= b[:, 3] + gap) | (b[:, 1] >= a[:, 3] + gap)).all())


def _colour(frames: Frames, boxes: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour that is brighter or darker than what is behind a word."""
    parts = [
        frame[top:bottom, left:right].reshape(-1, 3)
        for frame, (left, top, right, bottom) in zip(frames, boxes, strict=True)
    ]
    grey = float(np.concatenate(parts).mean())
    low, high = (max(grey + CONTRAST, 180), 256) if grey < 128 else (0, min(grey - CONTRAST, 75) + 1)
    return tuple(int(v) for v in rng.integers(int(low), int(high), 3))


def _write(frame: np.ndarray, text: str, ink: tuple, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    font, left, top, *_ = ink
    picture = Image.fromarray(frame)
    ImageDraw.Draw(picture).text((box[0] - left, box[1] - top), text, font=font, fill=colour)
    frame[:] = np.asarray(picture)

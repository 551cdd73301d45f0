"""Long clips in which two short events happen far apart: their ordered pair is the class."""

from typing import Any

import numpy as np
from jaxtyping import Float

from videogen.data.clip import Clip
from videogen.data.shapes_source import COLOURS, FPS, TEXTURES, TONES, background, form_mask
from videogen.data.source import Source
from videogen.errors import UserError

EVENTS = ("red", "yellow", "blue", "purple")
"""An event is a square of this colour that flashes up."""

WANDERER = ("green", "cyan")
"""Colours of the circle that moves through all of a clip and tells nothing."""

APART = 0.6
"""Share of the clip that lies between two events at least: no shorter window shows both."""

LASTS = 1 / 32
"""Share of the clip that an event lasts, in whole frames, at least one."""

SIDE = 0.2
"""Half the side of a flash and radius of the circle, in units of the shorter side."""


class EventsSource(Source):
    """A circle that wanders over a grey background, and two flashes of a colour.

    The label is the ordered pair of their colours, ``(first, second)`` of ``EVENTS`` × ``EVENTS``; at least ``APART``
    of the clip lies between them. A window that is shorter shows at most one of them, and the other is drawn
    independently: such a window leaves as many classes as there are events. A sample also has ``attributes``: the
    first frames of both events, and how many frames they last.

    Args:
      clip: at least five frames.
      seed: with the index, decides the sample.
      split: nothing but the seed.
      length: number of samples.
    """

    classes = tuple(f"{first} then {second}" for first in EVENTS for second in EVENTS)
    keeps_apart = False

    def __init__(self, *, clip: Clip, seed: int, split: str, length: int = 1_000_000):
        super().__init__(clip=clip, seed=seed, split=split)
        self._length, self.lasts = length, lasting(clip.frames)
        self.gap = int(np.ceil(APART * clip.frames))
        if self.gap + 2 * self.lasts > clip.frames:
            raise UserError(f"two events {APART:.0%} of a clip apart need more than {clip.frames} frames")

    def __len__(self) -> int:
        return self._length

    def _drawn(self, index: int) -> tuple[dict[str, Any], np.random.Generator]:
        rng = np.random.default_rng([self.seed, index])
        events = rng.integers(len(EVENTS), size=2).tolist()
        first, second = spaced(self.clip.frames, self.lasts, self.gap, rng)
        return {"events": events, "starts": (first, second), "lasts": self.lasts}, rng

    def label(self, index: int) -> int:
        first, second = self._drawn(index)[0]["events"]
        return len(EVENTS) * first + second

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The clip at ``index``; nothing about reading it is random, so ``rng`` is not used."""
        drawn, own = self._drawn(index)
        frames, height, width = self.clip.frames, self.clip.height, self.clip.width
        names = {"tone": list(TONES), "texture": list(TEXTURES)}
        scene = {name: words[int(own.integers(len(words)))] for name, words in names.items()}
        video = np.broadcast_to(background(scene, height, width)[None, :, :, None], (frames, height, width, 3))
        colour = COLOURS[WANDERER[int(own.integers(len(WANDERER)))]]
        video = painted(video, form_mask("circle", wandering(frames, height, width, own), SIDE, height, width), colour)
        unit = min(height, width)
        room = np.array([height, width]) / unit - 2 * SIDE
        for event, start in zip(drawn["events"], drawn["starts"], strict=True):
            centre = SIDE + own.uniform(0, 1, 2) * room
            cover = form_mask("square", np.broadcast_to(centre, (frames, 2)), SIDE, height, width)
            shown = (np.arange(frames) >= start) & (np.arange(frames) < start + self.lasts)
            video = painted(video, cover * shown[:, None, None], COLOURS[EVENTS[event]])
        return {
            "video": (video + 0.5).astype(np.uint8),
            "caption": self.classes[self.label(index)],
            "label": self.label(index),
            "fps": self.clip.fps or FPS,
            "attributes": drawn,
        }


def lasting(frames: int) -> int:
    """Frames that an event lasts in a clip of so many."""
    return max(1, int(LASTS * frames))


def spaced(frames: int, lasts: int, gap: int, rng: np.random.Generator) -> tuple[int, int]:
    """The first frames of two events with at least ``gap`` frames between them, all such pairs alike."""
    most = frames - gap - 2 * lasts
    pairs = [(a, a + lasts + gap + b) for a in range(most + 1) for b in range(most + 1 - a)]
    return pairs[int(rng.integers(len(pairs)))]


def painted(
    video: Float[np.ndarray, "..."], cover: Float[np.ndarray, "..."], colour: tuple
) -> Float[np.ndarray, "..."]:
    """The video with a colour where it is covered."""
    return video + cover[..., None] * (np.array(colour, np.float32) - video)


def wandering(frames: int, height: int, width: int, rng: np.random.Generator) -> Float[np.ndarray, "frames 2"]:
    """The centres of the circle: it goes back and forth along both sides, with periods of its own."""
    unit = min(height, width)
    room = np.array([height, width]) / unit - 2 * SIDE
    rounds, phase = rng.uniform(1, 4, 2), rng.uniform(0, 2 * np.pi, 2)
    turn = 2 * np.pi * rounds * np.arange(frames)[:, None] / frames + phase
    return SIDE + room * (0.5 + 0.5 * np.sin(turn))

"""Clips of another height and width than those of training: what can be drawn, and what is nearest to what cannot."""

from collections.abc import Callable
from typing import Any

from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokens import Layout

Size = tuple[int, int]
"""Height and width in pixels."""


def layout_at(task: Any, size: Size) -> Layout:
    """The tokens of a window of frames of ``size``.

    Raises:
      UserError: one line with the frames, the size and the nearest size that can be drawn.
    """
    clip = task.config.data.clip
    trained = clip.height, clip.width
    if size == trained:
        return task.drawn
    said = f"{clip.frames} frames of {size[0]}x{size[1]} cannot be drawn"
    whole = len(task.layout.segments) == 1 and task.tokenizer.on_grid
    if not (task.generator.any_size and whole) or task.tasks is not None:
        raise UserError(
            f"{said}: this generator knows places of its training's size alone (rotary positions go on to others); the "
            f"nearest is {trained[0]}x{trained[1]}"
        )

    def layout(height: int, width: int) -> Layout:
        found = task.tokenizer.layout(VideoShape(clip.frames, height, width))
        task.generator.check_grid(found.only.grid)
        return found

    try:
        return layout(*size)
    except UserError as error:
        height = _nearest(size[0], trained[0], lambda side: layout(side, trained[1]))
        width = _nearest(size[1], trained[1], lambda side: layout(trained[0], side))
        raise UserError(f"{said}: {error}; the nearest is {height}x{width}") from error


def _nearest(side: int, known: int, check: Callable[[int], Any]) -> int:
    """The nearest side that ``check`` takes, of two the smaller; ``known`` is one."""
    best = abs(side - known)
    for away in range(best):
        for other in (side - away, side + away):
            try:
                if other > 0:
                    check(other)
                    return other
            except UserError:
                continue
    return known

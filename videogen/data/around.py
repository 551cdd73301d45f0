"""A source around another one: its samples with more fields."""

from typing import Any

import numpy as np

from videogen.data.source import Source


class SourceAround(Source):
    """The samples of a source with the fields of ``added``, which ``further`` makes of each.

    Args:
      source: it; all else is asked of it.
    """

    def __init__(self, source: Source):
        super().__init__(clip=source.clip, seed=source.seed, split=source.split)
        self.source = source
        self.judged, self.classes, self.captioned = source.judged, source.classes, source.captioned
        self.texts, self.questions_per_clip = source.texts, source.questions_per_clip
        self.uncaptioned, self.keeps_apart, self.made_from = source.uncaptioned, source.keeps_apart, source.made_from

    def __len__(self) -> int:
        return len(self.source)

    def added(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name -> shape and dtype of the further arrays of a sample."""
        raise NotImplementedError

    def further(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        """The further arrays of a sample."""
        raise NotImplementedError

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {**self.source.fields, **self.added()}

    @property
    def fps(self) -> float | None:
        return self.source.fps

    def contents(self) -> str:
        return self.source.contents()

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        sample = self.source.sample(index, rng)
        return {**sample, **self.further(sample)}

    def segments(self, sample: dict[str, Any]) -> np.ndarray | None:
        return self.source.segments(sample)

    def label(self, index: int) -> int:
        return self.source.label(index)

    def caption(self, index: int) -> str:
        return self.source.caption(index)

    def texts_at(self, index: int) -> list[str]:
        return self.source.texts_at(index)

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

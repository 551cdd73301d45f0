"""Several sources as one, in fixed proportions."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from videogen.data.clip import Clip
from videogen.data.source import Source, proportions
from videogen.errors import UserError


class MixtureSource(Source):
    """Samples of several sources, interleaved in proportion to their weights.

    Which sample an index means follows from the index, the weights and the lengths of the parts alone. Of
    the first n samples, every part has n · weight / (sum of weights), give or take less than the number of
    parts. The mixture is as long as it takes for every sample of every part to occur; parts that are small
    for their weight repeat, with another window and crop each time.

    A label means something only within one list of classes: unless all parts have the same list, labels are
    dropped.

    Args:
      clip: the size of the samples.
      seed: parts get seeds of their own from it.
      split: 'train' or 'eval'.
      parts: source configs, each with a ``weight``; all give pixels, or all are token caches.
      tokenizer_hash: passed on to parts that are token caches.

    Raises:
      UserError: no parts, an empty one, pixels mixed with tokens, questions mixed with clips without, or a weight
        missing or not positive.
    """

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        parts: Sequence[Mapping[str, Any]],
        tokenizer_hash: str | None = None,
    ):
        # The table of sources has this class in it, so it can only be looked up late.
        from videogen.data import build, class_of

        super().__init__(clip=clip, seed=seed, split=split)
        if isinstance(parts, str) or not parts or not all(isinstance(part, Mapping | ConfigDict) for part in parts):
            raise UserError("a mixture needs parts: a list of source configs, each with a weight")
        weights = [part.get("weight", 0) for part in parts]
        self._weights = proportions(weights, "part of a mixture needs a positive weight")
        self._parts: list[Source] = []
        if len({class_of(part).field for part in parts}) > 1:
            raise UserError("a mixture cannot join token caches and pixels; tokenize all of its parts")
        for number, part in enumerate(parts):
            settings = {key: part[key] for key in part if key != "weight"}
            if "tokenizer_hash" in inspect.signature(class_of(part)).parameters:
                settings["tokenizer_hash"] = tokenizer_hash
            own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            self._parts.append(build(settings, clip=clip, seed=own_seed, split=split))
            if not len(self._parts[-1]):
                raise UserError(f"part {number} of the mixture ({part['name']}) is empty")
        self.texts, self.questions_per_clip = self._parts[0].texts, self._parts[0].questions_per_clip
        if any(part.texts != self.texts for part in self._parts):
            raise UserError("a mixture cannot join sources with questions and without; leave out one or the other")
        if any(part.questions_per_clip != self.questions_per_clip for part in self._parts):
            raise UserError("a mixture needs as many questions per clip of every part")
        counts = [part.captioned for part in self._parts]
        self.captioned = None if None in counts else sum(counts)
        self.keeps_apart = all(part.keeps_apart for part in self._parts)
        self.uncaptioned = any(part.uncaptioned for part in self._parts)
        total = sum(self._weights)
        # A part has at least floor(n · weight / total) of the first n samples.
        shares = zip(self._parts, self._weights, strict=True)
        self._length = max(-(-len(part) * total // weight) for part, weight in shares)
        if len({part.classes for part in self._parts}) == 1:
            self.classes = self._parts[0].classes
        elif any(part.classes for part in self._parts):
            logging.warning("the parts of the mixture have different classes: labels are left out")

    @property
    def fps(self) -> float | None:
        """The rate of the parts; of the first where they differ."""
        return self._parts[0].fps

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return self._parts[0].fields

    def __len__(self) -> int:
        return self._length

    def locate(self, index: int) -> tuple[int, int]:
        """The number of the part that ``index`` belongs to, and the index there.

        The first part takes its share of all indices as evenly as whole numbers allow, the second its share
        of those that are left, and so on; the last takes all that are left.
        """
        left = sum(self._weights)
        for number, weight in enumerate(self._weights[:-1]):
            before = index * weight // left
            if (index + 1) * weight // left > before:
                return number, before % len(self._parts[number])
            index -= before
            left -= weight
        return len(self._parts) - 1, index % len(self._parts[-1])

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads the sample of the part that ``index`` belongs to."""
        number, at = self.locate(int(index))
        sample = self._parts[number].sample(at, rng)
        return sample if self.classes else {key: sample[key] for key in sample if key != "label"}

    def caption(self, index: int) -> str:
        number, at = self.locate(int(index))
        return self._parts[number].caption(at)

    def texts_at(self, index: int) -> list[str]:
        number, at = self.locate(int(index))
        return self._parts[number].texts_at(at)

    def name_of(self, index: int) -> str:
        number, at = self.locate(int(index))
        return self._parts[number].name_of(at)

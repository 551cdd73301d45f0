"""How well every text fits every clip of a set, for retrieval."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from videogen.metrics.retrieval import Places
from videogen.parallel import inside, mesh_of, on_host, spread
from videogen.tasks.base import Batch, Modules

KINDS = ("ids", "mask")
"""The arrays of a text in a batch."""


class Ranking(NamedTuple):
    """Texts against clips.

    Attributes:
      scores: higher is better.
      right: which text is that of which clip.
      scale: what scores are multiplied by in a softmax over all of them.
    """

    scores: Float[np.ndarray, "texts clips"]
    right: Bool[np.ndarray, "texts clips"]
    scale: float

    def ways(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Scores and right answers of both ways, ``[queries, items]``."""
        return {
            "text_to_video": (self.scores, self.right),
            "video_to_text": (self.scores.T, self.right.T),
        }

    def measured(self) -> dict[str, float]:
        """``text_to_video_NAME`` and ``video_to_text_NAME`` (``metrics.retrieval.Places.measured``)."""
        found = {way: Places.of(*both).measured() for way, both in self.ways().items()}
        return {f"{way}_{name}": value for way, own in found.items() for name, value in own.items()}


class Said(NamedTuple):
    """Texts about clips.

    Attributes:
      ids, mask: of the texts, padded.
      owners: the clip of each.
    """

    ids: Int[np.ndarray, "texts length"]
    mask: Bool[np.ndarray, "texts length"]
    owners: Int[np.ndarray, "texts"]

    @classmethod
    def of(cls, batches: Sequence[Batch], view: str) -> "Said":
        """The one text ``view`` of every clip of some batches."""
        ids, mask = (np.concatenate([np.asarray(batch[f"{view}_{kind}"]) for batch in batches]) for kind in KINDS)
        return cls(ids, mask, np.arange(len(ids)))

    def right(self, clips: int) -> Bool[np.ndarray, "texts clips"]:
        """Which text is right for which of so many clips: one that is equal letter by letter to a text of the clip."""
        rows = [tuple(row[there].tolist()) for row, there in zip(self.ids, self.mask, strict=True)]
        first = {row: i for i, row in reversed(list(enumerate(rows)))}
        numbers = np.array([first[row] for row in rows])
        found = np.zeros((len(rows), clips), bool)
        found[numbers, self.owners] = True
        return found[numbers]

    def parts(self, size: int) -> list[dict[str, np.ndarray]]:
        """``text_ids`` and ``text_mask`` of ``size`` texts at a time; the last part goes on with its last text."""
        starts = range(0, len(self.ids), size)
        own = [{"text_ids": self.ids[i : i + size], "text_mask": self.mask[i : i + size]} for i in starts]
        return [first_rows(part, size) for part in own]


def first_rows(batch: Mapping[str, Any], size: int) -> dict[str, np.ndarray]:
    """A batch of ``size`` examples: a short one goes on with its last example."""
    return {name: np.asarray(x)[np.minimum(np.arange(size), len(x) - 1)] for name, x in batch.items()}


def programs(modules: Modules) -> Callable[[Callable], Callable]:
    """``function(modules, *arrays)`` -> the same of host arrays, compiled once, on the mesh that the modules lie on."""
    split = {name: nnx.split(module) for name, module in modules.items()}
    states = {name: state for name, (_, state) in split.items()}
    mesh = mesh_of(states)

    def compiled(function: Callable) -> Callable:
        @jax.jit
        def run(states: Any, *arguments: Any) -> Any:
            return function({n: nnx.merge(split[n][0], state) for n, state in states.items()}, *arguments)

        def call(*arguments: Any) -> Any:
            with inside(mesh):
                return jax.tree.map(on_host, run(states, *spread(arguments, mesh)))

        return call

    return compiled

"""Reducers: tokens of a clip in, fewer tokens out, one contract (``reducers.base``)."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from videogen import building
from videogen.nn import read_transformer
from videogen.reducers.base import LAWS, Chain, Reducer, Report
from videogen.reducers.budgets import BudgetedGrids, ClipSelection, KeyFrames
from videogen.reducers.clusters import DensityPeaks, KMeans, Medoids
from videogen.reducers.condensing import condense
from videogen.reducers.hourglass import Hourglass, HourglassSection, of_section
from videogen.reducers.learned_selection import LearnedSelection
from videogen.reducers.memory import Bank, Bridge
from videogen.reducers.merging import BipartiteMerging, GreedyMerging
from videogen.reducers.perceiver import Perceiver
from videogen.reducers.pooling import (
    Carriers,
    GridAndMean,
    GridPooling,
    QuestionPooling,
    RegionCrop,
    SparseDense,
    Thumbnails,
    WindowPooling,
)
from videogen.reducers.progressive import Progressive
from videogen.reducers.queries import ConditionalQueries, TokenHash
from videogen.reducers.scenes import SceneDrop
from videogen.reducers.selection import FrameSelection, TokenSelection
from videogen.reducers.summaries import StreamingSummaries
from videogen.reducers.time import DifferentialDrop, StillMerging
from videogen.reducers.tokens import Grid, TokenSet, of_grid, restore
from videogen.reducers.trajectories import Trajectories

REDUCERS = {
    "frames": FrameSelection,
    "tokens": TokenSelection,
    "learned": LearnedSelection,
    "clips": ClipSelection,
    "key_frames": KeyFrames,
    "changes": DifferentialDrop,
    "bipartite": BipartiteMerging,
    "greedy": GreedyMerging,
    "medoids": Medoids,
    "density_peaks": DensityPeaks,
    "kmeans": KMeans,
    "token_hash": TokenHash,
    "progressive": Progressive,
    "still": StillMerging,
    "windows": WindowPooling,
    "grid": GridPooling,
    "grid_and_mean": GridAndMean,
    "question_pooling": QuestionPooling,
    "budgeted_grids": BudgetedGrids,
    "sparse_dense": SparseDense,
    "thumbnails": Thumbnails,
    "region": RegionCrop,
    "carriers": Carriers,
    "scenes": SceneDrop,
    "trajectories": Trajectories,
    "conditional_queries": ConditionalQueries,
    "bank": Bank,
    "bridge": Bridge,
    "summaries": StreamingSummaries,
    "perceiver": Perceiver,
}
"""Name -> reducer."""


def build(config: Mapping[str, Any], **shared: Any) -> Reducer:
    """Builds a reducer from ``{name, …}``; ``shared`` holds ``inputs``, ``rngs``, ``dtype``, ``remat`` and what else
    stands elsewhere in the config, of which a reducer takes what it knows."""
    known = inspect.signature(building.look_up(REDUCERS, config, "reducer").__init__).parameters
    return building.build(
        REDUCERS, config, "reducer", **{name: value for name, value in shared.items() if name in known}
    )


def budgeted(config: Mapping[str, Any], budget: int, tokens: int, grid: Grid | None) -> dict[str, Any]:
    """The section of a reducer, with another budget of the tokens that it gives (``Reducer.budgeted``)."""
    return building.look_up(REDUCERS, config, "reducer").budgeted(config, budget, tokens, grid)


def build_chain(configs: Sequence[Mapping[str, Any]], given: Sequence[str], **shared: Any) -> Chain:
    """Reducers one behind the other; ``given`` are the names that ``aux`` will have.

    Raises:
      UserError: one needs what is gone by then, or is not given.
    """
    return Chain([build(config, **shared) for config in configs], tuple(given))


def build_hourglass(
    config: Mapping[str, Any], transformer: Mapping[str, Any], length: int, *, rngs: nnx.Rngs, **shared: Any
) -> Hourglass:
    """A transformer whose middle layers see fewer tokens.

    Args:
      config: ``{start, stop, reducer, recover, positions}`` (``HourglassSection``).
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``).
      length: tokens, for learned queries.
      rngs: random streams.
      **shared: ``dtype`` and ``remat``.
    """
    section = building.build({"hourglass": HourglassSection}, {"name": "hourglass", **config}, "section")
    layers = read_transformer(transformer)
    reducer = build(section.reducer, inputs=layers.width, rngs=rngs, **shared)
    return of_section(section, layers, reducer, length, rngs=rngs, **shared)


__all__ = [
    "LAWS",
    "REDUCERS",
    "Chain",
    "Hourglass",
    "Perceiver",
    "Reducer",
    "Report",
    "TokenSet",
    "budgeted",
    "build",
    "build_chain",
    "build_hourglass",
    "condense",
    "of_grid",
    "restore",
]

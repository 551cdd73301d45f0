"""What recognisers of text and faces say of reconstructions: similarities, and their means by the size of instances.

TokBench (Wu et al., 2025; arXiv 2505.18142): a tokenizer is scored at annotated places by frozen recognisers, in bins
of the size of what is there, and the score is the unweighted mean over the bins.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from videogen.errors import UserError


def edit_distance(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements of letters that turn one text into the other."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
    return row[-1]


def text_similarity(a: str, b: str) -> float:
    """1 - edit distance over the length of the longer text, in [0, 1]; two empty texts are equal. T-NED is its mean."""
    return 1 - edit_distance(a, b) / max(len(a), len(b), 1)


def cosine(a: Float[np.ndarray, "dimensions"], b: Float[np.ndarray, "dimensions"]) -> float:
    """The cosine of two embeddings, in [-1, 1]. F-Sim is its mean.

    Raises:
      UserError: an embedding is zero or not finite: the network or its input is broken.
    """
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    if not 0 < lengths < np.inf:
        raise UserError("an embedding is zero or not finite: the network or its input is broken")
    return float(np.clip(a @ b / lengths, -1, 1))


@dataclasses.dataclass(frozen=True)
class Bin:
    """The instances of one range of sizes.

    Attributes:
      low, high: sizes from ``low`` on, below ``high``.
      count: instances.
      means: of each value; empty where there is no instance.
    """

    low: float
    high: float
    count: int
    means: dict[str, float]

    @property
    def name(self) -> str:
        """``low-high``."""
        return f"{self.low:g}-{self.high:g}"


@dataclasses.dataclass(frozen=True)
class Binned:
    """Values by size.

    Attributes:
      bins: in rising order.
      ignored: instances below the first edge or from the last one on.
    """

    bins: tuple[Bin, ...]
    ignored: int

    @property
    def missing(self) -> list[str]:
        """Names of the bins that no instance is in."""
        return [b.name for b in self.bins if not b.count]

    def mean(self, value: str) -> float | None:
        """The unweighted mean over the bins that have instances; ``None`` where none has."""
        found = [b.means[value] for b in self.bins if b.count]
        return float(np.mean(found)) if found else None

    def describe(self) -> dict[str, object]:
        """As JSON values: the mean of each value, the bins, and what is missing or was ignored."""
        names = list(dict.fromkeys(name for b in self.bins for name in b.means))
        bins = {b.name: {"count": b.count, **b.means} for b in self.bins}
        means = {name: self.mean(name) for name in names}
        return {**means, "bins": bins, "missing_bins": self.missing, "ignored": self.ignored}


def binned(ratios: Sequence[float], values: dict[str, Sequence[float]], edges: Sequence[float]) -> Binned:
    """Means by size, over all instances together: pool data sets before this.

    Args:
      ratios: size of each instance relative to its picture.
      values: by name, of each instance.
      edges: of the bins, rising; an instance on an edge belongs to the bin above.
    """
    sizes, arrays = np.asarray(ratios, np.float64), {name: np.asarray(v, np.float64) for name, v in values.items()}
    bins, used = [], np.zeros(len(sizes), bool)
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (sizes >= low) & (sizes < high)
        used |= inside
        means = {name: float(array[inside].mean()) for name, array in arrays.items()} if inside.any() else {}
        bins.append(Bin(low, high, int(inside.sum()), means))
    return Binned(tuple(bins), int((~used).sum()))


def temporal_stability(similarities: Sequence[float]) -> float:
    """1 - standard deviation of the similarities of one instance over the frames: 1 where every frame is alike."""
    return 1 - float(np.std(similarities))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's correlation of two rankings of the same things, equal values sharing a rank.

    Returns:
      In [-1, 1]; ``None`` where one of them does not rank (fewer than two things, or all alike).
    """
    if len(a) != len(b):
        raise UserError(f"a rank correlation needs two values for each thing, got {len(a)} and {len(b)}")
    if len(a) < 2:
        return None
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 0 else None


def _ranks(values: Float[np.ndarray, "things"]) -> Float[np.ndarray, "things"]:
    """1 for the smallest; equal values have the mean of their ranks."""
    below = (values[None] < values[:, None]).sum(1)
    alike = (values[None] == values[:, None]).sum(1)
    return below + (alike + 1) / 2

"""Several sources as one, in fixed proportions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videogen.data.clip import Clip
from videogen.data.source import Source
from videogen.errors import UserError

_BLOCK = 1000


class MixtureSource(Source):
    """Samples of several sources, interleaved in proportion to their weights (to a tenth of a percent).

    Which sample an index means is a fixed function. The mixture is long enough that every sample of every
    part occurs; parts that are small for their weight repeat, with another window and crop each time.

    Args:
      clip: the size of the samples.
      seed: parts get seeds of their own from it.
      split: 'train' or 'eval'.
      parts: source configs, each with a ``weight``.

    Raises:
      UserError: no parts, or a weight that is missing, not positive or below a thousandth of the whole.
    """

    def __init__(self, *, clip: Clip, seed: int, split: str, parts: Sequence[Mapping[str, Any]]):
        # The table of sources has this class in it, so it can only be looked up late.
        from videogen.data import build

        super().__init__(clip=clip, seed=seed, split=split)
        weights, self._parts = [], []
        for number, part in enumerate(parts):
            settings = {key: part[key] for key in part}
            weights.append(settings.pop("weight", 0))
            own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            self._parts.append(build(settings, clip=clip, seed=own_seed, split=split))
        if not weights or min(weights) <= 0:
            raise UserError("a mixture needs parts, each with a positive weight")
        shares = _rounded_shares(weights)
        if min(shares) == 0:
            raise UserError(
                f"the weights {weights} differ by more than a factor of {_BLOCK}; leave out the smallest"
            )
        # Slot s of a block is the (rank)-th of its part; parts take turns as evenly as their shares allow.
        turns = [((rank + 0.5) / share, k, rank) for k, share in enumerate(shares) for rank in range(share)]
        self._slots = [(k, rank) for _, k, rank in sorted(turns)]
        self._shares = shares
        self._blocks = max(-(-len(p) // share) for p, share in zip(self._parts, shares, strict=True))
        if any(len(part) == 0 for part in self._parts):
            raise UserError("a part of the mixture is empty")
        if len({part.classes for part in self._parts}) == 1:
            self.classes = self._parts[0].classes

    def __len__(self) -> int:
        return self._blocks * len(self._slots)

    def _locate(self, index: int) -> tuple[Source, int]:
        block, slot = divmod(index, len(self._slots))
        part, rank = self._slots[slot]
        return self._parts[part], (block * self._shares[part] + rank) % len(self._parts[part])

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads the sample of the part that ``index`` belongs to."""
        part, at = self._locate(index)
        return part.sample(at, rng)

    def caption(self, index: int) -> str:
        part, at = self._locate(index)
        return part.caption(at)


def _rounded_shares(weights: Sequence[float]) -> list[int]:
    """Whole shares of a block in proportion to ``weights``: the largest remainders are rounded up."""
    exact = np.array(weights, float) / sum(weights) * _BLOCK
    shares = np.floor(exact).astype(int)
    remainders = np.argsort(shares - exact, kind="stable")
    shares[remainders[: _BLOCK - shares.sum()]] += 1
    divisor = int(np.gcd.reduce(shares)) or 1
    return (shares // divisor).tolist()

"""Heads: between the features of a network and the values of a place, which they embed, learn and draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from videogen import building
from videogen.errors import UserError
from videogen.heads.base import Head
from videogen.heads.bernoulli import Bernoulli
from videogen.heads.categorical import Categorical
from videogen.heads.depth import Depth
from videogen.heads.diffusion import Diffusion
from videogen.heads.gaussian import Gaussian
from videogen.heads.gaussian_mixture import GaussianMixture
from videogen.heads.sampling import HeadSampler

HEADS = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "depth": Depth,
    "diffusion": Diffusion,
    "gaussian": Gaussian,
    "gaussian_mixture": GaussianMixture,
}


def build(
    config: Mapping[str, Any], *, vocabulary: Sequence[int] = (), channels: int | None = None, **shared: Any
) -> Head:
    """Builds a head from ``{name, …}``.

    Args:
      config: its section.
      vocabulary: ids of each level, where values are ids.
      channels: of the normalised latents, where values are those.
      **shared: ``width``, ``hidden``, ``remat``, ``dtype``, ``rngs``.

    Raises:
      UserError: the head is unknown, has no such setting, or is one for other values.
    """
    kind = HEADS.get(config.get("name")) if isinstance(config.get("name"), str) else None
    if kind is not None and kind.discrete != bool(vocabulary):
        names = ", ".join(sorted(name for name, head in HEADS.items() if head.discrete == bool(vocabulary)))
        there = "codes" if vocabulary else "continuous latents"
        raise UserError(f"the head {config['name']!r} does not predict {there}; take one of: {names}")
    values = {"channels": channels} if kind is not None and not kind.discrete else {"vocabulary": vocabulary}
    return building.build(HEADS, config, "head", **values, **shared)


__all__ = [
    "HEADS",
    "Bernoulli",
    "Categorical",
    "Depth",
    "Diffusion",
    "Gaussian",
    "GaussianMixture",
    "Head",
    "HeadSampler",
    "build",
]

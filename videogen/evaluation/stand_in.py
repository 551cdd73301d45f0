"""The Fréchet distance on the stand-in classifier that comes with this package: what small runs on shapes are told.

It is no FVD: the network is a small one that was trained on the shapes source in minutes. It is the same on every
machine, and falls as samples look and move more like real clips, so that the whole path of a distance is run.
"""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from videogen import encoders
from videogen.metrics.distributions import Moments, frechet_distance

PRESET = "frechet.shapes_stand_in"
NETWORK = "shapes_classifier"
WORDS = "Fréchet distance on a stand-in classifier; not FVD"
BATCH = 32
"""Clips that are encoded together; a smaller number is filled up, so that one program serves all."""

Clips = UInt8[np.ndarray, "clips time height width 3"]


def features(clips: Clips) -> Float[np.ndarray, "clips width"]:
    """What the shipped classifier finds in clips of one size."""
    encode, found = _encoder()[1], []
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        filled = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), axis=0)])
        found.append(np.asarray(encode(filled))[: len(part)])
    return np.concatenate(found)


def distance(real: Clips, generated: Clips) -> dict[str, float]:
    """``{PRESET: distance}``; nothing for less than two clips of a side, or for pictures."""
    if min(len(real), len(generated)) < 2 or min(real.shape[1], generated.shape[1]) < 2:
        return {}
    return {PRESET: frechet_distance(*(Moments.of(features(clips)) for clips in (real, generated)))}


def protocol(real: Clips, generated: Clips, sides: str) -> dict[str, Any]:
    """What decides the number, for the record.

    Args:
      real, generated: the clips that were compared.
      sides: what they are, in words.
    """
    return {
        "words": WORDS,
        "sides": sides,
        "network": NETWORK,
        "network_hash": _encoder()[0].hash,
        "counts": {"real": len(real), "generated": len(generated)},
        "clip": list(generated.shape[1:4]),
        "covariance": "divided by N - 1",
    }


@functools.cache
def _encoder() -> tuple[Any, Any]:
    """The network, and it compiled."""
    network = encoders.load(NETWORK, encoders.SHIPPED / NETWORK)
    graph, state = nnx.split(network)
    weights = nnx.to_pure_dict(state)
    forward = jax.jit(lambda weights, clips: nnx.merge(graph, weights)(clips))
    return network, functools.partial(forward, weights)

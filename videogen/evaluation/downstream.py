"""What frozen networks find in reconstructions that they found in the originals: classes, or objects by a detector.

A tokenizer that loses what a network needs lowers the agreement, whatever its PSNR. No labels are needed.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from videogen import encoders
from videogen.encoders.installed import how_to_install, installed_weights
from videogen.errors import UserError
from videogen.metrics.features import agreement

if TYPE_CHECKING:
    from videogen.evaluation.protocols import Evaluation

CLASSIFIER = "efficientnet_lite0"
"""The network that reads ImageNet's classes from single frames."""

SHOWN = 12
"""Clips to look at."""

OVERLAP = 0.5
"""Intersection over union from which two boxes are of one object."""

Classify = Callable[[UInt8[np.ndarray, "pictures height width 3"]], Float[np.ndarray, "pictures classes"]]
"""Scores of the classes of pictures."""

Detection = tuple[str, tuple[float, float, float, float]]
"""Name of an object, and left, top, right and bottom of its box."""

Detect = Callable[[UInt8[np.ndarray, "height width 3"]], Sequence[Detection]]
"""The objects in a picture, the surest first."""


def classifier(path: str | None = None) -> tuple[Classify, str]:
    """EfficientNet-lite0 as a classifier, and the hash of its weights.

    Args:
      path: its file; ``None``: that of the installed package.

    Raises:
      UserError: there is none.
    """
    path = path or installed_weights(CLASSIFIER)
    if path is None:
        raise UserError(f"--weights is missing: the file of {CLASSIFIER}; or {how_to_install(CLASSIFIER)}")
    network = encoders.load(CLASSIFIER, path)
    graph, state = nnx.split(network)

    @jax.jit
    def scores(state, pictures):
        model = nnx.merge(graph, state)
        return model.logits(model(pictures))

    return lambda pictures: np.asarray(scores(state, pictures)), network.hash


def class_agreement(
    originals: UInt8[np.ndarray, "videos time height width 3"],
    reconstructions: UInt8[np.ndarray, "videos time height width 3"],
    classify: Classify,
) -> float:
    """Share of frames whose likeliest class is the same in original and reconstruction.

    Raises:
      UserError: the shapes differ.
    """
    if originals.shape != reconstructions.shape:
        raise UserError(f"reconstructions have the shape of their originals, got {reconstructions.shape}")
    scores = [np.concatenate([classify(video) for video in videos]) for videos in (originals, reconstructions)]
    return agreement(*scores)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    shared = sides[0] * sides[1] if min(sides) > 0 else 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared) if shared else 0.0


def detection_agreement(
    originals: Sequence[UInt8[np.ndarray, "height width 3"]],
    reconstructions: Sequence[UInt8[np.ndarray, "height width 3"]],
    detect: Detect,
) -> float | None:
    """F1 of the objects found in reconstructions against those in the originals, over all pictures together.

    An object is found again where one of the same name overlaps by at least ``OVERLAP``; each counts once.

    Returns:
      In [0, 1]; ``None`` where nothing is found in either.

    Raises:
      UserError: the numbers of pictures differ.
    """
    if len(originals) != len(reconstructions):
        raise UserError(f"every original needs its reconstruction, got {len(originals)} and {len(reconstructions)}")
    matched = total = 0
    for before, after in zip(originals, reconstructions, strict=True):
        expected, found = list(detect(before)), list(detect(after))
        total += len(expected) + len(found)
        for name, box in found:
            again = [k for k, (other, _) in enumerate(expected) if other == name]
            best = max(again, key=lambda k: overlap(expected[k][1], box), default=None)
            if best is not None and overlap(expected[best][1], box) >= OVERLAP:
                expected.pop(best)
                matched += 1
    return 2 * matched / total if total else None


def downstream(evaluation: "Evaluation") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Share of frames of held-out clips in whose reconstruction EfficientNet-lite0 finds the same class again."""
    classify, digest = classifier(evaluation.weights)
    rebuilt = evaluation.rebuilt(evaluation.loaded.tokenizer, "rebuilt_reconstructions")
    share = class_agreement(evaluation.videos, rebuilt, classify)
    metrics = {"class_agreement": share, "network_hash": digest, "clips": len(rebuilt)}
    return metrics, {"originals": evaluation.videos[:SHOWN], "reconstructions": rebuilt[:SHOWN]}

"""Distances between sets of features, and the Inception score: float64 on the host, whatever the batches were.

Features are ``[examples, dimensions]`` of a frozen network. Which network, which clips and which covariance is meant is
the protocol's to say (``videogen.evaluation``); a distance depends on the number of examples, so both are part of it.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Num

from videogen.errors import UserError

Features = Num[np.ndarray, "examples dimensions"]

KID_SIZE = 1000
"""Examples of a subset of the kernel distance."""

ROUNDING = 1e-6
"""A Fréchet distance below this share of the traces is rounding, and 0."""


def checked(features: Features, fewest: int) -> Float[np.ndarray, "examples dimensions"]:
    """Features in float64.

    Raises:
      UserError: they are no matrix, fewer than ``fewest``, or not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise UserError(f"features are [examples, dimensions], got {features.shape}")
    if len(features) < fewest:
        raise UserError(f"this measure needs at least {fewest} examples, got {len(features)}")
    if not np.isfinite(features).all():
        raise UserError("features hold NaN or infinity: the network or its input is broken")
    return features


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of features that arrive in parts.

    Attributes:
      count: examples.
      mean: of each dimension.
      scatter: sum over examples of the outer products of their deviations from the mean.
    """

    count: int
    mean: Float[np.ndarray, "dimensions"]
    scatter: Float[np.ndarray, "dimensions dimensions"]

    @classmethod
    def of(cls, features: Features) -> "Moments":
        """Those of some features; there may be none."""
        features = checked(features, 0)
        mean = features.sum(0) / max(len(features), 1)
        return cls(len(features), mean, (features - mean).T @ (features - mean))

    @classmethod
    def all_of(cls, parts: Iterable[Features]) -> "Moments":
        """Those of features that arrive batch by batch; at least one batch."""
        total = None
        for part in parts:
            total = cls.of(part) if total is None else total + cls.of(part)
        if total is None:
            raise UserError("there are no features")
        return total

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both sets together (Chan et al., 1983)."""
        if self.mean.shape != other.mean.shape:
            raise UserError(f"features of {len(self.mean)} and {len(other.mean)} dimensions do not go together")
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / max(count, 1)
        between = self.count * share * np.outer(apart, apart)
        return Moments(count, self.mean + share * apart, self.scatter + other.scatter + between)

    def covariance(self, biased: bool = False) -> Float[np.ndarray, "dimensions dimensions"]:
        """The covariance: divided by N (``biased``) or by N - 1.

        Raises:
          UserError: there is a single example.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 examples, got {self.count}")
        return self.scatter / (self.count if biased else self.count - 1)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean and covariance as a file holds them, which does not say what was divided by.

    Attributes:
      mean: of each dimension.
      matrix: the covariance.
    """

    mean: Float[np.ndarray, "dimensions"]
    matrix: Float[np.ndarray, "dimensions dimensions"]

    def covariance(self, biased: bool = False) -> Float[np.ndarray, "dimensions dimensions"]:
        """The covariance, whichever is asked for."""
        return self.matrix


def frechet_distance(first: Moments | Gaussian, second: Moments | Gaussian, *, biased: bool = False) -> float:
    """``|m1 - m2|² + tr(S1 + S2 - 2·(S1·S2)^½)``, the squared Fréchet distance of two Gaussians (Heusel et al., 2017).

    FID with Inception features, FVD with those of I3D. The trace of the root is the sum of the roots of the eigenvalues
    of ``S1^½·S2·S1^½``, which is symmetric, so that nothing goes wrong where there are fewer examples than dimensions.

    Args:
      first, second: moments of the two sets.
      biased: covariances are divided by N instead of N - 1.

    Raises:
      UserError: the dimensions differ, or a set has a single example.
    """
    if first.mean.shape != second.mean.shape:
        raise UserError(f"features of {len(first.mean)} and {len(second.mean)} dimensions cannot be compared")
    a, b = first.covariance(biased), second.covariance(biased)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    traces = np.trace(a) + np.trace(b)
    distance = np.square(first.mean - second.mean).sum() + traces - 2 * shared
    return float(distance) if distance > ROUNDING * traces else 0.0


@dataclasses.dataclass(frozen=True)
class PolynomialKernel:
    """``(scale·x·y + offset)^degree``.

    Attributes:
      degree: the power.
      scale: of the inner product; ``None`` is 1 over the number of dimensions.
      offset: added before the power.
    """

    degree: int = 3
    scale: float | None = None
    offset: float = 1.0

    def __call__(self, x: Features, y: Features) -> Float[np.ndarray, "m n"]:
        scale = 1 / x.shape[1] if self.scale is None else self.scale
        return (scale * x @ y.T + self.offset) ** self.degree


KID_KERNEL = PolynomialKernel()
JEDI_KERNEL = PolynomialKernel(degree=2, offset=0.0)
JEDI_SCALE = 100.0
"""JEDi is the discrepancy times this (Luo et al., 2024)."""


def discrepancy(first: Features, second: Features, kernel: PolynomialKernel, *, biased: bool = False) -> float:
    """Squared maximum mean discrepancy of two sets (Gretton et al., 2012).

    Args:
      first, second: features.
      kernel: how alike two features are.
      biased: the mean over all pairs, an example with itself included. Without it the mean over pairs of different
        examples, which is 0 on average for equal distributions and may be negative.
    """
    fewest = 1 if biased else 2
    first, second = checked(first, fewest), checked(second, fewest)
    if first.shape[1] != second.shape[1]:
        raise UserError(f"features of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared")

    def within(x: Features) -> float:
        values = kernel(x, x)
        return values.mean() if biased else (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(first) + within(second) - 2 * kernel(first, second).mean())


def kernel_distance(
    first: Features, second: Features, *, subsets: int = 100, size: int = KID_SIZE, seed: int = 0
) -> tuple[float, float]:
    """KID of images, KVD of videos: mean and standard deviation of the unbiased discrepancy over random subsets.

    Bińkowski et al., 2018, with the kernel ``(x·y / d + 1)³``. A negative value is no error: the estimate is unbiased.

    Args:
      first, second: features.
      subsets: pairs of subsets.
      size: examples of a subset, drawn without replacement.
      seed: of the draws.

    Raises:
      UserError: a set has fewer than ``size`` examples.
    """
    first, second = checked(first, 1), checked(second, 1)
    fewest = min(len(first), len(second))
    if fewest < size:
        raise UserError(
            f"subsets of {size} examples cannot be drawn from {fewest}; take size={fewest} or more examples"
        )
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = (features[rng.choice(len(features), size, replace=False)] for features in (first, second))
        values.append(discrepancy(x, y, KID_KERNEL))
    return float(np.mean(values)), float(np.std(values))


def jedi(first: Features, second: Features) -> float:
    """JEDi (Luo et al., 2024) of V-JEPA features: 100 times the biased discrepancy with the kernel ``(x·y / d)²``."""
    return JEDI_SCALE * discrepancy(first, second, JEDI_KERNEL, biased=True)


def inception_score(probabilities: Features, *, parts: int = 1, seed: int = 0) -> tuple[float, float]:
    """``exp(E KL(p(y|x) ‖ p(y)))`` (Salimans et al., 2016): 1 to the number of classes.

    Args:
      probabilities: of the classes for each example; rows sum to 1.
      parts: 1 is the score of the whole set, which no order changes. With more the examples are shuffled and the mean
        and standard deviation over so many equal parts returned, as some protocols ask; leftover examples are not used.
      seed: of the shuffle.

    Returns:
      The score, and its standard deviation over the parts (0 for one).

    Raises:
      UserError: fewer examples than parts, or rows are no probabilities.
    """
    values = checked(probabilities, fewest=max(parts, 1))
    if (values < 0).any() or np.abs(values.sum(1) - 1).max() > 1e-3:
        raise UserError("class probabilities are at least 0 and sum to 1; take the softmax of logits first")
    if parts > 1:
        values = values[np.random.default_rng(seed).permutation(len(values))]
    size = len(values) // parts
    scores = [_score(values[i * size : (i + 1) * size]) for i in range(parts)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(values: Float[np.ndarray, "examples classes"]) -> float:
    marginal = values.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(values > 0, values * (np.log(values) - np.log(marginal)), 0.0)
    return float(np.exp(terms.sum(1).mean()))

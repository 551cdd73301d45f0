"""Latents as a tokenizer gives them (``space: raw``) to normalised ones, of mean 0 and variance 1, and back.

Generators of latents expect normalised ones. Published statistics are by channel (Wan, LTX), by channel and latent
frame (Cosmos), or one scale (HunyuanVideo, CogVideoX); ours are fitted by a pass over the latents of a token cache.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building
from videogen.errors import UserError
from videogen.nn import FULL
from videogen.ranges import Count, Natural
from videogen.tokens import SegmentLayout

SMALLEST_DEVIATION = 1e-4
"""A channel that hardly moves is divided by this share of the largest deviation."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of latents, float64; ``+`` joins those of two sets (Chan, Golub and LeVeque, 1979).

    Attributes:
      count: latents of each latent frame, ``[frames]``; one entry where frames are not told apart.
      mean: theirs, ``[frames, channels]``.
      scatter: sum of the products of deviations from the mean, ``[frames, channels, channels]``.
    """

    count: Float[np.ndarray, "frames"]
    mean: Float[np.ndarray, "frames channels"]
    scatter: Float[np.ndarray, "frames channels channels"]

    @classmethod
    def of(
        cls,
        latents: Float[np.ndarray, "batch *sides channels"],
        exists: Bool[np.ndarray, "batch *sides"] | None = None,
        by_frame: bool = False,
    ) -> "Moments":
        """Those of latents that are no padding; ``by_frame`` tells the entries of the first side apart."""
        latents = np.asarray(latents, np.float64)
        frames = latents.shape[1] if by_frame else 1
        exists = np.ones(latents.shape[:-1], bool) if exists is None else np.asarray(exists)
        latents = np.moveaxis(latents, 1, 0).reshape(frames, -1, latents.shape[-1])
        weight = np.moveaxis(exists, 1, 0).reshape(frames, -1, 1).astype(np.float64)
        count = weight.sum((1, 2))
        latents = np.where(weight > 0, latents, 0.0)
        mean = latents.sum(1) / np.maximum(count, 1)[:, None]
        apart = (latents - mean[:, None]) * weight
        return cls(count, mean, np.matmul(apart.transpose(0, 2, 1), apart))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        share = (other.count / np.maximum(count, 1))[:, None]
        step = other.mean - self.mean
        between = (self.count[:, None] * share * step)[:, :, None] * step[:, None, :]
        return Moments(count, self.mean + share * step, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float[np.ndarray, "frames channels channels"]:
        """Mean product of deviations from the mean."""
        return self.scatter / np.maximum(self.count, 1)[:, None, None]


class NormaliserState(nnx.Variable):
    """A statistic of latents, which no gradient trains."""


class Normaliser(nnx.Module):
    """What the kinds share.

    Attributes:
      width: channels of normalised latents.
      frames: latent frames whose statistics are told apart; 0: all have the same.
    """

    width: int
    frames: int = 0

    def fit(self, moments: Moments) -> str:
        """Takes the statistics of latents over; returns what was found in a few words.

        Raises:
          UserError: there are none, or they do not vary.
        """
        raise NotImplementedError

    def normalise(self, latents: Float[Array, "batch *sides channels"]) -> Float[Array, "batch *sides width"]:
        """Raw latents to normalised ones, float32."""
        raise NotImplementedError

    def restore(self, normalised: Float[Array, "batch *sides width"]) -> Float[Array, "batch *sides channels"]:
        """The inverse of ``normalise``, float32."""
        raise NotImplementedError


class MeanNormaliser(Normaliser):
    """Every channel less its mean, over its deviation.

    Args:
      channels: of raw latents.
      frames: latent frames with statistics of their own (Cosmos), which are the first side of latents; clips may have
        fewer. 0: those of a channel are the same in all.
    """

    def __init__(self, channels: int, frames: Natural = 0):
        self.width, self.frames = channels, frames
        self.mean = NormaliserState(jnp.zeros((max(frames, 1), channels)))
        self.deviation = NormaliserState(jnp.ones((max(frames, 1), channels)))

    def fit(self, moments: Moments) -> str:
        _check(moments)
        deviation = np.sqrt(np.diagonal(moments.covariance, axis1=1, axis2=2))
        deviation = np.maximum(deviation, SMALLEST_DEVIATION * deviation.max())
        self.mean.set_value(jnp.asarray(moments.mean, jnp.float32))
        self.deviation.set_value(jnp.asarray(deviation, jnp.float32))
        ends = [f"{array.min():.3g} to {array.max():.3g}" for array in (moments.mean, deviation)]
        times = f" times {self.frames} latent frames" if self.frames else ""
        return f"{self.width} channels{times} have means from {ends[0]} and deviations from {ends[1]}"

    def _statistics(self, latents: Array) -> list[Float[Array, "..."]]:
        """Mean and deviation as they are broadcast to latents."""
        both = [self.mean.get_value(), self.deviation.get_value()]
        if not self.frames:
            return [array[0] for array in both]
        if (count := latents.shape[1]) > self.frames:
            raise UserError(f"latents are normalised by frame for clips of {self.frames} latent frames, got {count}")
        return [array[:count].reshape(count, *[1] * (latents.ndim - 3), -1) for array in both]

    def normalise(self, latents: Float[Array, "batch *sides channels"]) -> Float[Array, "batch *sides channels"]:
        mean, deviation = self._statistics(latents)
        return (latents.astype(jnp.float32) - mean) / deviation

    def restore(self, normalised: Float[Array, "batch *sides channels"]) -> Float[Array, "batch *sides channels"]:
        mean, deviation = self._statistics(normalised)
        return normalised.astype(jnp.float32) * deviation + mean


class PcaNormaliser(Normaliser):
    """The first principal components of latents, each of variance 1 (whitening).

    With fewer components than channels ``restore`` gives the nearest latents to the raw ones that they can express.

    Args:
      channels: of raw latents.
      components: how many are kept.

    Raises:
      UserError: more components than channels.
    """

    def __init__(self, channels: int, components: Count):
        if components > channels:
            raise UserError(f"latents of {channels} channels have no {components} principal components")
        self.width = components
        self.mean = NormaliserState(jnp.zeros(channels))
        self.directions = NormaliserState(jnp.eye(channels, components))
        self.deviation = NormaliserState(jnp.ones(components))

    def fit(self, moments: Moments) -> str:
        _check(moments)
        variances, directions = np.linalg.eigh(moments.covariance[0])
        # The largest first.
        variances, directions = variances[::-1], directions[:, ::-1]
        if variances[self.width - 1] < SMALLEST_DEVIATION**2 * variances[0]:
            several = int(np.sum(variances >= SMALLEST_DEVIATION**2 * variances[0]))
            raise UserError(f"the latents vary in {several} directions, fewer than {self.width}; keep at most these")
        directions = directions[:, : self.width]
        # Of the two signs of a direction that in which its largest entry is positive.
        largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], axis=0)
        self.mean.set_value(jnp.asarray(moments.mean[0], jnp.float32))
        self.directions.set_value(jnp.asarray(directions * np.sign(largest), jnp.float32))
        self.deviation.set_value(jnp.asarray(np.sqrt(variances[: self.width]), jnp.float32))
        share = variances[: self.width].sum() / variances.sum()
        return f"{self.width} of {len(variances)} principal components hold {share:.2%} of the variance"

    def normalise(self, latents: Float[Array, "batch *sides channels"]) -> Float[Array, "batch *sides width"]:
        apart = latents.astype(jnp.float32) - self.mean.get_value()
        return jnp.matmul(apart, self.directions.get_value(), precision=FULL) / self.deviation.get_value()

    def restore(self, normalised: Float[Array, "batch *sides width"]) -> Float[Array, "batch *sides channels"]:
        scaled = normalised.astype(jnp.float32) * self.deviation.get_value()
        return jnp.matmul(scaled, self.directions.get_value().T, precision=FULL) + self.mean.get_value()


def _check(moments: Moments) -> None:
    """Raises ``UserError`` where a latent frame has no latents, or none of them vary."""
    if not moments.count.all():
        raise UserError("there are latent frames without any latents, so they cannot be normalised")
    if not np.trace(moments.covariance, axis1=1, axis2=2).all():
        raise UserError("the latents do not vary, so they cannot be normalised")


NORMALISERS: dict[str, type[Normaliser]] = {"mean": MeanNormaliser, "pca": PcaNormaliser}


def build(config: Mapping[str, Any], channels: int) -> Normaliser:
    """Builds a normaliser from ``{name, …}``, before it is fitted."""
    return building.build(NORMALISERS, config, "normaliser", channels=channels)


def read_normaliser(text: str, layout: SegmentLayout) -> dict[str, Any]:
    """``channel``, ``frame`` or ``pca:K`` -> the config of a normaliser of latents of this layout.

    Raises:
      UserError: another text.
    """
    if text == "channel":
        return {"name": "mean"}
    if text == "frame":
        return {"name": "mean", "frames": layout.length("time")}
    if not (found := re.fullmatch(r"pca:(\d{1,6})", text)):
        raise UserError(f"--normalise={text} must be channel, frame or pca:K, e.g. --normalise=pca:8")
    return {"name": "pca", "components": int(found[1])}

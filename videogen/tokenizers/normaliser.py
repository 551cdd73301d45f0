"""Latents as a tokenizer gives them (``space: raw``) to normalised ones, of mean 0 and variance 1, and back.

Generators of latents expect normalised ones. Published statistics are by channel (Wan, LTX), by channel and latent
frame (Cosmos), or one scale (HunyuanVideo, CogVideoX); ours are fitted by a pass over the latents of a token cache.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building
from videogen.errors import UserError
from videogen.metrics.distributions import Moments
from videogen.nn import FULL
from videogen.ranges import Count, Finite, Natural, Positive
from videogen.tokens import SegmentLayout

SMALLEST_DEVIATION = 1e-4
"""A channel that hardly moves is divided by this share of the largest deviation."""


def moments_of(
    latents: Float[np.ndarray, "batch *sides channels"],
    exists: Bool[np.ndarray, "batch *sides"] | None = None,
    by_frame: bool = False,
) -> list[Moments]:
    """Moments of latents that are no padding: of each entry of the first side, or one of all."""
    frames = np.moveaxis(latents, 1, 0) if by_frame else [latents]
    if exists is None:
        return [Moments.of(frame.reshape(-1, latents.shape[-1])) for frame in frames]
    found = np.moveaxis(np.asarray(exists), 1, 0) if by_frame else [np.asarray(exists)]
    return [Moments.of(frame[rows]) for frame, rows in zip(frames, found, strict=True)]


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

    def fit(self, moments: Sequence[Moments]) -> str:
        """Takes over the moments of each latent frame, or of all together; returns what was found in a few words.

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

    def statistics(self) -> tuple[Float[np.ndarray, "frames channels"], Float[np.ndarray, "frames channels"]]:
        """Mean and deviation of which ``normalise`` is ``(raw - mean) / deviation``; one row where all frames share it.

        Raises:
          UserError: it mixes channels.
        """
        raise UserError("this normaliser mixes the channels of latents, which no mean and deviation of each can say")


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

    def fit(self, moments: Sequence[Moments]) -> str:
        covariances, means = _checked(moments), np.stack([m.mean for m in moments])
        deviation = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
        deviation = np.maximum(deviation, SMALLEST_DEVIATION * deviation.max())
        self.mean.set_value(jnp.asarray(means, jnp.float32))
        self.deviation.set_value(jnp.asarray(deviation, jnp.float32))
        ends = [f"{array.min():.3g} to {array.max():.3g}" for array in (means, deviation)]
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

    def statistics(self) -> tuple[Float[np.ndarray, "frames channels"], Float[np.ndarray, "frames channels"]]:
        return np.asarray(self.mean.get_value()), np.asarray(self.deviation.get_value())


class FixedNormaliser(Normaliser):
    """``(raw - shift) · scale``, the constants that a published VAE comes with; there is nothing to fit.

    Args:
      channels: of raw latents.
      shift: subtracted first (FLUX: 0.1159; Stable Diffusion: 0).
      scale: multiplied with after that (FLUX: 0.3611; Stable Diffusion: 0.18215).
    """

    def __init__(self, channels: int, shift: Finite = 0.0, scale: Positive = 1.0):
        self.width, self.shift, self.scale = channels, shift, scale

    def fit(self, moments: Sequence[Moments]) -> str:
        """Raises ``UserError``: the constants are those of the config."""
        raise UserError("a fixed normaliser is not fitted: its shift and scale are those of the VAE's publication")

    def normalise(self, latents: Float[Array, "batch *sides channels"]) -> Float[Array, "batch *sides channels"]:
        return (latents.astype(jnp.float32) - self.shift) * self.scale

    def restore(self, normalised: Float[Array, "batch *sides channels"]) -> Float[Array, "batch *sides channels"]:
        return normalised.astype(jnp.float32) / self.scale + self.shift

    def statistics(self) -> tuple[Float[np.ndarray, "frames channels"], Float[np.ndarray, "frames channels"]]:
        shape = (1, self.width)
        return np.full(shape, self.shift), np.full(shape, 1 / self.scale)


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

    def fit(self, moments: Sequence[Moments]) -> str:
        variances, directions = np.linalg.eigh(_checked(moments)[0])
        # The largest first.
        variances, directions = variances[::-1], directions[:, ::-1]
        if variances[self.width - 1] < SMALLEST_DEVIATION**2 * variances[0]:
            several = int(np.sum(variances >= SMALLEST_DEVIATION**2 * variances[0]))
            raise UserError(f"the latents vary in {several} directions, fewer than {self.width}; keep at most these")
        directions = directions[:, : self.width]
        # Of the two signs of a direction that in which its largest entry is positive.
        largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], axis=0)
        self.mean.set_value(jnp.asarray(moments[0].mean, jnp.float32))
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


def _checked(moments: Sequence[Moments]) -> Float[np.ndarray, "frames channels channels"]:
    """The covariances; raises ``UserError`` where a latent frame has no latents, or none of them vary."""
    if not all(m.count for m in moments):
        raise UserError("there are latent frames without any latents, so they cannot be normalised")
    if not all(np.trace(m.scatter) for m in moments):
        raise UserError("the latents do not vary, so they cannot be normalised")
    return np.stack([m.covariance(biased=True) for m in moments])


NORMALISERS: dict[str, type[Normaliser]] = {"fixed": FixedNormaliser, "mean": MeanNormaliser, "pca": PcaNormaliser}


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

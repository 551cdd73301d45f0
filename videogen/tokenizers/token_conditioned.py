"""What is trained of tokenizers whose decoder is a diffusion transformer that is told the tokens (``denoised``)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import building, diffusion, quantizers
from videogen.conditioning import EncodedText
from videogen.denoisers import Prepared, VideoTransformer
from videogen.errors import UserError
from videogen.ranges import Count, Finite, Natural, Positive, Share
from videogen.shapes import Compression, Latents, Video, VideoShape

Parts = dict[str, Float[Array, "batch queries width"]]
"""What a clip's denoiser is told, by name."""


class NullTokens(nnx.Variable):
    """The tokens of the all-zero video, and whether they are known; no gradient trains them."""


def _section(**values: Any) -> Any:
    """A field that holds a section, by default with these values."""
    return dataclasses.field(default_factory=lambda: values, hash=False)


@dataclasses.dataclass(frozen=True)
class Denoising:
    """How the decoder learns and draws; parts are configs ``{name, …}`` of ``diffusion.PARTS``.

    Attributes:
      process: the noise process of normalised latents.
      prediction: what the network predicts.
      time_distribution: how often each noise level is trained.
      shift: of the times, in training and in drawing (``diffusion.shift_time``).
      null_share: share of the training examples that are told the null in the place of what ``drops`` names. Above 0
        the tokenizer must be frozen, since the null is computed once.
      drops: the parts that the null drops, in training and in guidance; the others are the same in both branches.
      steps: of a decoding.
      solver: of a decoding.
      guidance_scale: 1 is none, the prediction from the tokens alone.
      guidance: how to guide; its scale is ``guidance_scale``.
    """

    process: Mapping[str, Any] = _section(
        name="variance_preserving", schedule="scaled_linear", steps=1000, zero_terminal_snr=True
    )
    prediction: str = "v"
    time_distribution: Mapping[str, Any] = _section(name="uniform")
    shift: Positive = 1.0
    null_share: Share = 0.0
    drops: Sequence[str] = ()
    steps: Count = 50
    solver: Mapping[str, Any] = _section(name="ddim", eta=1.0)
    guidance_scale: Finite = 7.5
    guidance: Mapping[str, Any] = _section(name="rescale", share=0.7, inner={"name": "classifier_free"})


@dataclasses.dataclass(frozen=True)
class VisionSection:
    """How the frozen image encoder is read.

    Attributes:
      reading: what of it: ``last``, its last layer, or another of its ``READINGS``.
      side: of the square that it sees frames resized to, in pixels; 0: that of its preprocessing.
    """

    reading: str = "last"
    side: Natural = 0


class TokenConditioned(nnx.Module):
    """What is trained: from the vectors of the image encoder to tokens, and the denoiser that is told them.

    Args:
      clip: ``(frames, height, width)`` of the clips that the denoiser makes, in pixels.
      latents: ``(time, height, width, channels)`` that the VAE has of them.
      normalise: they are of any scale.
      width: of a token.
      denoiser: section of the diffusion transformer: ``{transformer, patch, modulation}`` (``VideoTransformer``).
      context_width: channels of what it is told.
      denoising: settings of ``Denoising``.
      vision: settings of ``VisionSection``.
      sides: lengths of the sides of the tokens of such a clip.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    sides: tuple[str, ...]
    prefix_equal = False
    parts: tuple[str, ...]
    """What the denoiser is told, by name."""

    def __init__(
        self,
        clip: Sequence[int],
        latents: Sequence[int],
        normalise: bool,
        width: int,
        denoiser: Mapping[str, Any],
        context_width: int,
        denoising: Mapping[str, Any],
        vision: Mapping[str, Any],
        sides: Sequence[int],
        *,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.clip, self.grid, self.channels = VideoShape(*clip), tuple(latents[:3]), latents[3]
        self.quantizer = quantizers.build({"name": "unquantized", "width": width}, rngs=rngs)
        self.flow = building.build({"denoising": Denoising}, {"name": "denoising", **denoising}, "section")
        self.vision = read_vision(vision)
        if unknown := set(self.flow.drops) - set(self.parts):
            raise UserError(f"denoising.drops: there is no part {min(unknown)!r}, only {', '.join(self.parts)}")
        self.process = diffusion.build("process", self.flow.process, prediction=self.flow.prediction)
        self.times_of = diffusion.build("time_distribution", self.flow.time_distribution)
        self.solver = diffusion.build("solver", self.flow.solver)
        diffusion.build_guidance(self.flow.guidance, self.flow.guidance_scale)
        self.statistics = diffusion.LatentStatistics(self.channels) if normalise else diffusion.NormalisedLatents()
        self.measures = normalise
        kind = {"denoiser": VideoTransformer}
        shapes = dict(channels=self.channels, grid=self.grid, context_width=context_width)
        settings = {"name": "denoiser", **denoiser}
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        self.denoiser = building.build(kind, settings, "section", **shapes, **common)
        self.null = NullTokens(jnp.zeros((*sides, width)))
        self.null_known = NullTokens(jnp.zeros((), jnp.int32))

    @property
    def compression(self) -> Compression:
        """Pixels of each entry of the first side of the tokens."""
        raise NotImplementedError

    def layout_sides(self, frames: int) -> tuple[int, ...]:
        """Lengths of the sides of the tokens of a video; raises ``UserError`` for a number of frames it cannot have."""
        raise NotImplementedError

    def shown(self, video: Video) -> Video:
        """The frames that the image encoder sees."""
        raise NotImplementedError

    def gather(self, features: Float[Array, "batch frames height width embed"]) -> Latents:
        """Vectors of the frames that are shown to tokens ``[batch, *sides, width]``, float32."""
        raise NotImplementedError

    def conditions(self, tokens: Latents) -> list[Parts]:
        """What the denoiser is told of every clip of a video, one after another."""
        raise NotImplementedError

    def context(self, parts: Parts) -> Float[Array, "batch keys context_width"]:
        """What the cross-attention of the denoiser sees."""
        raise NotImplementedError

    def joined(self, clips: list[Video], count: int) -> Video:
        """The frames of a video from those of its clips; ``count`` is the length of the first side of its tokens."""
        (video,) = clips
        return video

    def with_null(self, parts: Parts, null: Parts, dropped: Array | None = None) -> Parts:
        """The parts with the null in the place of those that it drops, of all examples or of the ``dropped`` ones."""

        def choose(name: str) -> Array:
            if name not in self.flow.drops:
                return parts[name]
            other = jnp.broadcast_to(null[name], parts[name].shape)
            return other if dropped is None else jnp.where(dropped[:, None, None], other, parts[name])

        return {name: choose(name) for name in self.parts}

    def predict(self, noisy: Latents, t: Float[Array, "batch"], context: Array) -> Latents:
        """The prediction for normalised latents at times ``t``."""
        said = Prepared(EncodedText(context, jnp.ones(context.shape[:2], bool)))
        return self.denoiser.network(self.process.network_input(noisy, t), t, said)


def read_vision(section: Mapping[str, Any]) -> VisionSection:
    """Reads a ``VisionSection``; raises ``UserError`` for an unknown setting."""
    return building.build({"vision": VisionSection}, {"name": "vision", **section}, "section")


def update(core: TokenConditioned, sums: Mapping[str, Array]) -> None:
    """Moves the statistics of the latents and takes the null over, once per step."""
    sums = dict(sums)
    null, count = sums.pop("null", None), sums.pop("null_count", None)
    if core.measures:
        core.statistics.update(sums)
    if null is not None:
        core.null.set_value(null / count)
        core.null_known.set_value(jnp.ones((), jnp.int32))

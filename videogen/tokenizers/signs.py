"""Signers from maps of their pose and hands: a learned embedding of the maps, and a diffusion transformer that is told
it and a reference picture (SignViP, stage I)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from videogen import building, diffusion, quantizers
from videogen.conditioning import EncodedText, MapEncoder
from videogen.data.with_maps import MAPS
from videogen.denoisers import Prepared, VideoTransformer
from videogen.errors import UserError
from videogen.nn import Linear, MicroBatch, example_keys, named_key, parameter, patchify, truncated_normal
from videogen.ranges import Count, Natural, Positive, Share
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokenizers.over_latents import latents_of_frozen
from videogen.tokens import Layout, Tokens

NOISE = "noise"
"""The pass of the diffusion loss: the network's prediction beside its target."""

REFERENCE, POSE = "reference", "pose"
PARTS = (REFERENCE, POSE)
"""What the denoiser is told, and what a null may drop: the reference picture, and the embedding of all maps."""


def _section(**values: Any) -> Any:
    return dataclasses.field(default_factory=lambda: values, hash=False)


@dataclasses.dataclass(frozen=True)
class SignDenoising:
    """How the denoiser learns and draws; parts are configs ``{name, …}`` of ``diffusion.PARTS``.

    Attributes:
      process: the noise process of normalised latents.
      prediction: what the network predicts.
      time_distribution: how often each noise level is trained.
      shift: of the times, in training and in drawing (``diffusion.shift_time``).
      null_shares: part -> share of the training examples without it, each drawn by itself.
      steps: of a decoding.
      solver: of a decoding.
      guidance: ``((dropped parts, scale), …)`` in order; a scale of 1 is none.
      window: frames that the network sees at a time in decoding.
      overlap: frames that neighbouring windows share.
    """

    process: Mapping[str, Any] = _section(name="variance_preserving", schedule="scaled_linear", steps=1000)
    prediction: str = "epsilon"
    time_distribution: Mapping[str, Any] = _section(name="uniform")
    shift: Positive = 1.0
    null_shares: Mapping[str, Share] = _section(reference=0.1, pose=0.1)
    steps: Count = 50
    solver: Mapping[str, Any] = _section(name="ddim", eta=0.0)
    guidance: Sequence[Any] = (((REFERENCE,), 3.5),)
    window: Count = 24
    overlap: Natural = 4


class SignDiffusion(nnx.Module):
    """What stage I trains: the encoder of maps, and the transformer that is told its embedding and a reference.

    Args:
      clip: ``(frames, height, width)`` of the training clips, in pixels.
      latents: ``(time, height, width, channels)`` that the VAE has of them.
      normalise: they are of any scale.
      encoder: settings of ``MapEncoder``; its stride is that of the VAE.
      denoiser: section of the diffusion transformer: ``{transformer, patch, modulation}`` (``VideoTransformer``).
      context_width: channels of the tokens of the reference picture.
      denoising: settings of ``SignDenoising``.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        clip: Sequence[int],
        latents: Sequence[int],
        normalise: bool,
        encoder: Mapping[str, Any],
        denoiser: Mapping[str, Any],
        context_width: Count,
        denoising: Mapping[str, Any],
        *,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.clip, self.grid, self.channels = VideoShape(*clip), tuple(latents[:3]), latents[3]
        self.flow = building.build({"denoising": SignDenoising}, {"name": "denoising", **denoising}, "section")
        for dropped in [*[parts for parts, _ in self.flow.guidance], tuple(self.flow.null_shares)]:
            if unknown := set(dropped) - set(PARTS):
                raise UserError(f"denoising: there is no part {min(unknown)!r} to drop, only {', '.join(PARTS)}")
        diffusion.window_starts(1, self.flow.window, self.flow.overlap)
        self.process = diffusion.build("process", self.flow.process, prediction=self.flow.prediction)
        self.times_of = diffusion.build("time_distribution", self.flow.time_distribution)
        self.solver = diffusion.build("solver", self.flow.solver)
        self.statistics = diffusion.LatentStatistics(self.channels) if normalise else diffusion.NormalisedLatents()
        self.measures = normalise
        common = dict(dtype=dtype, rngs=rngs)
        self.encoder = building.build({"encoder": MapEncoder}, {"name": "encoder", **encoder}, "section", **common)
        if self.clip.height != self.encoder.stride * self.grid[1]:
            raise UserError(
                f"the encoder of maps has stride {self.encoder.stride} and the VAE {self.clip.height // self.grid[1]}: "
                "each latent is told what is at its place, so set model.encoder.strides to the same"
            )
        shapes = dict(channels=self.channels, grid=self.grid, context_width=context_width)
        shapes |= dict(added_width=self.encoder.width, remat=remat)
        kind, settings = {"denoiser": VideoTransformer}, {"name": "denoiser", **denoiser}
        self.denoiser = building.build(kind, settings, "section", **shapes, **common)
        patch = self.denoiser.patch
        if patch[0] != 1:
            raise UserError(
                "a token of the denoiser is of one frame (denoiser.patch): the embedding is of single frames"
            )
        self.reference = Linear(self.channels * patch[1] * patch[2], context_width, axes=(None, "embed"), **common)
        places = (self.grid[1] // patch[1]) * (self.grid[2] // patch[2])
        self.places = parameter(rngs, (places, context_width), (None, "embed"), truncated_normal(0.02))
        self.null_reference = parameter(rngs, (context_width,), ("embed",), truncated_normal(0.02))

    def context(
        self, picture: Float[Array, "batch height width channels"] | None, dropped: Bool[Array, "batch"], batch: int
    ) -> EncodedText:
        """The tokens of reference pictures, given as normalised latents; of the ``dropped`` ones the learned null."""
        places, null = self.places.get_value(), self.null_reference.get_value()
        tokens = jnp.broadcast_to(null, (batch, *places.shape))
        if picture is not None:
            own = self.reference(patchify(picture[:, None], self.denoiser.patch)[:, 0])
            tokens = jnp.where(dropped[:, None, None], tokens, own.reshape(batch, *places.shape).astype(tokens.dtype))
        return EncodedText(tokens + places, jnp.ones(tokens.shape[:2], bool))

    def predict(
        self,
        noisy: Latents,
        t: Float[Array, "batch"],
        embedding: Latents,
        picture: Float[Array, "batch height width channels"] | None,
        dropped: Mapping[str, Bool[Array, "batch"]],
    ) -> Latents:
        """The prediction for normalised latents at times ``t``, of any number of frames.

        Args:
          noisy: latents.
          t: of each example.
          embedding: of its maps, at the places of the latents.
          picture: the normalised latents of its reference picture; ``None``: of none there is one.
          dropped: part -> the examples that are not told it; the embedding is then 0.
        """
        said = self.context(picture, dropped[REFERENCE], len(noisy))
        embedding = jnp.where(dropped[POSE][:, None, None, None, None], 0.0, embedding)

        def window(noisy: Latents, embedding: Latents) -> Latents:
            return self.denoiser.network(self.process.network_input(noisy, t), t, Prepared(said, added=embedding))

        return diffusion.over_windows(window, noisy, embedding, self.flow.window, self.flow.overlap)

    def update(self, sums: Mapping[str, Array]) -> None:
        """Moves the statistics of the latents, once per step."""
        if self.measures:
            self.statistics.update(dict(sums))


class SignVideo(Tokenizer):
    """Maps to their embedding, and back to a video of the signer of a reference picture.

    Args:
      vae: a frozen tokenizer of single frames with continuous latents on a grid.
      tokenizer: what is trained, built with what ``of_vae`` says of it.
    """

    field, needs, diffuses, prefix_equal = MAPS, (REFERENCE,), True, True

    def __init__(self, vae: Tokenizer, tokenizer: SignDiffusion):
        self.vae, self.tokenizer = vae, tokenizer
        self.quantizer = quantizers.build({"name": "unquantized", "width": tokenizer.encoder.width}, rngs=None)

    @property
    def compression(self) -> Compression:
        """Pixels per place of the embedding."""
        return self.vae.compression

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the last layer of the denoiser."""
        return ("tokenizer", "denoiser", *self.tokenizer.denoiser.last_layer)

    @property
    def drawn_with(self) -> dict[str, Any]:
        """The settings of decoding: solver, steps, guidance, windows."""
        flow = self.tokenizer.flow
        names = ("solver", "steps", "window", "overlap")
        guidance = [{"dropped": list(parts), "scale": scale} for parts, scale in flow.guidance]
        return {"guidance": guidance, **{name: _plain(getattr(flow, name)) for name in names}}

    def layout(self, shape: VideoShape) -> Layout:
        own = self.tokenizer.clip
        if (shape.height, shape.width) != (own.height, own.width):
            raise UserError(
                f"this model draws frames of {own.height}×{own.width}, got {shape.height}×{shape.width}; set data.clip "
                "to that"
            )
        return super().layout(shape)

    def encode(self, video: Float[Array, "batch time height width maps"], request: Any = None) -> Encoded:
        """Maps, in [-1, 1] as pixels are (-1: nothing is drawn), to their embedding; ``request`` is not used."""
        return Encoded(self.tokenizer.encoder((video + 1) / 2))

    def latents(self, video: Video) -> Latents:
        """What the frozen VAE makes of clips or of pictures in [-1, 1]; no gradient leads back."""
        return latents_of_frozen(self.vae, video)

    def pixels(self, latents: Latents) -> Video:
        """Latents as the frozen VAE gives them to pixels; of more than a window frame by frame, which saves memory."""
        clip = self.tokenizer.clip

        def decode(latents: Latents) -> Video:
            layout = self.vae.layout(dataclasses.replace(clip, frames=latents.shape[1]))
            return self.vae.decode(self.vae.lookup(Tokens.single(latents, layout)))

        if latents.shape[1] <= self.tokenizer.flow.window:
            return decode(latents)
        frames = jax.lax.map(lambda frame: decode(frame[:, None])[:, 0], jnp.moveaxis(latents, 1, 0))
        return jnp.moveaxis(frames, 0, 1)

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        **seen: Any,
    ) -> Compared:
        """The prediction for noisy latents beside its target, told the embedding and a random frame of the clip."""
        core, micro, batch = self.tokenizer, micro or MicroBatch(), len(video)
        raw = self.latents(video)
        clean = core.statistics.normalise(raw)

        def draw(sampler: Any, name: str) -> Array:
            return micro.draw(sampler, named_key(key, name), (batch,))

        frame = draw(lambda key, shape: jax.random.randint(key, shape, 0, raw.shape[1]), "reference")
        picture = jnp.take_along_axis(clean, frame[:, None, None, None, None], axis=1)[:, 0]
        dropped = {p: draw(jax.random.uniform, f"drop_{p}") < core.flow.null_shares.get(p, 0.0) for p in PARTS}
        t = micro.rows(lambda size: self._times(named_key(key, "time"), size), batch)
        noisy = core.process.corrupt(clean, t, micro.keys(named_key(key, "noise"), batch))
        value = core.predict(noisy.values, t, latents, picture, dropped)
        pair = value, core.process.target(clean, noisy.noise, t)
        return Compared(video, {NOISE: pair}, sums=core.statistics.sums(raw))

    def _times(self, key: jax.Array, size: int) -> Float[Array, "size"]:
        core = self.tokenizer
        return diffusion.draw_times(core.times_of, core.process, key, (size,), shift=core.flow.shift, stratified=True)

    def update(self, sums: Mapping[str, Any], candidates: Any, key: jax.Array | None = None) -> None:
        self.tokenizer.update(sums["compared"])

    def denoiser(
        self,
        embedding: Latents,
        picture: Float[Array, "batch height width channels"] | None,
        guidance: Sequence[Any],
    ) -> Any:
        """``(x_t, t) -> prediction`` for ``diffusion.sample``: the prediction that is told all, and for each of the
        guidances ``(scale - 1)`` times the difference to the one without its parts."""
        core, batch = self.tokenizer, len(embedding)

        def without(parts: Sequence[str]) -> dict[str, Array]:
            return {part: jnp.full(batch, part in parts) for part in PARTS}

        def denoise(noisy: Latents, t: Array) -> Latents:
            told = guided = core.predict(noisy, t, embedding, picture, without(()))
            for parts, scale in guidance:
                if scale != 1:
                    guided += (scale - 1) * (told - core.predict(noisy, t, embedding, picture, without(parts)))
            return guided

        return denoise

    def decode(
        self,
        latents: Latents,
        kept: None = None,
        *,
        reference: Float[Array, "batch height width 3"] | None = None,
        keys: jax.Array | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] | None = None,
    ) -> Video:
        """Draws the videos of embeddings; no example depends on the others.

        Args:
          latents: the embedding ``[batch, time, rows, columns, width]``, of any number of frames.
          kept: not used.
          reference: pictures of the signers, in [-1, 1]; ``None``: of nobody in particular.
          keys: of the noise, one or one of each example; ``None``: the same noise for every video, always.
          steps: of the solver; ``None`` takes the setting.
          guidance: ``((dropped parts, scale), …)``; ``None`` takes the setting.
        """
        core, batch = self.tokenizer, len(latents)
        keys = jnp.broadcast_to(jax.random.key(0), (batch,)) if keys is None else example_keys(keys, batch)
        picture = None
        if reference is not None:
            picture = core.statistics.normalise(self.latents(reference[:, None]))[:, 0]
        times = diffusion.UniformGrid()(steps or core.flow.steps, core.process, core.flow.shift)
        denoiser = self.denoiser(latents, picture, core.flow.guidance if guidance is None else guidance)
        shape = (*latents.shape[1:4], core.channels)
        return self.pixels(
            core.statistics.restore(diffusion.sample(denoiser, core.process, core.solver, times, keys, shape))
        )


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return {name: _plain(value[name]) for name in value} if isinstance(value, Mapping | ConfigDict) else value


def of_vae(config: Mapping[str, Any], vae: Tokenizer) -> dict[str, Any]:
    """What a ``SignDiffusion`` must know of its VAE, of which only the structure is needed.

    Args:
      config: with ``clip`` in pixels.
      vae: a tokenizer of single frames with continuous latents on a grid.

    Raises:
      UserError: it has codes, latents without a place, or latents of several frames.
    """
    if not vae.on_grid or vae.compression.time != 1:
        raise UserError("maps and latents go frame by frame: take a VAE with a grid that codes every frame by itself")
    layout = vae.layout(VideoShape(*config["clip"])).only
    if not layout.channels:
        raise UserError("the frozen tokenizer gives codes, and continuous latents are needed; take one with a Gaussian")
    return {"latents": (*layout.shape, layout.channels), "normalise": not vae.normalised}

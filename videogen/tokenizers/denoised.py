"""Tokenizers of few continuous tokens that learn from nothing but a diffusion transformer which is told them.

Frames go through a frozen image encoder and a part that is trained to tokens. A video diffusion transformer learns to
denoise the latents that a frozen VAE has of the same clip, with the tokens as its condition; with the VAE's decoder it
is the decoder of the tokens. ``divot`` and ``dicode`` are two kinds of what is trained (``TokenConditioned``).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import diffusion
from videogen.encoders import Seen
from videogen.errors import UserError
from videogen.nn import MicroBatch, example_keys, named_key
from videogen.shapes import Compression, Latents, Video, VideoShape
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokenizers.over_latents import LATENTS, latents_of_frozen, of_latents
from videogen.tokenizers.token_conditioned import Parts, TokenConditioned, read_vision, update
from videogen.tokens import Layout, Tokens

V = "v"
"""The pass of the diffusion loss: the network's prediction beside its target."""

NORMALISED = "normalised"
"""The feature that stands for the normalised latents of the VAE."""


class Denoised(Tokenizer):
    """The tokenizer that frozen VAE, frozen image encoder and what is trained are together.

    Args:
      vae: a tokenizer with continuous latents on a grid; nothing reaches or changes it.
      vision: the image encoder; nothing reaches or changes it.
      tokenizer: built with what ``of_parts`` says of the other two.
    """

    diffuses = True

    def __init__(self, vae: Tokenizer, vision: Seen, tokenizer: TokenConditioned):
        self.vae, self.vision, self.tokenizer = vae, vision, tokenizer

    @property
    def sides(self) -> tuple[str, ...]:
        return self.tokenizer.sides

    @property
    def prefix_equal(self) -> bool:
        return self.tokenizer.prefix_equal

    @property
    def compression(self) -> Compression:
        """Pixels of each entry of the first side of the tokens."""
        return self.tokenizer.compression

    @property
    def quantizer(self) -> nnx.Module:
        """Of what is trained."""
        return self.tokenizer.quantizer

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the last layer of the denoiser."""
        return ("tokenizer", "denoiser", *self.tokenizer.denoiser.last_layer)

    @property
    def features(self) -> dict[str, int]:
        return {**super().features, NORMALISED: self.tokenizer.channels}

    @property
    def feature_compression(self) -> Compression:
        return self.vae.compression

    def layout(self, shape: VideoShape) -> Layout:
        """The tokens of a video; raises ``UserError`` for frames of another size, or another number of them."""
        own = self.tokenizer.clip
        if (shape.height, shape.width) != (own.height, own.width):
            raise UserError(
                f"this tokenizer codes frames of {own.height}×{own.width}, got {shape.height}×{shape.width}; set "
                "data.clip to that"
            )
        return self.layout_of(self.tokenizer.layout_sides(shape.frames))

    # Encoding --------------------------------------------------------------------------------------------------------

    def encode(self, video: Video, request: Any = None) -> Encoded:
        """Pixels to ``[batch, *sides, width]``, float32; ``request`` is not used."""
        self.layout(VideoShape(*video.shape[1:4]))
        shown, section = self.tokenizer.shown(video), self.tokenizer.vision
        # Every frame by itself, also of an encoder that takes clips.
        frames = shown.reshape(-1, 1, *shown.shape[2:])
        grid = self.vision.grid(frames, section.side, section.reading)
        grid = jax.lax.stop_gradient(grid.reshape(*shown.shape[:2], *grid.shape[2:]))
        return Encoded(self.tokenizer.gather(grid))

    def null_tokens(self) -> Latents:
        """The tokens of the all-zero video ``[1, *sides, width]``: those that are known, or computed; no gradient."""
        core = self.tokenizer

        def compute() -> Latents:
            shape = core.clip
            return self.encode(jnp.zeros((1, shape.frames, shape.height, shape.width, 3))).values

        known = core.null_known.get_value() > 0
        return jax.lax.stop_gradient(jax.lax.cond(known, lambda: core.null.get_value()[None], compute))

    def latents(self, video: Video) -> Latents:
        """What the frozen VAE makes of clips; no gradient leads back."""
        return latents_of_frozen(self.vae, video)

    def pixels(self, latents: Latents) -> Video:
        """Latents as the frozen VAE gives them to pixels."""
        return self.vae.decode(self.vae.lookup(Tokens.single(latents, self.vae.layout(self.tokenizer.clip))))

    # Training --------------------------------------------------------------------------------------------------------

    def compare(
        self,
        encoded: Encoded,
        latents: Latents,
        video: Video,
        key: jax.Array,
        micro: MicroBatch | None = None,
        **seen: Any,
    ) -> Compared:
        """The prediction for noisy latents beside its target, and the clip that follows from it."""
        core, micro, batch = self.tokenizer, micro or MicroBatch(), len(video)
        if VideoShape(*video.shape[1:4]) != core.clip:
            raise UserError(f"this tokenizer is trained on clips of {core.clip.frames} frames, got {video.shape[1]}")
        (parts,) = core.conditions(latents)
        raw = self.latents(video)
        sums = core.statistics.sums(raw)
        if core.flow.null_share > 0:
            null = self.null_tokens()
            sums |= {"null": null[0], "null_count": jnp.ones(())}
            (nulls,) = core.conditions(null)
            dropped = micro.draw(jax.random.uniform, named_key(key, "null"), (batch,)) < core.flow.null_share
            parts = core.with_null(parts, nulls, dropped)
        clean = core.statistics.normalise(raw)
        t = micro.rows(lambda size: self._times(named_key(key, "time"), size), batch)
        noisy = core.process.corrupt(clean, t, micro.keys(named_key(key, "noise"), batch))
        value = core.predict(noisy.values, t, core.context(parts))
        pair = value, core.process.target(clean, noisy.noise, t)
        shown = self.pixels(core.statistics.restore(core.process.data(value, noisy.values, t)))
        return Compared(shown, {V: pair}, {NORMALISED: clean, LATENTS: raw}, sums)

    def _times(self, key: jax.Array, size: int) -> Float[Array, "size"]:
        core = self.tokenizer
        return diffusion.draw_times(core.times_of, core.process, key, (size,), shift=core.flow.shift, stratified=True)

    def denoise(
        self, latents: Latents, video: Video, key: jax.Array, micro: MicroBatch | None = None, **seen: Any
    ) -> Video:
        return self.compare(Encoded(latents), latents, video, key, micro, **seen).video

    def update(self, sums: Mapping[str, Any], candidates: Any, key: jax.Array | None = None) -> None:
        update(self.tokenizer, sums["compared"])

    # Drawing ---------------------------------------------------------------------------------------------------------

    def denoiser(self, parts: Parts, null: Parts | None = None, guidance_scale: float = 1.0) -> Any:
        """``(x_t, t) -> prediction`` of the normalised latents of a clip, for ``diffusion.sample``.

        Args:
          parts: what is told of each example.
          null: what the null is told in the place of the parts that it drops; only guidance needs it.
          guidance_scale: 1 is none.
        """
        core = self.tokenizer
        context = core.context(parts)
        if guidance_scale == 1:
            return lambda noisy, t: core.predict(noisy, t, context)
        both = jnp.concatenate([context, core.context(core.with_null(parts, null))])

        def pair(noisy: Latents, t: Array) -> tuple[Latents, Latents]:
            return tuple(jnp.split(core.predict(jnp.concatenate([noisy] * 2), jnp.concatenate([t] * 2), both), 2))

        return diffusion.Guided(pair, diffusion.build_guidance(core.flow.guidance, guidance_scale))

    def decode(
        self,
        latents: Latents,
        kept: None = None,
        *,
        keys: jax.Array | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Video:
        """Draws the videos of tokens, clip after clip; no example depends on the others.

        Args:
          latents: ``[batch, *sides, width]``.
          kept: not used: the denoiser needs all tokens.
          keys: of the noise, one or one of each example; ``None``: the same noise for every video, always.
          steps: of the solver; ``None`` takes the setting.
          guidance_scale: 1 is none; ``None`` takes the setting.
        """
        core, batch = self.tokenizer, len(latents)
        keys = jnp.broadcast_to(jax.random.key(0), (batch,)) if keys is None else example_keys(keys, batch)
        scale = core.flow.guidance_scale if guidance_scale is None else guidance_scale
        nulls = None if scale == 1 else core.conditions(self.null_tokens())[0]
        times = diffusion.UniformGrid()(steps or core.flow.steps, core.process, core.flow.shift)

        def draw(one: tuple[Array, Parts]) -> Video:
            number, parts = one
            own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            denoiser = self.denoiser(parts, nulls, scale)
            drawn = diffusion.sample(denoiser, core.process, core.solver, times, own, (*core.grid, core.channels))
            return self.pixels(core.statistics.restore(drawn))

        clips = core.conditions(latents)
        told = jax.tree.map(lambda *arrays: jnp.stack(arrays), *clips)
        # One clip is in memory at a time.
        return core.joined([*jax.lax.map(draw, (jnp.arange(len(clips)), told))], latents.shape[1])


def of_parts(config: Mapping[str, Any], vae: Tokenizer, vision: Seen) -> dict[str, Any]:
    """What a ``TokenConditioned`` must know of the frozen parts, of which only the structure is needed: ``latents``,
    ``normalise``, and ``inputs`` and ``places``, channels and sides of what the image encoder gives of a frame.

    Args:
      config: with ``clip`` in pixels.
      vae: a tokenizer with continuous latents on a grid.
      vision: the image encoder.

    Raises:
      UserError: the VAE has codes, or latents without a place.
    """
    inner = of_latents(config, vae)
    clip, section = VideoShape(*config["clip"]), read_vision(config.get("vision") or {})
    frame = jax.ShapeDtypeStruct((1, 1, clip.height, clip.width, 3), jnp.float32)
    graph, state = nnx.split(vision)

    def seen(state: Any, frame: Array) -> Array:
        return nnx.merge(graph, state).grid(frame, section.side, section.reading)

    grid = jax.eval_shape(seen, state, frame)
    given = {"latents": (*inner["clip"], inner["channels"]), "normalise": inner["normalise"]}
    return given | {"inputs": grid.shape[-1], "places": grid.shape[2:4]}

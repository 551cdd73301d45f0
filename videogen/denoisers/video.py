"""The video diffusion transformer as a network: noisy latents, their times and what is known -> a prediction.

It is made of the blocks of the other generators, with a modulation by the noise level, of the clip or of every frame.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from videogen import building
from videogen.conditioning import EncodedText
from videogen.errors import UserError, near_matches
from videogen.nn import (
    MODULATIONS,
    BlockCausal,
    ClipRotary,
    ExtraKeys,
    Full,
    LearnedPositions,
    Linear,
    Mask,
    TimeEmbedding,
    TransformerSection,
    lay_out,
    modulate,
    patchify,
    read_transformer,
    rotary_angles,
    unpatchify,
    zeros,
)
from videogen.shapes import Latents, TokenGrid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """A conditioning as the transformer takes it; the same in every step of a sampler.

    Attributes:
      text: encoded captions, or other tokens that are attended to.
      label: rows that are added to the time embedding.
      keys: of the text for every layer, with deep fusion.
      read: keys and values of the cross-attention of every layer; ``None`` where the layers compute them.
      beside: what a branch beside the blocks is told (``branch.Beside``).
      exists: which tokens of the video there are; padding is in no attention.
      added: what is added to the tokens of the places of the latents, of a network with ``added_width``.
      rate: frames per second of every clip, of a network with positions in seconds.
    """

    text: EncodedText | None = None
    label: Float[Array, "batch width"] | None = None
    keys: ExtraKeys | None = None
    read: ExtraKeys | None = None
    beside: Any = None
    exists: Bool[Array, "batch time height width"] | None = None
    added: Float[Array, "batch time height width added"] | None = None
    rate: Float[Array, "batch"] | None = None


ROTARY = {"clip": ClipRotary}
"""Rotary positions by name, beside those of places on the grid."""


def read_denoiser(transformer: Mapping[str, Any]) -> tuple[TransformerSection, ClipRotary | None]:
    """The section of a ``VideoTransformer``, and its positions in seconds where it has some.

    Raises:
      UserError: a setting is missing, unknown or out of range.
    """
    rotary = transformer.get("rotary", True)
    clock = building.build(ROTARY, rotary, "rotary") if isinstance(rotary, Mapping | ConfigDict) else None
    plain = transformer if clock is None else {**transformer, "rotary": True}
    return read_transformer(plain, norm="layer", rotary=True), clock


class VideoTransformer(nnx.Module):
    """Predicts something of noisy latents ``[batch, time, height, width, channels]``; a fresh network gives zeros.

    Args:
      channels: of the latents.
      grid: ``(time, height, width)`` of the longest clip in latents.
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``), with layer norms and rotary
        positions where it says nothing; without rotary ones there is a learned table. ``rotary`` may be a section
        ``{name, …}`` of ``ROTARY`` instead: positions that follow the frame rate of the clips.
      patch: ``(time, height, width)`` of latents in a token.
      context_width: width of what a cross-attention in every block sees (``Prepared.text``); ``None`` leaves it out.
      joint: ``Prepared.text``, as wide as the transformer, is a part of the sequence.
      added_width: channels of what is known of every place of the latents (``Prepared.added``); patches of it are added
        to the tokens through a linear layer that begins at 0. ``None`` leaves it out.
      modulation: ``"zero"`` (an own linear layer in each block) or ``"single"`` (one for all, tables in the blocks).
      causal: a frame sees itself and the past only.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    last_layer = ("head",)

    def __init__(
        self,
        channels: int,
        grid: Sequence[int],
        transformer: Mapping[str, Any],
        *,
        patch: Sequence[int] = (1, 2, 2),
        context_width: int | None = None,
        joint: bool = False,
        added_width: int | None = None,
        modulation: str = "zero",
        causal: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if modulation not in MODULATIONS:
            raise UserError(f"unknown modulation {modulation!r}{near_matches(str(modulation), MODULATIONS)}")
        section, self.clock = read_denoiser(transformer)
        self.channels, self.patch, self.grid = channels, tuple(patch), TokenGrid(*grid)
        places = self.tokens(self.grid).tokens
        self.joint, self.causal, self.dropout = joint, causal, section.dropout
        self.width = width = section.width
        self.rotary, self.heads, self.head_width = section.rotary, section.heads, section.head_width
        size = channels * int(np.prod(patch))
        self.embed = Linear(size, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        known = dict(axes=(None, "embed"), bias=False, initializer=zeros, dtype=dtype, rngs=rngs)
        self.added = Linear(added_width * int(np.prod(patch)), width, **known) if added_width else None
        self.positions = None if section.rotary else LearnedPositions(places, width, rngs=rngs)
        self.time = TimeEmbedding(width, rngs=rngs)
        single = modulation == "single"
        self.shared = Linear(width, 6 * width, axes=("embed", None), rngs=rngs) if single else None
        made_with = dict(modulation=modulation, remat=remat, dtype=dtype, rngs=rngs)
        self.stack = section.stack(context_width=context_width, **made_with)
        self.norm = section.last_norm(affine=False, rngs=rngs)
        self.norm_modulation = MODULATIONS[modulation](width, 2, rngs=rngs)
        self.head = Linear(width, size, axes=("embed", None), initializer=zeros, rngs=rngs)

    def tokens(self, grid: TokenGrid) -> TokenGrid:
        """The grid of tokens of a grid of latents; raises ``UserError`` where patches do not tile it."""
        sides = zip(("time", "height", "width"), grid.shape, self.patch, strict=True)
        for side, length, part in sides:
            if length % part:
                raise UserError(f"{length} latents along {side} do not divide into patches of {part}")
        return TokenGrid(*(length // part for length, part in zip(grid.shape, self.patch, strict=True)))

    check_grid = tokens

    def network(
        self,
        noisy: Latents,
        t: Float[Array, "batch"] | Float[Array, "batch time"],
        prepared: Prepared,
        *,
        key: jax.Array | None = None,
        layers: Callable[..., Any] | None = None,
    ) -> Latents:
        """The prediction for noisy latents at times ``t`` in [0, 1], of clips or of frames; float32.

        Args:
          noisy: as the process gives them to networks (``Process.network_input``).
          t: of every clip, or of every latent frame.
          prepared: what is known of the clips.
          key: of dropout.
          layers: runs the layers in its own way, called as the stack is, and with ``text``, the length of the text
            that the sequence begins with.
        """
        grid = self.tokens(TokenGrid(*noisy.shape[1:4]))
        x = self.embedded(noisy, grid)
        if self.added is not None and prepared.added is not None:
            x = x + self.added(patchify(prepared.added, self.patch))
        condition = self._condition(t[:, None] if t.ndim == 1 else t[:, :: self.patch[0]], prepared)
        rotary = self._angles(grid, prepared)
        if self.joint and prepared.text is not None:
            y = self._joint(x, condition, rotary, prepared, key, layers)
        else:
            text = prepared.text
            given = {"extra_kv": prepared.keys, "context_kv": prepared.read}
            y = (layers or self.stack)(
                x,
                mask=self._mask(grid),
                key_mask=None if prepared.exists is None else prepared.exists.reshape(len(x), -1),
                rotary=rotary,
                context=None if text is None or prepared.read is not None else text.features,
                context_mask=None if text is None else text.mask,
                condition=self._for_blocks(condition),
                attended_axes=3,
                key=key,
                per_layer={name: value for name, value in given.items() if value is not None},
            )
        return self.finished(y, condition)

    def embedded(self, latents: Latents, grid: TokenGrid) -> Float[Array, "batch time height width embed"]:
        """Patches of latents as tokens on their grid."""
        x = self.embed(patchify(latents, self.patch))
        if self.positions is None:
            return x
        return x + self.positions(grid.tokens).reshape(*grid.shape, -1).astype(x.dtype)

    def finished(
        self, y: Float[Array, "batch time height width embed"], condition: Float[Array, "batch groups embed"]
    ) -> Latents:
        """What the head makes of tokens behind the last block, float32."""
        own = condition if self.shared is None else condition[..., None, :]
        shift, scale = lay_out(self.norm_modulation(own), y)
        patches = self.head(modulate(self.norm(y), shift, scale))
        return unpatchify(patches.astype(jnp.float32), self.patch)

    def _angles(self, grid: TokenGrid, prepared: Prepared) -> Float[Array | np.ndarray, "..."] | None:
        """Of rotary positions: ``[tokens, angles]``, or of every clip and head ``[batch, tokens, heads, angles]``."""
        if self.clock is not None:
            return self.clock.angles(grid.shape, self.heads, self.head_width, prepared.rate)
        return rotary_angles(grid.shape, self.head_width) if self.rotary else None

    def _condition(self, rows: Float[Array, "batch groups"], prepared: Prepared) -> Float[Array, "batch groups width"]:
        condition = self.time(rows)
        return condition if prepared.label is None else condition + prepared.label[:, None]

    def _for_blocks(self, condition: Float[Array, "batch groups width"]) -> Float[Array, "batch groups ..."]:
        """What the modulation of every block begins with."""
        if self.shared is None:
            return condition
        return self.shared(jax.nn.silu(condition)).reshape(*condition.shape[:-1], 6, self.width)

    def _mask(self, grid: TokenGrid, text: int = 0) -> Mask:
        if not self.causal:
            return Full()
        return BlockCausal(grid.tokens_per_frame, prefix=text, start=text)

    def _joint(
        self,
        x: Float[Array, "batch time height width embed"],
        condition: Float[Array, "batch groups embed"],
        rotary: Float[Array | np.ndarray, "..."] | None,
        prepared: Prepared,
        key: jax.Array | None,
        layers: Callable[..., Any] | None,
    ) -> Float[Array, "batch time height width embed"]:
        """The stack over text and video as one sequence."""
        tokens, call = self._sequence(x, condition, rotary, prepared)
        length = tokens.shape[1] - x[0, ..., 0].size
        run = self.stack if layers is None else functools.partial(layers, text=length)
        return run(tokens, key=key, **call)[:, length:].reshape(x.shape)

    def _sequence(
        self,
        x: Float[Array, "batch time height width embed"],
        condition: Float[Array, "batch groups embed"],
        rotary: Float[Array | np.ndarray, "..."] | None,
        prepared: Prepared,
    ) -> tuple[Float[Array, "batch tokens embed"], dict[str, Any]]:
        """Text and video as one sequence, and what the blocks are told. The text is at time 0, as all that is given."""
        text, batch = prepared.text, x.shape[0]
        grid, length = TokenGrid(*x.shape[1:4]), prepared.text.mask.shape[1]
        given = self._condition(jnp.zeros((batch, 1)), prepared)
        frames = np.repeat(np.arange(grid.time), grid.tokens_per_frame) if condition.shape[1] > 1 else 0
        group_of = np.concatenate([np.zeros(length, int), 1 + np.broadcast_to(frames, grid.tokens)])
        there = jnp.ones((batch, grid.tokens), bool)
        there = there if prepared.exists is None else prepared.exists.reshape(batch, -1)
        exists = jnp.concatenate([text.mask, there], axis=1)
        tokens = jnp.concatenate([text.features, x.reshape(batch, grid.tokens, -1)], axis=1)
        return tokens, dict(
            mask=self._mask(grid, length),
            key_mask=exists,
            rotary=None if rotary is None else _behind(length, rotary),
            condition=self._for_blocks(jnp.concatenate([given, condition], axis=1)),
            group_of=group_of,
        )


def _behind(length: int, rotary: Float[Array | np.ndarray, "..."]) -> Float[Array | np.ndarray, "..."]:
    """The angles of a sequence that begins with so many tokens which are not turned."""
    pads = [(0, 0)] * rotary.ndim
    pads[min(rotary.ndim - 2, 1)] = (length, 0)
    return np.pad(rotary, pads) if isinstance(rotary, np.ndarray) else jnp.pad(rotary, pads)

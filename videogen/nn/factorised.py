"""Transformers over token grids that attend over space and over time in turn."""

import itertools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen.errors import UserError, near_matches
from videogen.nn.masks import Causal, CausalWindow
from videogen.nn.positions import ContinuousPositionBias, rotary_angles
from videogen.nn.transformer import Block, Stack
from videogen.nn.windows import check_windows, merge_windows, partition_windows
from videogen.shapes import Latents

SPATIAL_LAYERS = {"t": "the whole frame", "w": "windows"}
"""Letter of a spatial pattern -> what such a layer attends to."""

SPATIAL_POSITIONS = ("bias", "rotary")
"""How spatial layers know places: a continuous relative bias that all of them share, or rotary positions."""

GENERATOR_REACH = 2
"""Frames that a causal position generator looks back."""


class FactorisedStack(nnx.Module):
    """Spatial layers inside each latent frame, and causal temporal layers at each place over time.

    Args:
      width: token width.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      spatial: one letter for each spatial layer, a key of ``SPATIAL_LAYERS`` (``"ttww"``).
      temporal_layers: number of temporal layers.
      window: side of the windows in latents; only patterns with a ``w`` need it.
      temporal_window: latents that a temporal layer sees, the present one included; 0 means the whole past.
      spatial_positions: a name in ``SPATIAL_POSITIONS``; temporal layers are rotary.
      position_generator: temporal layers begin with the causal position generator.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        spatial: str,
        temporal_layers: int,
        *,
        window: int = 0,
        temporal_window: int = 0,
        spatial_positions: str = "bias",
        position_generator: bool = True,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if unknown := set(spatial) - set(SPATIAL_LAYERS):
            letters = ", ".join(f"{letter} ({what})" for letter, what in SPATIAL_LAYERS.items())
            raise UserError(f"unknown spatial layer {min(unknown)!r} in {spatial!r}; known: {letters}")
        if "w" in spatial and window < 1:
            raise UserError(f"the spatial layers {spatial!r} need a window of at least 1 latent, got {window}")
        if spatial_positions not in SPATIAL_POSITIONS:
            known = near_matches(spatial_positions, SPATIAL_POSITIONS)
            raise UserError(f"unknown spatial positions {spatial_positions!r}{known}")
        if temporal_window < 0:
            raise UserError(f"temporal_window must be a number of latents, or 0 for all; got {temporal_window}")
        depth = len(spatial) + temporal_layers
        self.pattern, self.window, self.head_width = spatial, window, width // heads
        self.rotary = spatial_positions == "rotary"
        self.mask = CausalWindow(temporal_window) if temporal_window else Causal()
        reach = temporal_window - 1 + (GENERATOR_REACH if position_generator else 0)
        self.reach = temporal_layers * reach if temporal_window or not temporal_layers else None

        def make(**positions: Any) -> Any:
            sections = dict(attention={"heads": heads}, mlp={"hidden": mlp_width})
            return lambda r: Block(width, **sections, depth=depth, dtype=dtype, rngs=r, **positions)

        generator = {"position_generator": "causal", "time_axis": 3} if position_generator else {"time_axis": 3}
        self.spatial = Stack(make(), len(spatial), remat=remat, rngs=rngs)
        self.temporal = Stack(make(**generator), temporal_layers, remat=remat, rngs=rngs)
        biased = spatial and not self.rotary
        self.bias = ContinuousPositionBias(heads, dtype=dtype, rngs=rngs) if biased else None

    def check(self, height: int, width: int) -> None:
        """Raises ``UserError`` for frames of latents that the windows do not tile."""
        if "w" in self.pattern:
            check_windows(height, width, self.window)

    def space(self, x: Latents) -> Latents:
        """Spatial layers on ``[batch, time, height, width, embed]``."""
        start = 0
        for letter, run in itertools.groupby(self.pattern):
            layers = slice(start, start + len(list(run)))
            if letter == "w":
                windows = self._attend(partition_windows(x, self.window), layers)
                x = merge_windows(windows, *x.shape[2:4])
            else:
                x = self._attend(x, layers)
            start = layers.stop
        return x

    def _attend(self, x: Latents, layers: slice) -> Latents:
        """Some spatial layers on frames, or on windows of them."""
        bias = self.bias(*x.shape[2:4]) if self.bias is not None else None
        rotary = rotary_angles(x.shape[2:4], self.head_width) if self.rotary else None
        return self.spatial(x, layers=layers, bias=bias, rotary=rotary, attended_axes=2)

    def time(self, x: Latents) -> Latents:
        """Temporal layers, on ``[batch, height, width, time, embed]`` inside."""
        x = jnp.moveaxis(x, 1, 3)
        angles = rotary_angles((x.shape[3],), self.head_width)
        return jnp.moveaxis(self.temporal(x, mask=self.mask, rotary=angles), 3, 1)

    def time_chunk(self, past: Latents | None, x: Latents) -> tuple[Latents, Latents]:
        """Temporal layers on the next latents of a clip; all chunks together equal ``time`` of the whole.

        What the layers see of the past is computed again. With a temporal window that is a fixed number of latents,
        ``reach``; without one it is all of them, so the cache grows by every latent and so does the work.

        Args:
          past: what the call before returned; ``None`` begins a clip.
          x: the next latents.

        Returns:
          The layers' input as far back as the next chunk needs it, and the chunk's output.
        """
        seen = x if past is None else jnp.concatenate([past, x], axis=1)
        kept = seen.shape[1] if self.reach is None else min(self.reach, seen.shape[1])
        return seen[:, seen.shape[1] - kept :], self.time(seen)[:, -x.shape[1] :]

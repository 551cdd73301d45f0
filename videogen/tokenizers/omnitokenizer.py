"""OmniTokenizer: one transformer tokenizer for images and videos of several resolutions, with codes or continuous."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen.ranges import Count, Natural, Triple
from videogen.tokenizers.tubelets import TubeletTokenizer


class OmniTokenizer(TubeletTokenizer):
    """Window attention in space and causal attention in time, apart (Wang et al., NeurIPS 2024).

    Nothing in it is tied to a resolution: a clip of 1 + k·t frames has a grid of (1 + k, height/h, width/w), whose
    sides are multiples of the window where there are window layers. The quantizer alone says whether latents are
    codes (``vq``, …) or continuous (``gaussian``).

    Args:
      patch: ``(time, height, width)`` of a tubelet; the first frame uses ``(1, height, width)``.
      width: token width.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      encoder_spatial: one letter for each spatial layer of the encoder: ``w`` attends inside windows, ``t`` to the
        whole frame. The paper has windows throughout (``wwww``), public code ``ttww`` and a decoder of ``tttt``.
      encoder_temporal: causal temporal layers of the encoder.
      decoder_spatial: spatial layers of the decoder, which runs its temporal ones first.
      decoder_temporal: causal temporal layers of the decoder.
      quantizer: quantizer config ``{name, …}``.
      window: side of the windows in latents.
      temporal_window: latents that a temporal layer sees, the present one included; 0 means the whole past.
      spatial_positions: ``rotary`` or ``bias``.
      position_generator: temporal layers begin with the causal position generator.
      channels: colour channels.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        patch: Triple,
        width: Count,
        heads: Count,
        mlp_width: Count,
        encoder_spatial: str,
        encoder_temporal: Natural,
        decoder_spatial: str,
        decoder_temporal: Natural,
        quantizer: Mapping[str, Any],
        *,
        window: Count = 8,
        temporal_window: Natural = 0,
        spatial_positions: str = "rotary",
        position_generator: bool = True,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        encoder, decoder = (encoder_spatial, encoder_temporal), (decoder_spatial, decoder_temporal)
        stack = dict(heads=heads, mlp_width=mlp_width, window=window, temporal_window=temporal_window, remat=remat)
        stack |= dict(spatial_positions=spatial_positions, position_generator=position_generator)
        super().__init__(patch, width, encoder, decoder, quantizer, stack, channels=channels, dtype=dtype, rngs=rngs)

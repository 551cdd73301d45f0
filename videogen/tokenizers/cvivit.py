"""C-ViViT: the causal tubelet tokenizer of Phenaki (section 2.1)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen.ranges import Count, Natural, Triple
from videogen.tokenizers.tubelets import TubeletTokenizer


class CViViT(TubeletTokenizer):
    """Spatial layers see the whole frame and know places by a relative bias, temporal layers by the position generator.

    Args:
      patch: ``(time, height, width)`` of a tubelet; the first frame uses ``(1, height, width)``.
      width: token width.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      encoder_layers: ``(spatial, causal temporal)`` layers of the encoder.
      decoder_layers: ``(spatial, causal temporal)`` layers of the decoder, which runs its temporal ones first.
      quantizer: quantizer config ``{name, …}``.
      temporal_window: latents that a temporal layer sees, the present one included; 0 means the whole past.
      channels: colour channels.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        patch: Triple,
        width: Count,
        heads: Count,
        mlp_width: Count,
        encoder_layers: tuple[Natural, Natural],
        decoder_layers: tuple[Natural, Natural],
        quantizer: Mapping[str, Any],
        *,
        temporal_window: Natural = 0,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        encoder, decoder = (("t" * spatial, temporal) for spatial, temporal in (encoder_layers, decoder_layers))
        stack = dict(heads=heads, mlp_width=mlp_width, temporal_window=temporal_window, remat=remat)
        super().__init__(patch, width, encoder, decoder, quantizer, stack, channels=channels, dtype=dtype, rngs=rngs)

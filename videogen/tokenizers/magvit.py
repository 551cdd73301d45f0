"""MAGVIT's 3D-VQ (Yu et al., CVPR 2023): the same networks, not causal, with average pooling and nearest neighbours."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen.ranges import Count, Natural
from videogen.tokenizers.convolutional import Autoencoder, Layout


class Magvit(Autoencoder):
    """3D-VQ: clips of k·t frames become k latent frames that all frames nearby may influence; no streaming.

    Args:
      width: channels of the first level (64 in MAGVIT-B, 128 in -L) …
      multipliers: … times these give the channels of each level, from the pixels down.
      blocks: residual blocks of each level.
      spatial_strides: down-sampling of height and width between the levels.
      temporal_strides: down-sampling of time between the levels.
      quantizer: quantizer config ``{name, …}``.
      middle_blocks: residual blocks at the coarsest level, beyond its own.
      time_kernel: frames of every kernel; 1, without temporal strides, is an image tokenizer to inflate from.
      norm_groups: groups of the norms, whose statistics are per frame as everywhere here (over the clip in the paper).
      channels: colour channels.
      remat: what the backward pass keeps of each residual block (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        width: Count,
        multipliers: Sequence[Count],
        blocks: Count,
        spatial_strides: Sequence[Count],
        temporal_strides: Sequence[Count],
        quantizer: Mapping[str, Any],
        *,
        middle_blocks: Natural = 2,
        time_kernel: Count = 3,
        norm_groups: Count = 32,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layout = Layout.of(
            width,
            multipliers,
            spatial_strides,
            temporal_strides,
            blocks=blocks,
            middle_blocks=middle_blocks,
            time_kernel=time_kernel,
            groups=norm_groups,
            padding="same",
            downsampling="average",
            depth_to_space=False,
            adaptive=False,
        )
        super().__init__(layout, quantizer, channels=channels, remat=remat, dtype=dtype, rngs=rngs)

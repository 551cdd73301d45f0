"""VideoMAE (Tong et al., 2022): a vision transformer over boxes of two frames."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.loading import block_names, linear_names, norm_names
from videogen.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from videogen.encoders.vit import Patches, Seen, activation, tower
from videogen.errors import UserError
from videogen.nn import LayerNorm, Linear


def sinusoids(places: int, width: int) -> Float[np.ndarray, "places width"]:
    """Fixed positions whose channels 2i and 2i + 1 are sine and cosine of one angle."""
    channel = np.arange(width)
    angles = np.arange(places)[:, None] / 10_000 ** (2 * (channel // 2) / width)
    return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


class VideoMae(Seen):
    """The encoder, and the classifier where the checkpoint has one.

    Args:
      frames, image_size: of the clips it takes.
      tubelet, patch: frames and pixels of a box.
      width, layers, heads, hidden: sizes of the transformer.
      kind: of the MLP.
      epsilon: of the norms.
      pooled: features are means over tokens, and there is no norm behind the last layer.
      labels: classes of the classifier; 0 leaves it out.
    """

    PREFIXES = ("", "videomae.")
    SKIPPED = ("decoder.*", "encoder_to_decoder.*", "mask_token", "*.position_embeddings", "fc_norm.*", "classifier.*")

    moving = True

    def __init__(
        self,
        *,
        frames: int,
        image_size: int,
        tubelet: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        kind: str = "gelu",
        epsilon: float = 1e-12,
        pooled: bool = True,
        labels: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.frames, self.width, self.side, self.pooled = frames, width, image_size, pooled
        self.patches = Patches((tubelet, patch, patch), width, dtype=dtype, rngs=rngs)
        sizes = dict(width=width, layers=layers, heads=heads, hidden=hidden)
        bias = ("query", "value", "out")
        self.transformer = tower(**sizes, kind=kind, epsilon=epsilon, bias=bias, dtype=dtype, rngs=rngs)
        if pooled:
            self.transformer.norm = None
        self.pooled_norm = LayerNorm(width, epsilon=1e-5, rngs=rngs) if labels and pooled else None
        self.classifier = Linear(width, labels, dtype=dtype, rngs=rngs) if labels else None
        self.preprocessing = Preprocessing(image_size, image_size, "linear", **IMAGENET_STATISTICS)

    @classmethod
    def settings(cls, config):
        if not config.get("qkv_bias", config.get("qv_bias", True)):
            raise UserError("config.json: a VideoMAE without qkv_bias is not known")
        classifies = "VideoMAEForVideoClassification" in config.get("architectures", ())
        return dict(
            frames=int(config.get("num_frames", 16)),
            image_size=int(config.get("image_size", 224)),
            tubelet=int(config.get("tubelet_size", 2)),
            patch=int(config.get("patch_size", 16)),
            width=int(config.get("hidden_size", 768)),
            layers=int(config.get("num_hidden_layers", 12)),
            heads=int(config.get("num_attention_heads", 12)),
            hidden=int(config.get("intermediate_size", 3072)),
            kind=activation(config.get("hidden_act", "gelu")),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
            pooled=bool(config.get("use_mean_pooling", True)),
            labels=len(config.get("id2label", range(2))) if classifies else 0,
        )

    def names(self):
        layer = "encoder.layer.{}"
        inner = f"{layer}.attention.attention"
        blocks = block_names(
            query=f"{inner}.query",
            key=f"{inner}.key",
            value=f"{inner}.value",
            out=f"{layer}.attention.output.dense",
            attention_norm=f"{layer}.layernorm_before",
            mlp_norm=f"{layer}.layernorm_after",
            up=f"{layer}.intermediate.dense",
            down=f"{layer}.output.dense",
        )
        stack = "transformer.stack.layers.attention"
        return {
            **Patches.names("patches", "embeddings.patch_embeddings.projection"),
            **blocks,
            f"{stack}.query_bias": f"{inner}.q_bias",
            f"{stack}.value_bias": f"{inner}.v_bias",
            **norm_names("transformer.norm", "layernorm"),
            **norm_names("pooled_norm", "/fc_norm"),
            **linear_names("classifier", "/classifier"),
        }

    def tokens(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch tokens embed"]:
        """All boxes in raster order, after the last layer (and its norm, unless features are means).

        Args:
          pixels: preprocessed clips of the network's own size: its positions are a table of that size.

        Raises:
          UserError: clips of another size.
        """
        if pixels.shape[1:4] != (self.frames, self.side, self.side):
            own = f"{self.frames}×{self.side}×{self.side}"
            raise UserError(f"this VideoMAE takes clips of {own} pixels, got {'×'.join(map(str, pixels.shape[1:4]))}")
        x = self.patches(pixels)
        x = x.reshape(len(x), -1, self.width)
        return self.transformer(x + sinusoids(x.shape[1], self.width).astype(x.dtype))

    def encode(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """A vector for each preprocessed clip: the mean over its tokens, or its first token, and what norm there is."""
        x = self.tokens(pixels)
        x = x.mean(axis=1) if self.pooled else x[:, 0]
        return x if self.pooled_norm is None else self.pooled_norm(x)

    def logits(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch labels"]:
        """Scores of the classes of preprocessed clips, for a checkpoint with a classifier."""
        return self.classifier(self.encode(pixels))

    def __call__(self, clips: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """One vector for each clip, pixels in [-1, 1], of the network's number of frames."""
        return self.encode(self.preprocessing(clips))


HEADS = {384: 6, 768: 12}
"""Width -> heads of the published sizes of VideoMAE v2; the larger ones have 16."""


class VideoMaeV2(VideoMae):
    """VideoMAE v2 (Wang et al., 2023), fine-tuned, from its own file: the network of CD-FVD.

    Pixels are in [0, 1] without further normalisation, as CD-FVD gives them. Args as of ``VideoMae``.
    """

    CONFIGURED = False
    PREFIXES = ("", "module.", "model.")
    SKIPPED = ("*head.weight", "*head.bias")

    def __init__(self, *, rngs: nnx.Rngs, **settings: Any):
        super().__init__(**settings, rngs=rngs)
        self.pooled_norm = nnx.data(LayerNorm(self.width, epsilon=settings["epsilon"], rngs=rngs))
        none = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.preprocessing = Preprocessing(self.side, self.side, "linear", **none)

    @classmethod
    def sizes(cls, weights):
        """Those of an encoder of 16 frames of 224 × 224 pixels, by its tensors."""
        prefix = next((p for p in cls.PREFIXES if f"{p}patch_embed.proj.weight" in weights), None)
        if prefix is None:
            raise UserError("this file has no patch_embed.proj.weight; is it one of VideoMAE v2?")
        width, _, tubelet, patch, _ = weights[f"{prefix}patch_embed.proj.weight"].shape
        layer = re.compile(rf"{re.escape(prefix)}blocks\.\d+\.mlp\.fc1\.weight")
        return dict(
            frames=16,
            image_size=224,
            tubelet=tubelet,
            patch=patch,
            width=width,
            layers=len([name for name in weights if layer.fullmatch(name)]),
            heads=HEADS.get(width, 16),
            hidden=weights[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0],
            epsilon=1e-6,
        )

    def names(self):
        layer, stack = "blocks.{}", "transformer.stack.layers.attention"
        return {
            **Patches.names("patches", "patch_embed.proj"),
            **block_names(
                **dict.fromkeys(("query", "key", "value"), f"{layer}.attn.qkv"),
                out=f"{layer}.attn.proj",
                attention_norm=f"{layer}.norm1",
                mlp_norm=f"{layer}.norm2",
                up=f"{layer}.mlp.fc1",
                down=f"{layer}.mlp.fc2",
            ),
            f"{stack}.query_key_value.kernel": f"{layer}.attn.qkv.weight",
            f"{stack}.query_bias": f"{layer}.attn.q_bias",
            f"{stack}.value_bias": f"{layer}.attn.v_bias",
            **norm_names("pooled_norm", "fc_norm"),
        }

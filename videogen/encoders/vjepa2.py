"""V-JEPA 2 (Assran et al., 2025): a video transformer with rotary positions along time, height and width."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.attentive import AttentivePooling
from videogen.encoders.loading import block_names, linear_names, norm_names
from videogen.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from videogen.encoders.vit import Patches, Seen, activation, tower
from videogen.nn.attention import PROJECTIONS


def channel_angles(grid: tuple[int, int, int], head_width: int) -> Float[np.ndarray, "tokens head_width"]:
    """An angle for each channel of a head, in raster order.

    Each axis has a third of the channels, rounded down to pairs; the rest stay as they are. The published network
    repeats the frequencies one after another but turns neighbours, so that the two channels of a pair have different
    angles.
    """
    width = 2 * (head_width // 3 // 2)
    frequencies = np.tile(10_000.0 ** (-np.arange(width // 2) / (width / 2)), 2)
    places = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in places]
    still = np.zeros((angles[0].shape[0], head_width - 3 * width))
    return np.concatenate([*angles, still], axis=-1).astype(np.float32)


class Vjepa2(Seen):
    """The encoder; the predictor and the heads of a checkpoint are left unread.

    Args:
      image_size: side in pixels of the clips.
      tubelet, patch: frames and pixels of a box.
      width, layers, heads, hidden: sizes of the transformer.
      kind: of the MLP.
      epsilon: of the norms.
      bias: queries, keys and values have biases.
    """

    PREFIXES = ("encoder.", "vjepa2.encoder.")
    SKIPPED = ("*predictor.*", "pooler.*", "classifier.*")

    moving = True

    def __init__(
        self,
        *,
        image_size: int,
        tubelet: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        kind: str = "gelu",
        epsilon: float = 1e-6,
        bias: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.width, self.head_width, self.tubelet = width, width // heads, tubelet
        self.patches = Patches((tubelet, patch, patch), width, dtype=dtype, rngs=rngs)
        sizes = dict(width=width, layers=layers, heads=heads, hidden=hidden, kind=kind, epsilon=epsilon)
        projections = PROJECTIONS if bias else ("out",)
        turned = {"interleaved": True}
        self.transformer = tower(**sizes, bias=projections, attention=turned, dtype=dtype, rngs=rngs)
        larger = int(image_size * 256 / 224)
        self.preprocessing = Preprocessing(larger, image_size, "linear", **IMAGENET_STATISTICS)

    @classmethod
    def settings(cls, config):
        width = int(config.get("hidden_size", 1024))
        return dict(
            image_size=int(config.get("crop_size", 256)),
            tubelet=int(config.get("tubelet_size", 2)),
            patch=int(config.get("patch_size", 16)),
            width=width,
            layers=int(config.get("num_hidden_layers", 24)),
            heads=int(config.get("num_attention_heads", 16)),
            hidden=int(width * config.get("mlp_ratio", 4)),
            kind=activation(config.get("hidden_act", "gelu")),
            epsilon=float(config.get("layer_norm_eps", 1e-6)),
            bias=bool(config.get("qkv_bias", True)),
        )

    def names(self):
        layer = "layer.{}"
        return {
            **Patches.names("patches", "embeddings.patch_embeddings.proj"),
            **block_names(
                **{name: f"{layer}.attention.{name}" for name in ("query", "key", "value")},
                out=f"{layer}.attention.proj",
                attention_norm=f"{layer}.norm1",
                mlp_norm=f"{layer}.norm2",
                up=f"{layer}.mlp.fc1",
                down=f"{layer}.mlp.fc2",
            ),
            **norm_names("transformer.norm", "layernorm"),
        }

    def tokens(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch tokens embed"]:
        """All boxes in raster order, after the last norm.

        Args:
          pixels: preprocessed clips; a single picture is repeated to fill a box.
        """
        if pixels.shape[1] < self.tubelet:
            pixels = jnp.tile(pixels, (1, self.tubelet, 1, 1, 1))
        x = self.patches(pixels)
        angles = channel_angles(x.shape[1:4], self.head_width)
        return self.transformer(x.reshape(len(x), -1, self.width), rotary=jnp.asarray(angles))

    def encode(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """The mean over the tokens of preprocessed clips."""
        return self.tokens(pixels).mean(axis=1)

    def __call__(self, clips: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """The mean over the tokens of clips in [-1, 1]."""
        return self.encode(self.preprocessing(clips))


class Vjepa2Pooled(Vjepa2):
    """The encoder with the pooling of a probe that was trained on it (a checkpoint for video classification).

    Args:
      pooling: self-attention layers of the probe.
      settings: as ``Vjepa2`` takes them.
    """

    PREFIXES = ("vjepa2.encoder.",)
    SKIPPED = ("*predictor.*", "classifier.*")

    def __init__(self, *, pooling: int, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **settings: Any):
        super().__init__(**settings, dtype=dtype, rngs=rngs)
        sizes = dict(layers=pooling, epsilon=settings.get("epsilon", 1e-6))
        self.pooling = AttentivePooling(settings["width"], settings["heads"], **sizes, dtype=dtype, rngs=rngs)

    @classmethod
    def settings(cls, config):
        return super().settings(config) | {"pooling": int(config.get("num_pooler_layers", 3))}

    def names(self):
        layer, cross = "/pooler.self_attention_layers.{}", "/pooler.cross_attention_layer"
        blocks = block_names(
            **{name: f"{layer}.self_attn.{name[0]}_proj" for name in ("query", "key", "value")},
            out=f"{layer}.self_attn.out_proj",
            attention_norm=f"{layer}.layer_norm1",
            mlp_norm=f"{layer}.layer_norm2",
            up=f"{layer}.mlp.fc1",
            down=f"{layer}.mlp.fc2",
            ours="pooling.tower.stack.layers",
        )
        return {
            **super().names(),
            **blocks,
            **AttentivePooling.names("pooling", "/pooler.query_tokens", f"{cross}.layer_norm", f"{cross}.mlp"),
            **{
                path: source
                for name in ("query", "key", "value")
                for path, source in linear_names(f"pooling.{name}", f"{cross}.cross_attn.{name[0]}_proj").items()
            },
        }

    def encode(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """What the probe's query finds in preprocessed clips."""
        return self.pooling(self.tokens(pixels))

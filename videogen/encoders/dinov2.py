"""DINOv2 (Oquab et al., 2023), without and with registers (Darcet et al., 2023)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.loading import Source, block_names, norm_names
from videogen.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from videogen.encoders.vit import Patches, Seen, activation, resize_positions, tower
from videogen.errors import UserError
from videogen.nn import normal, parameter


class DinoV2(Seen):
    """A vision transformer whose class token and patches are both good features.

    The published layers scale what attention and MLP give; these scales are multiplied into the kernels before them.

    Args:
      image_size, patch: sides in pixels; the position table is that of ``image_size``.
      width, layers, heads, hidden: sizes of the transformer.
      kind: of the MLP; ``swiglu`` in the giant.
      epsilon: of the norms.
      registers: tokens between the class token and the patches.
    """

    PREFIXES = ("", "dinov2.", "dinov2_with_registers.")
    SKIPPED = ("*embeddings.mask_token", "classifier.*")

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        kind: str = "gelu",
        epsilon: float = 1e-6,
        registers: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.width, self.gated = width, kind == "swiglu"
        self.patches = Patches((1, patch, patch), width, dtype=dtype, rngs=rngs)
        self.class_token = parameter(rngs, (1, width), (None, "embed"), normal(0.02))
        self.registers = parameter(rngs, (registers, width), (None, "embed"), normal(0.02)) if registers else None
        places = (image_size // patch) ** 2 + 1
        self.positions = parameter(rngs, (places, width), (None, "embed"), normal(0.02))
        sizes = dict(width=width, layers=layers, heads=heads, hidden=hidden)
        self.transformer = tower(**sizes, kind=kind, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.preprocessing = Preprocessing(256, 224, "cubic", **IMAGENET_STATISTICS)

    @classmethod
    def settings(cls, config):
        width, gated = int(config.get("hidden_size", 768)), config.get("use_swiglu_ffn", False)
        if not config.get("qkv_bias", True):
            raise UserError("config.json: a DINOv2 without qkv_bias is not known")
        hidden = int(width * config.get("mlp_ratio", 4))
        return dict(
            image_size=int(config.get("image_size", 224)),
            patch=int(config.get("patch_size", 16)),
            width=width,
            layers=int(config.get("num_hidden_layers", 12)),
            heads=int(config.get("num_attention_heads", 12)),
            hidden=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
            kind="swiglu" if gated else activation(config.get("hidden_act", "gelu")),
            epsilon=float(config.get("layer_norm_eps", 1e-6)),
            registers=int(config.get("num_register_tokens", 4)) if "registers" in config["model_type"] else 0,
        )

    def names(self):
        layer = "encoder.layer.{}"
        attention = {name: f"{layer}.attention.attention.{name}" for name in ("query", "key", "value")}
        blocks = block_names(
            **attention,
            out=f"{layer}.attention.output.dense",
            attention_norm=f"{layer}.norm1",
            mlp_norm=f"{layer}.norm2",
            up=f"{layer}.mlp.fc1",
            down=f"{layer}.mlp.fc2|{layer}.mlp.weights_out",
            scales=(f"{layer}.layer_scale1.lambda1", f"{layer}.layer_scale2.lambda1"),
        )
        if self.gated:
            for ours, part in (("gate", (0, 1, 2)), ("up", (1, 2, 2))):
                for kind, theirs in (("kernel", "weight"), ("bias", "bias")):
                    source = Source((f"{layer}.mlp.weights_in.{theirs}",), part=part)
                    blocks[f"transformer.stack.layers.mlp.{ours}.{kind}"] = source
        return {
            **Patches.names("patches", "embeddings.patch_embeddings.projection"),
            "class_token": "embeddings.cls_token",
            "registers": "embeddings.register_tokens",
            "positions": "embeddings.position_embeddings",
            **blocks,
            **norm_names("transformer.norm", "layernorm"),
        }

    def tokens(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens embed"]:
        """Class token, registers and patches in raster order, after the last norm.

        Args:
          pixels: preprocessed, of any size from one patch on; the position table is interpolated.
        """
        x = self.patches(pixels[:, None])[:, 0]
        table = self.positions.get_value()
        method = "cubic" if self.registers is None else "cubic_antialiased"
        patches = x.reshape(len(x), -1, self.width)
        patches = patches + resize_positions(table[1:], x.shape[1:3], method).astype(x.dtype)
        first = self.class_token.get_value() + table[:1]
        if self.registers is not None:
            first = jnp.concatenate([first, self.registers.get_value()])
        first = jnp.broadcast_to(first, (len(x), *first.shape)).astype(x.dtype)
        return self.transformer(jnp.concatenate([first, patches], axis=1))

    def encode(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The class token of preprocessed pictures."""
        return self.tokens(pixels)[:, 0]

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The class token of pictures in [-1, 1]."""
        return self.encode(self.preprocessing(images))

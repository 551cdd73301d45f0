"""The two encoders of CLIP (Radford et al., 2021), pictures and texts in one space."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.encoders.loading import Published, block_names, linear_names, norm_names
from videogen.encoders.preprocessing import CLIP_STATISTICS, Preprocessing
from videogen.encoders.vit import Patches, Seen, activation, resize_positions, tower
from videogen.nn import Causal, Embedding, LayerNorm, Linear, normal, parameter


def clip_blocks(prefix: str) -> dict[str, Any]:
    """Names of the blocks' weights in a published file, whose transformer is called ``prefix``."""
    layer = f"{prefix}.encoder.layers.{{}}"
    attention = {name: f"{layer}.self_attn.{name[0]}_proj" for name in ("query", "key", "value")}
    return block_names(
        **attention,
        out=f"{layer}.self_attn.out_proj",
        attention_norm=f"{layer}.layer_norm1",
        mlp_norm=f"{layer}.layer_norm2",
        up=f"{layer}.mlp.fc1",
        down=f"{layer}.mlp.fc2",
    )


def clip_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a transformer from a published ``config.json`` (the part of one tower)."""
    return dict(
        width=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        hidden=int(config["intermediate_size"]),
        # Without the setting it is QuickGELU: plain GELU in its place runs, and features are off by as much as 1.
        kind=activation(config.get("hidden_act", "quick_gelu")),
        epsilon=float(config.get("layer_norm_eps", 1e-5)),
    )


class ClipImage(Seen):
    """CLIP's vision transformer.

    Args:
      image_size, patch: sides in pixels.
      embed: width of the space that pictures and texts share.
      sizes: as ``vit.tower`` takes them.
    """

    SKIPPED = ("text_model.*", "text_projection.weight", "logit_scale", "*.position_ids")
    READINGS = ("last", "projected")
    HEAD = ("projection",)

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        embed: int,
        sizes: Mapping[str, Any],
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width, epsilon = sizes["width"], sizes["epsilon"]
        self.patches = Patches((1, patch, patch), width, bias=False, dtype=dtype, rngs=rngs)
        self.class_token = parameter(rngs, (width,), ("embed",), normal(0.02))
        self.positions = Embedding((image_size // patch) ** 2 + 1, width, axes=(None, "embed"), rngs=rngs)
        self.first_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.transformer = tower(**sizes, dtype=dtype, rngs=rngs)
        self.projection = Linear(width, embed, bias=False, dtype=dtype, rngs=rngs)
        self.width = embed
        self.preprocessing = Preprocessing(image_size, image_size, "cubic", **CLIP_STATISTICS)

    @classmethod
    def settings(cls, config):
        inner = config.get("vision_config", config)
        return dict(
            image_size=int(inner.get("image_size", 224)),
            patch=int(inner.get("patch_size", 32)),
            embed=int(config.get("projection_dim", 512)),
            sizes=clip_sizes(inner),
        )

    def names(self):
        return {
            **Patches.names("patches", "vision_model.embeddings.patch_embedding"),
            "class_token": "vision_model.embeddings.class_embedding",
            "positions.table": "vision_model.embeddings.position_embedding.weight",
            # The misspelling is the published name.
            **norm_names("first_norm", "vision_model.pre_layrnorm"),
            **clip_blocks("vision_model"),
            **norm_names("transformer.norm", "vision_model.post_layernorm"),
            **linear_names("projection", "visual_projection"),
        }

    def tokens(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens embed"]:
        """The class token and the patches after the last layer, before the last norm.

        Args:
          pixels: preprocessed; another size than the network's has its positions interpolated.
        """
        return self.transformer.trunk(self.embedded(pixels))[0]

    def embedded(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens embed"]:
        """The class token and the patches before the first layer; ``pixels`` as ``tokens`` takes them."""
        x = self.patches(pixels[:, None])[:, 0]
        table = self.positions.table.get_value()
        positions = jnp.concatenate([table[:1], resize_positions(table[1:], x.shape[1:3])])
        x = x.reshape(len(x), -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_token.get_value(), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1) + positions.astype(x.dtype)
        return self.first_norm(x)

    def read(self, pixels, reading):
        """``projected`` are the patches after the last norm, in the space that pictures and texts share."""
        tokens = self.tokens(pixels)
        return self.projection(self.transformer.finish(tokens)) if reading == "projected" else tokens

    def _channels(self, reading):
        return self.width if reading == "projected" else super()._channels(reading)

    def encode(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The embedding of preprocessed pictures; it has no unit length."""
        return self.projection(self.transformer.finish(self.tokens(pixels)[:, 0]))

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The embedding of pictures in [-1, 1]."""
        return self.encode(self.preprocessing(images))


class TextTower(Published):
    """What the text encoders of CLIP and SigLIP share: a transformer over token ids, projected at one place.

    Args:
      vocabulary_size: number of token ids.
      length: the longest text in tokens.
      embed: width of the space that pictures and texts share.
      sizes: as ``vit.tower`` takes them.
      bias: of the projection.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        length: int,
        embed: int,
        sizes: Mapping[str, Any],
        bias: bool,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = sizes["width"]
        self.width, self.length = embed, length
        self.embedding = Embedding(vocabulary_size, width, dtype=dtype, rngs=rngs)
        self.positions = Embedding(length, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.transformer = tower(**sizes, dtype=dtype, rngs=rngs)
        self.projection = Linear(width, embed, bias=bias, dtype=dtype, rngs=rngs)

    def names(self):
        return {
            "embedding.table": "text_model.embeddings.token_embedding.weight",
            "positions.table": "text_model.embeddings.position_embedding.weight",
            **clip_blocks("text_model"),
            **norm_names("transformer.norm", "text_model.final_layer_norm"),
        }

    def embed(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        """The input of the transformer: token embeddings and learned positions."""
        return self.embedding(ids) + self.positions(jnp.arange(ids.shape[1]))


class ClipText(TextTower):
    """CLIP's causal text transformer, read at the end token.

    Args:
      end: id of the end token; 2, which old configs have, means that the largest id of a text is its end.
      others: as ``TextTower`` takes them; texts have at most 77 tokens.
    """

    SKIPPED = ("vision_model.*", "visual_projection.weight", "logit_scale", "*.position_ids")

    def __init__(self, *, end: int, **others: Any):
        super().__init__(**others, bias=False)
        self.end = end

    @classmethod
    def settings(cls, config):
        inner = config.get("text_config", config)
        return dict(
            vocabulary_size=int(inner.get("vocab_size", 49408)),
            length=int(inner.get("max_position_embeddings", 77)),
            embed=int(config.get("projection_dim", 512)),
            end=int(inner.get("eos_token_id", 49407)),
            sizes=clip_sizes(inner),
        )

    def names(self):
        return super().names() | linear_names("projection", "text_projection")

    def tokens(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """Every token after the last norm; what stands behind the end changes nothing before it."""
        return self.transformer(self.embed(ids), mask=Causal())

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch embed"]:
        """The embedding of texts that have their start and end tokens; it has no unit length."""
        last = jnp.argmax(ids if self.end == 2 else ids == self.end, axis=1)
        x = jnp.take_along_axis(self.tokens(ids), last[:, None, None], axis=1)[:, 0]
        return self.projection(x)

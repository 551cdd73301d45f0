"""The two encoders of SigLIP (Zhai et al., 2023) and SigLIP 2 (Tschannen et al., 2025)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.encoders.clip import TextTower, clip_blocks, clip_sizes
from videogen.encoders.loading import Source, linear_names, norm_names
from videogen.encoders.preprocessing import HALF_STATISTICS, Preprocessing, in_range
from videogen.encoders.vit import Patches, Seen, resize_positions, tower
from videogen.nn import MLP, Attention, Embedding, LayerNorm, normal, parameter
from videogen.nn.attention import PROJECTIONS

DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_hidden_layers": 12}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
"""What configs that have only what differs from the base model leave out."""


class Pooling(nnx.Module):
    """One learned query attends to all tokens, then an MLP with a residual (multi-head attention pooling)."""

    def __init__(self, width: int, sizes: Mapping[str, Any], *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.query = parameter(rngs, (1, width), (None, "embed"), normal(0.02))
        cross = dict(context_width=width, qk_norm=None, bias=PROJECTIONS)
        self.attention = Attention(width, sizes["heads"], **cross, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=sizes["epsilon"], rngs=rngs)
        self.mlp = MLP(width, sizes["hidden"], kind=sizes["kind"], bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "batch tokens embed"]) -> Float[Array, "batch embed"]:
        query = jnp.broadcast_to(self.query.get_value(), (len(tokens), *self.query.get_value().shape))
        x = self.attention(query.astype(tokens.dtype), tokens)
        return (x + self.mlp(self.norm(x)))[:, 0]

    @staticmethod
    def names(ours: str, theirs: str) -> dict[str, Any]:
        """The part of a table; PyTorch's attention has one tensor for queries, keys and values."""
        weight, bias = f"{theirs}.attention.in_proj_weight", f"{theirs}.attention.in_proj_bias"
        return {
            f"{ours}.query": f"{theirs}.probe",
            f"{ours}.attention.query.kernel": Source((weight,), part=(0, 1, 3)),
            f"{ours}.attention.key_value.kernel": Source((weight,), part=(1, 3, 3)),
            f"{ours}.attention.query_bias": Source((bias,), part=(0, 1, 3)),
            f"{ours}.attention.key_bias": Source((bias,), part=(1, 2, 3)),
            f"{ours}.attention.value_bias": Source((bias,), part=(2, 3, 3)),
            **linear_names(f"{ours}.attention.out", f"{theirs}.attention.out_proj"),
            **norm_names(f"{ours}.norm", f"{theirs}.layernorm"),
            **linear_names(f"{ours}.mlp.up", f"{theirs}.mlp.fc1"),
            **linear_names(f"{ours}.mlp.down", f"{theirs}.mlp.fc2"),
        }


class SiglipImage(Seen):
    """The vision transformer of SigLIP, and of SigLIP 2 at a fixed size or at any aspect ratio (NaFlex).

    Args:
      patch: side in pixels.
      places: entries of the position table, a square.
      image_size: side in pixels; ``None`` keeps the aspect ratio and has at most ``places`` patches (NaFlex).
      sizes: as ``vit.tower`` takes them.
    """

    SKIPPED = ("text_model.*", "logit_scale", "logit_bias", "*.position_ids")
    READINGS = ("last", "penultimate")
    HEAD = ("pooling",)

    def __init__(
        self,
        *,
        patch: int,
        places: int,
        image_size: int | None,
        sizes: Mapping[str, Any],
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = sizes["width"]
        self.width, self.patch, self.places, self.any_aspect = width, patch, places, image_size is None
        self.patches = Patches((1, patch, patch), width, dtype=dtype, rngs=rngs)
        self.positions = Embedding(places, width, axes=(None, "embed"), rngs=rngs)
        self.transformer = tower(**sizes, dtype=dtype, rngs=rngs)
        self.pooling = Pooling(width, sizes, dtype=dtype, rngs=rngs)
        size, method = ((0, 0), "linear") if image_size is None else ((image_size, image_size), "cubic")
        self.preprocessing = Preprocessing(size, None, method, **HALF_STATISTICS)

    @classmethod
    def settings(cls, config):
        inner = DEFAULTS | BASE | dict(config.get("vision_config", config))
        patch = int(inner.get("patch_size", 16))
        any_aspect = "num_patches" in inner or inner.get("model_type", "").startswith("siglip2")
        side = None if any_aspect else int(inner.get("image_size", 224))
        places = int(inner.get("num_patches", 256)) if any_aspect else (side // patch) ** 2
        return dict(patch=patch, places=places, image_size=side, sizes=clip_sizes(inner))

    def names(self):
        return {
            **Patches.names("patches", "vision_model.embeddings.patch_embedding"),
            "positions.table": "vision_model.embeddings.position_embedding.weight",
            **clip_blocks("vision_model"),
            **norm_names("transformer.norm", "vision_model.post_layernorm"),
            **Pooling.names("pooling", "vision_model.head"),
        }

    def tokens(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens embed"]:
        """The patches in raster order, after the last norm.

        Args:
          pixels: preprocessed; another size than the network's has its positions interpolated.
        """
        return self.transformer(self._placed(pixels))

    def read(self, pixels, reading):
        """``penultimate`` are the patches before the last layer, without a norm."""
        if reading == "penultimate":
            stack = self.transformer.stack
            return stack(self._placed(pixels), layers=slice(0, stack.depth - 1))
        return self.tokens(pixels)

    def _placed(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens embed"]:
        """Patches with their positions."""
        x = self.patches(pixels[:, None])[:, 0]
        method = "linear_antialiased" if self.any_aspect else "cubic"
        positions = resize_positions(self.positions.table.get_value(), x.shape[1:3], method)
        return x.reshape(len(x), -1, self.width) + positions.astype(x.dtype)

    def encode(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The embedding of preprocessed pictures; it has no unit length."""
        return self.pooling(self.tokens(pixels))

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """The embedding of pictures in [-1, 1]."""
        images, preprocessing = in_range(images), self.preprocessing
        if self.any_aspect:
            size = sides_for(*images.shape[1:3], self.patch, self.places)
            preprocessing = Preprocessing(size, None, preprocessing.method, preprocessing.mean, preprocessing.std)
        return self.encode(preprocessing(images))


def sides_for(height: int, width: int, patch: int, places: int) -> tuple[int, int]:
    """The largest sides that are multiples of a patch, near an aspect ratio, with at most so many patches (NaFlex)."""

    def sides(scale: float) -> tuple[int, int]:
        return tuple(max(patch, -int(-scale * side // patch) * patch) for side in (height, width))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        a, b = sides(middle)
        low, high = (middle, high) if (a // patch) * (b // patch) <= places else (low, middle)
    return sides(low)


class SiglipText(TextTower):
    """The bidirectional text transformer, read at the last place, which is padding for short texts.

    Args:
      settings: as ``TextTower`` takes them; every text is padded to ``length``, as the network was trained.
    """

    SKIPPED = ("vision_model.*", "logit_scale", "logit_bias", "*.position_ids")

    def __init__(self, **settings: Any):
        super().__init__(**settings, bias=True)

    @classmethod
    def settings(cls, config):
        inner = DEFAULTS | BASE | dict(config.get("text_config", config))
        return dict(
            vocabulary_size=int(inner.get("vocab_size", 32000)),
            length=int(inner.get("max_position_embeddings", 64)),
            embed=int(inner.get("projection_size", inner["hidden_size"])),
            sizes=clip_sizes(inner),
        )

    def names(self):
        return super().names() | linear_names("projection", "text_model.head")

    def tokens(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """Every token after the last norm; padding is attended to, as in training."""
        return self.transformer(self.embed(ids))

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch embed"]:
        """The embedding of texts, padded to ``length``; it has no unit length."""
        return self.projection(self.tokens(ids)[:, -1])

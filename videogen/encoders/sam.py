"""The mask decoder of Segment Anything (Kirillov et al., 2023): one mask of a picture's features for one prompt."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.loading import Published, Source, linear_names, norm_names
from videogen.errors import UserError
from videogen.nn import LayerNorm, Linear, normal, parameter, zeros
from videogen.ranges import Count, Natural, Positive

UPSCALED = 4
"""Factor by which a mask is finer than the features."""


class MaskAttention(nnx.Module):
    """Attention whose queries, keys and values come from three arrays, with fewer channels inside.

    Args:
      width: channels outside.
      inner: channels of all heads together.
      heads: how many.
    """

    def __init__(self, width: int, inner: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(bias=True, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.query, self.key, self.value = (Linear(width, inner, axes=("embed", None), **common) for _ in range(3))
        self.out = Linear(inner, width, axes=(None, "embed"), **common)

    def __call__(
        self,
        query: Float[Array, "batch queries width"],
        key: Float[Array, "batch keys width"],
        value: Float[Array, "batch keys width"],
    ) -> Float[Array, "batch queries width"]:
        """What each query finds."""
        q, k, v = (
            linear(x).reshape(*x.shape[:2], self.heads, -1)
            for linear, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        found = jax.nn.dot_product_attention(q, k, v)
        return self.out(found.reshape(*query.shape[:2], -1))


class TwoWayBlock(nnx.Module):
    """Tokens see each other and the picture, then the picture sees the tokens; norms stand behind the sums.

    Args:
      width: channels.
      inner: of the attention between tokens and picture.
      heads: of all attentions.
      hidden: of the MLP.
      first: the tokens are their own positions, which are not added to them in the self-attention.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        heads: int,
        hidden: int,
        first: bool,
        epsilon: float,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.first = first
        self.own = MaskAttention(width, width, heads, **common)
        self.to_picture = MaskAttention(width, inner, heads, **common)
        self.to_tokens = MaskAttention(width, inner, heads, **common)
        self.up = Linear(width, hidden, axes=("embed", "mlp"), bias=True, **common)
        self.down = Linear(hidden, width, axes=("mlp", "embed"), bias=True, **common)
        self.norms = nnx.List([LayerNorm(width, epsilon=epsilon, rngs=rngs) for _ in range(4)])

    def __call__(
        self,
        tokens: Float[Array, "batch tokens width"],
        picture: Float[Array, "batch places width"],
        of_tokens: Float[Array, "batch tokens width"],
        of_picture: Float[Array, "places width"],
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch places width"]]:
        """Both, one block on; ``of_tokens`` and ``of_picture`` are their positions."""
        if self.first:
            tokens = self.own(tokens, tokens, tokens)
        else:
            placed = tokens + of_tokens
            tokens = tokens + self.own(placed, placed, tokens)
        tokens = self.norms[0](tokens)
        tokens = self.norms[1](tokens + self.to_picture(tokens + of_tokens, picture + of_picture, picture))
        tokens = self.norms[2](tokens + self.down(jax.nn.relu(self.up(tokens))))
        picture = picture + self.to_tokens(picture + of_picture, tokens + of_tokens, tokens)
        return tokens, self.norms[3](picture)


class Doubling(nnx.Module):
    """A transposed convolution of stride and size 2."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = Linear(inputs, 4 * outputs, axes=("embed", None), bias=False, dtype=dtype, rngs=rngs)
        self.bias = parameter(rngs, (outputs,), (None,), zeros)

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch h w outputs"]:
        """Twice as high and wide."""
        batch, height, width, _ = x.shape
        y = self.linear(x).reshape(batch, height, width, 2, 2, -1)
        return jnp.swapaxes(y, 2, 3).reshape(batch, 2 * height, 2 * width, -1) + self.bias.get_value()


class SamMaskDecoder(Published):
    """One mask for one prompt, as SAM gives it where no choice among several is asked for.

    Args:
      width: channels of features, tokens and prompts.
      hidden: of the MLPs in the blocks.
      layers: two-way blocks.
      heads: of the attentions.
      downsample: the attention between tokens and picture has so many times fewer channels.
      choices: masks that SAM could choose among; their tokens are read, and their masks are left out.
      depth: linear layers of the MLP that multiplies the features.
      epsilon: of the norms.
    """

    SKIPPED = (
        *("vision_encoder.*", "prompt_encoder.point_embed.*", "prompt_encoder.mask_embed.*"),
        *("prompt_encoder.not_a_point_embed.*", "prompt_encoder.shared_embedding.*"),
        *("mask_decoder.iou_prediction_head.*", "mask_decoder.output_hypernetworks_mlps.[1-9]*"),
    )

    def __init__(
        self,
        *,
        width: Count = 256,
        hidden: Count = 2048,
        layers: Natural = 2,
        heads: Count = 8,
        downsample: Count = 2,
        choices: Natural = 3,
        depth: Count = 3,
        epsilon: Positive = 1e-6,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if width % (heads * downsample):
            raise UserError(f"{heads} heads of a mask decoder do not divide its {width // downsample} channels inside")
        if depth < 2 or width % 8:
            raise UserError("a mask decoder has a width that divides by 8, and an MLP of at least 2 layers")
        common = dict(dtype=dtype, rngs=rngs)
        self.width, inner, table = width, width // downsample, normal(0.02)
        # The quality of masks, the mask, and those that could be chosen instead.
        self.quality = parameter(rngs, (1, width), (None, "embed"), table)
        self.masks = parameter(rngs, (1 + choices, width), (None, "embed"), table)
        self.no_mask = parameter(rngs, (1, width), (None, "embed"), table)
        self.waves = parameter(rngs, (2, width // 2), (None, None), normal(1.0))
        self.blocks = nnx.List(
            [TwoWayBlock(width, inner, heads, hidden, i == 0, epsilon, **common) for i in range(layers)]
        )
        self.last = MaskAttention(width, inner, heads, **common)
        self.last_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.first_doubling = Doubling(width, width // 4, **common)
        self.doubling_norm = LayerNorm(width // 4, epsilon=1e-6, rngs=rngs)
        self.second_doubling = Doubling(width // 4, width // 8, **common)
        sides = [width] * depth + [width // 8]
        self.product = nnx.List(
            [Linear(a, b, axes=("embed", None), bias=True, **common) for a, b in zip(sides, sides[1:], strict=False)]
        )

    @classmethod
    def settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        own = config["mask_decoder_config"]
        if own.get("hidden_act", "relu") != "relu":
            raise UserError("config.json: a mask decoder with another activation than relu is not known")
        return dict(
            width=int(own.get("hidden_size", 256)),
            hidden=int(own.get("mlp_dim", 2048)),
            layers=int(own.get("num_hidden_layers", 2)),
            heads=int(own.get("num_attention_heads", 8)),
            downsample=int(own.get("attention_downsample_rate", 2)),
            choices=int(own.get("num_multimask_outputs", 3)),
            depth=int(own.get("iou_head_depth", 3)),
            epsilon=float(own.get("layer_norm_eps", 1e-6)),
        )

    def names(self):
        decoder, table = "mask_decoder", {}
        parts = {
            "own": "self_attn",
            "to_picture": "cross_attn_token_to_image",
            "to_tokens": "cross_attn_image_to_token",
        }
        for i in range(len(self.blocks)):
            ours, theirs = f"blocks.{i}", f"{decoder}.transformer.layers.{i}"
            for part, name in parts.items():
                table |= _attention_names(f"{ours}.{part}", f"{theirs}.{name}")
            table |= linear_names(f"{ours}.up", f"{theirs}.mlp.lin1") | linear_names(
                f"{ours}.down", f"{theirs}.mlp.lin2"
            )
            for j in range(4):
                table |= norm_names(f"{ours}.norms.{j}", f"{theirs}.layer_norm{j + 1}")
        table |= _attention_names("last", f"{decoder}.transformer.final_attn_token_to_image")
        table |= norm_names("last_norm", f"{decoder}.transformer.layer_norm_final_attn")
        for ours, theirs in (("first_doubling", "upscale_conv1"), ("second_doubling", "upscale_conv2")):
            table[f"{ours}.linear.kernel"] = Source((f"{decoder}.{theirs}.weight",), transposed=True)
            table[f"{ours}.bias"] = f"{decoder}.{theirs}.bias"
        table |= norm_names("doubling_norm", f"{decoder}.upscale_layer_norm")
        mlp, last = f"{decoder}.output_hypernetworks_mlps.0", len(self.product) - 1
        for i in range(len(self.product)):
            name = "proj_in" if i == 0 else "proj_out" if i == last else f"layers.{i - 1}"
            table |= linear_names(f"product.{i}", f"{mlp}.{name}")
        return {
            **table,
            "quality": f"{decoder}.iou_token.weight",
            "masks": f"{decoder}.mask_tokens.weight",
            "no_mask": "prompt_encoder.no_mask_embed.weight",
            "waves": "shared_image_embedding.positional_embedding",
        }

    def places(self, height: int, width: int) -> Float[Array, "places width"]:
        """Sines and cosines of random waves at the middles of the places of a picture."""
        y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
        at = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
        angles = 2 * np.pi * (at @ self.waves.get_value().astype(jnp.float32))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def __call__(
        self, features: Float[Array, "batch height width channels"], prompt: Float[Array, "batch channels"]
    ) -> Float[Array, "batch tall wide"]:
        """Logits of a mask that is ``UPSCALED`` times as fine as the features, float32.

        Args:
          features: of pictures.
          prompt: one vector for each, in the place of SAM's points and boxes.
        """
        batch, height, width, _ = features.shape
        own = jnp.concatenate([self.quality.get_value(), self.masks.get_value()])
        own = jnp.broadcast_to(own, (batch, *own.shape)).astype(features.dtype)
        positions = jnp.concatenate([own, prompt[:, None].astype(features.dtype)], axis=1)
        picture = (features + self.no_mask.get_value().astype(features.dtype)).reshape(batch, -1, self.width)
        of_picture, tokens = self.places(height, width).astype(features.dtype), positions
        for block in self.blocks:
            tokens, picture = block(tokens, picture, positions, of_picture)
        tokens = self.last_norm(tokens + self.last(tokens + positions, picture + of_picture, picture))
        fine = self.first_doubling(picture.reshape(batch, height, width, -1))
        fine = jax.nn.gelu(self.doubling_norm(fine), approximate=False)
        fine = jax.nn.gelu(self.second_doubling(fine), approximate=False)
        weights = tokens[:, 1]
        for i, linear in enumerate(self.product):
            weights = linear(weights)
            weights = jax.nn.relu(weights) if i < len(self.product) - 1 else weights
        return jnp.einsum("bc,bhwc->bhw", weights.astype(jnp.float32), fine.astype(jnp.float32))


def _attention_names(ours: str, theirs: str) -> dict[str, "str | Source"]:
    """The part of a table that a ``MaskAttention`` needs."""
    table: dict[str, str | Source] = {}
    for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
        table |= linear_names(f"{ours}.{part}", f"{theirs}.{name}")
    return table

"""The encoders of T5 (Raffel et al., 2020), v1.0 and v1.1, and of UMT5 (Chung et al., 2023)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.encoders.files import Weights
from videogen.encoders.loading import Published, block_names, lean, norm_names, settings_of
from videogen.errors import UserError
from videogen.nn import Embedding, build_transformer, truncated_normal
from videogen.nn import parameter as new_parameter


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The settings of a T5 encoder that its ``config.json`` gives.

    Attributes:
      gated: v1.1's gated GELU in place of ReLU.
      buckets: number of relative position buckets, half of them for each direction.
      max_distance: distance in tokens beyond which all positions share the last bucket.
      own_positions: every layer has a position bias of its own (UMT5), not the first one's.
    """

    vocabulary_size: int
    width: int
    head_width: int
    mlp_width: int
    layers: int
    heads: int
    gated: bool
    buckets: int
    max_distance: int
    epsilon: float
    own_positions: bool = False

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "T5Config":
        """The settings of what stands in a Hugging Face ``config.json``."""
        activation = raw.get("feed_forward_proj", "relu")
        if activation not in ("relu", "gated-gelu"):
            raise UserError(f"config.json: feed_forward_proj {activation!r} is no T5; known: gated-gelu, relu")
        return cls(
            vocabulary_size=int(raw["vocab_size"]),
            width=int(raw["d_model"]),
            head_width=int(raw["d_kv"]),
            mlp_width=int(raw["d_ff"]),
            layers=int(raw["num_layers"]),
            heads=int(raw["num_heads"]),
            gated=activation == "gated-gelu",
            buckets=int(raw.get("relative_attention_num_buckets", 32)),
            max_distance=int(raw.get("relative_attention_max_distance", 128)),
            epsilon=float(raw.get("layer_norm_epsilon", 1e-6)),
            own_positions=raw.get("model_type") == "umt5",
        )

    @classmethod
    def read(cls, directory: str | Path) -> "T5Config":
        """The settings in the folder of a checkpoint.

        Raises:
          UserError: the file is unreadable, lacks a setting or has an activation T5 does not use.
        """
        return settings_of(T5, directory)["config"]


def relative_buckets(length: int, *, buckets: int, max_distance: int) -> Int[np.ndarray, "queries keys"]:
    """Bucket of every key seen from every query: exact when near, logarithmic when far."""
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32, as in the published models: at powers of two the logarithm decides by its last bit.
    scaled = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    far = np.minimum(exact + (scaled * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class T5(Published):
    """The encoder half of T5 or UMT5: pre-norm attention without score scaling, and no biases.

    Attributes:
      width: width of the features.
    """

    @classmethod
    def describe(cls, directory: str | Path) -> dict[str, Any]:
        return dataclasses.asdict(T5Config.read(directory))

    @classmethod
    def described(cls, description: Mapping[str, Any], *, dtype: jnp.dtype = jnp.float32) -> Self:
        return cls(T5Config(**description), dtype=dtype, rngs=nnx.Rngs(0))

    SKIPPED = ("decoder.*", "lm_head.weight", "shared.weight", "encoder.embed_tokens.weight")

    WORDS = ("shared.weight", "encoder.embed_tokens.weight")
    """Names of the table of words; a file has one of them, or both with equal values."""

    @classmethod
    def load(cls, directory: str | Path, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs | None = None) -> Self:
        weights = Weights(directory)
        tables = [weights[name] for name in cls.WORDS if name in weights]
        if len(tables) > 1 and not np.array_equal(*tables):
            raise UserError(f"{weights.path} has other words in {cls.WORDS[0]!r} than in {cls.WORDS[1]!r}")
        return super().load(directory, dtype=dtype, rngs=rngs)

    def __init__(self, config: T5Config, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config, self.width = config, config.width
        self.embedding = Embedding(config.vocabulary_size, config.width, dtype=dtype, rngs=rngs)
        shape = (config.layers if config.own_positions else 1, config.buckets, config.heads)
        self.position_bias = new_parameter(rngs, shape, ("layers", None, "heads"), truncated_normal(0.02))
        section = dict(
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            mlp_width=config.mlp_width,
            norm={"name": "rms", "epsilon": config.epsilon},
            qk_norm=False,
            attention={"head_width": config.head_width, "scale": 1.0},
            mlp={"kind": "geglu_tanh" if config.gated else "relu"},
        )
        self.transformer = build_transformer(section, dtype=dtype, rngs=rngs)
        lean(self)

    @classmethod
    def settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"config": T5Config.of(config)}

    def names(self):
        layer, gated = "encoder.block.{}.layer", self.config.gated
        attention, forward = f"{layer}.0.SelfAttention", f"{layer}.1.DenseReluDense"
        number = "{}" if self.config.own_positions else "0"
        return {
            "embedding.table": "|".join(self.WORDS),
            "position_bias": f"encoder.block.{number}.layer.0.SelfAttention.relative_attention_bias.weight",
            **norm_names("transformer.norm", "encoder.final_layer_norm"),
            **block_names(
                **{name: f"{attention}.{name[0]}" for name in ("query", "key", "value", "out")},
                attention_norm=f"{layer}.0.layer_norm",
                mlp_norm=f"{layer}.1.layer_norm",
                up=f"{forward}.wi_1" if gated else f"{forward}.wi",
                gate=f"{forward}.wi_0",
                down=f"{forward}.wo",
            ),
        }

    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        """Encodes padded texts of any length; features at padded places are zero, and carry no gradient."""
        buckets = relative_buckets(ids.shape[1], buckets=self.config.buckets, max_distance=self.config.max_distance)
        bias = jnp.moveaxis(self.position_bias.get_value()[:, buckets], -1, 1)
        call = {"per_layer": {"bias": bias}} if self.config.own_positions else {"bias": bias[0]}
        x = self.transformer(self.embedding(jnp.where(mask, ids, 0)), key_mask=mask, **call)
        return jax.lax.stop_gradient(jnp.where(mask[..., None], x, 0))

"""BERT (Devlin et al., 2018) and sentence embeddings of its type, such as all-MiniLM-L6-v2."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.encoders.loading import Published, block_names, norm_names
from videogen.encoders.vit import activation
from videogen.nn import Embedding, LayerNorm, Transformer, block_stack, l2_normalize
from videogen.nn.attention import PROJECTIONS


class Bert(Published):
    """A bidirectional transformer whose norms stand behind the sums.

    Args:
      vocabulary_size: number of token ids.
      length: the longest text in tokens.
      width, layers, heads, hidden: sizes of the transformer.
      kinds: number of kinds of text; every text here is of the first.
      kind: of the MLP.
      epsilon: of the norms.
      remat: what the backward pass keeps, where it is trained along.
    """

    PREFIXES = ("", "bert.")
    SKIPPED = ("*pooler.*", "cls.*", "*.position_ids", "classifier.*")

    def __init__(
        self,
        *,
        vocabulary_size: int,
        length: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        kinds: int = 2,
        kind: str = "gelu",
        epsilon: float = 1e-12,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.width, self.length = width, length
        common = dict(dtype=dtype, rngs=rngs)
        self.embedding = Embedding(vocabulary_size, width, **common)
        self.positions = Embedding(length, width, axes=(None, "embed"), **common)
        self.kinds = Embedding(kinds, width, axes=(None, "embed"), **common)
        norm = {"name": "layer", "epsilon": epsilon}
        self.norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        sections = dict(
            attention={"heads": heads, "qk_norm": None, "bias": PROJECTIONS},
            mlp={"hidden": hidden, "kind": kind, "bias": True},
            norm=norm,
            norm_after=True,
        )
        self.transformer = Transformer(block_stack(width, layers, remat=remat, **sections, **common))

    @classmethod
    def settings(cls, config):
        return dict(
            vocabulary_size=int(config["vocab_size"]),
            length=int(config.get("max_position_embeddings", 512)),
            width=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            hidden=int(config["intermediate_size"]),
            kinds=int(config.get("type_vocab_size", 2)),
            kind=activation(config.get("hidden_act", "gelu")),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
        )

    def names(self):
        layer = "encoder.layer.{}"
        return {
            "embedding.table": "embeddings.word_embeddings.weight",
            "positions.table": "embeddings.position_embeddings.weight",
            "kinds.table": "embeddings.token_type_embeddings.weight",
            **norm_names("norm", "embeddings.LayerNorm"),
            **block_names(
                **{name: f"{layer}.attention.self.{name}" for name in ("query", "key", "value")},
                out=f"{layer}.attention.output.dense",
                attention_norm=f"{layer}.attention.output.LayerNorm",
                mlp_norm=f"{layer}.output.LayerNorm",
                up=f"{layer}.intermediate.dense",
                down=f"{layer}.output.dense",
            ),
        }

    def embedded(
        self, vectors: Float[Array, "batch length embed"], kind: int = 0
    ) -> Float[Array, "batch length embed"]:
        """Words by their vectors of ``embedding``, as the first layer takes them: with positions and their kind."""
        positions = self.positions(jnp.arange(vectors.shape[1]))
        return self.norm(vectors + positions + self.kinds(jnp.full(vectors.shape[1], kind)))

    def tokens(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length embed"]:
        """Every token after the last layer; ``mask`` says which exist."""
        return self.transformer(self.embedded(self.embedding(ids)), key_mask=mask)

    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch embed"]:
        """The embedding of texts: the mean of their tokens, of unit length."""
        weight = mask[..., None].astype(jnp.float32)
        total = jnp.sum(self.tokens(ids, mask).astype(jnp.float32) * weight, axis=1)
        return l2_normalize(total / jnp.maximum(weight.sum(axis=1), 1))

"""Language models of the types Llama (Touvron et al., 2023; Llama 3.1) and Qwen2 (Yang et al., 2024)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.encoders.loading import Published, Table, block_names, linear_names, norm_names
from videogen.errors import UserError
from videogen.nn import Causal, Embedding, Linear, Mask, RotaryScaling, Stream, Tags, build_transformer
from videogen.nn.masks import NONE


def frequencies(head_width: int, base: float, scaling: Mapping[str, Any]) -> Float[np.ndarray, "half_head_width"]:
    """Radians per position for the pairs of channels of a head.

    Args:
      head_width: even.
      base: wavelength base.
      scaling: ``{rope_type, …}``: ``default``; ``linear`` or ``ntk`` with a ``factor`` (``nn.RotaryScaling``), where
        ``ntk`` is ours, for contexts that the model was not trained with; or ``llama3``, which divides slow frequencies
        by ``factor``, keeps fast ones, and mixes between ``low_freq_factor`` and ``high_freq_factor`` turns of the
        context it was first trained with.

    Raises:
      UserError: another kind.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    own = base ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    if kind == "default":
        return own
    if kind in ("linear", "ntk"):
        return RotaryScaling(kind=kind, factor=scaling["factor"]).frequencies(head_width, base)
    if kind != "llama3":
        raise UserError(
            f"config.json: rotary positions of the type {kind!r} are not known; known: default, linear, llama3, ntk"
        )
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * own / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return share * own + (1 - share) * own / scaling["factor"]


class Decoder(Published):
    """A causal transformer with rotary positions, RMS norms and gated MLPs.

    Args:
      vocabulary_size: number of token ids.
      width, layers, heads, hidden: sizes of the transformer.
      key_value_heads, head_width: of the attention.
      bias: the projections of the attention that have one.
      mlp_bias: the MLPs have biases.
      epsilon: of the norms.
      rope: ``{rope_theta, …}``: base and scaling of the rotary positions, as for ``frequencies``.
      tied: scores of tokens come from the table of embeddings.
      lora: ``{rank, alpha}`` of low-rank updates of all linear layers of the blocks, or with ``only`` of these
        projections of the attention; ``None``: none, as published.
      remat: what a backward pass keeps, a name in ``nn.REMAT_POLICIES``.
    """

    SKIPPED = ("*.rotary_emb.inv_freq", "lm_head.weight")
    PREFIXES = ("model.", "", "language_model.model.")

    def __init__(
        self,
        *,
        vocabulary_size: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        key_value_heads: int,
        head_width: int,
        bias: Sequence[str] = (),
        mlp_bias: bool = False,
        epsilon: float = 1e-6,
        rope: Mapping[str, Any] | None = None,
        tied: bool = False,
        lora: Mapping[str, Any] | None = None,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.width, self.vocabulary_size = width, vocabulary_size
        rope, update = rope or {}, {"lora": lora} if lora else {}
        self.frequencies = tuple(frequencies(head_width, rope.get("rope_theta", 10_000.0), rope).tolist())
        self.embedding = Embedding(vocabulary_size, width, dtype=dtype, rngs=rngs)
        section = dict(
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=hidden,
            norm={"name": "rms", "epsilon": epsilon},
            qk_norm=False,
            attention=dict(key_value_heads=key_value_heads, head_width=head_width, bias=bias, **update),
            mlp={"kind": "swiglu", "bias": mlp_bias, **({} if "only" in (lora or {}) else update)},
        )
        self.transformer = build_transformer(section, remat=remat, dtype=dtype, rngs=rngs)
        shape = dict(axes=("embed", "vocabulary"), bias=False)
        self.head = None if tied else Linear(width, vocabulary_size, **shape, dtype=dtype, rngs=rngs)

    @classmethod
    def settings(cls, config):
        kind, heads = config.get("model_type"), int(config["num_attention_heads"])
        if kind not in ("llama", "qwen2", "mistral"):
            raise UserError(f"config.json: model_type {kind!r} is not known here; known: llama, mistral, qwen2")
        if config.get("hidden_act", "silu") != "silu":
            raise UserError(f"config.json: hidden_act {config['hidden_act']!r} is not known here; known: silu")
        window = config.get("use_sliding_window", kind == "mistral" and config.get("sliding_window"))
        if window:
            raise UserError("config.json: attention in sliding windows is not known here")
        everywhere = ("query", "key", "value", "out")
        own = config.get("rope_scaling") or config.get("rope_parameters") or {}
        return dict(
            vocabulary_size=int(config["vocab_size"]),
            width=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            hidden=int(config["intermediate_size"]),
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or config["hidden_size"] // heads),
            bias=everywhere[:3] if kind == "qwen2" else everywhere if config.get("attention_bias") else (),
            mlp_bias=bool(config.get("mlp_bias", False)),
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope={"rope_theta": config.get("rope_theta", 10_000.0), **own},
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    def names(self) -> Table:
        layer = "layers.{}"
        return {
            "embedding.table": "embed_tokens.weight",
            **linear_names("head", "/lm_head"),
            **norm_names("transformer.norm", "norm"),
            **block_names(
                **{name: f"{layer}.self_attn.{name[0]}_proj" for name in ("query", "key", "value", "out")},
                attention_norm=f"{layer}.input_layernorm",
                mlp_norm=f"{layer}.post_attention_layernorm",
                up=f"{layer}.mlp.up_proj",
                gate=f"{layer}.mlp.gate_proj",
                down=f"{layer}.mlp.down_proj",
            ),
        }

    def tokens(
        self,
        embedded: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        positions: Int[Array, "batch length"] | None = None,
        sees: Mask = Causal(),
        tags: Tags = NONE,
        stream: Stream | None = None,
    ) -> Float[Array, "batch length width"]:
        """Every token after the last norm.

        Args:
          embedded: from ``embedding``, or of another modality.
          mask: which tokens exist; a text may be padded on either side.
          positions: of the tokens; by default 0, 1, ….
          sees: which tokens may see which, where it is not the past.
          tags: of the tokens, which ``sees`` compares.
          stream: the caches of ``begin``, which these tokens continue.
        """
        given = dict(positions=positions, sees=sees, tags=tags, stream=stream)
        return self.transformer.finish(self.trunk(embedded, mask, **given)[0])

    def trunk(
        self,
        embedded: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        positions: Int[Array, "batch length"] | None = None,
        sees: Mask = Causal(),
        tags: Tags = NONE,
        **call: Any,
    ) -> tuple[Float[Array, "batch some width"], Mapping[str, Any]]:
        """Tokens before the last norm, and the arguments of the layers as hooks left them (``Transformer.trunk``).

        Arguments are those of ``tokens``, and what else the layers and their hooks take.
        """
        own = {**self._call(embedded, mask, positions), "mask": sees, "tags": tags}
        return self.transformer.trunk(embedded, **own, **call)[:2]

    def states(
        self, embedded: Float[Array, "batch length width"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "layers batch length width"]:
        """Every token behind each layer, before the last norm; what the embedding gives is none of them."""
        return self.transformer.stack.states(embedded, **self._call(embedded, mask))

    def _call(self, embedded: Array, mask: Array | None, positions: Array | None = None) -> dict[str, Any]:
        """The arguments of the layers."""
        if positions is None:
            positions = jnp.arange(embedded.shape[1])[None]
        angles = positions[..., None] * jnp.asarray(self.frequencies, jnp.float32)
        angles = jnp.broadcast_to(angles, (len(embedded), *angles.shape[1:]))
        return dict(mask=Causal(), key_mask=mask, rotary=angles)

    def begin(self, batch: int, length: int, tags: Sequence[str] | None = None) -> tuple[Any, ...]:
        """The caches of empty texts of at most ``length`` tokens, for decoding with a ``Stream``.

        With ``tags``, none or some, they know their places (``nn.caches.Places``).
        """
        return self.transformer.begin(batch, length, tags=tags)

    def scores(self, tokens: Float[Array, "batch length width"]) -> Float[Array, "batch length vocabulary"]:
        """Logits of what follows each token."""
        if self.head is not None:
            return self.head(tokens)
        return tokens @ self.embedding.table.get_value().astype(tokens.dtype).T

    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length vocabulary"]:
        """Logits of what follows each token of padded texts."""
        return self.scores(self.tokens(self.embedding(ids), mask))

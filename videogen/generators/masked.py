"""Masked transformer over video codes: MaskGIT training on the C-ViViT grid (Phenaki section 2.2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.conditioning import Conditioning, NullableContext
from videogen.generators.maskgit import MaskGITSampler, decode
from videogen.generators.sampling import guide
from videogen.nn import (
    NORMS,
    Block,
    Embedding,
    LearnedPositions,
    Linear,
    Stack,
    rotary_angles,
    truncated_normal,
)
from videogen.schedules import decay
from videogen.shapes import Codes, TokenGrid


def random_mask(
    key: jax.Array, ratio: Float[Array, "batch"], exists: Bool[Array, "batch tokens"]
) -> Bool[Array, "batch tokens"]:
    """Masks ``ceil(ratio · n)`` uniformly chosen places (at least one) of the ``n`` that exist in each row."""
    noise = jnp.where(exists, jax.random.uniform(key, exists.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(noise, axis=-1), axis=-1)
    count = jnp.maximum(jnp.ceil(ratio * exists.sum(-1)), 1)
    return exists & (rank < count[:, None])


class MaskedTransformer(nnx.Module):
    """Bidirectional transformer that predicts masked codes from the visible ones and the conditioning.

    Args:
      vocabulary: codes per level; this generator takes one level.
      grid: ``(time, height, width)`` of the longest training clip; shorter clips use the first rows of the
        position table, longer ones slide the window.
      width, layers, heads, mlp_width: size of the transformer.
      context_width: width of the conditioning features; ``None`` builds an unconditional model.
      classes: number of class labels; ``None`` means a model without labels.
      null_keys: learned always-visible slots of the cross-attention.
      rotary: 3-D rotary positions in self-attention, beside the learned table.
      position_generator: depthwise convolutions over the grid, as in phenaki-pytorch.
      dropout: rate on the residual branches.
      training_schedule: law of the mask ratio over u ~ U(0, 1): ``linear`` is the paper's uniform ratio,
        ``cosine`` that of MaskGIT and phenaki-pytorch.
      condition_drop: share of examples trained with the null conditioning (for guidance).
      label_smoothing: smoothing of the cross-entropy targets.
    """

    def __init__(
        self,
        vocabulary: Sequence[int],
        grid: Sequence[int],
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        *,
        context_width: int | None = None,
        classes: int | None = None,
        null_keys: int = 0,
        rotary: bool = False,
        position_generator: bool = False,
        dropout: float = 0.0,
        training_schedule: str = "linear",
        condition_drop: float = 0.1,
        label_smoothing: float = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        (self.vocabulary,) = vocabulary
        self.grid = TokenGrid(*grid)
        self.dropout, self.training_schedule = dropout, training_schedule
        self.condition_drop, self.label_smoothing = condition_drop, label_smoothing
        self.rotary, self.head_width = rotary, width // heads
        self.embedding = Embedding(self.vocabulary + 1, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(self.grid.tokens, width, rngs=rngs)
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        self.stack = Stack(
            lambda r: Block(
                width,
                heads,
                mlp_width,
                context_width=context_width,
                null_keys=null_keys,
                position_generator="bidirectional" if position_generator else None,
                depth=layers,
                dropout=dropout,
                dtype=dtype,
                rngs=r,
            ),
            layers,
            remat=remat,
            rngs=rngs,
        )
        self.norm = NORMS["rms"](width, rngs=rngs)
        self.head = Linear(
            width,
            self.vocabulary,
            axes=("embed", "vocabulary"),
            initializer=truncated_normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def mask_id(self) -> int:
        """The id of ``[MASK]``, one past the last code."""
        return self.vocabulary

    def logits(
        self,
        ids: Int[Array, "batch tokens"],
        conditioning: Conditioning,
        *,
        exists: Bool[Array, "batch tokens"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch tokens vocabulary"]:
        """Float32 logits of every place; ``ids`` may hold ``mask_id``, ``exists`` hides places from attention."""
        return self.grid_logits(ids, conditioning, exists=exists, key=key).reshape(*ids.shape, self.vocabulary)

    def grid_logits(
        self,
        ids: Int[Array, "batch tokens"],
        conditioning: Conditioning,
        *,
        exists: Bool[Array, "batch tokens"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "batch time height width vocabulary"]:
        """The logits on the grid, whose axes may be sharded; one flat sequence axis could not be."""
        batch, length = ids.shape
        positions = self.positions(length)
        x = self.embedding(ids.reshape(batch, -1, self.grid.height, self.grid.width))
        x = x + positions.astype(x.dtype).reshape(x.shape[1:])
        context = context_mask = None
        if self.context is not None:
            context, context_mask = self.context(conditioning)
        x = self.stack(
            x,
            attended_axes=3,
            key_mask=exists,
            rotary=rotary_angles(self.grid.shape, self.head_width)[:length] if self.rotary else None,
            context=context,
            context_mask=context_mask,
            key=key,
        )
        return self.head(self.norm(x)).astype(jnp.float32)

    def loss(
        self, codes: Codes, conditioning: Conditioning, key: jax.Array, *, train: bool = True
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross-entropy over masked places, in nats, and metrics ``loss``, ``accuracy``, ``mask_ratio``."""
        ids = codes.indices.reshape(codes.indices.shape[0], -1)
        batch = ids.shape[0]
        exists = codes.mask if codes.mask is not None else jnp.ones(ids.shape, bool)
        ratio_key, mask_key, drop_key, dropout_key = jax.random.split(key, 4)
        ratio = decay(self.training_schedule, jax.random.uniform(ratio_key, (batch,)))
        masked = random_mask(mask_key, ratio, exists)
        if train and self.condition_drop > 0:
            conditioning = conditioning.drop(jax.random.bernoulli(drop_key, self.condition_drop, (batch,)))
        logits = self.grid_logits(
            jnp.where(masked, self.mask_id, ids),
            conditioning,
            exists=codes.mask,
            key=dropout_key if train and self.dropout else None,
        )
        ids, masked = (x.reshape(logits.shape[:-1]) for x in (ids, masked))
        log_probability = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_probability, ids[..., None], -1)[..., 0]
        if self.label_smoothing and train:
            nll = (1 - self.label_smoothing) * nll - self.label_smoothing * log_probability.mean(-1)
        count = jnp.maximum(masked.sum(), 1)
        loss = jnp.where(masked, nll, 0.0).sum() / count
        accuracy = (masked & (logits.argmax(-1) == ids)).sum() / count
        return loss, {"loss": loss, "accuracy": accuracy, "mask_ratio": masked.sum() / exists.sum()}

    def sample(
        self,
        grid: TokenGrid,
        conditioning: Conditioning,
        keys: jax.Array,
        sampler: MaskGITSampler,
        prefix: Codes | None = None,
    ) -> Codes:
        """Draws codes of ``grid`` for every example; ``prefix`` codes are kept as they are.

        Args:
          grid: at most the training grid.
          conditioning: one entry per example.
          keys: ``[batch]`` random keys, one per example: a draw does not depend on its neighbours in the batch.
          sampler: how to decode.
          prefix: codes of the first latent frames (Phenaki section 2.3: extension, image animation).
        """
        batch = keys.shape[0]
        ids = jnp.full((batch, grid.tokens), self.mask_id, jnp.int32)
        if prefix is not None:
            known = prefix.indices.reshape(batch, -1)
            ids = ids.at[:, : known.shape[1]].set(known)

        def logits(ids: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens vocabulary"]:
            if sampler.guidance_scale == 0 or self.context is None:
                return self.logits(ids, conditioning)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conditioning, conditioning.null())
            return guide(self.logits(jnp.concatenate([ids, ids]), both), sampler.guidance_scale)

        ids = decode(logits, ids, self.mask_id, keys, sampler)
        return Codes(ids.reshape(batch, *grid.shape, 1), grid)

"""A learned critic of drawn codes (Lezama et al., 2022, "Improved masked image generation with Token-Critic").

MaskGIT keeps the codes its generator is surest of, each judged as if it were drawn alone. The critic sees all of them
together and says of each whether it is true or drawn; decoding then keeps those that look true, and may draw anew what
it had kept before.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.conditioning import Conditioning, NullableContext
from videogen.errors import UserError
from videogen.generators.heads import LevelEmbedding
from videogen.nn import (
    NORMS,
    LearnedPositions,
    Linear,
    MicroBatch,
    block_stack,
    named_key,
    rotary_angles,
    truncated_normal,
)
from videogen.ranges import Count, Natural, Weight
from videogen.shapes import TokenGrid


class TokenCritic(nnx.Module):
    """Bidirectional transformer from a clip of codes, none of them masked, to one logit per place: true or drawn.

    It shares no parameters with the generator, and its loss has no gradient to what it is shown.

    Args:
      layers: its depth.
      weight: weight of its loss beside the generator's.
      vocabulary: codes per level.
      grid: ``(time, height, width)`` of the longest training clip.
      width, heads, mlp_width: size of a layer.
      context_width: width of the conditioning features; ``None`` builds an unconditional critic.
      classes: number of class labels; ``None`` means a critic without labels.
      rotary, position_generator: as for ``MaskedTransformer``.
    """

    def __init__(
        self,
        layers: Natural,
        *,
        weight: Weight = 1.0,
        vocabulary: Sequence[int],
        grid: Sequence[int],
        width: Count,
        heads: Count,
        mlp_width: Count,
        context_width: int | None,
        classes: int | None,
        rotary: bool,
        position_generator: bool,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if weight <= 0:
            raise UserError(f"a critic learns by its loss: its weight must be positive, got {weight}")
        self.weight, self.grid = weight, TokenGrid(*grid)
        self.rotary, self.head_width = rotary, width // heads
        self.embedding = LevelEmbedding(vocabulary, width, dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(self.grid.tokens, width, rngs=rngs)
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        self.stack = block_stack(
            width,
            layers,
            attention={"heads": heads},
            mlp={"hidden": mlp_width},
            cross_attention={"context_width": context_width} if context_width else None,
            position_generator="bidirectional" if position_generator else None,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = NORMS["rms"](width, rngs=rngs)
        self.head = Linear(width, 1, axes=("embed", None), initializer=truncated_normal(0.02), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        ids: Int[Array, "batch tokens levels"],
        conditioning: Conditioning,
        exists: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens"]:
        """Float32 logits of "this code is true" in raster order; ``exists`` hides places from attention."""
        batch, length = ids.shape[:2]
        # On the grid, whose axes may be sharded.
        x = self.embedding(ids.reshape(batch, -1, self.grid.height, self.grid.width, ids.shape[-1]))
        x = x + self.positions(length).astype(x.dtype).reshape(x.shape[1:])
        context = context_mask = None
        if self.context is not None:
            context, context_mask = self.context(conditioning)
        x = self.stack(
            x,
            attended_axes=3,
            key_mask=exists,
            rotary=rotary_angles(x.shape[1:4], self.head_width) if self.rotary else None,
            context=context,
            context_mask=context_mask,
        )
        return self.head(self.norm(x)).astype(jnp.float32).reshape(batch, length)

    def loss(
        self,
        ids: Int[Array, "batch tokens levels"],
        logits: Sequence[Float[Array, "batch tokens vocabulary"]],
        drawn: Bool[Array, "batch tokens"],
        conditioning: Conditioning,
        key: jax.Array,
        exists: Bool[Array, "batch tokens"] | None = None,
        micro: MicroBatch | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Weighted binary cross-entropy in nats when codes are drawn from ``logits``, and metrics.

        Metrics: ``critic_loss``, unweighted, and ``critic_accuracy``, the share of places judged right.

        Args:
          ids: the true codes.
          logits: the generator's, of each level.
          drawn: the places to draw.
          conditioning: one entry per example.
          key: for the draws.
          exists: the places that count; ``None`` means all.
          micro: which examples of the batch these are; ``None`` means all.
        """
        micro = micro or MicroBatch()
        logits, conditioning = jax.lax.stop_gradient((logits, conditioning))
        keys = [micro.keys(named_key(key, f"level_{level}"), len(ids)) for level in range(len(logits))]
        draws = [jax.vmap(jax.random.categorical)(k, part) for k, part in zip(keys, logits, strict=True)]
        shown = jnp.where(drawn[..., None], jnp.stack(draws, axis=-1), ids)
        scores = self(shown, conditioning, exists)
        errors = optax.sigmoid_binary_cross_entropy(scores, (~drawn).astype(jnp.float32))
        counted = jnp.ones(drawn.shape, bool) if exists is None else exists
        count = jnp.maximum(micro.mean(counted.sum() * 1.0), 1 / micro.count)
        loss = jnp.where(counted, errors, 0.0).sum() / count
        accuracy = (counted & ((scores > 0) == ~drawn)).sum() / count
        return self.weight * loss, {"critic_loss": loss, "critic_accuracy": accuracy}

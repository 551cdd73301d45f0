"""A learned critic of drawn codes (Lezama et al., 2022, "Improved masked image generation with Token-Critic").

MaskGIT keeps the codes its generator is surest of, each judged as if it were drawn alone. The critic sees all of them
together and says of each whether it is true or drawn; decoding then keeps those that look true, and may draw anew what
it had kept before.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from videogen.conditioning import Conditioning, NullableContext
from videogen.errors import UserError
from videogen.heads import Head
from videogen.nn import LearnedPositions, Linear, MicroBatch, TransformerSection, rotary_angles, truncated_normal
from videogen.ranges import Natural, Weight
from videogen.shapes import TokenGrid


class TokenCritic(nnx.Module):
    """Bidirectional transformer from a clip of codes, none of them masked, to one logit per place: true or drawn.

    It shares no parameters with the generator, and its loss has no gradient to what it is shown.

    Args:
      layers: its depth.
      weight: weight of its loss beside the generator's.
      head: of the generator, which knows what its values are.
      grid: ``(time, height, width)`` of the longest training clip.
      transformer: that of the generator, whose width, heads and positions the critic has.
      context_width: width of the conditioning features; ``None`` builds an unconditional critic.
      classes: number of class labels; ``None`` means a critic without labels.
    """

    def __init__(
        self,
        layers: Natural,
        *,
        weight: Weight = 1.0,
        head: Head,
        grid: Sequence[int],
        transformer: TransformerSection,
        context_width: int | None,
        classes: int | None,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if weight <= 0:
            raise UserError(f"a critic learns by its loss: its weight must be positive, got {weight}")
        self.weight, self.grid, width = weight, TokenGrid(*grid), transformer.width
        self.rotary, self.head_width = transformer.rotary, transformer.head_width
        self.embedding = head.input_embedding(width, dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(self.grid.tokens, width, rngs=rngs)
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        own = dataclasses.replace(transformer, layers=layers, null_keys=0, dropout=0.0)
        self.stack = own.stack(context_width=context_width, remat=remat, dtype=dtype, rngs=rngs)
        self.norm = own.last_norm(rngs=rngs)
        self.head = Linear(width, 1, axes=("embed", None), initializer=truncated_normal(0.02), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        values: Shaped[Array, "batch tokens levels"],
        conditioning: Conditioning,
        exists: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens"]:
        """Float32 logits of "this code is true" in raster order; ``exists`` hides places from attention."""
        batch, length = values.shape[:2]
        # On the grid, whose axes may be sharded.
        x = self.embedding(values.reshape(batch, -1, self.grid.height, self.grid.width, values.shape[-1]))
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
        values: Shaped[Array, "batch tokens levels"],
        draws: Shaped[Array, "batch tokens levels"],
        drawn: Bool[Array, "batch tokens"],
        conditioning: Conditioning,
        exists: Bool[Array, "batch tokens"] | None = None,
        micro: MicroBatch | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Weighted binary cross-entropy in nats when some places are drawn, and metrics.

        Metrics: ``critic_loss``, unweighted, and ``critic_accuracy``, the share of places judged right.

        Args:
          values: the true ones.
          draws: the generator's, of every place.
          drawn: the places that show draws.
          conditioning: one entry per example.
          exists: the places that count; ``None`` means all.
          micro: which examples of the batch these are; ``None`` means all.
        """
        micro = micro or MicroBatch()
        draws, conditioning = jax.lax.stop_gradient((draws, conditioning))
        scores = self(jnp.where(drawn[..., None], draws, values), conditioning, exists)
        errors = optax.sigmoid_binary_cross_entropy(scores, (~drawn).astype(jnp.float32))
        counted = jnp.ones(drawn.shape, bool) if exists is None else exists
        count = jnp.maximum(micro.mean(counted.sum() * 1.0), 1 / micro.count)
        loss = jnp.where(counted, errors, 0.0).sum() / count
        accuracy = (counted & ((scores > 0) == ~drawn)).sum() / count
        return self.weight * loss, {"critic_loss": loss, "critic_accuracy": accuracy}

"""From a conditioning to the keys a generator attends to, with learned embeddings for what is absent."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.conditioning.types import NULL_LABEL, Conditioning
from videogen.errors import UserError
from videogen.nn import Embedding, parameter, truncated_normal


class NullableContext(nnx.Module):
    """Lays out text and label as one sequence of keys; absent parts become learned null embeddings.

    An example without text keeps one visible key, the null vector at position 0, so what the generator
    sees of it depends on nothing else. Rows of masked tokens are zero.

    With a ``length`` every text has so many rows, and those behind its last token are zeros that are seen as well (Wan
    was trained so); an example without text has the null table, the text encoder's features of an empty text.

    Args:
      width: width of the text features and of the keys.
      classes: number of labels; appends one key per example (row ``classes`` of the table is the null
        label). ``None`` means a generator that takes no labels. Labels are range-checked at the data border.
      length: rows of every text; 0: its own.
      layered: of texts with a vector of every layer of a language model all are passed on, not only those of the last.
    """

    def __init__(
        self, width: int, *, classes: int | None = None, length: int = 0, layered: bool = False, rngs: nnx.Rngs
    ):
        self.width, self.classes, self.length, self.layered = width, classes, length, layered
        shape, axes = ((length, width), (None, "embed")) if length else ((width,), ("embed",))
        self.null_text = parameter(rngs, shape, axes, truncated_normal(0.02))
        self.label = Embedding(classes + 1, width, rngs=rngs) if classes is not None else None

    def __call__(
        self, conditioning: Conditioning
    ) -> tuple[Float[Array, "batch keys *layers width"], Bool[Array, "batch keys"]]:
        """Returns the keys and which of them exist: text length (at least 1) plus one for the label.

        Raises:
          UserError: there is a label but no table for it, or the text has another width.
        """
        batch = conditioning.batch_size
        context, mask = self._text(conditioning, batch)
        if self.label is None:
            if conditioning.label is not None:
                raise UserError("this generator takes no labels; set 'classes' or leave the label out")
            return context, mask
        index = jnp.full(batch, NULL_LABEL) if conditioning.label is None else conditioning.label
        row = self.label(jnp.where(index < 0, self.classes, index))
        row = row.reshape(batch, *(1,) * (context.ndim - 2), -1).astype(context.dtype)
        context = jnp.concatenate([context, jnp.broadcast_to(row, (batch, 1, *context.shape[2:]))], axis=1)
        return context, jnp.concatenate([mask, jnp.ones((batch, 1), bool)], axis=1)

    def _text(
        self, conditioning: Conditioning, batch: int
    ) -> tuple[Float[Array, "batch keys *layers width"], Bool[Array, "batch keys"]]:
        null = self.null_text.get_value()
        if conditioning.text is None and self.length:
            return jnp.broadcast_to(null, (batch, *null.shape)), jnp.ones((batch, self.length), bool)
        if conditioning.text is None:
            return jnp.broadcast_to(null, (batch, 1, self.width)), jnp.ones((batch, 1), bool)
        features, mask = conditioning.text.features, conditioning.text.mask
        if features.ndim == 4 and not self.layered:
            features = features[:, :, -1]
        if features.shape[-1] != self.width:
            raise UserError(f"text features have width {features.shape[-1]}, the context has width {self.width}")
        absent = ~jnp.any(mask, axis=1)
        rest = (1,) * (features.ndim - 2)
        context = jnp.where(mask.reshape(*mask.shape, *rest), features, 0)
        if self.length:
            return self._padded(context, absent, null)
        first = jnp.where(absent.reshape(-1, *rest), null.astype(context.dtype), context[:, 0])
        context = context.at[:, 0].set(first)
        return context, mask.at[:, 0].set(mask[:, 0] | absent)

    def _padded(
        self,
        context: Float[Array, "batch keys width"],
        absent: Bool[Array, "batch"],
        null: Float[Array, "length width"],
    ) -> tuple[Float[Array, "batch length width"], Bool[Array, "batch length"]]:
        """Texts with zeros behind them up to ``length``, all of which is seen."""
        if (more := self.length - context.shape[1]) < 0:
            raise UserError(f"texts have {context.shape[1]} tokens, and this generator reads {self.length}")
        context = jnp.pad(context, ((0, 0), (0, more), (0, 0)))
        context = jnp.where(absent[:, None, None], null.astype(context.dtype), context)
        return context, jnp.ones(context.shape[:2], bool)

"""Deep fusion: every layer of a generator sees what one layer of a language model makes of the text."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import ExtraKeys, Linear, Stack

States = Float[Array, "batch keys width"] | Float[Array, "batch keys states width"]


class DeepText(nnx.Module):
    """Keys and values of the text for every layer of a stack, which sees them beside its tokens (Instella-T2I).

    Hidden states go through a linear layer that all layers share, and then through a layer's own norm and its own
    projections to keys and values, as its tokens do; they have no position but what the language model has given them.

    Args:
      context_width: of the hidden states.
      width: of the stack.
    """

    def __init__(self, context_width: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.project = Linear(context_width, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)

    def states(self, features: States, depth: int) -> Float[Array, "layers batch keys width"]:
        """What each of ``depth`` layers reads: of as many hidden states each its own, of fewer neighbours the same.

        Raises:
          UserError: the layers cannot be shared out evenly.
        """
        features = features if features.ndim == 4 else features[:, :, None]
        given = features.shape[2]
        if depth % given:
            raise UserError(
                f"the text has {given} hidden states, one of each layer of its encoder, and the generator's {depth} "
                f"layers cannot share them evenly: set model.transformer.layers to a multiple of {given}"
            )
        return jnp.repeat(jnp.moveaxis(self.project(features), 2, 0), depth // given, axis=0)

    def __call__(self, features: States, mask: Bool[Array, "batch keys"], stack: Stack) -> ExtraKeys:
        """What ``stack`` takes as ``per_layer["extra_kv"]``, with the layers in front.

        Args:
          features: hidden states of every layer of a language model, the first one without its embeddings, or of any
            text encoder what all layers see.
          mask: which tokens of the text exist.
          stack: the layers.
        """
        return stack.beside(self.states(features, stack.depth), mask)

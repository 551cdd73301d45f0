"""A small text encoder that is trained together with the generator."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from videogen.conditioning.types import EncodedText
from videogen.nn import Embedding, LearnedPositions, RMSNorm, block_stack
from videogen.ranges import Count, Natural


class TextEncoder(nnx.Module):
    """Bidirectional transformer over token ids.

    Args:
      vocabulary_size: number of token ids.
      length: the longest text in tokens.
      width: width of the features.
      layers: number of blocks.
      heads: attention heads.
      dtype: dtype of the matrix products and features.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: Count,
        width: Count,
        layers: Natural,
        heads: Count,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.width = width
        self.embedding = Embedding(vocabulary_size, width, dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(length, width, rngs=rngs)
        sections = dict(attention={"heads": heads}, mlp={"hidden": 4 * width})
        self.stack = block_stack(width, layers, **sections, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(width, rngs=rngs)

    def __call__(self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]) -> EncodedText:
        """Encodes padded texts.

        Args:
          ids: token ids; what stands at padded places does not matter.
          mask: which tokens exist.

        Returns:
          Features, zero at padded places, and the mask.

        Raises:
          UserError: the text is longer than the position table.
        """
        # Ids of padding are replaced so that they cannot matter even for a text without any token.
        x = self.embedding(jnp.where(mask, ids, 0))
        x = x + self.positions(ids.shape[1]).astype(x.dtype)
        x = self.norm(self.stack(x, key_mask=mask))
        return EncodedText(jnp.where(mask[..., None], x, 0), mask)

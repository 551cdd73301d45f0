"""Additive quantization: a sum of full-width codes from several codebooks, found together by beam search."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.losses.commitment import codebook_loss, commitment
from videogen.nn import Mean, parameter, truncated_normal, whole
from videogen.quantizers.base import Quantized, Quantizer, count_levels, nearest_euclidean, product, weighted


class AdditiveQuantizer(Quantizer):
    """``q = Σ e_m`` with codebooks learned jointly: by the codebook loss on the sum and by the decoder's gradient.

    The encoding starts from the first level and keeps the ``beam`` best partial sums. The greedy choice, which is
    that of a residual quantizer, is a candidate too, so that a beam never does worse than it. Memory: tokens × codes.

    Args:
      size: number of codes per level.
      width: code width.
      levels: number of codebooks.
      beam: partial sums kept per latent; 1 is greedy.
      commitment_weight: weight of ``mean (z - sg(q))²``; that of ``mean (sg(z) - q)²`` is 1.
    """

    euclidean = True
    remedy = "use fewer codes or levels, or 'residual' over 'vq' with restart_threshold"

    def __init__(
        self, size: int, width: int, levels: int, *, beam: int = 8, commitment_weight: float = 0.25, rngs: nnx.Rngs
    ):
        if levels < 1 or not 1 <= beam <= size:
            raise UserError(
                f"additive quantization needs levels >= 1 and a beam of 1 … {size}, got {levels} and {beam}"
            )
        self.size, self.width, self.levels, self.beam = size, width, levels, beam
        self.commitment_weight = commitment_weight
        shape = (levels, size, width)
        self.codebooks = parameter(rngs, shape, (None, "codebook", None), truncated_normal(width**-0.5))

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of each level."""
        return (self.size,) * self.levels

    def lookup(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """The sum of the codes of ids; fewer ids than levels are the first ones."""
        codebooks = self.codebooks.get_value()
        total = jnp.zeros((*indices.shape[:-1], self.width))
        for m in range(indices.shape[-1]):
            total = total + codebooks[m][indices[..., m]]
        return total

    def _greedy(self, z: Float[Array, "tokens width"]) -> Int[Array, "tokens levels"]:
        ids, residual = [], z
        for codes in jax.lax.stop_gradient(self.codebooks.get_value()):
            ids.append(nearest_euclidean(residual, codes))
            residual = residual - codes[ids[-1]]
        return jnp.stack(ids, axis=-1)

    def _search(self, z: Float[Array, "tokens width"]) -> Int[Array, "tokens levels"]:
        """The best of the last beam."""
        residuals = z[None]
        ids = jnp.zeros((1, z.shape[0], 0), jnp.int32)
        for codes in jax.lax.stop_gradient(self.codebooks.get_value()):
            squares = jnp.sum(codes * codes, -1)

            def extend(residual: Array, codes: Array = codes, squares: Array = squares) -> tuple[Array, Array]:
                """The beam's best codes for one partial sum: (-error, id), one table at a time."""
                gain, index = jax.lax.top_k(product(2 * residual, codes.T) - squares, self.beam)
                return gain - jnp.sum(residual * residual, -1, keepdims=True), index

            scores, indices = jax.lax.map(extend, residuals)
            tokens = z.shape[0]
            scores = jnp.moveaxis(scores, 0, 1).reshape(tokens, -1)
            # candidate = parent · beam + rank
            candidate = jax.lax.top_k(scores, self.beam)[1].T
            parent, row = candidate // self.beam, jnp.arange(tokens)
            code = jnp.moveaxis(indices, 0, 1).reshape(tokens, -1)[row, candidate]
            ids = jnp.concatenate([ids[parent, row], code[..., None]], axis=-1)
            residuals = residuals[parent, row] - codes[code]
        best = jnp.argmin(jnp.sum(residuals**2, -1), axis=0)
        return ids[best, jnp.arange(z.shape[0])]

    def encode(self, latents: Float[Array, "tokens width"]) -> Int[Array, "tokens levels"]:
        """The ids whose codes' sum is nearest, among those tried."""
        z = jax.lax.stop_gradient(latents)
        greedy = self._greedy(z)
        if self.beam == 1:
            return greedy
        searched = self._search(z)
        error = [jnp.sum((z - self.lookup(ids)) ** 2, -1, keepdims=True) for ids in (greedy, searched)]
        return jnp.where(error[1] < error[0], searched, greedy)

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises ``latents``; ``key`` and ``train`` are part of the contract and change nothing."""
        z = latents.astype(jnp.float32)
        ids = self.encode(z.reshape(-1, self.width)).reshape(*z.shape[:-1], self.levels)
        chosen = self.lookup(ids)
        losses = weighted({"commitment": (self.commitment_weight, commitment(z, chosen, exists, mean))})
        losses["codebook"] = codebook_loss(z, chosen, exists, mean)
        # Straight-through to the latents; the codes keep their own gradient.
        quantized = chosen + (z - jax.lax.stop_gradient(z))
        return Quantized(quantized, ids, losses, {"counts": count_levels(ids, self.vocabulary, exists)})

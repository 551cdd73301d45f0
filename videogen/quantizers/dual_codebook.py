"""Two codebooks under one id, a semantic and a pixel one: the nearest by both distances together (TokenFlow)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.nn import l2_normalize, named_key
from videogen.quantizers.base import QuantizerState, nearest, require_key
from videogen.quantizers.vector import VectorQuantizer, poorly_coded
from videogen.ranges import Count, Decay, Natural, Weight


class DualCodebookQuantizer(VectorQuantizer):
    """Latents ``[semantic | pixel]`` side by side, and one id for both (Qu et al., arXiv 2412.03069, section 3.2).

    With s and p the halves of a latent as unit vectors, and S_i, P_i those of code i, the id is the i of the smallest
    ``||s - S_i||² + pixel_weight · ||p - P_i||²``, and the quantised latent is ``[S_i | P_i]``. The two tables stand
    side by side in ``codebook``. Codebook and commitment losses are means over the channels of both halves, as in the
    public code.

    Args:
      size: number of ids K; each table has as many codes.
      widths: channels of the semantic and of the pixel half.
      pixel_weight: of the pixel distance beside the semantic one; 1 in the public code.
      codebook_update: ``"gradient"`` as published, or ``"ema"``, both as of ``vq``.
      decay: EMA decay of counts and sums.
      commitment_weight: weight of ``mean (z - sg(e))²``.
      restart_threshold: a code whose EMA count per step falls below this is replaced by a latent of the step.
      kmeans: rounds of k-means over the semantic halves of the first training step, whose means the semantic table
        begins with; 0 leaves it as it is drawn. Whether this has been done is saved with the run.
      estimator: gradient estimator, ``"straight_through"`` or ``"rotation"``.
    """

    remedy = "set restart_threshold (0.05) or kmeans (10), or use fewer codes"

    def __init__(
        self,
        size: Count,
        widths: tuple[Count, Count],
        *,
        pixel_weight: Weight = 1.0,
        codebook_update: str = "gradient",
        decay: Decay = 0.99,
        commitment_weight: Weight = 0.25,
        restart_threshold: Weight = 0.0,
        kmeans: Natural = 0,
        estimator: str = "straight_through",
        rngs: nnx.Rngs,
    ):
        about = dict(decay=decay, commitment_weight=commitment_weight, restart_threshold=restart_threshold)
        about |= dict(codebook_update=codebook_update, estimator=estimator)
        super().__init__(size, sum(widths), **about, rngs=rngs)
        self.widths, self.pixel_weight, self.kmeans = tuple(widths), pixel_weight, kmeans
        self.started = QuantizerState(jnp.zeros((), jnp.int32)) if kmeans else None
        if kmeans and self.counts is None:
            self.counts = nnx.data(QuantizerState(jnp.zeros(size)))

    def halves(self, vectors: Float[Array, "... width"]) -> tuple[Float[Array, "... half"], Float[Array, "... half"]]:
        """The semantic and the pixel half of latents or codes."""
        return vectors[..., : self.widths[0]], vectors[..., self.widths[0] :]

    def _unit(self, vectors: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return jnp.concatenate([l2_normalize(half) for half in self.halves(vectors)], axis=-1)

    def _nearest(self, flat: Float[Array, "tokens width"], codes: Float[Array, "size width"]) -> Int[Array, "tokens"]:
        # Of unit vectors the squared distance is 2 - 2 cos, so the sum is smallest where these products are largest.
        semantic, pixel = self.halves(flat)
        return nearest(jnp.concatenate([semantic, self.pixel_weight * pixel], axis=-1), codes, jnp.zeros(self.size))

    def _moves(
        self,
        flat: Float[Array, "tokens width"],
        codes: Float[Array, "size width"],
        indices: Int[Array, "tokens"],
        exists: Bool[Array, "..."] | None,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        sums, candidates = super()._moves(flat, codes, indices, exists)
        if self.kmeans:
            there = jnp.ones(len(flat)) if exists is None else exists.reshape(-1).astype(jnp.float32)
            candidates |= {"semantic": self.halves(flat)[0], "there": there}
        return sums, candidates

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Moves the averages one step; the first one ends with the k-means start, where there is one."""
        super().update(sums, candidates, key)
        if not (self.kmeans and sums):
            return
        key = named_key(require_key(key, "a k-means start"), "kmeans")
        found, started = (candidates["semantic"], candidates["there"]), self.started.get_value()
        semantic, pixel = self.halves(self.codebook.get_value())
        semantic = jax.lax.cond(
            started > 0, lambda: semantic, lambda: spherical_means(*found, self.size, self.kmeans, key)
        )
        self.codebook.set_value(jnp.concatenate([semantic, pixel], axis=-1))
        if self.moving:
            # Running sums say the same as the codes, or the next step would undo the start.
            own, pixel_sums = self.halves(self.sums.get_value())
            own = jnp.where(started > 0, own, self.counts.get_value()[:, None] * semantic)
            self.sums.set_value(jnp.concatenate([own, pixel_sums], axis=-1))
        self.started.set_value(jnp.ones_like(started))


def spherical_means(
    vectors: Float[Array, "tokens width"], weights: Float[Array, "tokens"], count: int, rounds: int, key: jax.Array
) -> Float[Array, "count width"]:
    """k-means of unit vectors: the directions of means, begun with vectors drawn in proportion to ``weights``.

    A mean that nothing is nearest to stays where it is.
    """

    def move(_: int, means: Float[Array, "count width"]) -> Float[Array, "count width"]:
        ids = nearest(vectors, means, jnp.zeros(count))
        sums = jnp.zeros_like(means).at[ids].add(vectors * weights[:, None])
        used = jnp.zeros(count).at[ids].add(weights) > 0
        return jnp.where(used[:, None], l2_normalize(sums), means)

    return jax.lax.fori_loop(0, rounds, move, vectors[poorly_coded(weights, count, key)])

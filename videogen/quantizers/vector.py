"""Vector quantization with a learned codebook: EMA or gradient updates, Euclidean or cosine, dead-code restart."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.losses.commitment import codebook_loss, commitment
from videogen.losses.entropy import entropy_penalty
from videogen.nn import Initializer, Mean, l2_normalize, parameter, truncated_normal, whole
from videogen.quantizers.base import (
    Quantized,
    Quantizer,
    QuantizerState,
    count_codes,
    nearest,
    nearest_euclidean,
    product,
    require_key,
    weighted,
)
from videogen.quantizers.estimators import get_estimator
from videogen.ranges import Count, Decay, Positive, Weight


@functools.cache
def unit_length(initializer: Initializer) -> Initializer:
    """The initializer of vectors of length 1."""
    return lambda key, shape, dtype: l2_normalize(initializer(key, shape, dtype))


class VectorQuantizer(Quantizer):
    """Nearest-neighbour codes (van den Oord et al., 2017), float32 inside.

    Args:
      size: number of codes K.
      width: code width; 8 to 32 with ``cosine`` are the factorised codes of ViT-VQGAN and C-ViViT.
      cosine: compare and emit unit vectors.
      codebook_update: ``"ema"`` (codes are moving averages of the latents assigned to them) or ``"gradient"``
        (codes are parameters trained by the codebook loss).
      decay: EMA decay of counts and sums.
      commitment_weight: weight of ``mean (z - sg(e))²``.
      restart_threshold: a code whose EMA count per step falls below this is replaced by a latent of the
        step, drawn in proportion to its quantization error; 0 switches restarts off. A fresh EMA codebook
        starts from the first batch this way.
      entropy_weight: weight of ``E[H(p)] - H(E[p])`` with p the softmax of ``-distance / temperature``, which
        spreads use over the codes (MAGVIT: 0.1); it holds a table of all distances.
      temperature: of that softmax.
      estimator: gradient estimator, ``"straight_through"`` or ``"rotation"``.
    """

    remedy = "set restart_threshold (0.01) or a larger one, use fewer codes or a smaller code width with cosine"

    def __init__(
        self,
        size: Count,
        width: Count,
        *,
        cosine: bool = True,
        codebook_update: str = "ema",
        decay: Decay = 0.99,
        commitment_weight: Weight = 0.25,
        restart_threshold: Weight = 0.0,
        entropy_weight: Weight = 0.0,
        temperature: Positive = 0.01,
        estimator: str = "straight_through",
        rngs: nnx.Rngs,
    ):
        if codebook_update not in ("ema", "gradient"):
            raise UserError(f"codebook_update must be 'ema' or 'gradient', got {codebook_update!r}")
        self.size, self.width, self.cosine, self.moving = size, width, cosine, codebook_update == "ema"
        self.decay, self.commitment_weight, self.restart_threshold = decay, commitment_weight, restart_threshold
        self.entropy_weight, self.temperature = entropy_weight, temperature
        self.estimator, self.euclidean = get_estimator(estimator), not cosine
        initializer = truncated_normal(width**-0.5)
        initializer = unit_length(initializer) if cosine else initializer
        kind = nnx.Param if codebook_update == "gradient" else QuantizerState
        axes = ("codebook", None) if kind is nnx.Param else (None, None)
        self.codebook = parameter(rngs, (size, width), axes, initializer, kind)
        if codebook_update == "ema":
            self.sums = QuantizerState(jnp.zeros((size, width)))
        counted = codebook_update == "ema" or restart_threshold > 0
        self.counts = QuantizerState(jnp.zeros(size)) if counted else None

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of the one level."""
        return (self.size,)

    def _unit(self, vectors: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Latents or codes as they are compared and emitted."""
        return l2_normalize(vectors) if self.cosine else vectors

    def _codes(self) -> Float[Array, "size width"]:
        return self._unit(self.codebook.get_value())

    def _nearest(self, flat: Float[Array, "tokens width"], codes: Float[Array, "size width"]) -> Int[Array, "tokens"]:
        # Unit vectors are nearest where the product is largest.
        return nearest(flat, codes, jnp.zeros(self.size)) if self.cosine else nearest_euclidean(flat, codes)

    def lookup(self, indices: Int[Array, "... 1"]) -> Float[Array, "... width"]:
        """Code vectors of ids."""
        return self._codes()[indices[..., 0]]

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises ``latents``; ``mean`` gives the batch's entropy, ``key`` changes nothing."""
        z = self._unit(latents.astype(jnp.float32))
        flat, codes = z.reshape(-1, self.width), self._codes()
        indices = self._nearest(flat, codes)
        chosen = codes[indices].reshape(z.shape)
        counts = count_codes(indices, self.size, exists)
        losses = weighted({"commitment": (self.commitment_weight, commitment(z, chosen, exists, mean))})
        if not self.moving:
            losses["codebook"] = codebook_loss(z, chosen, exists, mean)
        if self.entropy_weight:
            # The z² term is the same for all codes: the softmax does not see it.
            affinity = product(2 * flat, codes.T) - jnp.sum(codes * codes, -1)
            losses["entropy"] = self.entropy_weight * entropy_penalty(affinity / self.temperature, 1.0, mean, exists)
        ids = indices.reshape(*z.shape[:-1], 1)
        sums, candidates = {}, {}
        if train and self.counts is not None:
            sums, candidates = self._moves(*jax.lax.stop_gradient((flat, codes)), indices, exists)
            sums["counts"] = counts
        return Quantized(self.estimator(z, chosen), ids, losses, {"counts": counts}, sums, candidates)

    def _moves(
        self,
        flat: Float[Array, "tokens width"],
        codes: Float[Array, "size width"],
        indices: Int[Array, "tokens"],
        exists: Bool[Array, "..."] | None,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """What ``update`` needs of latents and their codes: sums by code, and what codes may be restarted from."""
        found = None if exists is None else exists.reshape(-1)
        sums, candidates = {}, {}
        if self.moving:
            added = flat if found is None else jnp.where(found[:, None], flat, 0.0)
            sums["latents"] = jnp.zeros_like(codes).at[indices].add(added)
        if self.restart_threshold > 0:
            error = jnp.sum((flat - codes[indices]) ** 2, -1)
            if found is not None:
                # A draw of exactly 0 takes the first candidate whatever its error, so padding is no latent of its own.
                flat = jnp.where(found[:, None], flat, flat[jnp.argmax(found)])
                error = jnp.where(found, error, 0.0)
            candidates = {"latents": flat, "error": error}
        return sums, candidates

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Moves the averages one step; then restarts dead codes from the latents of the step, which ``key`` picks."""
        if not sums:
            return
        ema_counts = self.decay * self.counts.get_value() + (1 - self.decay) * sums["counts"]
        codes = self.codebook.get_value()
        if self.moving:
            latents = self.decay * self.sums.get_value() + (1 - self.decay) * sums["latents"]
            total = ema_counts.sum()
            smoothed = (ema_counts + 1e-5) / (total + self.size * 1e-5) * total
            # A code unused (for long) keeps its place: the smoothing would draw it to the origin.
            used = ema_counts[:, None] > 0.1 * (1 - self.decay)
            codes = jnp.where(used, latents / jnp.maximum(smoothed, 1e-12)[:, None], codes)
            codes = self._unit(codes)
        if self.restart_threshold > 0:
            key = require_key(key, "a quantizer with restart_threshold > 0")
            dead = ema_counts < self.restart_threshold
            fresh = candidates["latents"][poorly_coded(candidates["error"], self.size, key)]
            codes = jnp.where(dead[:, None], fresh, codes)
            # As if one latent of every step chose it: time to be found before it can count as dead again.
            count = max(1.0, self.restart_threshold)
            ema_counts = jnp.where(dead, count, ema_counts)
            if self.moving:
                latents = jnp.where(dead[:, None], count * fresh, latents)
        if self.moving or self.restart_threshold > 0:
            self.codebook.set_value(codes)
        self.counts.set_value(ema_counts)
        if self.moving:
            self.sums.set_value(latents)


def poorly_coded(error: Float[Array, "tokens"], count: int, key: jax.Array) -> Int[Array, "count"]:
    """Draws tokens in proportion to their squared quantization error, as k-means++ draws its centres.

    Uniform draws would give nearly all codes to what is common: backgrounds.
    """
    error = jnp.cumsum(error)
    return jnp.searchsorted(error, jax.random.uniform(key, (count,)) * error[-1])

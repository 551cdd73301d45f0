"""Residual quantization: every level codes what the levels before it left over."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import Mean, draw, example_keys, named_key, whole
from videogen.quantizers.base import Quantized, Quantizer, mean_figures, require_key, split_key
from videogen.quantizers.estimators import get_estimator
from videogen.ranges import Count, Share, Weight


class ResidualQuantizer(Quantizer):
    """``r_m = r_{m-1} - sg(e_m)``, ``q = Σ e_m``, with one gradient estimator on the sum (SoundStream).

    The residual keeps its gradient to the latents, so the commitment of every level reaches the encoder; the losses
    are sums over levels. ``lookup`` of the first n levels of ids gives the truncated sum.

    Args:
      base: quantizer config of each level, whose codes must be near the latents themselves: Euclidean ``vq``,
        ``simvq``, ``lfq``, or ``fsq`` with ``bound="clamp"``. Its own gradient estimator is not used.
      levels: number of levels.
      scale: level m works on residuals divided by ``scale^m``: 1 for learned codebooks, 0.5 for ``lfq``,
        ``1 / (L - 1)`` for ``fsq`` with L levels.
      dropout: probability in training that a clip (an item of the leading axis) keeps only its first n levels,
        n even in 1 … levels; the dropped levels go on coding, but are not in the sum.
      estimator: gradient estimator, ``"straight_through"`` or ``"rotation"``.
    """

    euclidean = True

    def __init__(
        self,
        base: Mapping[str, Any],
        levels: Count,
        *,
        scale: Weight = 1.0,
        dropout: Share = 0.0,
        estimator: str = "straight_through",
        rngs: nnx.Rngs,
    ):
        if levels < 1 or not 0 <= dropout <= 1 or scale <= 0:
            raise UserError(
                "residual quantization needs levels >= 1, scale > 0 and dropout in [0, 1]; "
                f"got {levels}, {scale} and {dropout}"
            )
        self.quantizers = nnx.List([quantizers.build(base, rngs=rngs) for _ in range(levels)])
        first = self.quantizers[0]
        if not first.euclidean or len(first.vocabulary) != 1:
            raise UserError(
                f"residual levels need one id and codes near the latents themselves, which {base['name']!r} as set "
                "does not give: take 'vq' with cosine=False, 'simvq', 'lfq', or 'fsq' with bound='clamp'"
            )
        self.width, self.scale, self.dropout = first.width, scale, dropout
        self.remedy = first.remedy
        self.estimator = get_estimator(estimator)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of each level, coarse to fine."""
        return tuple(size for quantizer in self.quantizers for size in quantizer.vocabulary)

    def lookup(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """The sum of the levels' codes; fewer ids than levels are the first ones."""
        total = jnp.zeros((*indices.shape[:-1], self.width))
        for m in range(indices.shape[-1]):
            total = total + self.scale**m * self.quantizers[m].lookup(indices[..., m : m + 1])
        return total

    def kept_levels(self, items: int, key: jax.Array | None) -> Bool[Array, "items levels"]:
        """Which levels are in the sum of each item."""
        levels = len(self.quantizers)
        keys = example_keys(require_key(key, "quantizer dropout"), items)
        counts = functools.partial(jax.random.randint, minval=1, maxval=levels + 1)
        dropped = draw(jax.random.uniform, named_key(keys, "whether"), (items,)) < self.dropout
        kept = jnp.where(dropped, draw(counts, named_key(keys, "levels"), (items,)), levels)
        return jnp.arange(levels) < kept[:, None]

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises ``latents``; with ``train`` ``key``, one or one of each example, decides what is dropped."""
        z = latents.astype(jnp.float32)
        keys = split_key(key, len(self.quantizers))
        kept = self.kept_levels(z.shape[0], key) if train and self.dropout else None
        residual, total, losses, results = z, jnp.zeros_like(z), {}, []
        for m, quantizer in enumerate(self.quantizers):
            scale = self.scale**m
            result = quantizer(residual / scale, key=keys[m], train=train, mean=mean, exists=exists)
            codes = scale * jax.lax.stop_gradient(result.latents)
            residual = residual - codes
            if kept is not None:
                codes = jnp.where(kept[:, m].reshape(-1, *[1] * (z.ndim - 1)), codes, 0.0)
            total = total + codes
            for name, loss in result.losses.items():
                losses[name] = losses.get(name, 0.0) + loss
            results.append(result)
        indices = jnp.concatenate([result.indices for result in results], axis=-1)
        counts = {"counts": jnp.concatenate([result.statistics["counts"] for result in results])}
        sums, candidates = ([getattr(result, name) for result in results] for name in ("update_sums", "candidates"))
        moves = (sums, candidates, mean_figures(results))
        return Quantized(self.estimator(z, total), indices, losses, counts, *moves)

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Updates the levels, each with a key of its own."""
        keys = split_key(key, len(self.quantizers))
        for quantizer, *own in zip(self.quantizers, sums, candidates, keys, strict=True):
            quantizer.update(*own)

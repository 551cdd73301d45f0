"""Product quantization: groups of channels, each with a quantizer of its own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import Mean, whole
from videogen.quantizers.base import Quantized, Quantizer, mean_figures, split_key


class ProductQuantizer(Quantizer):
    """The latents' channels in even groups; ids of the groups are levels, losses are means over groups.

    A generator must model the levels of a place jointly: independent heads fail.

    Args:
      base: quantizer config of each group.
      groups: number of groups.
    """

    def __init__(self, base: Mapping[str, Any], groups: int, *, rngs: nnx.Rngs):
        if groups < 1:
            raise UserError(f"product quantization needs at least one group, got {groups}")
        self.quantizers = nnx.List([quantizers.build(base, rngs=rngs) for _ in range(groups)])
        first = self.quantizers[0]
        if not first.vocabulary:
            raise UserError(f"product quantization needs groups with ids, which {base['name']!r} has not")
        self.width, self.euclidean, self.remedy = groups * first.width, first.euclidean, first.remedy

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of each level, group after group."""
        return tuple(size for quantizer in self.quantizers for size in quantizer.vocabulary)

    def lookup(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """The groups' codes side by side."""
        ids = jnp.split(indices, len(self.quantizers), axis=-1)
        return jnp.concatenate([q.lookup(i) for q, i in zip(self.quantizers, ids, strict=True)], axis=-1)

    def __call__(
        self,
        latents: Float[Array, "... width"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises the groups, each with a key of its own."""
        groups = len(self.quantizers)
        parts = jnp.split(latents.astype(jnp.float32), groups, axis=-1)
        keys = [key] if groups == 1 else split_key(key, groups)
        settings = {"train": train, "mean": mean, "exists": exists}
        results = [q(z, key=k, **settings) for q, z, k in zip(self.quantizers, parts, keys, strict=True)]
        losses = {name: sum(result.losses[name] for result in results) / groups for name in results[0].losses}
        return Quantized(
            jnp.concatenate([result.latents for result in results], axis=-1),
            jnp.concatenate([result.indices for result in results], axis=-1),
            losses,
            {"counts": jnp.concatenate([result.statistics["counts"] for result in results])},
            [result.update_sums for result in results],
            [result.candidates for result in results],
            mean_figures(results),
        )

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Updates the groups, each with a key of its own."""
        groups = len(self.quantizers)
        keys = [key] if groups == 1 else split_key(key, groups)
        for quantizer, *own in zip(self.quantizers, sums, candidates, keys, strict=True):
            quantizer.update(*own)

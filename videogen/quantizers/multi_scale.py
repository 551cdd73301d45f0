"""Residual quantization over scales: a grid is coded coarse to fine by one quantizer (VAR, TokenFlow)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import Mean, draw, example_keys, named_key, resize_area, resize_cubic, whole
from videogen.quantizers.base import Quantized, Quantizer, mean_figures, require_key
from videogen.ranges import Share, Triple
from videogen.shapes import Latents

Ids = Int[Array, "batch time height width levels"]


class MultiScaleQuantizer(Quantizer):
    """What the scales before it left over, averaged down to a scale, coded there, and brought back to the full grid.

    For each scale: ``code = up(base(down(rest)))``, ``total += code``, ``rest -= sg(code)``, where ``down`` are means
    of areas and ``up`` is cubic interpolation with PyTorch's kernel (Tian et al., 2024; TokenFlow, arXiv 2412.03069,
    section 3.2, without a smoothing convolution). All scales share the base and its codes. Its estimator passes the
    gradient at every scale; losses are means over the scales. ``indices`` are those of all scales, one after another in
    raster order, ``[batch, tokens, levels]``. With the full grid as its only scale it is the base.

    The scales' time is our extension: images have the time 1.

    Args:
      base: quantizer config of any family with ids.
      scales: ``(time, height, width)`` of each scale from coarse to fine; the last is the grid of the latents.
      drop: probability in training that an example leaves out one of its scales, never the first: it adds nothing,
        nothing is taken off for it, and it is in no loss and no update. The published code draws once for all examples.
    """

    def __init__(self, base: Mapping[str, Any], scales: Sequence[Triple], *, drop: Share = 0.1, rngs: nnx.Rngs):
        self.base, self.scales, self.drop = quantizers.build(base, rngs=rngs), tuple(map(tuple, scales)), drop
        if not self.base.vocabulary or self.base.input_width != self.base.width:
            raise UserError(f"scales are coded by ids for latents as wide as codes; {base['name']!r} gives none")
        if not self.scales or any(a > b for scale in self.scales for a, b in zip(scale, self.scales[-1], strict=True)):
            raise UserError(f"the last of the scales is the whole grid, and none has a longer side: got {self.scales}")
        self.width, self.remedy = self.base.width, self.base.remedy

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of each level of the base, the same at every scale."""
        return self.base.vocabulary

    @property
    def names(self) -> tuple[str, ...]:
        """``scale_1``, ``scale_2`` and so on."""
        return tuple(f"scale_{i}" for i in range(1, len(self.scales) + 1))

    @property
    def counted(self) -> dict[str, int]:
        levels = self.base.counted
        alone = len(levels) == 1
        return {(n if alone else f"{n}_{level}"): size for n in self.names for level, size in levels.items()}

    def code_vectors(self) -> None:
        """``None``: what a place stands for is a sum of codes."""

    def tokens(self, scales: int) -> int:
        """Number of tokens of so many first scales."""
        return sum(time * height * width for time, height, width in self.scales[:scales])

    def whole_scales(self, tokens: int) -> int:
        """How many first scales have so many tokens together; raises ``UserError`` where that cuts one."""
        sums = [self.tokens(count) for count in range(1, len(self.scales) + 1)]
        if tokens not in sums:
            raise UserError(f"only whole scales decode, {', '.join(map(str, sums))} tokens, and {tokens} are asked for")
        return sums.index(tokens) + 1

    def split(self, indices: Int[Array, "batch tokens levels"]) -> list[Ids]:
        """The ids of each scale of a row that holds one or more first scales, all of them whole."""
        count = self.whole_scales(indices.shape[1])
        cuts = [self.tokens(n) for n in range(1, count)]
        parts = jnp.split(indices, cuts, axis=1)
        return [ids.reshape(-1, *scale, ids.shape[-1]) for ids, scale in zip(parts, self.scales, strict=False)]

    def lookup(self, indices: Int[Array, "batch tokens levels"]) -> Latents:
        """What the ids of the first scales, in a row, sum up to on the full grid."""
        return self.total(self.split(indices))

    def total(self, scales: Sequence[Ids], seen: Sequence[Bool[Array, "batch"] | None] = ()) -> Latents:
        """The sum of the codes of the first scales on the full grid.

        Args:
          scales: their ids.
          seen: of each scale the examples that it counts for; ``None``, and what is not named: all.
        """
        total = jnp.zeros((len(scales[0]), *self.scales[-1], self.width))
        for i, ids in enumerate(scales):
            codes = self._up(self.base.lookup(ids))
            total = total + (codes if i >= len(seen) or seen[i] is None else _where(seen[i], codes))
        return total

    def at_scale(self, total: Latents, scale: int) -> Latents:
        """A sum on the full grid as the scale of this number, from 0, reads it: means of areas."""
        return resize_area(total, self.scales[scale])

    def relabel(self, latents: Latents, shown: Sequence[Ids], scales: int | None = None) -> list[Ids]:
        """The ids of the scales behind those that are shown with these ids, right or wrong.

        What wrong ids leave over is coded, so that all together still sum up to the latents as far as codes can.

        Args:
          latents: before quantisation.
          shown: ids of the first scales.
          scales: number of scales that there are to be, the shown ones among them; ``None``: all.
        """
        rest, found = latents.astype(jnp.float32), []
        for number in range(len(self.scales) if scales is None else scales):
            if number >= len(shown):
                found.append(self.base(self.at_scale(rest, number)).indices)
            rest = rest - self._up(self.base.lookup([*shown, *found][number]))
        return found

    def kept_scales(self, items: int, key: jax.Array | None) -> Bool[Array, "items scales"]:
        """Which scales are in the sum of each item."""
        keys, count = example_keys(require_key(key, "the drop of scales"), items), len(self.scales)
        which = functools.partial(jax.random.randint, minval=1, maxval=count)
        dropped = draw(jax.random.uniform, named_key(keys, "whether"), (items,)) < self.drop
        return ~(dropped[:, None] & (jnp.arange(count) == draw(which, named_key(keys, "which"), (items,))[:, None]))

    def __call__(
        self,
        latents: Latents,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Quantises a grid; with ``train`` ``key``, one or one of each example, decides what is dropped.

        Raises:
          UserError: the grid is not the last scale, or has padding, which the means of areas would mix in.
        """
        if latents.shape[1:-1] != self.scales[-1] or exists is not None:
            got = "padding" if exists is not None else "×".join(map(str, latents.shape[1:-1]))
            grid = "×".join(map(str, self.scales[-1]))
            raise UserError(f"these scales are of whole grids of {grid}, got {got}; set scales to end with the grid")
        rest, total, losses, results = latents.astype(jnp.float32), 0.0, {}, []
        kept = None
        if train and self.drop and len(self.scales) > 1:
            kept = self.kept_scales(len(latents), key)
        for number, (name, scale) in enumerate(zip(self.names, self.scales, strict=True)):
            own = None if kept is None or number == 0 else kept[:, number]
            there = None if own is None else jnp.broadcast_to(own[:, None, None, None], (len(latents), *scale))
            own_key = None if key is None else named_key(key, name)
            down = self.at_scale(rest, number)
            result = self.base(down, key=own_key, train=train, mean=mean, exists=there)
            codes = self._up(result.latents)
            codes = codes if own is None else _where(own, codes)
            total, rest = total + codes, rest - jax.lax.stop_gradient(codes)
            for loss, value in result.losses.items():
                losses[loss] = losses.get(loss, 0.0) + value / len(self.scales)
            results.append(result)
        indices = jnp.concatenate([r.indices.reshape(len(latents), -1, r.indices.shape[-1]) for r in results], axis=1)
        counts = {"counts": jnp.concatenate([r.statistics["counts"] for r in results])}
        sums = jax.tree.map(lambda *parts: sum(parts), *[r.update_sums for r in results])
        candidates = jax.tree.map(functools.partial(_rows, len(latents)), *[r.candidates for r in results])
        return Quantized(total, indices, losses, counts, sums, candidates, mean_figures(results))

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Updates the base by the tokens of all scales."""
        self.base.update(sums, candidates, key)

    def _up(self, codes: Float[Array, "batch time height width code"]) -> Latents:
        return resize_cubic(codes, self.scales[-1])


def _where(seen: Bool[Array, "batch"], codes: Latents) -> Latents:
    return jnp.where(seen[:, None, None, None, None], codes, 0.0)


def _rows(batch: int, *scales: Float[Array, "tokens ..."]) -> Float[Array, "tokens ..."]:
    """Rows of the tokens of each scale as those of each example, so that parts of a batch can be laid end to end."""
    by_example = [rows.reshape(batch, -1, *rows.shape[1:]) for rows in scales]
    joined = jnp.concatenate(by_example, axis=1)
    return joined.reshape(-1, *joined.shape[2:])

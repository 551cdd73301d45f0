"""A stack whose middle layers see fewer tokens, and whose result has all of them (HoT; Li et al., 2024; R3).

It is the reduction that fits where every place must be predicted, such as in a generator or a denoiser.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError
from videogen.nn import Stack, Tags, TransformerSection, normal, parameter, split_keys
from videogen.nn.masks import INDEX, NONE
from videogen.ranges import Count, Natural, OneOf
from videogen.reducers.base import Reducer, Report
from videogen.reducers.memory import Recovery
from videogen.reducers.tokens import Grid, TokenSet, first_originals, mean_of_originals, of_grid, restore

RECOVERIES = ("unmerge", "queries", "interpolate")
"""How all tokens come back: each is the one that stands for it, and as it was where none does; learned queries read
what was kept; or values lie on a line in time between frames that were kept."""


class Hourglass(nnx.Module):
    """Layers, a reducer, layers over what is left, recovery, layers.

    Args:
      stack: all layers.
      start, stop: the layers ``start … stop - 1`` see what the reducer leaves.
      reducer: from all tokens to some.
      recover: one of ``RECOVERIES``.
      recovery: the queries of ``recover=queries``.
      positions: learned, added to that many tokens in the middle, as in HoT; 0: none.
      width: channels of the learned positions; tokens that are several parts of this width have them in each part.

    Raises:
      UserError: there are no such layers, or queries are missing.
    """

    def __init__(
        self,
        stack: Stack,
        start: int,
        stop: int,
        reducer: Reducer,
        *,
        recover: str = "unmerge",
        recovery: Recovery | None = None,
        positions: int = 0,
        width: int = 0,
        rngs: nnx.Rngs,
    ):
        if not 0 <= start < stop <= stack.depth:
            raise UserError(
                f"the middle of an hourglass is a run of the layers 0 … {stack.depth - 1}, got {start}:{stop}"
            )
        if (recover == "queries") != (recovery is not None):
            raise UserError("recover=queries needs learned queries, and no other has them")
        self.stack, self.start, self.stop, self.reducer = stack, start, stop, reducer
        self.recover, self.recovery = recover, recovery
        self.positions = parameter(rngs, (positions, width), (None, "embed"), normal(0.02)) if positions else None

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        *,
        grid: Grid | None = None,
        exists: Bool[Array, "batch tokens"] | None = None,
        rotary: Float[Array, "*batch tokens angles"] | None = None,
        tags: Tags = NONE,
        aux: Mapping[str, Any] = NONE,
        key: jax.Array | None = None,
        per_layer: Mapping[str, Any] = NONE,
        **call: Any,
    ) -> tuple[Float[Array, "batch tokens width"], Report]:
        """All tokens behind the last layer, and what the reducer says.

        Args:
          x: tokens.
          grid: their sides, in raster order; ``None``: a sequence.
          exists: which there are; padding is at the end of the sequence, whole frames of a grid.
          rotary: angles of every token; in the middle the mean of those that a token stands for.
          tags: of every token; in the middle those of the first that a token stands for, the position among them.
          aux: what the reducer needs.
          key: of dropout, split among the layers.
          per_layer: arguments of each layer, arrays with the layers in front.
          **call: arguments of every layer. A ``mask`` of the past shuts out the future only behind a reducer that
            neither mixes tokens nor chooses them by what they hold.
        """
        keys = None if key is None else split_keys(key, self.stack.depth)

        def run(x: Array, start: int, stop: int, **own: Any) -> Array:
            layers = dict(layers=slice(start, stop), keys=None if keys is None else keys[start:stop])
            return self.stack(x, **layers, per_layer=per_layer, **own, **call) if start < stop else x

        outer = dict(key_mask=exists, rotary=rotary, tags=tags)
        x = run(x, 0, self.start, **outer)
        sides = grid or (x.shape[1], 1, 1)
        given = dataclasses.replace(of_grid(x.reshape(len(x), *sides, -1)), mask=exists)
        found, said = self.reducer.reduce(given, aux)
        inner = found.x
        if self.positions is not None:
            own = self.positions.get_value().astype(inner.dtype)
            inner = inner + jnp.tile(own, (1, inner.shape[-1] // own.shape[-1]))
        middle = run(inner, self.start, self.stop, **self._inner(found, rotary, tags))
        x = self._recovered(given, dataclasses.replace(found, x=middle))
        return run(x, self.stop, self.stack.depth, **outer), said

    def _inner(self, found: TokenSet, rotary: Array | None, tags: Tags) -> dict[str, Any]:
        """The arguments of the middle layers."""
        filled = found.filled()
        own: dict[str, Any] = dict(key_mask=filled.mask, rotary=None)
        if rotary is not None:
            every = jnp.broadcast_to(rotary, (*filled.source.shape, rotary.shape[-1]))
            own["rotary"] = mean_of_originals(every, filled)
        if tags:
            first = first_originals(filled)
            rows = {tag: jnp.broadcast_to(jnp.asarray(values), filled.source.shape) for tag, values in tags.items()}
            rows.setdefault(INDEX, jnp.broadcast_to(jnp.arange(filled.source.shape[1]), filled.source.shape))
            own["tags"] = {tag: jnp.take_along_axis(values, first, axis=1) for tag, values in rows.items()}
        if "conserved_mass" in self.reducer.laws:
            # A token that stands for several attends as if there were as many.
            own["key_bias"] = jnp.log(jnp.maximum(filled.size, 1.0))
        return own

    def _recovered(self, given: TokenSet, found: TokenSet) -> Float[Array, "batch tokens width"]:
        if self.recover == "queries":
            return self.recovery.restore(found).astype(given.x.dtype)
        if self.recover == "interpolate":
            return interpolated(given, found)
        return restore(found, given.x)


def interpolated(given: TokenSet, found: TokenSet) -> Float[Array, "batch tokens width"]:
    """Values for all frames of a grid from some whole frames of it, on lines in time; the ends repeat the nearest.

    Args:
      given: all tokens, on their grid.
      found: tokens of whole frames in order; each stands where it stood.

    Raises:
      UserError: they are not of whole frames.
    """
    time, height, width = given.grid
    each = height * width
    if found.grid is None and each > 1 or found.shape[1] % each:
        raise UserError("interpolation in time needs a reducer that keeps whole frames; take recover=unmerge")
    kept = found.filled()

    def one(x: Array, mask: Array, position: Array) -> Array:
        frames, there = x.reshape(-1, each * x.shape[-1]), mask.reshape(-1, each)[:, 0]
        at = jnp.where(there, position.reshape(-1, each, 3)[:, 0, 0], jnp.inf)
        last = jnp.maximum(there.sum() - 1, 0)
        times = jnp.arange(time * 1.0)
        right = jnp.minimum(jnp.searchsorted(at, times), last)
        left = jnp.maximum(right - 1, 0)
        share = (times - at[left]) / jnp.maximum(at[right] - at[left], 1e-6)
        share = jnp.clip(jnp.where(right == left, 0.0, share), 0.0, 1.0)[:, None]
        mixed = (1 - share) * frames[left] + share * frames[right]
        return mixed.reshape(time * each, -1).astype(x.dtype)

    return jax.vmap(one)(kept.x, kept.mask, kept.position)


def attended_pairs(tokens: int, kept: int, layers: int, start: int, stop: int, queries: bool) -> int:
    """Pairs of tokens that attention compares: tokens² in an outer layer, kept² in the middle, tokens · kept for
    queries."""
    return (layers - (stop - start)) * tokens**2 + (stop - start) * kept**2 + queries * tokens * kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class HourglassSection:
    """What makes a transformer an hourglass: ``{start, stop, reducer, recover, positions}``.

    Attributes:
      start, stop: the middle layers.
      reducer: ``{name, …}``.
      recover: one of ``RECOVERIES``.
      positions: tokens of the middle that get a learned position; 0: none do.
    """

    start: Natural
    stop: Count
    reducer: Mapping[str, Any]
    recover: Annotated[str, OneOf(*RECOVERIES)] = "unmerge"
    positions: Natural = 0


def of_section(
    section: HourglassSection,
    layers: TransformerSection,
    reducer: Reducer,
    length: int,
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Hourglass:
    """An hourglass of such layers over ``length`` tokens."""
    recovery = None
    if section.recover == "queries":
        recovery = Recovery(layers.width, length, layers.heads, dtype=dtype, rngs=rngs)
    return Hourglass(
        layers.stack(remat=remat, dtype=dtype, rngs=rngs),
        section.start,
        section.stop,
        reducer,
        recover=section.recover,
        recovery=recovery,
        positions=section.positions,
        width=layers.width,
        rngs=rngs,
    )

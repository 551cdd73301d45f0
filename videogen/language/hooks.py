"""Reduction inside of a decoder: hooks that merge, skip or look up tokens of clips at a layer; text stays as it is."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building
from videogen.errors import UserError, shown
from videogen.language.spans import Notes, Spans, gone_of, kept_of
from videogen.nn import Block, ExtraKeys, Hook, Linear, parameter
from videogen.nn.depth_mixture import WEIGHTS, DepthRouter
from videogen.nn.linear import FULL, zeros
from videogen.nn.tower import NOTES, Call
from videogen.ranges import Natural, Number, OneOf, Share
from videogen.reducers.merging import matched
from videogen.reducers.tokens import unit

BELOW_ONE = Annotated[float, Number(float, 0, 1, below=True)]


class ClipHook(Hook):
    """Base of the hooks on tokens of clips. Where rows have none, such as when an answer goes on, nothing happens.

    Attributes:
      layer: where it stands.
      idle: it changes nothing, whatever the weights.
    """

    layer: int
    idle: bool = False

    beside = False
    """Whether it needs tokens beside the row (``Notes.beside``)."""

    whole_frames = False
    """Whether it needs clips of whole frames."""

    def inside(self, each: int, per_frame: int) -> int:
        """Tokens of a clip that the attention of its layer sees, of so many.

        Raises:
          UserError: it cannot take so many.
        """
        return each

    def behind(self, each: int) -> int:
        """Tokens of a clip that go on to the next layer, of so many."""
        return each


class MergeAttended(ClipHook):
    """Behind the attention of a layer the tokens of every clip are ranked by what the last token of the prompt gave
    them; the first ones stay, and each of the others is averaged into that of them which it is most like (HoliTom,
    section 3.3).

    Args:
      ratio: the share of the tokens of a clip that goes, rounded down; 0 changes nothing.
    """

    place = "between"

    def __init__(self, ratio: BELOW_ONE = 0.5):
        self.ratio, self.idle = ratio, ratio == 0

    def behind(self, each):
        return kept_of(self.ratio, each)

    def probe(self, x: Array, call: Call) -> Array | None:
        spans = call[NOTES].spans
        return None if spans is None or self.behind(spans.shape.each) == spans.shape.each else spans.asking

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        spans = call[NOTES].spans
        if spans is None or self.behind(spans.shape.each) == spans.shape.each:
            return x, call
        slot, there = spans.slots()
        mass = aux.mass.sum(1)[:, : x.shape[1]]
        scores = jnp.where(there, _at(mass, slot), -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-scores, axis=-1, stable=True), axis=-1, stable=True)
        count = there.sum(-1, keepdims=True)
        keep = there & (rank < count - gone_of(self.ratio, count))
        vectors = unit(_at(x, slot))
        alike = jnp.einsum("rcnd,rcmd->rcnm", vectors, vectors)
        likest = jnp.where(keep[:, :, None], alike, -jnp.inf).argmax(-1)
        own = jnp.broadcast_to(jnp.arange(slot.shape[-1]), slot.shape)
        return absorbed(x, call, slot, there, jnp.where(keep, own, likest), self.behind(spans.shape.each))


class Bipartite(ClipHook):
    """Between attention and MLP the likest pairs of tokens of every clip become their means, compared by the mean over
    heads of their keys (ToMe; Bolya et al., 2023).

    Args:
      removed: tokens of a clip that go, at most half of them; 0 changes nothing.
      proportional: from there on the logarithm of how many tokens each stands for is added to its scores.
    """

    place = "between"

    def __init__(self, removed: Natural, *, proportional: bool = True):
        self.removed, self.proportional, self.idle = removed, proportional, removed == 0

    def inside(self, each, per_frame):
        if self.removed > each // 2:
            raise UserError(
                f"of {each} tokens of a clip at most {each // 2} can be merged away in a layer, not {self.removed}; "
                "lower removed, or put hooks at several layers"
            )
        return each

    def behind(self, each):
        return each - self.removed

    def probe(self, x: Array, call: Call) -> Array | None:
        spans = call[NOTES].spans
        return None if spans is None else spans.asking

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        spans = call[NOTES].spans
        if spans is None:
            return x, call
        slot, there = spans.slots()
        metric = _at(aux.key[:, : x.shape[1]].astype(jnp.float32).mean(2), slot)
        find = jax.vmap(jax.vmap(lambda m, e: matched(m, e, 0, self.removed)))
        left = self.behind(spans.shape.each)
        return absorbed(x, call, slot, there, find(metric, there), left, proportional=self.proportional)


class Depth(ClipHook):
    """Of every frame a share of the tokens goes through a layer, which a router chooses; the others pass it by, and
    text always goes through (VideoLLM-MoD).

    Args:
      share: of the tokens of a frame, rounded up.
      weight: what the router's weight multiplies: the ``output`` of the layer, or its ``branch`` alone.
    """

    place = "around"
    whole_frames = True

    def __init__(
        self, share: Share = 0.2, *, weight: Annotated[str, OneOf(*WEIGHTS)] = "output", width: int, rngs: nnx.Rngs
    ):
        self.router = DepthRouter(width, share, 1, weight=weight, rngs=rngs)

    def inside(self, each, per_frame):
        if not per_frame or each % per_frame:
            raise UserError("depth needs clips of whole frames: the reducers, and hooks before it, must leave these")
        return each // per_frame * self.router.count(per_frame)

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        spans = call[NOTES].spans
        if spans is None:
            return aux(x, **call), call
        rows, width = len(x), x.shape[1]
        slot, there = self._in_frames(spans)
        other, known = spans.others(call["key_mask"])
        index, valid = jnp.concatenate([slot, other], axis=1), jnp.concatenate([there, known], axis=1)

        def layer(tokens: Array, places: Int[Array, "rows some"]) -> Array:
            at = jnp.take_along_axis(index, places, axis=1)
            own = _gathered(call, at) | {"key_mask": jnp.take_along_axis(valid, places, axis=1)}
            return aux(tokens, **own)

        each = spans.shape.per_frame
        y = self.router(_at(x, index), layer, slot.shape[1] // each, valid, each)
        return x.at[jnp.arange(rows)[:, None], jnp.where(valid, index, width)].set(y, mode="drop"), call

    @staticmethod
    def _in_frames(spans: Spans) -> tuple[Int[Array, "rows places"], Bool[Array, "rows places"]]:
        """The slot of every token of every clip, where it is there, frame after frame."""
        count, slots = spans.shape.clips * spans.shape.each, spans.clip.shape[1]
        place = jnp.where(spans.clip >= 0, spans.clip * spans.shape.each + spans.token, count)
        rows = jnp.arange(len(place))[:, None]
        slot = jnp.full((len(place), count + 1), slots).at[rows, place].set(jnp.arange(slots))[:, :count]
        return jnp.where(slot < slots, slot, 0), slot < slots


class Beside(ClipHook):
    """Queries of a layer look up the tokens of the clip before their reduction, with keys and values of their own:
    ``h + tanh(w·h + b) tanh(a) attention(q, tokens)``, a = 0 at the start (Slow-Fast MLLM, CrossLMM).

    Keys and values begin as those that the layer itself makes of these tokens: what is learned is the difference.

    Args:
      queries: ``text`` (Slow-Fast), ``clips``, or ``both`` (CrossLMM).
    """

    place = "around"
    beside = True

    def __init__(
        self,
        *,
        queries: Annotated[str, OneOf("text", "clips", "both")] = "text",
        width: int,
        key_value: tuple[int, int],
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.queries, self.heads = queries, key_value
        common = dict(dtype=dtype, rngs=rngs)
        outputs = 2 * key_value[0] * key_value[1]
        self.difference = Linear(width, outputs, axes=("embed", "heads"), bias=False, initializer=zeros, **common)
        self.gate = Linear(width, 1, axes=("embed", None), precision=FULL, rngs=rngs)
        self.opening = parameter(rngs, (1,), (None,), zeros)

    def keys_values(self, layer: Block, x: Float[Array, "rows tokens width"], exists: Array) -> ExtraKeys:
        """Of tokens beside the rows."""
        own = layer.beside(x, exists)
        key, value = jnp.split(self.difference(x).reshape(*x.shape[:2], 2 * self.heads[0], self.heads[1]), 2, axis=2)
        return ExtraKeys(own.key + key.astype(own.key.dtype), own.value + value.astype(own.value.dtype), exists)

    def opened(self, x: Float[Array, "rows slots width"], notes: Notes) -> Float[Array, "rows slots 1"]:
        """The gate of every query, in [-1, 1]."""
        of_clip = jnp.zeros(x.shape[:2], bool) if notes.spans is None else notes.spans.clip >= 0
        asks = {"text": ~of_clip, "clips": of_clip, "both": jnp.ones(x.shape[:2], bool)}[self.queries]
        return jnp.tanh(self.gate(x)) * jnp.tanh(self.opening.get_value()) * asks[..., None]

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        known = call[NOTES].beside.get(self.layer)
        if known is None:
            return aux(x, **call), call
        return aux(x, **call, extra_kv=dataclasses.replace(known, gate=self.opened(x, call[NOTES]))), call


HOOKS = {"merge_attended": MergeAttended, "bipartite": Bipartite, "depth": Depth, "beside": Beside}
"""Public name -> class."""


def build_hooks(configs: Sequence[Mapping[str, Any]], **shared: Any) -> dict[int, list[ClipHook]]:
    """Hooks by layer from ``({layer, name, …}, …)``, without those that change nothing; some take what is shared."""
    found: dict[int, list[ClipHook]] = {}
    for config in configs:
        section = {key: config[key] for key in config if key != "layer"}
        if not isinstance(layer := config.get("layer"), int) or layer < 0:
            raise UserError(f"a hook names its layer, from 0 on: {{'layer': 2, 'name': …}}, got {shown(dict(config))}")
        known = inspect.signature(building.look_up(HOOKS, section, "hook").__init__).parameters
        taken = {name: value for name, value in shared.items() if name in known}
        hook = building.build(HOOKS, section, "hook", **taken)
        hook.layer = layer
        if not hook.idle:
            found.setdefault(layer, []).append(hook)
    return found


def absorbed(
    x: Float[Array, "rows slots width"],
    call: Call,
    slot: Int[Array, "rows clips each"],
    there: Bool[Array, "rows clips each"],
    stands: Int[Array, "rows clips each"],
    left: int,
    *,
    proportional: bool = False,
) -> tuple[Array, Call]:
    """Shorter rows, in which tokens of clips are the means of those that they stand for, by size.

    Tags, masks, positions and all else that the layers are told are gathered by one index.

    Args:
      x: the rows.
      call: what the layers are told of them.
      slot: of the tokens of every clip.
      there: which there are.
      stands: for each token of a clip the one, by its place in the clip, that stands for it.
      left: tokens of a clip that there may be from here on.
      proportional: sizes count in the attention from here on.
    """
    notes: Notes = call[NOTES]
    spans, (rows, slots) = notes.spans, x.shape[:2]
    row = jnp.arange(rows)[:, None]
    goal = jnp.take_along_axis(slot, stands, axis=-1).reshape(rows, -1)
    own = jnp.where(there, slot, slots).reshape(rows, -1)
    stand = jnp.broadcast_to(jnp.arange(slots), (rows, slots)).at[row, own].set(goal, mode="drop")
    size = jnp.zeros((rows, slots)).at[row, stand].add(spans.size)
    sums = jnp.zeros(x.shape, jnp.float32).at[row, stand].add(spans.size[..., None] * x.astype(jnp.float32))
    merged = (sums / jnp.maximum(size, 1e-12)[..., None]).astype(x.dtype)
    stays = call["key_mask"] & (stand == jnp.arange(slots))
    shape = spans.shape._replace(each=left, per_frame=0)
    order = jnp.argsort(~stays, axis=1, stable=True)[:, : min(slots, shape.slots)]
    new = jnp.full((rows, slots), order.shape[1] - 1).at[row, order].set(jnp.arange(order.shape[1]))
    now = jnp.take_along_axis(new, stand, axis=1)
    size = jnp.take_along_axis(size, order, axis=1)
    told = _gathered({**call, "key_mask": stays}, order)
    if proportional or told.get("key_bias") is not None:
        told["key_bias"] = jnp.log(jnp.maximum(size, 1.0))
    place = now if spans.place is None else jnp.take_along_axis(now, spans.place, axis=1)
    clip, token = (jnp.take_along_axis(own, order, axis=1) for own in (spans.clip, spans.token))
    clip = jnp.where(told["key_mask"], clip, -1)
    asking = jnp.take_along_axis(now, spans.asking, axis=1)
    told[NOTES] = Notes(Spans(clip, token, size, asking, place, shape), notes.beside)
    return _at(merged, order), told


def _at(values: Array, index: Int[Array, "rows *places"]) -> Array:
    """``values [rows, slots, …]`` at some slots of every row."""
    flat = index.reshape(len(index), -1)
    found = jnp.take_along_axis(values, flat.reshape(*flat.shape, *(1,) * (values.ndim - 2)), axis=1)
    return found.reshape(*index.shape, *values.shape[2:])


def _gathered(call: Call, index: Int[Array, "rows some"]) -> dict[str, Any]:
    """What the layers are told, of some slots."""
    told = dict(call)
    for name in ("key_mask", "key_bias", "rotary"):
        if told.get(name) is not None:
            told[name] = _at(told[name], index)
    told["tags"] = {tag: _at(jnp.asarray(values), index) for tag, values in told["tags"].items()}
    return told

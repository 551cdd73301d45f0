"""A transformer with hooks at its layers, which may change the number of tokens, and taps of its hidden states."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.errors import UserError, near_matches
from videogen.nn.caches import KeyValues
from videogen.nn.micro_batches import split_keys
from videogen.nn.sections import read_transformer
from videogen.nn.streaming import Stream
from videogen.nn.transformer import Around, Stack

PLACES = ("before", "between", "around", "after")
"""Where a hook stands: before a layer, between its attention and its MLP, around it, or after it."""

Call = Mapping[str, Any]
"""The arguments of the layers beside their tokens: masks, rotary angles, contexts, conditions. ``notes`` are for hooks
only: what else they need, such as a question or how many of the tokens are a clip's."""

NOTES = "notes"


class Hook(nnx.Module):
    """Base of what stands at a layer."""

    place = "after"
    """A name in ``PLACES``."""

    def probe(self, x: Float[Array, "batch *grid width"], call: Call) -> Int[Array, "batch probes"] | None:
        """Of a hook between: the places of queries whose attention it wants to know (``nn.attention.Attended``)."""
        return None

    def __call__(self, x: Float[Array, "batch *grid width"], call: Call, aux: Any) -> tuple[Array, Call]:
        """Tokens and arguments for what follows; both may be for another number of tokens.

        Args:
          x: tokens.
          call: arguments of the layers.
          aux: ``Attended`` for a hook between that has a probe; the layer, ``layer(x, **call) -> x``, for a hook
            around it, which applies it (or not); else ``None``.
        """
        raise NotImplementedError


class Transformer(nnx.Module):
    """A stack with hooks and taps, and the norm behind it.

    Layers without hooks are scanned, in runs from one hook or tap to the next, so that compile time grows with these
    and not with depth. A layer with a hook between or around it is written out, without rematerialisation.

    Args:
      stack: the layers.
      norm: applied behind the last layer; ``None`` leaves it out.
      hooks: layer -> the hooks that stand there, at most one at every place.
      taps: layers after which the hidden states are wanted, behind a hook after that layer.
    """

    def __init__(
        self,
        stack: Stack,
        norm: nnx.Module | None = None,
        *,
        hooks: Mapping[int, Hook | Sequence[Hook]] = MappingProxyType({}),
        taps: Sequence[int] = (),
    ):
        found = {}
        for layer, there in hooks.items():
            for hook in [there] if isinstance(there, Hook) else there:
                if hook.place not in PLACES:
                    raise UserError(f"unknown place {hook.place!r} of a hook{near_matches(hook.place, PLACES)}")
                if (name := f"{layer}_{hook.place}") in found:
                    raise UserError(f"two hooks stand {hook.place} layer {layer}; make them one")
                found[name] = hook
            if f"{layer}_between" in found and f"{layer}_around" in found:
                raise UserError(f"layer {layer} has hooks between and around; make them one, around it")
        for layer in (*hooks, *taps):
            if layer not in range(stack.depth):
                raise UserError(f"there is no layer {layer} for a hook or tap; the stack has 0 … {stack.depth - 1}")
        self.stack, self.norm, self.hooks, self.taps = stack, norm, nnx.Dict(found), tuple(sorted(taps))

    def __call__(self, x: Float[Array, "batch *grid width"], **call: Any) -> Array:
        """The normalised output; arguments as for ``trunk``."""
        return self.finish(self.trunk(x, **call)[0])

    def finish(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The norm behind the last layer."""
        return x if self.norm is None else self.norm(x)

    def trunk(
        self,
        x: Float[Array, "batch *grid width"],
        *,
        key: jax.Array | None = None,
        stream: Stream | None = None,
        per_layer: Call = MappingProxyType({}),
        **call: Any,
    ) -> tuple[Array, Call, dict[int, Array]]:
        """Applies layers and hooks.

        Args:
          x: tokens.
          key: split among the layers.
          stream: the caches of ``begin``.
          per_layer: arguments of each layer, arrays with the layers in front (``extra_kv``).
          **call: arguments of every layer, and ``notes`` for hooks, as hooks change them.

        Returns:
          Tokens before the norm, the arguments as the last hook left them, and what the taps found: layer -> tokens.
        """
        keys = None if key is None else split_keys(key, self.stack.depth)
        tapped = {}
        for start, stop in self._runs():
            x, call = self._hook(start, "before", x, call)
            if self._hooked(start, "between") or self._hooked(start, "around"):
                own = {name: jax.tree.map(lambda a, i=start: a[i], value) for name, value in per_layer.items()}
                x, call = self._alone(start, x, call, own | {"key": None if keys is None else keys[start]}, stream)
            else:
                own_keys = None if keys is None else keys[start:stop]
                layers = dict(layers=slice(start, stop), keys=own_keys, per_layer=per_layer)
                x = self.stack(x, stream=stream, **layers, **_of_layers(call))
            x, call = self._hook(stop - 1, "after", x, call)
            if stop - 1 in self.taps:
                tapped[stop - 1] = x
        return x, call, tapped

    def begin(
        self, batch: int, length: int, *arguments: Any, lengths: Sequence[int] | None = None, **settings: Any
    ) -> tuple[Any, ...]:
        """The caches of an empty sequence, of every run of layers; a block's ``begin`` says with what.

        ``lengths``: of every layer, where hooks leave later ones fewer positions than ``length``.
        """

        def caches(start: int, stop: int) -> tuple[KeyValues, ...]:
            own = batch, length if lengths is None else max(lengths[start:stop])
            if self._hooked(start, "between") or self._hooked(start, "around"):
                return self.stack.layer(start).begin(*own, *arguments, **settings)
            return self.stack.begin(*own, *arguments, layers=slice(start, stop), **settings)

        return tuple(caches(start, stop) for start, stop in self._runs())

    def _runs(self) -> list[tuple[int, int]]:
        """First and last layer (exclusive) of every run that is scanned or written out."""
        cuts = {0, self.stack.depth, *(layer + 1 for layer in self.taps)}
        for name in self.hooks:
            layer, _, place = name.partition("_")
            cuts |= {int(layer)} if place != "after" else set()
            cuts |= {int(layer) + 1} if place != "before" else set()
        return list(itertools.pairwise(sorted(cuts)))

    def _hooked(self, layer: int, place: str) -> bool:
        return f"{layer}_{place}" in self.hooks

    def _hook(self, layer: int, place: str, x: Array, call: Call) -> tuple[Array, Call]:
        return self.hooks[f"{layer}_{place}"](x, call, None) if self._hooked(layer, place) else (x, call)

    def _alone(self, number: int, x: Array, call: Call, own: dict[str, Any], stream: Stream | None) -> tuple:
        """One layer with a hook between or around it."""
        layer, inner = self.stack.layer(number), None if stream is None else Stream(stream.recall())
        own["stream"] = inner
        if self._hooked(number, "around"):
            hook = self.hooks[f"{number}_around"]
            x, call = hook(x, call, lambda x, **call: layer(x, **own, **_of_layers(call)))
        else:
            hook, changed = self.hooks[f"{number}_between"], []

            def between(x: Array, attended: Any) -> Array:
                changed.append(hook(x, call, attended))
                return changed[0][0]

            x = layer(x, probe=hook.probe(x, call), between=between, **own, **_of_layers(call))
            call = changed[0][1]
        if stream is not None:
            stream.keep(inner.cache)
        return x, call


def _of_layers(call: Call) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != NOTES}


def build_transformer(
    config: Mapping[str, Any],
    *,
    hooks: Mapping[int, Hook | Sequence[Hook]] = MappingProxyType({}),
    taps: Sequence[int] = (),
    context_width: int | None = None,
    around: Around | None = None,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Transformer:
    """A transformer from its section.

    Args:
      config: as ``read_transformer`` takes it.
      hooks: as ``Transformer`` takes them.
      taps: as ``Transformer`` takes them.
      context_width: of the keys of a cross-attention; ``None`` leaves it out.
      around: makes the layer of each block, as ``nn.block_stack`` takes it.
      remat: what the backward pass keeps, a name in ``REMAT_POLICIES``.
      dtype: of the products.
      rngs: random streams.
    """
    section = read_transformer(config)
    stack = section.stack(context_width=context_width, around=around, remat=remat, dtype=dtype, rngs=rngs)
    return Transformer(stack, section.last_norm(rngs=rngs), hooks=hooks, taps=taps)

"""Layers of codes of one clip, from coarse to fine, each of which codes what those before it leave open."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import FULL, Convolution, Linear, Mean, parameter, unpatchify, whole, zeros
from videogen.quantizers.base import Quantized, Quantizer, mean_figures, split_key
from videogen.shapes import Latents

FORMS = ("residual", "conditioned")
"""What a layer codes: its features less the codes above it; or features and codes mixed by a convolution."""

KERNEL = (1, 3, 3)
"""No frame of these convolutions sees another, so that codes need no memory of the chunk before."""

Ids = Int[Array, "batch time height width levels"]

Disturb = Callable[[str, Ids], Ids]
"""(name of a layer, its ids) -> the ids that the layers below it are to see."""


class Raise(nnx.Module):
    """Up-sampling to the grid of the next layer: a convolution of each frame makes the channels of every new place."""

    def __init__(self, width: int, stride: Sequence[int], *, rngs: nnx.Rngs):
        self.stride = tuple(stride)
        self.convolution = Convolution(width, width * stride[0] * stride[1] * stride[2], KERNEL, rngs=rngs)

    def __call__(self, x: Latents, frames: int | None = None) -> Latents:
        """The last ``frames`` of what becomes of ``x``: a clip's first frame stands for itself, so that 1 + k frames
        become 1 + k·s; those of a later chunk become k·s. By default these are those of a whole clip."""
        frames = 1 + (x.shape[1] - 1) * self.stride[0] if frames is None else frames
        y = unpatchify(self.convolution(x), self.stride)
        return y[:, y.shape[1] - frames :]


class Hierarchy(Quantizer):
    """Quantizers of several layers, the coarsest first (VQ-VAE-2; Razavi et al., 2019).

    The coarsest layer codes its features. Each one below it codes ``E - sg(U(S))``, what its features E have beyond the
    sum S of the codes above it (``residual``), or a convolution of E and U(S) (``conditioned``); U is a learned
    up-sampling. ``S' = U(S) + q`` goes on to the next layer, and the last one to the decoder. So no code depends on a
    layer below its own. Where a layer is dropped a learned vector, at first zero, stands in the place of q.

    Losses are means over layers. Codes are as wide as features: a linear map on either side of each quantizer has its
    width.

    Args:
      configs: quantizer config of each layer by its name, the coarsest first.
      strides: ``(time, height, width)`` places of each layer but the first for one place of the layer above it.
      width: channels of features and codes.
      form: a name in ``FORMS``.
    """

    def __init__(
        self,
        configs: Mapping[str, Mapping[str, Any]],
        strides: Sequence[Sequence[int]],
        width: int,
        form: str,
        *,
        rngs: nnx.Rngs,
    ):
        self.names, self.width, self.residual = tuple(configs), width, form == "residual"
        self.layers = nnx.List([quantizers.build(config, rngs=rngs) for config in configs.values()])
        levels = {name: len(layer.vocabulary) for name, layer in zip(self.names, self.layers, strict=True)}
        if len(set(levels.values())) > 1 or not min(levels.values()):
            raise UserError(f"the quantizers of all layers must have ids, and the same number of levels; got {levels}")
        self.remedy = self.layers[0].remedy
        # Quantizers work in float32, so what stands around them does too.
        full = dict(precision=FULL, rngs=rngs)
        self.to_code = nnx.List([Linear(width, q.input_width, axes=("embed", None), **full) for q in self.layers])
        self.from_code = nnx.List([Linear(q.width, width, axes=(None, "embed"), **full) for q in self.layers])
        self.ups = nnx.List([Raise(width, stride, rngs=rngs) for stride in strides])
        mixes = [] if self.residual else [Convolution(2 * width, width, KERNEL, rngs=rngs) for _ in strides]
        self.mixes = nnx.List(mixes)
        self.nulls = parameter(rngs, (len(strides), width), (None, None), zeros)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of each level of each layer, the coarsest first."""
        return tuple(size for layer in self.layers for size in layer.vocabulary)

    @property
    def counted(self) -> dict[str, int]:
        """Ids of each layer by its name; of layers with several levels by the names of both."""
        found = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            several = len(layer.vocabulary) > 1
            found |= {f"{name}_{level}" if several else name: size for level, size in layer.counted.items()}
        return found

    def __call__(
        self,
        features: Mapping[str, Latents],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        kept: Bool[Array, "batch layers"] | None = None,
        disturb: Disturb = lambda name, ids: ids,
    ) -> Quantized:
        """Codes the features of all layers, top down.

        Args:
          features: of each layer on its grid, float32.
          key, train, mean: as of every quantizer; ``key`` may be one of each example.
          kept: the layers of each example that are in the sum; a dropped layer is coded as well.
          disturb: exchanges ids that the layers below see. They code what is missing from these, so that the labels
            of the first layers and those found below them belong together.

        Returns:
          ``latents`` on the grid of the last layer; ``indices`` is the ids of each layer by its name, before they are
          disturbed.
        """
        results, codes, total = {}, {}, None
        keys = split_key(key, len(self.names))
        for i, name in enumerate(self.names):
            x, above = features[name], None
            if i:
                above = self.ups[i - 1](total, x.shape[1])
                x = x - jax.lax.stop_gradient(above) if self.residual else self._mixed(i, x, above)
            result = self.layers[i](self.to_code[i](x), key=keys[i], train=train, mean=mean)
            changed = disturb(name, result.indices)
            vectors = result.latents if changed is result.indices else self.layers[i].lookup(changed)
            codes[name] = self.from_code[i](vectors)
            total = codes[name] if above is None else above + codes[name]
            results[name] = result
        found = [results[name] for name in self.names]
        losses: dict[str, Float[Array, ""]] = {}
        for result in found:
            losses |= {loss: losses.get(loss, 0.0) + value / len(found) for loss, value in result.losses.items()}
        return Quantized(
            total if kept is None else self.merged(codes, kept),
            {name: result.indices for name, result in results.items()},
            losses,
            {"counts": jnp.concatenate([result.statistics["counts"] for result in found])},
            [result.update_sums for result in found],
            [result.candidates for result in found],
            mean_figures(found),
        )

    def _mixed(self, layer: int, x: Latents, above: Latents) -> Latents:
        return self.mixes[layer - 1](jnp.concatenate([x, above], axis=-1))

    def merged(self, codes: Mapping[str, Latents], kept: Bool[Array, "batch layers"] | None = None) -> Latents:
        """The sum of the codes of the first layers on the grid of the last one; layers that are not there, or not
        ``kept``, are their learned vectors."""
        total = codes[self.names[0]]
        for i, name in enumerate(self.names[1:], start=1):
            found = codes.get(name)
            above = self.ups[i - 1](total, None if found is None else found.shape[1])
            null = jnp.broadcast_to(self.nulls.get_value()[i - 1], above.shape)
            own = null if found is None else found
            if kept is not None:
                own = jnp.where(kept[:, i, None, None, None, None], own, null)
            total = above + own
        return total

    def lookup(self, indices: Mapping[str, Ids], kept: Bool[Array, "batch layers"] | None = None) -> Latents:
        """``merged`` of the ids of the first layers by name."""
        layers = zip(self.names, self.layers, self.from_code, strict=True)
        codes = {name: back(layer.lookup(indices[name])) for name, layer, back in layers if name in indices}
        return self.merged(codes, kept)

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Updates the layers, each with a key of its own."""
        keys = split_key(key, len(self.names))
        for layer, *own in zip(self.layers, sums, candidates, keys, strict=True):
            layer.update(*own)


def drawn_layers(uniform: Float[Array, "batch"], drop: float, layers: int) -> Bool[Array, "batch layers"]:
    """Which layers are kept, of numbers drawn evenly from [0, 1): at least the last n are dropped with probability
    ``drop^n``, so that what is kept is always a first part; the first is never dropped."""
    chances = [drop ** (layers - i) if i else 0.0 for i in range(layers)]
    return uniform[:, None] >= jnp.asarray(chances)

"""Linear time along a sequence: a diagonal state space (S4D; Gu et al., 2022), and the halving stack of ViS4mer (Islam
and Bertasius, 2022).

A channel has ``states`` complex numbers h with ``h' = a h + x`` and gives ``y = 2 Re Σ c h + d x``. Held over a step of
length δ this is ``h[k] = exp(δ a) h[k-1] + (exp(δ a) - 1)/a · x[k]``.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Complex, Float

from videogen.errors import UserError
from videogen.nn.linear import Linear, normal, ones, parameter
from videogen.nn.micro_batches import split_keys
from videogen.nn.mlp import dropout
from videogen.nn.norms import LayerNorm
from videogen.ranges import Count, Natural, Share

SHORTEST, LONGEST = 1e-3, 1e-1
"""Range of the steps that a layer begins with."""


def discretised(
    step: Float[Array, "*batch width 1"], rate: Complex[Array, "width states"]
) -> tuple[Complex[Array, "*batch width states"], Complex[Array, "*batch width states"]]:
    """What is carried over a step and what flows in, both by the state: ``exp(δ a)`` and ``(exp(δ a) - 1) / a``.

    A step of 0 carries all and lets nothing in: 1 and 0.
    """
    carried = jnp.exp(step * rate)
    return carried, (carried - 1) / rate


def _steps(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Logarithms of steps, evenly from ``SHORTEST`` to ``LONGEST``."""
    return jax.random.uniform(key, shape, dtype, math.log(SHORTEST), math.log(LONGEST))


def _decays(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Logarithms of minus the real part of a: that part begins at -1/2."""
    return jnp.full(shape, math.log(0.5), dtype)


def _turns(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """The imaginary part of a: π times the number of the state (S4D-Lin)."""
    return jnp.broadcast_to(math.pi * jnp.arange(shape[1], dtype=dtype), shape)


class StateSpace(nnx.Module):
    """A diagonal state space of every channel, causal, in time linear in the length; float32 and complex64.

    Args:
      width: channels.
      states: complex numbers of a channel.
    """

    def __init__(self, width: Count, states: Count = 32, *, rngs: nnx.Rngs):
        shape, axes = (width, states), ("embed", None)
        self.width = width
        self.step = parameter(rngs, (width,), ("embed",), _steps)
        self.decay = parameter(rngs, shape, axes, _decays)
        self.turn = parameter(rngs, shape, axes, _turns)
        self.read = parameter(rngs, (2, *shape), (None, *axes), normal(0.5**0.5))
        self.skip = parameter(rngs, (width,), ("embed",), ones)

    def _rate(self) -> Complex[Array, "width states"]:
        return jax.lax.complex(-jnp.exp(self.decay.get_value()), self.turn.get_value())

    def _reader(self) -> Complex[Array, "width states"]:
        return jax.lax.complex(*self.read.get_value())

    def begin(self, batch: int) -> Complex[Array, "batch width states"]:
        """The state before a sequence."""
        return jnp.zeros((batch, *self.decay.shape), jnp.complex64)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length width"]:
        """The whole sequence, as ``go_on`` from ``begin``."""
        return self.go_on(x, self.begin(len(x)), mask)[0]

    def go_on(
        self,
        x: Float[Array, "batch length width"],
        state: Complex[Array, "batch width states"],
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Complex[Array, "batch width states"]]:
        """What follows a state, by an associative scan along the length, and the state behind it.

        Args:
          x: the next part of the sequence.
          state: of ``begin``, or behind the part before.
          mask: which places exist; the others take a step of 0, so that they leave the state as it is.
        """
        u = jnp.moveaxis(x.astype(jnp.float32), 1, 0)
        step = jnp.exp(self.step.get_value())[:, None]
        if mask is not None:
            step = jnp.where(mask.T[:, :, None, None], step, 0.0)
        else:
            step = jnp.broadcast_to(step, (len(u), 1, *step.shape))
        carried, inflow = discretised(step, self._rate())
        flow = inflow * u[..., None]
        flow = flow.at[0].add(carried[0] * state)

        def both(first: tuple, second: tuple) -> tuple:
            return second[0] * first[0], second[0] * first[1] + second[1]

        states = jax.lax.associative_scan(both, (carried, flow))[1]
        y = 2 * jnp.einsum("lbws,ws->lbw", states, self._reader()).real + self.skip.get_value() * u
        return jnp.moveaxis(y, 0, 1).astype(x.dtype), states[-1]

    def kernel(self, length: int) -> Float[Array, "length width"]:
        """What an impulse gives after 0, 1, … steps, without the skip."""
        rate, step = self._rate(), jnp.exp(self.step.get_value())[:, None]
        powers = jnp.exp(jnp.arange(length)[:, None, None] * step * rate)
        return 2 * jnp.einsum("lws,ws->lw", powers, self._reader() * discretised(step, rate)[1]).real

    def convolved(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """The same as the call, as a causal convolution by fast Fourier transforms; it keeps no states in memory."""
        length, u = x.shape[1], x.astype(jnp.float32)
        spectra = (jnp.fft.rfft(v, 2 * length, axis=-2) for v in (u, self.kernel(length)))
        y = jnp.fft.irfft(jnp.multiply(*spectra), 2 * length, axis=-2)[:, :length]
        return (y + self.skip.get_value() * u).astype(x.dtype)


def halved(
    x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"] | None = None
) -> tuple[Float[Array, "batch half width"], Bool[Array, "batch half"]]:
    """Means of neighbours, rounded up to half as many; a pair counts the places that exist, and exists if one does."""
    batch, length, width = x.shape
    there = jnp.ones((batch, length), bool) if mask is None else mask
    odd = length % 2
    pairs = jnp.pad(there, ((0, 0), (0, odd))).reshape(batch, -1, 2)
    values = jnp.pad(x, ((0, 0), (0, odd), (0, 0))).reshape(batch, -1, 2, width)
    total = jnp.sum(jnp.where(pairs[..., None], values, 0), axis=2)
    return total / jnp.maximum(pairs.sum(2), 1)[..., None].astype(x.dtype), pairs.any(2)


class HalvingLayer(nnx.Module):
    """Norm, state space, dropout, residual; then means of neighbours, a linear layer to half the width, GELU."""

    def __init__(self, width: int, states: int, rate: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.rate = rate
        self.norm, self.space = LayerNorm(width, rngs=rngs), StateSpace(width, states, rngs=rngs)
        self.half = Linear(width, width // 2, axes=("embed", None), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "batch half half_width"], Bool[Array, "batch half"]]:
        x = x + dropout(self.space(self.norm(x), mask), self.rate, key)
        x, mask = halved(x, mask)
        return jax.nn.gelu(self.half(x)), mask


class HalvingStack(nnx.Module):
    """Layers that each halve the length and the width of a sequence (ViS4mer).

    Args:
      width: of the first layer; it must divide by ``2**layers``.
      layers: how many.
      states: of a channel's state space.
      dropout: rate in every layer.
    """

    def __init__(
        self,
        width: Count,
        *,
        layers: Natural = 3,
        states: Count = 32,
        dropout: Share = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if width % 2**layers:
            raise UserError(f"{layers} layers that halve a width of {width} need one that divides by {2**layers}")
        common = dict(states=states, rate=dropout, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([HalvingLayer(width // 2**i, **common) for i in range(layers)])
        self.outputs = width // 2**layers

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "batch shorter outputs"], Bool[Array, "batch shorter"]]:
        """The tokens that are left and which of them exist; ``key`` is of the dropout, none leaves it out."""
        keys = [None] * len(self.layers) if key is None else split_keys(key, len(self.layers))
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
        for layer, own in zip(self.layers, keys, strict=True):
            x, mask = layer(x, mask, own)
        return x, mask

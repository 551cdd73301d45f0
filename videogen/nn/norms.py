"""Normalisation layers; statistics are always float32."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen import building
from videogen.nn.linear import ones, parameter, zeros


def l2_normalize(x: Float[Array, "... embed"], epsilon: float = 1e-12) -> Float[Array, "... embed"]:
    """Scales vectors to unit length; the zero vector stays zero and has a finite gradient."""
    return x * jnp.reciprocal(jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), epsilon)))


class RMSNorm(nnx.Module):
    """``x / rms(x) · scale`` over the last axis (Zhang and Sennrich, 2019); without ``affine`` no scale."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, affine: bool = True, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = parameter(rngs, (width,), (None,), ones) if affine else None

    def __call__(self, x: Float[Array, "... embed"]) -> Float[Array, "... embed"]:
        y = x.astype(jnp.float32)
        y = y * jnp.reciprocal(jnp.sqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon))
        if self.scale is not None:
            y = y * self.scale.get_value()
        return y.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean-free, unit-variance normalisation over the last axis, with ``affine`` a learned scale and, unless there is
    no ``bias``, a learned shift."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, bias: bool = True, affine: bool = True, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = parameter(rngs, (width,), (None,), ones) if affine else None
        self.shift = parameter(rngs, (width,), (None,), zeros) if affine and bias else None

    def __call__(self, x: Float[Array, "... embed"]) -> Float[Array, "... embed"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jnp.reciprocal(jnp.sqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon))
        if self.scale is not None:
            y = y * self.scale.get_value()
        if self.shift is not None:
            y = y + self.shift.get_value()
        return y.astype(x.dtype)


class NoNorm(nnx.Module):
    """Leaves everything as it is; in a place where other networks have a norm."""

    def __init__(self, width: int, *, affine: bool = True, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Float[Array, "... embed"]) -> Float[Array, "... embed"]:
        return x


NORMS = {"layer": LayerNorm, "none": NoNorm, "rms": RMSNorm}


def build_norm(
    norm: str | Mapping[str, Any], width: int, *, affine: bool = True, rngs: nnx.Rngs
) -> LayerNorm | RMSNorm | NoNorm:
    """A norm from its section ``{name, epsilon, …}``, or from its name; without ``affine`` it has no parameters."""
    config = {"name": norm} if isinstance(norm, str) else norm
    return building.build(NORMS, config, "norm", width=width, affine=affine, rngs=rngs)

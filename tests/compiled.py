"""Compiles what tests call: operation by operation, most of a test's time would go into tiny programs."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

METHODS = (
    *("__call__", "encode", "decode", "bottleneck", "tokenize", "detokenize", "lookup", "reduce", "restore"),
    *("embed", "logits", "loss", "log_density", "draw", "sample", "trunk"),
)
"""Names of methods that are compiled; none of them changes its module."""

_ARRAY = object()
_VALUES_ARE_READ = (
    TypeError,
    ValueError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
)
"""What a method raises that looks at values, or takes or gives what is no array."""
_active = True


@functools.lru_cache(maxsize=2000)
def _program(method: Callable, structure: Any, leaves: tuple) -> Callable:
    """The method, compiled for arguments whose leaves are these, ``_ARRAY`` for an array."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(graph: Any, state: Any, arrays: list) -> Any:
        rest = iter(arrays)
        arguments, named = jax.tree.unflatten(structure, [next(rest) if leaf is _ARRAY else leaf for leaf in leaves])
        return method(nnx.merge(graph, state), *arguments, **named)

    return run


def _is_value(leaf: Any) -> bool:
    """Whether a leaf is the mark of an array or a value; other objects, such as caches, may be changed by a call."""
    frozen = dataclasses.is_dataclass(leaf) and leaf.__dataclass_params__.frozen
    return leaf is _ARRAY or frozen or isinstance(leaf, bool | int | float | str | np.dtype | type)


def compiled(method: Callable) -> Callable:
    """A method that is one program when a test calls it, and as it is inside of another program."""

    @functools.wraps(method)
    def call(self: nnx.Module, *arguments: Any, **named: Any) -> Any:
        if not _active or isinstance(jnp.zeros(()), jax.core.Tracer):
            return method(self, *arguments, **named)
        leaves, structure = jax.tree.flatten((arguments, named))
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
        leaves = tuple(_ARRAY if isinstance(leaf, jax.Array | np.ndarray) else leaf for leaf in leaves)
        if not all(map(_is_value, leaves)):
            return method(self, *arguments, **named)
        try:
            return _program(method, structure, leaves)(*nnx.split(self), arrays)
        except _VALUES_ARE_READ:
            return method(self, *arguments, **named)

    return call


def _is_ours(module: str) -> bool:
    """Whether the methods of a module are compiled; encoders look at the values that they are given."""
    return module.startswith("videogen.") and not module.startswith("videogen.encoders.")


def compile_methods() -> None:
    """Every class of modules that videogen defines from here on has compiled methods."""
    begin = nnx.Module.__init_subclass__.__func__

    def define(cls: type, *arguments: Any, **named: Any) -> None:
        begin(cls, *arguments, **named)
        for name in METHODS:
            method = cls.__dict__.get(name)
            if isinstance(method, types.FunctionType) and _is_ours(cls.__module__):
                setattr(cls, name, compiled(method))

    nnx.Module.__init_subclass__ = classmethod(define)


def set_for(item: pytest.Item) -> None:
    """Compiles methods in quick tests, but not in those that are marked ``uncompiled``, nor in those that put something
    into the place of a method, which a program that is there already would not notice."""
    global _active
    marked = any(item.get_closest_marker(name) for name in ("slow", "uncompiled"))
    _active = "monkeypatch" not in item.fixturenames and not marked

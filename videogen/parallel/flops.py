"""Counts the floating-point operations of a traced step, exactly and before anything is compiled.

Matrix products and convolutions are counted (2 per multiply–add), times the lengths of the scans they are in; all else
is small beside them. Compilers count the body of a loop once, and custom kernels not at all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

RECOMPUTED = "rematted_computation"
"""JAX's name for the part of a backward pass that rematerialisation computes again."""

KERNEL_PRODUCTS = {
    # Kernel name -> products of [queries, width] × [width, keys] it does per visited block, and how many of them a
    # backward pass that had kept its scores would need.
    "splash_mha_fwd": (2, 2),
    "splash_mha_dq": (3, 2),
    "splash_mha_dkv": (4, 2),
    "cudnn_attention_forward": (2, 2),
    "cudnn_attention_backward": (5, 4),
}
FUSED = (5, 4)
"""The same of splash_mha_dkv where it also gives the gradient of the queries."""


@dataclasses.dataclass
class Flops:
    """Floating-point operations of one step over all devices.

    Attributes:
      model: what the mathematics needs, once: no recomputation, no work that several devices do alike.
      recomputed: what rematerialisation and kernels compute again.
      kernels: operations inside custom kernels, on one device, by kernel name; both kinds.
      kernels_filled: the same as if every product filled the matrix unit's tiles.
      unknown: names of kernels without a rule, which count as nothing.
    """

    model: float = 0.0
    recomputed: float = 0.0
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    kernels_filled: dict[str, float] = dataclasses.field(default_factory=dict)
    unknown: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the walk is: how often it runs, on how many different shards, whether it is recomputation."""

    times: float = 1.0
    shards: float = 1.0
    recomputed: bool = False


def count(traced: Any, tile: int = 1) -> Flops:
    """Counts a traced function.

    Args:
      traced: a closed jaxpr.
      tile: rows and columns of the matrix unit, for ``kernels_filled``.
    """
    flops = Flops()
    constants = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    # Rematerialisation leaves calls in the backward pass whose results it has kept, for the compiler to drop.
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    _walk(needed, _Place(), flops, constants, tile)
    return flops


def _walk(jaxpr: Any, place: _Place, flops: Flops, constants: dict, tile: int) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        here = place
        if RECOMPUTED in str(equation.source_info.name_stack):
            here = dataclasses.replace(place, recomputed=True)
        if name == "dot_general":
            _add(flops, here, _dot(equation))
        elif name == "conv_general_dilated":
            _add(flops, here, _convolution(equation))
        elif name == "pallas_call":
            product = functools.partial(_splash_product, equation, constants, tile)
            _kernel(equation.params["name"], product, here, flops, _splash_rule(equation))
        elif name == "ffi_call":
            product = functools.partial(_attention_product, equation)
            _kernel(equation.params["target_name"], product, here, flops, _rule(equation.params["target_name"]))
        elif name == "cond":
            branches = [_branch(branch, here, tile) for branch in equation.params["branches"]]
            _merge(flops, max(branches, key=lambda b: b.model + b.recomputed))
        else:
            for inner, consts in inner_jaxprs(equation):
                known = {
                    v: constants.get(o) for v, o in _matching(inner, equation) if _is_variable(o) and o in constants
                }
                known.update(zip(inner.constvars, consts, strict=False))
                _walk(inner, _inside(equation, here), flops, known, tile)


def _branch(branch: Any, place: _Place, tile: int) -> Flops:
    flops = Flops()
    _walk(branch.jaxpr, place, flops, {}, tile)
    return flops


def _merge(flops: Flops, other: Flops) -> None:
    flops.model += other.model
    flops.recomputed += other.recomputed
    flops.unknown |= other.unknown
    for mine, theirs in ((flops.kernels, other.kernels), (flops.kernels_filled, other.kernels_filled)):
        for name, value in theirs.items():
            mine[name] = mine.get(name, 0.0) + value


def _add(flops: Flops, place: _Place, amount: float) -> None:
    amount *= place.times * place.shards
    if place.recomputed:
        flops.recomputed += amount
    else:
        flops.model += amount


def inner_jaxprs(equation: Any) -> Iterator[tuple[Any, tuple]]:
    """The jaxprs an equation runs, with their constants."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, jax.extend.core.ClosedJaxpr):
                yield part.jaxpr, part.consts
            elif isinstance(part, jax.extend.core.Jaxpr):
                yield part, ()


def _matching(inner: Any, equation: Any) -> Iterator[tuple[Any, Any]]:
    """Variables of an inner jaxpr and the outer ones they stand for, where they correspond one to one."""
    if len(inner.invars) == len(equation.invars):
        yield from zip(inner.invars, equation.invars, strict=True)


def _is_variable(value: Any) -> bool:
    return isinstance(value, jax.extend.core.Var)


def _inside(equation: Any, place: _Place) -> _Place:
    name = equation.primitive.name
    if name == "scan":
        return dataclasses.replace(place, times=place.times * equation.params["length"])
    if name == "shard_map":
        return dataclasses.replace(place, shards=place.shards * _distinct_shards(equation))
    return place


def _distinct_shards(equation: Any) -> int:
    """Devices that do different work in a ``shard_map``: those along the axes its arrays are split over."""
    used = set()
    for spec in (*equation.params["in_specs"], *equation.params["out_specs"]):
        for axes in spec:
            used.update((axes,) if isinstance(axes, str) else axes or ())
    shape = equation.params["mesh"].shape
    return math.prod(shape[axis] for axis in used)


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def _convolution(equation: Any) -> float:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    # Places that fall into the holes of a dilated input are not computed.
    holes = math.prod(equation.params["lhs_dilation"])
    depth = math.prod(size for axis, size in enumerate(kernel) if axis != numbers.rhs_spec[0])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth / holes


def _rule(name: str) -> tuple[int, int] | None:
    """The entry of ``KERNEL_PRODUCTS`` for a kernel."""
    return next((rule for prefix, rule in KERNEL_PRODUCTS.items() if name.startswith(prefix)), None)


def _splash_rule(equation: Any) -> tuple[int, int] | None:
    # Two results and the scratch space of each; the gradient of the queries comes as a third.
    fused = equation.params["name"].startswith("splash_mha_dkv") and len(equation.outvars) == 6
    return FUSED if fused else _rule(equation.params["name"])


def _kernel(
    name: str,
    product: Callable[[], tuple[float, float]],
    place: _Place,
    flops: Flops,
    rule: tuple[int, int] | None,
) -> None:
    """Adds a kernel by its rule; ``product`` is one product's FLOPs on one device, and of whole tiles."""
    if rule is None:
        flops.unknown.add(name)
        return
    (done, needed), (once, filled) = rule, product()
    flops.kernels[name] = flops.kernels.get(name, 0.0) + done * once * place.times
    flops.kernels_filled[name] = flops.kernels_filled.get(name, 0.0) + done * filled * place.times
    _add(flops, place, needed * once)
    _add(flops, dataclasses.replace(place, recomputed=True), (done - needed) * once)


def _attention_product(equation: Any) -> tuple[float, float]:
    """The same of a call whose first operands are queries and keys [batch, length, heads, width]."""
    (batch, queries, heads, width), (_, keys, *_) = (v.aval.shape for v in equation.invars[:2])
    once = 2.0 * batch * queries * heads * width * keys
    return once, once


def _splash_product(equation: Any, constants: dict, tile: int) -> tuple[float, float]:
    """FLOPs on one device of one product over the visited blocks, and the FLOPs of whole tiles."""
    mapping = equation.params["grid_mapping"]
    # Queries and keys may lie either way round. Results have the width last, and more axes than the scratch space.
    width = max((v.aval.shape for v in equation.outvars), key=len)[-1]
    lengths = [_block_size(mapped) // width for mapped in mapping.block_mappings[:2]]
    visited = math.prod(mapping.grid) * _visited(equation, constants)
    up = math.ceil(width / tile) * tile
    once = 2.0 * visited * math.prod(lengths) * width
    return once, once / width * up


def _block_size(mapping: Any) -> int:
    """Elements of the block of a […, heads, length, width] or […, heads, width, length] array."""
    return math.prod(int(getattr(size, "block_size", size)) for size in mapping.block_shape[-2:])


def _visited(equation: Any, constants: dict) -> float:
    """Share of the grid's blocks that the mask does not hide, where the block table is a known constant."""
    tables = [v for v in equation.invars if v.aval.dtype == np.int8 and len(v.aval.shape) == 3]
    if len(tables) < 2 or not _is_variable(tables[1]) or constants.get(tables[1]) is None:
        return 1.0
    return float(np.mean(np.asarray(constants[tables[1]]) != 0))

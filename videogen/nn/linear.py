"""Linear layers, embeddings and the parameters they are made of, each with its logical axis names."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from videogen import building
from videogen.errors import UserError, near_matches
from videogen.nn.micro_batches import named_key
from videogen.parallel import mesh_axis_size, target_platform
from videogen.ranges import Count, Positive

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

# One object for each standard deviation: initializers stand in the metadata of variables, which are compared.
truncated_normal = functools.cache(nnx.initializers.truncated_normal)
normal = functools.cache(nnx.initializers.normal)
constant = functools.cache(nnx.initializers.constant)
lecun_normal = nnx.initializers.lecun_normal()
zeros, ones = nnx.initializers.zeros_init(), nnx.initializers.ones_init()

FULL = jax.lax.Precision.HIGHEST
"""Float32 products in float32 throughout; by default accelerators round their inputs to fewer digits."""


def next_key(rngs: nnx.Rngs) -> jax.Array:
    """``rngs.params()``, the same keys: that one searches all operations traced so far at every call."""
    stream = rngs.params
    count = stream.count.get_value()
    stream.count.set_value(count + 1)
    return jax.random.fold_in(stream.key.get_value(), count)


def parameter(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    initializer: Initializer,
    kind: type[nnx.Variable] = nnx.Param,
) -> nnx.Variable:
    """A float32 variable that carries its logical axis names, which ``parallel.rules`` maps to the mesh, and its
    initializer, for ``draw_by_name``."""
    return kind(initializer(next_key(rngs), shape, jnp.float32), axes=axes, initializer=initializer)


@functools.cache
def scaled_identity(scale: float) -> Initializer:
    """The initializer of a matrix with ``scale`` on its diagonal and zeros elsewhere."""
    return lambda key, shape, dtype: scale * jnp.eye(*shape, dtype=dtype)


@functools.cache
def for_each_layer(initializer: Initializer) -> Initializer:
    """The initializer of stacked layers: every layer has a key of its number, so that depth changes no layer."""

    def stacked(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(shape[0]))
        return jax.vmap(lambda key: initializer(key, shape[1:], dtype))(keys)

    return stacked


def draw_by_name(modules: Mapping[str, nnx.Module], key: jax.Array) -> None:
    """Draws the initial value of every ``parameter`` again, from a key of its path.

    Modules draw what they are built with from a counter, so that one more part would change all parts after it. The
    weights that a run begins with depend on ``key`` and on the names of modules and attributes alone.
    """
    for name, module in modules.items():
        for path, variable in nnx.iter_graph(module):
            if isinstance(variable, nnx.Variable) and "initializer" in variable.get_metadata():
                value = variable.get_value()
                own = named_key(key, "/".join(map(str, (name, *path))))
                variable.set_value(variable.get_metadata()["initializer"](own, value.shape, value.dtype))


class Linear(nnx.Module):
    """``y = x @ kernel + bias`` over the last axis, in ``dtype``, with float32 parameters.

    Leading axes are flattened to one matrix product: XLA's CPU backend reaches its fast routine only for
    2-D products, and GPUs do the same internally. The TPU compiler chooses better layouts where the axes stay.
    Where the sequence axis is sharded (context parallelism) flattening would mix two sharded axes.
    ``precision`` is that of the product (``FULL`` next to quantizers), by default the platform's. ``lora`` are the
    settings ``{rank, alpha}`` of a ``LowRank`` update that is added, or with ``columns`` those of ``LowRankColumns``;
    without, there is none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        axes: tuple[str | None, str | None] = ("embed", None),
        bias: bool = True,
        initializer: Initializer = lecun_normal,
        precision: jax.lax.Precision | None = None,
        lora: Mapping[str, Any] | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.inputs, self.outputs, self.precision, self.dtype = inputs, outputs, precision, dtype
        self.kernel = parameter(rngs, (inputs, outputs), axes, initializer)
        self.bias = parameter(rngs, (outputs,), (axes[1],), zeros) if bias else None
        sizes = dict(inputs=inputs, outputs=outputs, axes=axes, dtype=dtype, rngs=rngs)
        kind = LowRankColumns if lora and "columns" in lora else LowRank
        self.lora = building.build({"lora": kind}, {"name": "lora", **lora}, "update", **sizes) if lora else None

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        leading = x.shape[:-1]
        if target_platform() != "tpu" and mesh_axis_size("context") == 1:
            x = x.reshape(math.prod(leading), self.inputs)
        y = jnp.matmul(x.astype(self.dtype), self.kernel.get_value().astype(self.dtype), precision=self.precision)
        if self.lora is not None:
            y = y + self.lora(x)
        if self.bias is not None:
            y = y + self.bias.get_value().astype(self.dtype)
        return y.reshape(*leading, self.outputs)

    def heads(self, x: Float[Array, "... inputs"], counts: Sequence[int]) -> list[Float[Array, "... heads head_width"]]:
        """The output in parts (queries, keys, values) of so many heads, all equally wide.

        On a TPU every part is a product that has an axis of heads. Its compiler then keeps the sequence innermost where
        heads are narrower than the 128 lanes, instead of padding them, and normalises them as they are written: split
        afterwards they were copied in float32, which took a quarter of a step (docs/scaling.md).
        """
        ends = list(itertools.accumulate(counts))
        width = self.outputs // ends[-1]
        if target_platform() != "tpu" or self.bias is not None or self.lora is not None:
            parts = jnp.split(self(x), [end * width for end in ends[:-1]], axis=-1)
            return [y.reshape(*y.shape[:-1], heads, -1) for y, heads in zip(parts, counts, strict=True)]
        kernel = self.kernel.get_value().astype(self.dtype)
        if len(set(counts)) == 1:
            kernel = kernel.reshape(self.inputs, len(counts), counts[0], -1)
            kernels = (kernel[:, part] for part in range(len(counts)))
        else:
            kernels = jnp.split(kernel.reshape(self.inputs, ends[-1], -1), ends[:-1], axis=1)
        return [jnp.einsum("...i,iho->...ho", x.astype(self.dtype), kernel) for kernel in kernels]


class LowRank(nnx.Module):
    """The update ``alpha / rank · down @ up`` of a kernel, at first 0 (LoRA; Hu et al., 2021).

    Args:
      inputs, outputs, axes, dtype: of the layer.
      rank: of the update.
      alpha: what the update is multiplied by, times its rank.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rank: Count,
        alpha: Positive,
        axes: tuple[str | None, str | None],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.scale, self.dtype = alpha / rank, dtype
        self.down = parameter(rngs, (inputs, rank), (axes[0], None), lecun_normal)
        self.up = parameter(rngs, (rank, outputs), (None, axes[1]), zeros)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        x = jnp.matmul(x.astype(self.dtype), self.down.get_value().astype(self.dtype))
        return jnp.matmul(x, self.up.get_value().astype(self.dtype)) * jnp.asarray(self.scale, self.dtype)

    def kernel(self) -> Float[Array, "*layers inputs outputs"]:
        """What is added to the kernel, or to those of stacked layers."""
        return jnp.matmul(self.down.get_value(), self.up.get_value(), precision=FULL) * self.scale


class LowRankColumns(nnx.Module):
    """A ``LowRank`` update of each of some ranges of a kernel's columns, such as queries and values; others stay.

    Args:
      inputs, outputs, axes, dtype: of the layer.
      columns: ((first, behind the last), …) in rising order.
      rank, alpha: of each update.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        columns: Sequence[Sequence[int]],
        rank: Count,
        alpha: Positive,
        axes: tuple[str | None, str | None],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.outputs, self.columns = outputs, tuple((int(start), int(stop)) for start, stop in columns)
        common = dict(rank=rank, alpha=alpha, axes=axes, dtype=dtype, rngs=rngs)
        self.parts = nnx.List([LowRank(inputs, stop - start, **common) for start, stop in self.columns])

    def _placed(self, parts: Sequence[Array]) -> Array:
        found, at = [], 0
        for (start, stop), part in zip(self.columns, parts, strict=True):
            found += [jnp.zeros((*part.shape[:-1], start - at), part.dtype), part]
            at = stop
        return jnp.concatenate([*found, jnp.zeros((*parts[-1].shape[:-1], self.outputs - at), parts[-1].dtype)], -1)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        return self._placed([part(x) for part in self.parts])

    def kernel(self) -> Float[Array, "*layers inputs outputs"]:
        """What is added to the kernel, or to those of stacked layers."""
        return self._placed([part.kernel() for part in self.parts])


def lora_of_columns(
    lora: Mapping[str, Any] | None, sides: Mapping[str, int], known: Sequence[str]
) -> dict[str, Any] | None:
    """The settings ``{rank, alpha, only}`` for a kernel whose columns are those of several projections.

    Args:
      lora: with ``only``, names of projections, each of these has an update of its own; without, all have one together.
      sides: columns of each projection of the kernel, by name, one after another.
      known: names that ``only`` may have.

    Raises:
      UserError: ``only`` names none of these.
    """
    if not lora or "only" not in lora:
        return dict(lora) if lora else None
    for name in lora["only"]:
        if name not in known:
            raise UserError(f"unknown projection {name!r} in lora.only{near_matches(name, known)}")
    ends = itertools.accumulate(sides.values())
    columns = [(end - own, end) for (name, own), end in zip(sides.items(), ends, strict=True) if name in lora["only"]]
    return {**{key: lora[key] for key in lora if key != "only"}, "columns": columns} if columns else None


def merged(module: nnx.Module) -> nnx.Module:
    """A copy of a module in which every ``LowRank`` update is a part of the kernel that it updates."""
    module = nnx.clone(module)
    for _, part in nnx.iter_modules(module):
        if isinstance(part, Linear) and part.lora is not None:
            part.kernel.set_value(part.kernel.get_value() + part.lora.kernel())
            part.lora = None
    return module


def without_lora(section: Mapping[str, Any]) -> dict[str, Any]:
    """The config section of the model that ``merged`` gives: without a setting ``lora``, however deep."""
    return {
        key: without_lora(value) if isinstance(value, Mapping | ConfigDict) else value
        for key, value in section.items()
        if key != "lora"
    }


def beside_lora(module: nnx.Module, prefixes: Sequence[str]) -> tuple[str, ...]:
    """The dotted ``prefixes``, less the ``LowRank`` updates below them.

    A prefix with such updates below it becomes the paths of all other parameters and variables below it.
    """
    updates = [".".join(map(str, path)) for path, part in nnx.iter_modules(module) if isinstance(part, LowRank)]
    leaves = [".".join(map(str, path)) for path, value in nnx.iter_graph(module) if isinstance(value, nnx.Variable)]
    found: list[str] = []
    for prefix in prefixes:
        own = tuple(f"{path}." for path in updates if path.startswith(f"{prefix}."))
        below = [path for path in leaves if path.startswith(f"{prefix}.") and not path.startswith(own)]
        found += sorted(below) if own else [prefix]
    return tuple(found)


class Embedding(nnx.Module):
    """A table of ``size`` vectors looked up by integer id."""

    def __init__(
        self,
        size: int,
        width: int,
        *,
        axes: tuple[str | None, str | None] = ("vocabulary", "embed"),
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.size, self.dtype = size, dtype
        self.table = parameter(rngs, (size, width), axes, truncated_normal(0.02))

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... width"]:
        return self.table.get_value().astype(self.dtype)[ids]

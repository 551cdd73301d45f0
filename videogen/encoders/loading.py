"""How a network takes its published weights: a table from our parameters to the names in the file.

A table maps the dotted path of a parameter to where it comes from, a name or a ``Source``. In names, ``{}`` stands for
the layer of stacked parameters, and ``a|b`` for whichever of the two the file has. Layouts are turned by rule: PyTorch
keeps kernels as ``[outputs, inputs, *sides]``, we as ``[*sides, inputs, outputs]``. Entries for parameters that a
network does not have (a bias, a gate) are left out.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from videogen.encoders.files import Weights, read_config
from videogen.errors import UserError, shown
from videogen.nn import Embedding, Linear


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
      names: tensors that stand side by side along the outputs.
      part: ``(start, stop, n)``: of every tensor these of n equal pieces along its outputs.
      times: a vector that multiplies the outputs (the layer scale behind a linear layer).
      sides: of the inputs of a linear layer over a flattened map ``[channels, *sides]``; it is a convolution here.
      default: value of a parameter that the file may lack.
      transposed: the kernel of a transposed convolution whose stride is its size, which PyTorch keeps as ``[inputs,
        outputs, *sides]`` and we as ``[inputs, *sides, outputs]``.
    """

    names: Sequence[str]
    part: tuple[int, int, int] = (0, 1, 1)
    times: str | None = None
    sides: Sequence[int] = ()
    default: float | None = None
    transposed: bool = False


Table = Mapping[str, "str | Source"]

Layouts = Mapping[str, Sequence[int]]
"""Patterns of published names -> axes of the tensors (``tensors_of``)."""


class Published(nnx.Module):
    """Base of networks that are read from their published files; nothing trains them.

    Attributes:
      hash: sha256 of the files; empty for random weights.
    """

    PREFIXES: ClassVar[Sequence[str]] = ("",)
    """What may stand before all names, as where the network is a part of another; the first that fits is taken."""

    SKIPPED: ClassVar[Sequence[str]] = ()
    """Patterns of the names that are left unread; the file may have no others."""

    CONFIGURED: ClassVar[bool] = True
    """Whether a ``config.json`` has its settings; other networks are read from a file of weights alone."""

    hash = ""

    @classmethod
    def settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the constructor that the ``config.json`` of a checkpoint gives."""
        raise NotImplementedError

    @classmethod
    def sizes(cls, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Those of a network without a ``config.json``, as its weights show them; none where it has one size."""
        return {}

    def names(self) -> Table:
        """The table of our parameters."""
        raise NotImplementedError

    @classmethod
    def structure(cls, directory: str | Path, *, dtype: jnp.dtype = jnp.float32) -> Self:
        """The network that ``config.json`` describes, with random parameters; trace it to have only shapes.

        Raises:
          UserError: the file is unreadable, or a setting is missing or none that the network has.
        """
        network = cls(**cls._arguments(directory), dtype=dtype, rngs=nnx.Rngs(0))
        network.read_beside(directory)
        return network

    @classmethod
    def _arguments(cls, directory: str | Path) -> dict[str, Any]:
        return settings_of(cls, directory) if cls.CONFIGURED else cls.sizes(Weights(directory))

    @classmethod
    def describe(cls, directory: str | Path) -> dict[str, Any]:
        """All that ``described`` builds the network from, as plain values: what stands in the config of a run."""
        return cls._arguments(directory)

    @classmethod
    def described(cls, description: Mapping[str, Any], *, dtype: jnp.dtype = jnp.float32) -> Self:
        """The network of a description, with random parameters; trace it to have only shapes."""
        return lean(cls(**plain(description), dtype=dtype, rngs=nnx.Rngs(0)))

    def read_beside(self, directory: str | Path) -> None:
        """Takes what other files of the folder say."""

    @classmethod
    def load(cls, directory: str | Path, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs | None = None) -> Self:
        """Reads a checkpoint as it is published.

        Args:
          directory: its folder, or its file where the network needs no settings.
          dtype: of the matrix products, their weights and the features; all else is float32.
          rngs: unused; what is built by name is given it.

        Raises:
          UserError: a file is unreadable, or a tensor is missing, has another shape or is not known.
        """
        arguments = cls._arguments(directory)
        network = nnx.eval_shape(lambda: lean(cls(**arguments, dtype=dtype, rngs=nnx.Rngs(0))))
        network.read_beside(directory)
        weights = Weights(directory)
        network = fill(network, network.names(), weights, weights.path, prefixes=cls.PREFIXES, skipped=cls.SKIPPED)
        network.hash = weights.hash()
        return network


def settings_of(kind: type[Published], directory: str | Path) -> dict[str, Any]:
    """The arguments of a network's constructor that a checkpoint's ``config.json`` gives.

    Raises:
      UserError: the file is unreadable, or a setting is missing or none that the network has.
    """
    path = Path(directory) / "config.json"
    try:
        return kind.settings(read_config(directory))
    except KeyError as error:
        raise UserError(f"{path} lacks the setting {error}; is it the config of a {kind.__name__}?") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} has a setting of another kind: {error}") from error


def plain(value: Any) -> Any:
    """Values from a config as constructors take them, and as they can be compared."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: plain(value[key]) for key in value}
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def lean(network: nnx.Module) -> nnx.Module:
    """Weights as the products take them, since nothing trains them: half of the memory in bfloat16."""
    for _, module in nnx.iter_modules(network):
        if isinstance(module, Linear | Embedding):
            weight = module.kernel if isinstance(module, Linear) else module.table
            weight.set_value(weight.get_value().astype(module.dtype))
    return network


def fill(
    network: nnx.Module,
    table: Table,
    weights: Mapping[str, np.ndarray],
    where: str | Path,
    *,
    prefixes: Sequence[str] = ("",),
    skipped: Sequence[str] = (),
) -> nnx.Module:
    """The network with its abstract parameters replaced by those of a checkpoint.

    Args:
      network: traced, so that it has only shapes.
      table: a source for every parameter, by dotted path.
      weights: the tensors by name.
      where: what they are called in messages.
      prefixes: see ``Published.PREFIXES``.
      skipped: see ``Published.SKIPPED``.

    Raises:
      UserError: a tensor is missing, has another shape or is not known.
    """
    graph, state = nnx.split(network)
    flat = dict(nnx.to_flat_state(state))
    reader = _Reader(weights, prefixes, where)
    sources = {path: _source(table[".".join(map(str, path))]) for path in flat}
    reader.choose_prefix([source.names[0] for source in sources.values()])
    missing = sorted({n for p, source in sources.items() for n in reader.missing(source, flat[p].get_value().shape)})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        kind = type(network).__name__
        raise UserError(
            f"{reader.where} lacks the tensors {', '.join(missing[:3])}{more}; is it a published file of {kind}?"
        )
    for path, variable in flat.items():
        old = variable.get_value()
        variable.set_value(jnp.asarray(reader.read(sources[path], old.shape, path[-1] == "kernel"), old.dtype))
    unknown = [n for n in weights if n not in reader.used and not any(fnmatch.fnmatchcase(n, p) for p in skipped)]
    if unknown:
        raise UserError(f"{reader.where} has {len(unknown)} tensors that are not known, the first is {unknown[0]!r}")
    return nnx.merge(graph, nnx.from_flat_state(flat))


def tensors_of(
    network: nnx.Module, table: Table, *, layouts: Layouts = MappingProxyType({}), zeros: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The way back of ``fill``: the tensors of a published file that give this network, float32.

    Names are those before the bar. Parameters whose source has no name, and sources with ``times``, ``sides`` or
    ``transposed``, are not written; the latter are refused. What ``part`` leaves out of a tensor is zeros.

    Args:
      network: with its weights.
      table: a source for every parameter, by dotted path; those of one source are equally wide.
      layouts: pattern of names -> the axes that these tensors have where they are not ours: of a kernel those behind
        outputs and inputs, of others all, of which one may be -1. The first that fits counts.
      zeros: patterns of the biases that the network leaves out because they change nothing; they are zeros.

    Raises:
      ValueError: a source of another kind, or a tensor that does not have so many numbers.
    """
    _, state = nnx.split(network)
    found: dict[str, np.ndarray] = {}
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for path, variable in nnx.to_flat_state(state):
        source, array = _source(table[".".join(map(str, path))]), variable.get_value()
        if source.times or source.sides or source.transposed:
            raise ValueError(f"{'.'.join(map(str, path))} has a source that cannot be written")
        for name, own in _split(source, np.asarray(array, np.float32)):
            own = _as_published(own, path[-1] == "kernel", _layout(layouts, name))
            start, stop, parts = source.part
            if parts == 1:
                found[name] = own
                continue
            held = pieces.setdefault(name, dict.fromkeys(range(parts)))
            held |= dict(zip(range(start, stop), np.split(own, stop - start), strict=True))
    for name, held in pieces.items():
        like = next(each for each in held.values() if each is not None)
        found[name] = np.concatenate([np.zeros_like(like) if each is None else each for each in held.values()])
    for name in list(found):
        bias = name.removesuffix("weight") + "bias"
        if bias not in found and any(fnmatch.fnmatchcase(bias, pattern) for pattern in zeros):
            found[bias] = np.zeros(len(found[name]), np.float32)
    return {name: np.asarray(array, order="C") for name, array in found.items()}


def _split(source: Source, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The published names of a parameter, each with its part of it in our layout; none where it has no name."""
    names = [name.split("|")[0].removeprefix("/") for name in source.names]
    if not names[0]:
        return
    for layer, own in enumerate(array) if "{}" in names[0] else [(0, array)]:
        # Biases of heads have an axis of heads here.
        own = own.reshape(-1) if names[0].endswith("bias") else own
        parts = np.split(own, len(names), axis=-1) if len(names) > 1 else [own]
        yield from zip([name.format(layer) for name in names], parts, strict=True)


def _layout(layouts: Layouts, name: str) -> Sequence[int] | None:
    return next((axes for pattern, axes in layouts.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _as_published(array: np.ndarray, kernel: bool, axes: Sequence[int] | None) -> np.ndarray:
    """A parameter in the layout of PyTorch, with these axes."""
    if not kernel:
        return array if axes is None else array.reshape(axes)
    sides = array.shape[:-2] if axes is None else tuple(axes)
    return np.moveaxis(array.reshape(*sides, -1, array.shape[-1]), (-1, -2), (0, 1))


def _source(source: "str | Source") -> Source:
    return Source((source,)) if isinstance(source, str) else source


class _Reader:
    """Takes parameters from the tensors of a checkpoint, and remembers which it used."""

    def __init__(self, weights: Mapping[str, np.ndarray], prefixes: Sequence[str], where: str | Path):
        self.weights, self.prefixes, self.prefix, self.used = weights, prefixes, prefixes[0], set()
        self.where = where

    def choose_prefix(self, names: Sequence[str]) -> None:
        """The prefix under which most of the names exist."""

        def found(prefix: str) -> int:
            return sum(any(f"{prefix}{n.format(0)}" in self.weights for n in name.split("|")) for name in names)

        self.prefix = max(self.prefixes, key=found)

    def _whole(self, name: str) -> str:
        """A name with the prefix; one that begins with a slash has none."""
        return name[1:] if name.startswith("/") else self.prefix + name

    def _name(self, name: str, layer: int) -> str:
        """The name that the file has, or the first of those it might have."""
        choices = [self._whole(choice).format(layer) for choice in name.split("|")]
        return next((choice for choice in choices if choice in self.weights), choices[0])

    def missing(self, source: Source, shape: Sequence[int]) -> list[str]:
        names = [*source.names, *([source.times] if source.times else [])]
        found = [self._name(name, layer) for name in names for layer in range(shape[0] if "{}" in name else 1)]
        return [name for name in found if name not in self.weights] if source.default is None else []

    def read(self, source: Source, shape: tuple[int, ...], kernel: bool) -> np.ndarray:
        """A parameter of this shape, in float32 or, where the file has whole numbers, in these."""
        if "{}" in source.names[0]:
            layers = [self._one(source, layer, shape[1:], kernel) for layer in range(shape[0])]
            return np.stack(layers) if layers else np.zeros(shape, np.float32)
        return self._one(source, 0, shape, kernel)

    def _one(self, source: Source, layer: int, shape: tuple[int, ...], kernel: bool) -> np.ndarray:
        names = [self._name(name, layer) for name in source.names]
        if source.default is not None and names[0] not in self.weights:
            return np.full(shape, source.default, np.float32)
        self.used.update(names)
        arrays = [self._array(name) for name in names]
        start, stop, parts = source.part
        if parts > 1:
            arrays = [a[start * len(a) // parts : stop * len(a) // parts] if a.ndim else a for a in arrays]
        found = [list(a.shape) for a in arrays]
        if source.sides:
            arrays = [a.reshape(len(a), -1, *source.sides) if a.size == math.prod(shape) else a for a in arrays]
        if source.transposed:
            arrays = [np.moveaxis(a, 1, -1) if a.ndim > 1 else a for a in arrays]
        elif kernel:
            arrays = [_turned(a, name) for a, name in zip(arrays, names, strict=True)]
        wrong = len({a.shape[:-1] for a in arrays}) > 1 or sum(a.size for a in arrays) != math.prod(shape)
        array = None if wrong else np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
        # Axes may be merged or of length 1 (kernels of patches, tables of one example), but not exchanged.
        if array is None or (array.ndim == len(shape) and array.shape != tuple(shape)):
            inner = "" if parts == 1 else f" (parts {start + 1} to {stop} of {parts})"
            raise UserError(f"{self.where}: {names[0]}{inner} has shape {found[0]}, where {list(shape)} is needed")
        if source.times:
            times = self._name(source.times, layer)
            self.used.add(times)
            array = array * self._array(times)
        return array.reshape(shape)

    def _array(self, name: str) -> np.ndarray:
        array = self.weights[name]
        if array.dtype.kind in "OSUc":
            raise UserError(f"{self.where}: {shown(name)} has values of type {array.dtype}")
        return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _turned(kernel: np.ndarray, name: str) -> np.ndarray:
    """A kernel in our layout; those of TensorFlow, whose names end in ``/w``, have it already."""
    return kernel if kernel.ndim < 2 or name.endswith("/w") else np.moveaxis(kernel, (0, 1), (-1, -2))


def block_names(
    *,
    query: str,
    key: str,
    value: str,
    out: str,
    attention_norm: str,
    mlp_norm: str,
    up: str,
    down: str,
    gate: str = "",
    ours: str = "transformer.stack.layers",
    scales: tuple[str | None, str | None] = (None, None),
) -> dict[str, "str | Source"]:
    """The part of a table that stacked ``nn.Block``\\ s need, from the names of the published layers.

    Args:
      query, key, value, out, attention_norm, mlp_norm, up, down, gate: modules, without ``.weight`` and ``.bias``.
      ours: path of the stacked blocks.
      scales: vectors that multiply what attention and MLP give.
    """
    table: dict[str, str | Source] = {
        "attention.query_key_value.kernel": Source(tuple(_of(name, "weight") for name in (query, key, value))),
        "attention.query_bias": _of(query, "bias"),
        "attention.key_bias": _of(key, "bias"),
        "attention.value_bias": _of(value, "bias"),
        "attention.out.kernel": Source((_of(out, "weight"),), times=scales[0]),
        "attention.out.bias": Source((_of(out, "bias"),), times=scales[0]),
        **linear_names("mlp.up", up),
        **linear_names("mlp.gate", gate),
        "mlp.down.kernel": Source((_of(down, "weight"),), times=scales[1]),
        "mlp.down.bias": Source((_of(down, "bias"),), times=scales[1]),
    }
    for norm, name in (("attention_norm", attention_norm), ("mlp_norm", mlp_norm)):
        table |= norm_names(norm, name)
    return {f"{ours}.{path}": source for path, source in table.items()}


def norm_names(ours: str, theirs: str) -> dict[str, "str | Source"]:
    """The part of a table that a norm needs."""
    return {f"{ours}.scale": _of(theirs, "weight"), f"{ours}.shift": _of(theirs, "bias")}


def linear_names(ours: str, theirs: str) -> dict[str, "str | Source"]:
    """The part of a table that a linear layer or a convolution needs."""
    return {f"{ours}.kernel": _of(theirs, "weight"), f"{ours}.bias": _of(theirs, "bias")}


def _of(module: str, tensor: str) -> str:
    """The tensor of a module, or of each of those it might be."""
    return "|".join(f"{choice}.{tensor}" for choice in module.split("|"))

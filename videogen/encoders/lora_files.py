"""Published files of low-rank updates (LoRA), added to the tensors of the model that they are for.

Such files also hold whole differences of weights (``.diff``), biases (``.diff_b``) and tables of modulation
(``.diff_m``). All are added in float32, once, as the tensors are read; the files themselves stay as they are.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from videogen.encoders.files import Weights
from videogen.encoders.loading import Source, Table
from videogen.errors import UserError, shown

PREFIXES = ("diffusion_model.", "model.diffusion_model.", "transformer.", "lora_unet_", "")
"""What may stand before the names of modules; behind the fourth, dots are underscores."""

DOWN = ("lora_A.weight", "lora_A.default.weight", "lora_down.weight")
UP = ("lora_B.weight", "lora_B.default.weight", "lora_up.weight")
"""Endings of the two factors of an update, in the order of their product: ``UP @ DOWN``."""

DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}
"""Ending of a whole difference -> the tensor of the module that it is added to."""

_ENDINGS = re.compile(rf"\.({'|'.join(map(re.escape, (*DOWN, *UP, *DIFFERENCES, 'alpha')))})$")


class Lora(NamedTuple):
    """A file of updates and how strongly it counts.

    Attributes:
      path: of the file.
      strength: what its updates are multiplied by.
      without: patterns of tensors that may be left out although they are not zero.
    """

    path: Path
    strength: float = 1.0
    without: Sequence[str] = ()


def read_lora(text: str, without: Sequence[str] = ()) -> Lora:
    """``FILE`` or ``FILE=STRENGTH`` -> the file and its strength.

    Raises:
      UserError: a strength that is no finite number.
    """
    path, equals, strength = text.rpartition("=")
    if not equals:
        return Lora(Path(text), without=without)
    try:
        value = float(strength)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise UserError(f"--lora={text} must be FILE or FILE=STRENGTH, such as style.safetensors=0.8")
    return Lora(Path(path), value, without)


class Updated(Mapping[str, np.ndarray]):
    """The tensors of a model with updates added, in float32 where there is one.

    Args:
      weights: the tensors of the model.
      table: its parameters -> names of tensors (``loading.fill``), whose other names a file of updates may use.
      layers: how many layers names with ``{}`` stand for.
      lora: the updates.
      prefixes: what may stand before the names of the model.

    Raises:
      UserError: a tensor of the updates that is not zero fits nothing in the model, or has another shape.
    """

    def __init__(
        self, weights: Mapping[str, np.ndarray], table: Table, layers: int, lora: Lora, prefixes: Sequence[str] = ("",)
    ):
        self.weights, self.lora, self.file = weights, lora, Weights(lora.path)
        known = _other_names(weights, table, layers, prefixes)
        self.modules = _modules(self.file)
        self.updates: dict[str, list[tuple[str, str]]] = {}
        left = []
        for module, endings in self.modules.items():
            for ending in endings:
                kind = DIFFERENCES.get(ending, "weight")
                name = _found(known, module, kind)
                if name is None:
                    left.append(f"{module}.{ending}")
                else:
                    self.updates.setdefault(name, []).append((module, ending))
        self._check_left_out(left)
        used, total = len(self.file) - len(left), len(self.file)
        logging.info("%s: used %d of %d tensors%s", lora.path, used, total, _groups(left))
        for name in self.updates:
            self._difference(name)

    def _check_left_out(self, left: Sequence[str]) -> None:
        """What fits nothing must change nothing: be zero, or be multiplied by something that is."""
        for name in left:
            module = _ENDINGS.sub("", name)
            zero = not self.file[name].any() or name.endswith(".alpha")
            zero = zero or any(f"{module}.{up}" in self.file and not self.file[f"{module}.{up}"].any() for up in UP)
            if not zero and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.lora.without):
                raise UserError(
                    f"{self.lora.path}: {shown(name)} is not zero and fits no tensor of this model; --lora_without="
                    f"PATTERN leaves such tensors out"
                )

    def _difference(self, name: str) -> np.ndarray:
        """What is added to a tensor, float32."""
        shape, total = self.weights[name].shape, np.zeros(self.weights[name].shape, np.float32)
        for module in dict.fromkeys(module for module, _ in self.updates[name]):
            endings = [ending for own, ending in self.updates[name] if own == module]
            read = {ending: np.asarray(self.file[f"{module}.{ending}"], np.float32) for ending in endings}
            down, up = ([read[ending] for ending in kind if ending in read] for kind in (DOWN, UP))
            if len(down) != len(up):
                raise UserError(f"{self.lora.path}: {module} has one of the two factors of an update")
            try:
                for a, b in zip(down, up, strict=True):
                    scale = read["alpha"].item() / len(a) if "alpha" in read else 1.0
                    total += scale * (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(shape)
                for ending in DIFFERENCES:
                    if ending in read:
                        total += read[ending].reshape(shape)
            except (ValueError, TypeError) as error:
                raise UserError(f"{self.lora.path}: {module} does not fit {name} of shape {list(shape)}") from error
        return np.float32(self.lora.strength) * total

    def __getitem__(self, name: str) -> np.ndarray:
        array = self.weights[name]
        return array if name not in self.updates else np.asarray(array, np.float32) + self._difference(name)

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _other_names(
    weights: Mapping[str, np.ndarray], table: Table, layers: int, prefixes: Sequence[str]
) -> dict[str, str]:
    """Every name that a tensor of the model has somewhere -> the one that it has here."""
    known = {}
    for source in table.values():
        names = source.names if isinstance(source, Source) else (source,)
        for name in names:
            for layer in range(layers if "{}" in name else 1):
                choices = [choice.format(layer) for choice in name.split("|")]
                here = [p + choice for choice in choices for p in prefixes if p + choice in weights]
                known |= dict.fromkeys(choices, here[0]) if here else {}
    return known


def _modules(file: Weights) -> dict[str, list[str]]:
    """Module as the file calls it -> endings of its tensors; a name without a known ending is a module by itself.

    Raises:
      UserError: a name that no file of updates has.
    """
    found: dict[str, list[str]] = {}
    for name in file:
        ending = _ENDINGS.search(name)
        if ending is None:
            raise UserError(f"{file.path} is no file of low-rank updates: it has the tensor {shown(name)}")
        found.setdefault(name[: ending.start()], []).append(ending[1])
    return found


def _found(known: Mapping[str, str], module: str, kind: str) -> str | None:
    """The tensor of the model that a module of a file stands for."""
    for prefix in PREFIXES:
        if not module.startswith(prefix):
            continue
        own = module.removeprefix(prefix)
        if (name := known.get(f"{own}.{kind}")) is not None:
            return name
        flat = {key.replace(".", "_"): value for key, value in known.items()} if prefix == "lora_unet_" else {}
        if (name := flat.get(f"{own}_{kind}")) is not None:
            return name
    return None


def _groups(left: Sequence[str]) -> str:
    """What was left out, by the last part of the names of its modules."""
    groups = sorted({_ENDINGS.sub("", name).rpartition(".")[2] for name in left})
    return f"; left out: {', '.join(groups)}" if groups else ""

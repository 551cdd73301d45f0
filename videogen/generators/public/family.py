"""What the published folders of one kind of generator are read with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from videogen.encoders.loading import Table


class Described(NamedTuple):
    """A published generator.

    Attributes:
      model: its config ``{name, …}``, as ``config.model`` has it.
      channels: of the latents.
      text_width: of the features of the text encoder.
    """

    model: dict[str, Any]
    channels: int
    text_width: int


class Family(NamedTuple):
    """One kind of published generator.

    Attributes:
      name: what users call it.
      kind: ``_class_name`` of the ``config.json`` of its transformer.
      described: what such a config describes, in the folder of a pipeline of this class (empty: it is not said).
      names: our parameters -> names of tensors, for the model that was built.
      prefixes: what may stand before all names.
      text: settings ``{length, cleaned}`` of the text tokenizer, beside its name and path.
      sampler: the section ``sampler`` for a ``scheduler_config.json`` and the class of a pipeline.
      clip: clips that are drawn unless a command says otherwise, for so many channels of latents.
    """

    name: str
    kind: str
    described: Callable[[Mapping[str, Any], str], Described]
    names: Callable[[nnx.Module], Table]
    prefixes: Sequence[str]
    text: Mapping[str, Any]
    sampler: Callable[[Mapping[str, Any], str], dict[str, Any]]
    clip: Callable[[int], dict[str, Any]]


def sampler(guidance: float, solver: dict[str, Any], grid: dict[str, Any], shift: float | None) -> dict[str, Any]:
    """The section ``sampler`` of 50 steps; without a ``shift`` the times have that of the model."""
    return {
        "name": "flow",
        "steps": 50,
        "solver": solver,
        "grid": grid,
        "shift": shift,
        "guidance_scale": guidance,
        "guidance": {"name": "classifier_free"},
        "lag": 0,
        "extension": "window",
    }


def of(module: str, tensor: str) -> str:
    """The names of a tensor of a module that has several names, ``a|b``."""
    return "|".join(f"{choice}.{tensor}" for choice in module.split("|"))

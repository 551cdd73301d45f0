"""What the published folders of one kind of generator are read with."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from videogen.encoders.loading import Source, Table, block_names, linear_names

PREFIXES = ("", "model.diffusion_model.")
"""What may stand before all names of a transformer."""

PARTS = ("query", "key", "value", "out")
"""Linear layers of an attention."""


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
      text: settings ``{length, cleaned}`` of the text tokenizer, beside its name and path.
      sampler: the section ``sampler`` for a ``scheduler_config.json`` and the class of a pipeline.
      clip: clips that are drawn unless a command says otherwise, for so many channels of latents.
    """

    name: str
    kind: str
    described: Callable[[Mapping[str, Any], str], Described]
    names: Callable[[nnx.Module], Table]
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


def transformer_names(
    outside: Mapping[str, str],
    attention: Callable[[str, str], str],
    *,
    up: str,
    down: str,
    tables: tuple[str, str],
) -> dict[str, str | Source]:
    """Our parameters of a ``FlowTransformer`` with adaLN-single -> their published names.

    Args:
      outside: our linear layers around the blocks -> modules.
      attention: ``(attention | cross_attention, part)`` -> the module of a part in ``PARTS``, or of the norm
        ``query_norm`` or ``key_norm``.
      up: the first layer of the MLPs.
      down: their second one.
      tables: of the modulation of the blocks, and of the last norm.
    """
    ours = "stack.layers"
    table: dict[str, str | Source] = {}
    for name, module in outside.items():
        table |= linear_names(name, module)
    own = {part: attention("attention", part) for part in PARTS}
    table |= block_names(**own, attention_norm="", mlp_norm="", up=up, down=down, ours=ours)
    table |= {f"{ours}.modulation.table": tables[0], "norm_modulation.table": tables[1]}
    # Features of the empty text, which the text encoder makes once the rest is read.
    table["context.null_text"] = Source(("/",), default=0.0)
    for place in ("attention", "cross_attention"):
        for norm in ("query_norm", "key_norm"):
            table[f"{ours}.{place}.{norm}.scale"] = of(attention(place, norm), "weight")
    cross = {part: attention("cross_attention", part) for part in PARTS}
    weight, bias = ({part: of(module, kind) for part, module in cross.items()} for kind in ("weight", "bias"))
    table |= {
        f"{ours}.cross_attention.query.kernel": weight["query"],
        f"{ours}.cross_attention.key_value.kernel": Source((weight["key"], weight["value"])),
        f"{ours}.cross_attention.out.kernel": weight["out"],
        f"{ours}.cross_attention.out.bias": bias["out"],
    }
    return table | {f"{ours}.cross_attention.{part}_bias": bias[part] for part in ("query", "key", "value")}

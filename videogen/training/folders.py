"""Runs, exports and published models as folders of diffusers: ``config.json`` and weights that its classes load."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from videogen import tokenizers
from videogen.configuration import check_writable, replace_text
from videogen.encoders.files import read_config
from videogen.encoders.loading import plain, tensors_of
from videogen.errors import UserError
from videogen.generators.folders import wan_folder
from videogen.nn import merged, without_lora
from videogen.tasks.generator import TextToCodes
from videogen.tokenizers.base import Tokenizer
from videogen.tokenizers.normalised import Normalised
from videogen.tokenizers.public import FAMILIES
from videogen.tokenizers.public.family import Statistics
from videogen.training.loading import CONFIG, Loaded
from videogen.training.published import TRANSFORMER, VAE
from videogen.weights import save_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"

Tensors = dict[str, np.ndarray]

GIVEN = ("self", "remat", "dtype", "rngs")
"""Arguments of a tokenizer that are no settings of its network."""


def export_diffusers(loaded: Loaded, out: epath.PathLike) -> list[str]:
    """Writes the folder of a tokenizer, or ``transformer`` and ``vae`` of a generator, float32.

    Low-rank updates become part of the kernels they update, and all statistics of latents those of the VAE. A folder of
    diffusers that is there already is replaced. Nothing is written where a part cannot be.

    Returns:
      The folders that were written, and what does not come from here, in lines.

    Raises:
      UserError: a part is no model that diffusers has a class for, or ``out`` holds a run or cannot be written.
    """
    out, lines = epath.Path(out), []
    _check_directory(loaded, out)
    if (tokenizer := loaded.task.assembled(loaded.modules)) is not None:
        folders = {"": _tokenizer(tokenizer, loaded.model_of("tokenizer"))}
    elif isinstance(loaded.trained, TextToCodes):
        folders = _generator(loaded)
        lines.append("text_encoder, tokenizer and scheduler are those of the published folder: copy them beside it")
    else:
        raise UserError(f"{loaded.directory} holds a {loaded.config.task}; {_known()}")
    for name, (config, tensors) in folders.items():
        folder = out / name if name else out
        check_writable(folder, "--out", directory=True)
        save_weights(folder / WEIGHTS, tensors, {"format": "pt"})
        replace_text(folder / CONFIG, _json(config))
        lines.insert(0, f"{folder}: {config['_class_name']}, {len(tensors)} tensors")
    return lines


def _check_directory(loaded: Loaded, out: epath.Path) -> None:
    said = read_config(out) if (out / CONFIG).exists() else {"_class_name": ""}
    if "_class_name" not in said or "task" in said:
        raise UserError(f"{out} holds a run or an export of its own, which this would overwrite; choose another --out")
    if out.resolve() == loaded.directory.resolve():
        raise UserError(f"{out} is what is read; choose another --out")


def _known() -> str:
    """What can be written, in a few words."""
    names = ", ".join(family.name for family in FAMILIES if family.writing is not None)
    return (
        f"folders of diffusers can be written of the tokenizers {names}, normalised or not, and of generators 'flow' "
        "whose transformer is Wan's (docs/public_weights.md)"
    )


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


# Tokenizers -----------------------------------------------------------------------------------------------------------


def _tokenizer(model: Tokenizer, section: Mapping[str, Any], over: Any = None) -> tuple[dict[str, Any], Tensors]:
    """``config.json`` and tensors of a tokenizer.

    Args:
      model: it.
      section: what builds it.
      over: statistics of normalised latents that come on top, ``(mean, deviation)`` of each channel.

    Raises:
      UserError: it is none that can be written.
    """
    model, section = merged(model), plain(without_lora(section))
    mean, deviation = np.zeros((1, model.quantizer.width)), np.ones((1, model.quantizer.width))
    if type(model) is Normalised:
        mean, deviation = model.normaliser.statistics()
        model, section = model.tokenizer, section["tokenizer"]
    if over is not None and (over[0].any() or (over[1] != 1).any()):
        mean, deviation = mean + deviation * over[0], deviation * over[1]
    found = ((each, each.writing) for each in FAMILIES if each.writing is not None and type(model) is each.writing.kind)
    family, writing = next(found, (None, None))
    if family is None:
        raise UserError(f"a {section['name']!r} tokenizer has no class in diffusers; {_known()}")
    settings = _defaults(writing.kind) | section
    config = writing.config(settings, Statistics(family.classes[0], mean, deviation))
    described = family.of_config(json.loads(_json(config)))
    unsaid = {name: settings[name] for name in writing.unsaid if name in settings}
    if _structure(section) != _structure({**described.model, **unsaid}):
        raise UserError(
            f"this {section['name']!r} tokenizer has settings that no {config['_class_name']} has; {_known()}"
        )
    names = (described.names or family.names)(model)
    tensors = tensors_of(model, names, layouts=writing.layouts, zeros=writing.zeros)
    held = [each for each in described.statistics or () if isinstance(each, str)]
    for name, values in zip(held, (mean, deviation), strict=bool(held)):
        tensors[name] = np.asarray(values[0], np.float32)
    return config, tensors


def _defaults(kind: type[Tokenizer]) -> dict[str, Any]:
    """The settings of a network where its section says nothing."""
    parameters = inspect.signature(kind.__init__).parameters
    return {name: plain(each.default) for name, each in parameters.items() if name not in GIVEN}


def _structure(section: Mapping[str, Any]) -> Any:
    """What of a network is no array."""
    return nnx.graphdef(nnx.eval_shape(lambda: tokenizers.build(section, dtype=jnp.float32, rngs=nnx.Rngs(0))))


# Generators -----------------------------------------------------------------------------------------------------------


def _generator(loaded: Loaded) -> dict[str, tuple[dict[str, Any], Tensors]]:
    """Transformer and VAE of a generator."""
    module = merged(loaded.trained)
    if module.text_encoder is not None:
        raise UserError(f"{loaded.directory} has a text encoder of its own, and diffusers a published one; {_known()}")
    try:
        transformer = wan_folder(module.generator, plain(without_lora(loaded.config.model)))
    except UserError as error:
        raise UserError(f"{error}; {_known()}") from None
    # The generator's own statistics of latents, where it has some: a function a·x + b of each channel.
    zeros = jnp.zeros(module.generator.channels)
    mean = np.asarray(module.generator.statistics.restore(zeros))
    deviation = np.asarray(module.generator.statistics.restore(zeros + 1)) - mean
    vae = _tokenizer(loaded.modules["tokenizer"], loaded.config.parts["tokenizer"].model, (mean, deviation))
    return {TRANSFORMER: transformer, VAE: vae}

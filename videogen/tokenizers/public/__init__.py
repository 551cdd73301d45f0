"""Tokenizers from their published files: what a file is, the tokenizer that it describes, and its weights.

Each family has a file with what its published files are called and how their tensors are named. Nothing of a file is
executed (``encoders.files``).
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from videogen import tokenizers
from videogen.encoders.files import Weights, read_config
from videogen.encoders.loading import fill
from videogen.errors import UserError
from videogen.tokenizers.base import Tokenizer
from videogen.tokenizers.normalised import Normalised
from videogen.tokenizers.normaliser import MeanNormaliser
from videogen.tokenizers.public.family import Description, Family
from videogen.tokenizers.public.ltx import LTX
from videogen.tokenizers.public.wan import WAN

FAMILIES = (WAN, LTX)


def read_tokenizer(path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> Tokenizer:
    """The tokenizer of a published file or folder, its latents normalised by the published statistics.

    Args:
      path: a file of weights, a folder with ``config.json`` and weights, or one with such a folder ``vae``.
      dtype: of the convolutions.

    Raises:
      UserError: it is no tokenizer that is known, or a tensor is missing, has another shape or is not known.
    """
    family, description, weights = describe(path)
    model = nnx.eval_shape(lambda: tokenizers.build(description.model, dtype=dtype, rngs=nnx.Rngs(0)))
    held = [name for name in description.statistics or () if isinstance(name, str)]
    rules = dict(prefixes=(description.prefix,), skipped=(*description.skipped, *held))
    model = fill(model, (description.names or family.names)(model), weights, path, **rules)
    if description.normaliser is None:
        return model
    normaliser = tokenizers.build_normaliser(description.normaliser, model.quantizer.width)
    if isinstance(normaliser, MeanNormaliser) and description.statistics is not None:
        if absent := [name for name in held if name not in weights]:
            raise UserError(f"{path} lacks the tensors {', '.join(absent)}; is it a published file of {family.name}?")
        statistics = [weights[own] if isinstance(own, str) else own for own in description.statistics]
        mean, deviation = (_table(own, normaliser.mean.get_value().shape, path) for own in statistics)
        if not (deviation > 0).all():
            raise UserError(f"{path}: deviations of latents must be positive")
        normaliser.mean.set_value(jnp.asarray(mean))
        normaliser.deviation.set_value(jnp.asarray(deviation))
    return Normalised(model, normaliser)


def _table(values: Any, shape: tuple[int, ...], path: str | Path) -> np.ndarray:
    """A table of statistics, ``[latent frames or 1, channels]``."""
    values = np.asarray(values, np.float32)
    if values.size != np.prod(shape):
        raise UserError(f"{path}: means and deviations of latents must be {shape[-1]} numbers each, got {values.size}")
    return values.reshape(shape)


def describe(path: str | Path) -> tuple[Family, Description, Weights]:
    """What a published file or folder is: its family, its description, and its tensors.

    Raises:
      UserError: it is unreadable, or of no family that is known.
    """
    path = Path(path)
    folder = path / "vae" if (path / "vae").is_dir() else path
    if folder.is_dir():
        family, config = _family_of(folder)
        try:
            description = family.of_config(config)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder}/config.json of a {config['_class_name']} lacks or has another kind of {error}"
            ) from None
        return family, description, Weights(folder)
    weights = Weights(folder)
    for family in FAMILIES:
        if (description := family.of_weights(weights)) is not None:
            return family, description, weights
    known = ", ".join(family.name for family in FAMILIES)
    raise UserError(f"{path} is no tokenizer that is known by its tensors (known: {known})")


def _family_of(folder: Path) -> tuple[Family, dict[str, Any]]:
    config = read_config(folder)
    name = config.get("_class_name")
    for family in FAMILIES:
        if name in family.classes:
            return family, config
    known = ", ".join(each for family in FAMILIES for each in family.classes)
    what = "does not say what it is (it has no _class_name)" if name is None else f"is of a {name}"
    raise UserError(f"{folder}/config.json {what}; tokenizers that can be read are {known}")

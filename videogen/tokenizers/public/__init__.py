"""Tokenizers from their published files: what a file is, the tokenizer that it describes, and its weights.

Each family has a file with what its published files are called and how their tensors are named. Nothing of a file is
executed (``encoders.files``).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from videogen.tokenizers.public.cogvideox import COGVIDEOX
from videogen.tokenizers.public.cosmos import COSMOS
from videogen.tokenizers.public.family import Description, Family
from videogen.tokenizers.public.hunyuan_video import HUNYUAN_VIDEO
from videogen.tokenizers.public.hunyuan_video_15 import HUNYUAN_VIDEO_15
from videogen.tokenizers.public.ltx import LTX
from videogen.tokenizers.public.vidtok import VIDTOK
from videogen.tokenizers.public.wan import WAN

FAMILIES = (WAN, LTX, COGVIDEOX, HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, COSMOS, VIDTOK)


class PublishedFiles(NamedTuple):
    """A published tokenizer, whose weights are not read yet.

    Attributes:
      path: the file or folder.
      family: what it is.
      description: what its config or its tensors say.
      weights: its tensors.
    """

    path: Path
    family: Family
    description: Description
    weights: Weights

    @property
    def model(self) -> dict[str, Any]:
        """The config ``{name, …}`` of the tokenizer with its normaliser, as ``config.model`` has it."""
        model, normaliser = self.description.model, self.description.normaliser
        return model if normaliser is None else {"name": "normalised", "tokenizer": model, "normaliser": normaliser}

    def read(self, dtype: jnp.dtype = jnp.float32) -> Tokenizer:
        """The tokenizer with its weights, its latents normalised by the published statistics.

        Args:
          dtype: of the convolutions.

        Raises:
          UserError: a tensor is missing, has another shape or is not known.
        """
        about = self.description
        model = nnx.eval_shape(lambda: tokenizers.build(about.model, dtype=dtype, rngs=nnx.Rngs(0)))
        held = [name for name in about.statistics or () if isinstance(name, str)]
        rules = dict(prefixes=(about.prefix,), skipped=(*about.skipped, *held))
        model = fill(model, (about.names or self.family.names)(model), self.weights, self.weights.path, **rules)
        if about.normaliser is None:
            return model
        normaliser = tokenizers.build_normaliser(about.normaliser, model.quantizer.width)
        if isinstance(normaliser, MeanNormaliser):
            mean, deviation = self._statistics(normaliser.mean.get_value().shape, held)
            normaliser.mean.set_value(jnp.asarray(mean))
            normaliser.deviation.set_value(jnp.asarray(deviation))
        return Normalised(model, normaliser)

    def _statistics(self, shape: tuple[int, ...], held: Sequence[str]) -> list[np.ndarray]:
        """Means and deviations of latents, some of which are tensors that the file holds."""
        if absent := [name for name in held if name not in self.weights]:
            raise UserError(
                f"{self.path} lacks the tensors {', '.join(absent)}; is it a published file of {self.family.name}?"
            )
        values = [self.weights[own] if isinstance(own, str) else own for own in self.description.statistics]
        mean, deviation = (self._table(own, shape) for own in values)
        if not (deviation > 0).all():
            raise UserError(f"{self.path}: deviations of latents must be positive")
        return [mean, deviation]

    def _table(self, values: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A table of statistics, ``[latent frames or 1, channels]``."""
        values = np.asarray(values, np.float32)
        if values.size != math.prod(shape):
            raise UserError(
                f"{self.path}: means and deviations of latents must be {math.prod(shape)} numbers each, "
                f"got {values.size}"
            )
        return values.reshape(shape)


def read_tokenizer(path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> Tokenizer:
    """The tokenizer of a published file or folder; see ``describe`` and ``PublishedFiles.read``."""
    return describe(path).read(dtype)


def named(path: str | Path) -> tuple[tuple[Family, ...], Path]:
    """``wan:PATH`` -> the families of that name, and the path; none where the path has no such name in front."""
    name, colon, rest = str(path).partition(":")
    found = tuple(family for family in FAMILIES if family.name == name) if colon else ()
    return found, Path(rest if found else path)


def describe(path: str | Path) -> PublishedFiles:
    """What a published file or folder is.

    Args:
      path: a file of weights, a folder with ``config.json`` and weights, or one with such a folder ``vae``; with the
        name of its family in front (``wan:PATH``) it is of no other.

    Raises:
      UserError: it is unreadable, or of no family that is known.
    """
    families, path = named(path)
    families = families or FAMILIES
    folder = path / "vae" if (path / "vae").is_dir() else path
    weights = _original(folder, families)
    if weights is None:
        family, config = _family_of(folder, families)
        try:
            description = family.of_config(config)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder}/config.json of the class {config['_class_name']} lacks or has another kind of {error}"
            ) from None
        return PublishedFiles(path, family, description, Weights(folder))
    for family in families:
        if (description := family.of_weights(weights)) is not None:
            return PublishedFiles(path, family, description, weights)
    known = ", ".join(family.name for family in families)
    raise UserError(f"{path} is no tokenizer that is known by its tensors (known: {known})")


def _original(path: Path, families: tuple[Family, ...]) -> Weights | None:
    """The weights of an original file, or of those of an original folder; ``None`` in a folder of diffusers."""
    if not path.is_dir():
        return Weights(path)
    kinds = (names for family in families for names in family.files)
    return next((Weights(path, names) for names in kinds if all((path / name).is_file() for name in names)), None)


def _family_of(folder: Path, families: tuple[Family, ...]) -> tuple[Family, dict[str, Any]]:
    config = read_config(folder)
    name = config.get("_class_name")
    for family in families:
        if name in family.classes:
            return family, config
    known = ", ".join(each for family in families for each in family.classes)
    what = "does not say what it is (it has no _class_name)" if name is None else f"is of a {name}"
    raise UserError(f"{folder}/config.json {what}; tokenizers that can be read are {known}")

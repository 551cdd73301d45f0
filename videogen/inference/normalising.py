"""Fitting a normaliser to the latents of a trained tokenizer."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from videogen import tasks
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import Normalised, build_normaliser
from videogen.tokenizers.normaliser import moments_of, read_normaliser
from videogen.training.loading import Loaded

Arrays = Mapping[str, np.ndarray]


def fit_normaliser(
    loaded: Loaded, text: str, shape: VideoShape, batches: Iterable[Arrays]
) -> tuple[Loaded, Callable[[Arrays], Arrays]]:
    """Fits a normaliser to batches of latents; the log says in one line what was found.

    Args:
      loaded: a stage that has trained a tokenizer with continuous latents.
      text: what is fitted, as ``read_normaliser`` reads it.
      shape: of the clips.
      batches: raw latents by the name of their segment, masks by ``SEGMENT/exists``; read once.

    Returns:
      The stage as if its tokenizer had the normaliser from the start, ready to be exported; and what makes normalised
      batches of raw ones.

    Raises:
      UserError: a tokenizer with codes or without latent frames, one that is not all that its stage has trained, or
        latents that cannot be normalised.
    """
    model = loaded.tokenizer
    if model.coder is not model:
        raise UserError(f"{loaded.directory} has trained a decoder only; normalise the latents of its tokenizer's run")
    (name, layout), *_ = model.layout(shape).segments
    setting = read_normaliser(text, layout)
    normaliser = build_normaliser(setting, model.quantizer.width)
    whole, moments = Normalised(model, normaliser), None
    for batch in batches:
        if name in batch:
            part = moments_of(batch[name], batch.get(f"{name}/exists"), by_frame=bool(normaliser.frames))
            moments = part if moments is None else list(map(operator.add, moments, part))
    if moments is None:
        raise UserError("no clip could be read; check the source")
    logging.info("normalised latents: %s", normaliser.fit(moments))
    config, modules = _whole(loaded, whole, setting)
    normalise = jax.jit(normaliser.normalise)

    def change(batch: Arrays) -> Arrays:
        return {**batch, name: np.asarray(normalise(batch[name]))} if name in batch else batch

    return dataclasses.replace(loaded, config=config, task=tasks.build(config), modules=modules), change


def _whole(loaded: Loaded, whole: Normalised, setting: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Config and modules of a stage whose tokenizer has the normaliser; of one that has frozen parts, or is a part of
    what its stage has trained, a stage that holds the tokenizer alone."""
    config, model = loaded.config.copy_and_resolve_references(), loaded.task.assembled_model
    alone = loaded.tokenizer is not loaded.trained
    with config.unlocked(), config.ignore_type():
        config.model = {"name": "normalised", "tokenizer": ConfigDict(model).to_dict(), "normaliser": setting}
        if alone:
            config.task, config.parts, config.losses = "tokenizer", {}, {}
            config.optimizer = {"tokenizer": next(iter(config.optimizer.values()))}
            config.optimizer.tokenizer.freeze = ()
    return config, {"tokenizer": whole} if alone else {**loaded.modules, loaded.task.exported[0]: whole}

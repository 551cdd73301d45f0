"""Published files and folders in the place of a run directory: their config, and their weights as a run has them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from videogen import tokenizers
from videogen.configuration import is_remote
from videogen.defaults import base, optimizer
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers.public import Published, named
from videogen.training.placement import Placement
from videogen.weights import place_weights

FRAMES = (17, 16, 9, 1)
"""Frames of a clip where a command names no others: the first of these that the tokenizer takes, of …"""

SIDE = 256
"""… so many pixels a side."""


def is_published(path: epath.PathLike) -> bool:
    """Whether this is what others have published, and no run directory or export.

    That is a file, a folder of diffusers (``config.json`` has a ``_class_name``), or what has the name of its family in
    front (``wan:PATH``).
    """
    families, found = named(path)
    if families or is_remote(path):
        return bool(families)
    return found.is_file() or any(_names_a_class(folder / "config.json") for folder in (found, found / "vae"))


def _names_a_class(path: Path) -> bool:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "_class_name" in values and "task" not in values


def config_of(published: Published) -> ConfigDict:
    """The config of the stage ``tokenizer`` whose model this is; it trains with a squared error."""
    config = base("float32")
    config.task = "tokenizer"
    config.model = ConfigDict(published.model)
    config.losses = {"l2": {"name": "l2", "weight": 1.0}}
    config.optimizer = {"tokenizer": optimizer()}
    config.data.source = {"name": "video_folder", "path": ""}
    # Clips have the frame rate of their files.
    config.data.clip = {"frames": _frames(published), "height": SIDE, "width": SIDE, "fps": 0.0}
    return config


def _frames(published: Published) -> int:
    """The first of ``FRAMES`` that the tokenizer takes."""
    model = nnx.eval_shape(lambda: tokenizers.build(published.model, rngs=nnx.Rngs(0)))
    for frames in FRAMES:
        try:
            model.layout(VideoShape(frames, SIDE, SIDE))
        except UserError:
            continue
        return frames
    raise UserError(f"{published.path} takes no clips of {', '.join(map(str, FRAMES))} frames of {SIDE} pixels a side")


def read_modules(published: Published, abstract: dict[str, nnx.Module], placement: Placement) -> dict[str, nnx.Module]:
    """The modules of the stage with their weights, where and as the placement says."""
    if placement.as_ever:
        return {name: published.read() for name in abstract}
    # Read into the memory of the host: no device ever holds the whole.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        graph, params, variables = nnx.split(published.read(), nnx.Param, ...)
    (name,) = abstract
    tree: dict[str, Any] = {
        "params": {name: nnx.to_pure_dict(params)},
        "variables": {name: nnx.to_pure_dict(variables)},
    }
    placed = place_weights(jax.tree.map(np.asarray, tree), placement.of_weights(abstract, tree))
    return {name: nnx.merge(graph, placed["params"][name], placed["variables"][name])}

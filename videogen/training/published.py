"""Published files and folders in the place of a run directory: their config, and their weights as a run has them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict, config_dict

from videogen import encoders, tokenizers
from videogen.configuration import is_remote
from videogen.data.text import build_text_tokenizer
from videogen.defaults import base, optimizer
from videogen.encoders.files import Weights, read_config
from videogen.encoders.loading import fill
from videogen.encoders.lora_files import Lora, Updated
from videogen.errors import UserError
from videogen.generators import public as generators
from videogen.shapes import VideoShape
from videogen.tasks.base import Task
from videogen.tokenizers.public import Family, PublishedFiles, describe, named
from videogen.training.placement import Placement
from videogen.weights import place_weights

VAE, TRANSFORMER, TEXT_ENCODER = "vae", "transformer", "text_encoder"
"""Folders of a pipeline of diffusers; the last is also what the part is called."""

FRAMES = (17, 16, 9, 1)
"""Frames of a clip where a command names no others: the first of these that the tokenizer takes, of …"""

SIDE = 256
"""… so many pixels a side."""


def is_published(path: epath.PathLike) -> bool:
    """Whether this is what others have published, and no run directory or export.

    That is a file, a folder of diffusers (``config.json`` has a ``_class_name``, or that of a folder ``vae`` or
    ``transformer`` in it), or what has the name of its family in front (``wan:PATH``).
    """
    families, found = named(path)
    if families or is_remote(path):
        return bool(families)
    folders = (found, found / VAE, found / TRANSFORMER)
    return found.is_file() or any(_names_a_class(folder / "config.json") for folder in folders)


def _names_a_class(path: Path) -> bool:
    values = _read(path)
    return "_class_name" in values and "task" not in values


def _read(path: Path) -> dict[str, Any]:
    """A file of JSON; empty where there is none, or it holds something else. A pipe, which would be waited for without
    end, is none."""
    try:
        values = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


class PublishedTokenizer(NamedTuple):
    """A published tokenizer as the stage ``tokenizer``, which trains with a squared error.

    Attributes:
      tokenizer: what it is.
    """

    tokenizer: PublishedFiles

    @property
    def family(self) -> Family:
        """Of the tokenizer."""
        return self.tokenizer.family

    def config(self) -> ConfigDict:
        """The config of the stage."""
        config = _based_on("tokenizer")
        config.model = ConfigDict(self.tokenizer.model)
        config.losses = {"l2": {"name": "l2", "weight": 1.0}}
        # Clips have the frame rate of their files.
        config.data.clip = {"frames": self._frames(), "height": SIDE, "width": SIDE, "fps": 0.0}
        return config

    def _frames(self) -> int:
        """The first of ``FRAMES`` that the tokenizer takes."""
        model = nnx.eval_shape(lambda: tokenizers.build(self.tokenizer.model, rngs=nnx.Rngs(0)))
        for frames in FRAMES:
            try:
                model.layout(VideoShape(frames, SIDE, SIDE))
            except UserError:
                continue
            return frames
        raise UserError(
            f"{self.tokenizer.path} takes no clips of {', '.join(map(str, FRAMES))} frames of {SIDE} pixels a side"
        )

    def modules(self, task: Task) -> dict[str, nnx.Module]:
        """Its trained module, with the published weights."""
        return {"tokenizer": self.tokenizer.read()}

    def frozen(self, task: Task) -> dict[str, nnx.Module]:
        """It has none."""
        return {}

    def text(self, config: ConfigDict) -> None:
        """It reads no text."""


class PublishedGenerator(NamedTuple):
    """The folder of a published pipeline as the stage ``generator``, with its tokenizer and text encoder as parts.

    Attributes:
      path: the folder.
      kind: what its transformer is read with.
      described: its transformer.
      tokenizer: its VAE.
      loras: updates that are added to the transformer.
    """

    path: Path
    kind: generators.Family
    described: generators.Described
    tokenizer: PublishedFiles
    loras: Sequence[Lora] = ()

    @property
    def family(self) -> Family:
        """Of its tokenizer."""
        return self.tokenizer.family

    def config(self) -> ConfigDict:
        """The config of the stage: model, parts, text and sampler as published; clips of the published size."""
        config = _based_on("generator")
        config.classes = config_dict.placeholder(int)
        config.model = ConfigDict(self.described.model)
        folder = self.path / TEXT_ENCODER
        vae = {"checkpoint": str(self.path / VAE), "model": self.tokenizer.model, "hash": ""}
        encoder = {"checkpoint": str(folder), "model": encoders.describe("t5", folder), "hash": ""}
        config.parts = {"tokenizer": vae, TEXT_ENCODER: encoder}
        config.text = {
            "encoder": {"name": "t5"},
            "tokenizer": {"name": "huggingface", "path": str(self.path / "tokenizer"), **self.kind.text},
        }
        config.sampler = self._sampler()
        config.data.clip = ConfigDict(self.kind.clip(self.described.channels))
        config.data.frame_rate = config.data.clip.fps
        return config

    def _sampler(self) -> ConfigDict:
        """The section, with the times of ``scheduler_config.json``."""
        path = self.path / "scheduler" / "scheduler_config.json"
        try:
            values = json.loads(path.read_text()) if path.is_file() else {}
            found = self.kind.sampler(values, _pipeline(self.path))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not say the shift of the times: {error}") from None
        return ConfigDict(found | {"shift": found["shift"] or config_dict.placeholder(float)})

    def modules(self, task: Task) -> dict[str, nnx.Module]:
        """The transformer, with the published weights; what it is told where there is no text is the empty text."""
        module = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["generator"]
        path = self.path / TRANSFORMER
        weights, names = Weights(path), self.kind.names(module.generator)
        for lora in self.loras:
            weights = Updated(weights, names, module.generator.stack.depth, lora, generators.PREFIXES)
        module.generator = fill(module.generator, names, weights, path, prefixes=generators.PREFIXES)
        return {"generator": module}

    def frozen(self, task: Task) -> dict[str, nnx.Module]:
        """Tokenizer and text encoder."""
        encoder = task.published(TEXT_ENCODER, str(self.path / TEXT_ENCODER))
        return {"tokenizer": self.tokenizer.read(), TEXT_ENCODER: encoder}

    def text(self, config: ConfigDict) -> Any:
        """The text tokenizer of the folder."""
        return build_text_tokenizer(config.text.tokenizer.to_dict())


def find(path: epath.PathLike, loras: Sequence[Lora] = ()) -> PublishedTokenizer | PublishedGenerator:
    """What is published at a path; ``loras`` are updates of its transformer.

    Raises:
      UserError: nothing that is known, or a part of it is missing; updates of what has no transformer.
    """
    folder = named(path)[1]
    if loras and not (folder / TRANSFORMER).is_dir():
        raise UserError(f"{path} is no folder with a transformer, which published updates (LoRA) are for")
    if not (folder / TRANSFORMER).is_dir():
        return PublishedTokenizer(describe(path))
    config = read_config(folder / TRANSFORMER)
    kind = next((kind for kind in generators.FAMILIES if kind.kind == config.get("_class_name")), None)
    if kind is None:
        raise UserError(
            f"{folder / TRANSFORMER}/config.json is of a {config.get('_class_name')}; generators that can be read are "
            f"{', '.join(kind.kind for kind in generators.FAMILIES)}"
        )
    if (folder / "transformer_2").is_dir():
        raise UserError(f"{folder} has two experts (transformer_2), which is not supported; take a model with one")
    described = kind.described(config, _pipeline(folder))
    return PublishedGenerator(folder, kind, described, describe(folder / VAE), loras)


def _pipeline(folder: Path) -> str:
    """The class of the pipeline of a folder; empty where it does not say it."""
    return str(_read(folder / "model_index.json").get("_class_name", ""))


def _based_on(task: str) -> ConfigDict:
    """The base of a stage of published weights; it trains on a folder of videos."""
    config = base("float32")
    config.task = task
    config.optimizer = {task: optimizer()}
    config.data.source = {"name": "video_folder", "path": ""}
    return config


def read_modules(
    published: PublishedTokenizer | PublishedGenerator, task: Task, placement: Placement
) -> dict[str, nnx.Module]:
    """All modules of the stage with their weights, where and as the placement says."""
    # Read into the memory of the host where there is a mesh: no device ever holds the whole.
    here = None if placement.as_ever else jax.local_devices(backend="cpu")[0]
    with jax.default_device(here):
        modules, frozen = published.modules(task), published.frozen(task)
        if TEXT_ENCODER in frozen:
            _read_empty_text(modules["generator"].generator, frozen[TEXT_ENCODER], published.text(task.config))
    if placement.as_ever:
        return modules | frozen
    return _placed(modules, placement) | {name: _placed_frozen(name, m, placement) for name, m in frozen.items()}


def _read_empty_text(generator: nnx.Module, encoder: nnx.Module, tokenizer: Any) -> None:
    """Makes the features of the empty text what a generator is told where it is told nothing."""
    ids, mask = tokenizer.encode([""])
    features = encoder(jnp.asarray(ids), jnp.asarray(mask)).features[0].astype(jnp.float32)
    null = generator.context.null_text
    if null.get_value().ndim == 1:
        # Where texts have a mask, one vector stands for what is not said: T5 has one token of the empty text, its end.
        if (count := int(mask.sum())) != 1:
            raise UserError(f"the text tokenizer makes {count} tokens of the empty text; 1, its end, is expected")
        null.set_value(features[0])
    else:
        null.set_value(features)


def _placed(modules: dict[str, nnx.Module], placement: Placement) -> dict[str, nnx.Module]:
    split = {name: nnx.split(module, nnx.Param, ...) for name, module in modules.items()}
    tree: dict[str, Any] = {
        "params": {name: nnx.to_pure_dict(params) for name, (_, params, _) in split.items()},
        "variables": {name: nnx.to_pure_dict(variables) for name, (_, _, variables) in split.items()},
    }
    placed = place_weights(jax.tree.map(np.asarray, tree), placement.of_weights(modules, tree))
    return {
        name: nnx.merge(graph, placed["params"][name], placed["variables"][name])
        for name, (graph, _, _) in split.items()
    }


def _placed_frozen(name: str, module: nnx.Module, placement: Placement) -> nnx.Module:
    graph, state = nnx.split(module)
    tree = jax.tree.map(np.asarray, nnx.to_pure_dict(state))
    return nnx.merge(graph, place_weights(tree, placement.of_frozen(name, module)))

"""What tests beside the classes of diffusers share: arrays there and back, and methods as compiled programs."""

import functools
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

WEIGHTS = "diffusion_pytorch_model.safetensors"


def theirs(x: Any) -> Any:
    """Channels last, as here -> a tensor with channels second."""
    import torch

    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def ours(x: Any) -> np.ndarray:
    """The way back."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _program(model: nnx.Module, path: str, settings: Mapping[str, Any] = MappingProxyType({})) -> Any:
    graph, state = nnx.split(model)

    def call(state: Any, *arrays: Any) -> Any:
        return operator.attrgetter(path)(nnx.merge(graph, state))(*arrays, **settings)

    return functools.partial(jax.jit(call), state)


_kept = functools.cache(_program)


def run(model: nnx.Module, path: str, *arrays: Any, **settings: Any) -> Any:
    """A method, or a part by its dotted path, of a model on arrays, compiled; once where there are no settings."""
    program = _program(model, path, settings) if settings else _kept(model, path)
    return program(*arrays)


def with_config(folder: Path, goal: Path, **changes: Any) -> Path:
    """A folder with the weights of another one and its config with some values changed; ``None`` leaves one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (goal / "config.json").write_text(json.dumps(kept))
    if not (goal / WEIGHTS).exists():
        (goal / WEIGHTS).symlink_to(folder / WEIGHTS)
    return goal

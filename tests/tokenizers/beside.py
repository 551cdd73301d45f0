"""What tests beside the classes of diffusers share: arrays there and back, and methods as compiled programs."""

from typing import Any

import jax
import numpy as np
from flax import nnx


def theirs(x: Any) -> Any:
    """Channels last, as here -> a tensor with channels second."""
    import torch

    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def ours(x: Any) -> np.ndarray:
    """The way back."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def run(model: nnx.Module, method: str, *arrays: Any, **settings: Any) -> Any:
    """A method of a model, compiled."""
    graph, state = nnx.split(model)
    return jax.jit(lambda state, *arrays: getattr(nnx.merge(graph, state), method)(*arrays, **settings))(state, *arrays)

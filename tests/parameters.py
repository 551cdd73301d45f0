"""Random parameters for tests, drawn by NumPy, which unlike initialisers compiles nothing."""

import jax.numpy as jnp
import numpy as np
from flax import nnx


def random_parameter(path: tuple, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Away from the zeros of a fresh model, so that every path matters to the tests."""
    noise = random.normal(size=shape).astype(np.float32)
    if "kernel" in path or "codebook" in path:
        return noise / np.sqrt(np.prod(shape[-5:-1]))
    return 0.1 * noise + (path[-1] == "scale")


def with_random_parameters(abstract: nnx.Module, seed: int = 1) -> nnx.Module:
    """A module made by ``nnx.eval_shape``, with every parameter and variable random."""
    random = np.random.default_rng(seed)
    graph, state = nnx.split(abstract)
    values = [(path, random_parameter(path, v.get_value().shape, random)) for path, v in nnx.to_flat_state(state)]
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping({p: jnp.asarray(v) for p, v in values}))
    return nnx.merge(graph, state)

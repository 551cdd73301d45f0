"""What Muon makes of gradients: matrices whose singular values are all about as large, of whatever holds a matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.defaults import optimizer
from videogen.training.optimizers import build_optimizer


@pytest.mark.parametrize(
    ("path", "shape", "matrix"),
    [
        (("layers", "up", "kernel"), (3, 16, 8), (3, 16, 8)),
        (("down", "convolution", "kernel"), (3, 3, 3, 2, 8), (1, 54, 8)),
    ],
)
def test_muon_takes_steps_of_one_length_in_every_direction(path, shape, matrix):
    # Columns of very unequal gradients.
    gradient = jax.random.normal(jax.random.key(0), shape) * 10.0 ** jnp.linspace(-1, 0, shape[-1])
    for name in reversed(path):
        gradient = {name: gradient}
    config = optimizer("muon", learning_rate=1.0, clip=0.0, weight_decay=0.0)
    transform, _ = build_optimizer(config, 10)
    updates, _ = transform.update(gradient, transform.init(gradient), gradient)
    values = np.linalg.svd(np.asarray(jax.tree.leaves(updates)[0]).reshape(matrix), compute_uv=False)
    # Five Newton-Schulz iterations bring them near 1.
    assert values.min() > 0.6 and values.max() < 1.3

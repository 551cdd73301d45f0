"""A codebook that no loss reaches is named."""

import jax.numpy as jnp
import pytest

from videogen.training.codebooks import NORM, CodebookWatch, codebook_norms

TABLE = NORM + "quantizer_0_codebook"


def test_norms_are_those_of_the_codebooks_that_learn():
    grads = {
        "quantizer": {0: {"codebook": jnp.array([[3.0, 0.0], [0.0, 4.0]])}, 1: {"codebook": jnp.zeros((2, 2))}},
        "decoder": {"kernel": jnp.ones((2, 2))},
    }
    assert codebook_norms(grads, ()) == {TABLE: 5.0, NORM + "quantizer_1_codebook": 0.0}
    assert codebook_norms(grads, ("quantizer.1",)) == {TABLE: 5.0}


def test_a_codebook_is_named_once_after_a_hundred_steps_without_a_gradient():
    watch = CodebookWatch()
    # One gradient in between begins the count again.
    norms = [0.0] * 99 + [1e-9] + [0.0] * 150
    warned = {i: found for i, norm in enumerate(norms) if (found := watch.warnings({TABLE: norm, "loss": 0.0}))}
    assert list(warned) == [199]
    (line,) = warned[199]
    assert line.startswith("the codebook quantizer_0_codebook has had no gradient for 100 steps: no loss with a weight")


@pytest.mark.parametrize("norm", [1e-30, float("inf")])
def test_a_gradient_of_any_other_size_is_one(norm):
    watch = CodebookWatch()
    assert not any(watch.warnings({TABLE: norm}) for _ in range(150))

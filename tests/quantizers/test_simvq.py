"""SimVQ against vector-quantize-pytorch: one projection moves every code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.quantizers import SimVectorQuantizer

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_values_losses_and_gradients_equal_the_oracle(estimator):
    quantizer = SimVectorQuantizer(32, 6, estimator=estimator, rngs=nnx.Rngs(0))
    library = oracle.SimVQ(6, 32, rotation_trick=estimator == "rotation")
    with torch.no_grad():
        library.frozen_codebook.copy_(torch.tensor(np.asarray(quantizer.table.get_value())))
        library.code_transform.weight.copy_(torch.tensor(np.asarray(quantizer.projection.kernel.get_value()).T))
    z, weight = np.random.default_rng(0).normal(size=(2, 3, 20, 6)).astype(np.float32)
    graph, params, rest = nnx.split(quantizer, nnx.Param, ...)

    def loss(params, z):
        quantized = nnx.merge(graph, params, rest)(z, train=True)
        return jnp.sum(quantized.latents * weight) + 100 * sum(quantized.losses.values()), quantized

    (to_params, to_z), quantized = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, jnp.asarray(z))
    leaf = torch.tensor(z, requires_grad=True)
    codes, indices, auxiliary = library(leaf)
    ((codes * torch.tensor(weight)).sum() + 100 * auxiliary).backward()
    np.testing.assert_array_equal(quantized.indices[..., 0], indices.numpy())
    np.testing.assert_allclose(quantized.latents, codes.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(sum(quantized.losses.values()), float(auxiliary.detach()), rtol=1e-5)
    np.testing.assert_allclose(to_z, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)
    ours, theirs = to_params["projection"]["kernel"].get_value(), library.code_transform.weight.grad.numpy().T
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_used_code_moves_all_and_the_table_is_frozen():
    quantizer = SimVectorQuantizer(8, 4, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(quantizer, nnx.Param, ...)
    assert [variable.get_value().shape for _, variable in nnx.to_flat_state(params)] == [(4, 4)]
    gradient = jax.grad(lambda p: nnx.merge(graph, p, rest)(jnp.ones((1, 4))).losses["codebook"])(params)
    moved = nnx.merge(graph, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), rest)
    ids = jnp.arange(8)[:, None]
    assert (jnp.abs(moved.lookup(ids) - quantizer.lookup(ids)).max(-1) > 1e-6).all()

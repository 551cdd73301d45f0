"""cuDNN's attention without a GPU: JAX's own checks of what is asked of it, and its stand-in in plans."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from videogen.nn.backends import BACKENDS
from videogen.nn.cudnn import BACKWARD, FORWARD, cudnn, cudnn_takes
from videogen.nn.masking import Masking
from videogen.nn.masks import BlockCausal, Full
from videogen.parallel.flops import count


def operands(queries, keys, *, padded=False, biased=False):
    """Shapes of query, key, value, key mask and bias."""
    q, k = (jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16) for length in (queries, keys))
    key_mask = jax.ShapeDtypeStruct((2, keys), jnp.bool_) if padded else None
    bias = jax.ShapeDtypeStruct((4, queries, keys), jnp.float32) if biased else None
    return q, k, k, key_mask, bias


def gradients(backend, mask=Full()):
    def loss(query, key, value, key_mask, bias):
        return backend(query, key, value, Masking(mask, key_mask=key_mask, bias=bias)).astype(jnp.float32).sum()

    return jax.grad(loss, argnums=(0, 1, 2))


def step(backend):
    """Output and gradients: for these alone dense attention needs no product of weights and values."""

    def both(query, key, value, key_mask, bias):
        out, pull = jax.vjp(lambda *x: backend(*x, Masking(key_mask=key_mask, bias=bias)), query, key, value)
        return out, pull(out)

    return both


@pytest.fixture
def pretended_gpu(monkeypatch):
    """JAX checks the sizes of cuDNN attention as it would on a Hopper GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: capability == "9.0")
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda capability: False)


@pytest.mark.parametrize("queries", (6, 7))
@pytest.mark.parametrize("keys", (6, 9))
@pytest.mark.parametrize(
    ("mask", "padded", "biased"),
    [(Full(), False, False), (Full(), True, False), (Full(), False, True), (BlockCausal(2), True, True)],
)
def test_what_is_given_to_cudnn_is_what_jax_lets_it_train(pretended_gpu, queries, keys, mask, padded, biased):
    arguments = operands(queries, keys, padded=padded, biased=biased)
    if cudnn_takes(jnp.bfloat16, 64, queries, keys):
        found = jax.eval_shape(gradients(cudnn, mask), *arguments)
        assert [g.shape for g in found] == [x.shape for x in arguments[:3]]
    else:
        with pytest.raises(NotImplementedError, match="sequence length"):
            jax.eval_shape(gradients(cudnn, mask), *arguments)


@pytest.mark.parametrize(
    ("dtype", "width", "takes"),
    [(jnp.bfloat16, 64, True), (jnp.float32, 64, False), (jnp.bfloat16, 60, False), (jnp.bfloat16, 256, False)],
)
def test_other_precisions_and_widths_are_left_to_the_reference(dtype, width, takes):
    assert cudnn_takes(dtype, width, 6, 6) is takes


@pytest.mark.parametrize(("padded", "biased"), [(False, False), (True, False), (False, True)])
def test_a_plan_counts_cudnn_as_it_counts_dense_attention(padded, biased):
    arguments = operands(64, 32, padded=padded, biased=biased)
    standing_in, dense = (
        count(jax.make_jaxpr(step(backend))(*arguments)) for backend in (cudnn, BACKENDS["reference"])
    )
    product = 2.0 * 2 * 4 * 64 * 32 * 64
    assert standing_in.model == dense.model == 6 * product
    assert standing_in.recomputed == product
    assert standing_in.kernels == {FORWARD: 2 * product, BACKWARD: 5 * product}

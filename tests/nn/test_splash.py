"""The splash kernel, in interpret mode, against the reference; nothing of quadratic size in a long training step."""

import dataclasses
import functools
import importlib.util
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

from videogen.errors import UserError
from videogen.nn import Block, BlockCausal, Causal, Full, PrefixLM, Stack, Window, attend, mask_array
from videogen.nn.splash import LazyMask, block_length
from videogen.parallel import AXES, make_mesh

MASKS = [Full(), Causal(), BlockCausal(48), BlockCausal(128), PrefixLM(100), Window(40)]


def heads(queries: int, keys: int, *, batch: int = 1, width: int = 48, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    keys_ = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, queries, 2, width), *[(batch, keys, 2, width)] * 2, (batch, queries, 2, width)]
    query, key, value, cotangent = (jax.random.normal(k, s, dtype) for k, s in zip(keys_, shapes, strict=True))
    return query / width**0.5, key, value, cotangent


def output_and_gradients(backend: str, arrays: tuple[jax.Array, ...], mask, key_mask=None) -> tuple[jax.Array, ...]:
    @jax.jit
    def run(query, key, value, cotangent):
        def attention(*x):
            return attend(*x, mask=mask, key_mask=key_mask, backend=backend)

        out, pull = jax.vjp(attention, query, key, value)
        return out, *pull(cotangent)

    return run(*arrays)


def assert_equal_to_reference(arrays, mask, key_mask=None, atol=1e-4, rtol=0.0):
    actual = output_and_gradients("splash", arrays, mask, key_mask)
    expected = output_and_gradients("reference", arrays, mask, key_mask)
    for name, a, e in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        a, e = a.astype(jnp.float32), e.astype(jnp.float32)
        np.testing.assert_allclose(a, e, atol=atol, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("padding", [False, True])
def test_splash_equals_reference(mask, padding):
    # 300 places are padded to 384, three blocks of 128; 256 fill two. BlockCausal(128) has no partial block there.
    length = 256 if isinstance(mask, BlockCausal) and mask.block == 128 else 300
    key_mask = None
    if padding:
        # Every query keeps its own place or one beside it.
        key_mask = jnp.arange(length)[None] % jnp.array([[3], [7]]) != 1
        key_mask &= jnp.arange(length)[None] < jnp.array([[length], [length - 30]])
    assert_equal_to_reference(heads(length, length, batch=2 if padding else 1), mask, key_mask)


def test_other_numbers_of_queries_and_keys():
    assert_equal_to_reference(heads(130, 300), Full())
    assert_equal_to_reference(heads(300, 40, width=64), Full(), jnp.arange(40)[None] < 33)


def test_heads_that_fill_the_lanes():
    # These lie in memory the other way round.
    assert_equal_to_reference(heads(256, 128, width=128), Full())


def test_bfloat16():
    assert_equal_to_reference(heads(256, 256, dtype=jnp.bfloat16), BlockCausal(48), atol=0.03, rtol=0.01)


def test_padded_keys_never_matter():
    query, key, value, _ = heads(200, 200)
    key_mask = jnp.arange(200)[None] < 150
    clean = attend(query, key, value, key_mask=key_mask, backend="splash")
    hidden = key_mask[..., None, None]
    dirty = attend(query, jnp.where(hidden, key, 99), jnp.where(hidden, value, -7), key_mask=key_mask, backend="splash")
    np.testing.assert_array_equal(dirty, clean)


def test_bias_is_refused_by_splash_and_taken_by_auto():
    query, key, value, _ = heads(128, 128)
    with pytest.raises(UserError, match="bias"):
        attend(query, key, value, bias=jnp.zeros((2, 128, 128)), backend="splash")
    plain = attend(query, key, value)
    np.testing.assert_allclose(attend(query, key, value, bias=jnp.zeros((2, 128, 128))), plain, atol=1e-6)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_lazy_masks_are_the_masks(mask):
    lazy = LazyMask(mask, 300, 290, (384, 384))
    block = lazy[slice(128, 384), slice(256, 384)]
    assert isinstance(block, np.ndarray)
    dense = np.zeros((384, 384), bool)
    dense[:300, :290] = mask_array(mask, 300, 290)
    dense[300:] = dense[299]
    np.testing.assert_array_equal(block, dense[128:, 256:])
    equal = LazyMask(dataclasses.replace(mask), 300, 290, (384, 384))
    assert equal == lazy and hash(equal) == hash(lazy) and equal.mask_function == lazy.mask_function
    assert LazyMask(mask, 300, 289, (384, 384)) != lazy


def test_blocks_divide_and_pad_little():
    assert [block_length(n) for n in (1, 128, 384, 640, 1000, 1536, 32768)] == [128, 128, 128, 128, 512, 512, 512]


def test_masks_without_partial_blocks_have_tables():
    """Splash cannot build such a mask for several query shards; ours are never sharded over queries."""
    lazy = LazyMask(BlockCausal(128), 512, 512, (512, 512))
    masks = splash_attention.MultiHeadMask([lazy])
    kernel = splash_attention.make_splash_mha_single_device(masks)
    np.testing.assert_array_equal(kernel.fwd_mask_info.block_mask[0], 2 * np.tri(4))


LENGTH = 2**15


def long_step(batch: int, remat: str):
    """A training step of two block-causal layers over 32,768 tokens, and its abstract arguments."""

    def make() -> Stack:
        block = functools.partial(Block, 128, {"heads": 4}, {"hidden": 256}, depth=2, dtype=jnp.bfloat16)
        return Stack(lambda rngs: block(rngs=rngs), 2, remat=remat, rngs=nnx.Rngs(0))

    abstract = nnx.eval_shape(make)

    def loss(params, x, exists):
        out = nnx.merge(nnx.graphdef(abstract), params)(x, mask=BlockCausal(4096), key_mask=exists)
        return jnp.mean(out.astype(jnp.float32) ** 2)

    x = jax.ShapeDtypeStruct((batch, LENGTH, 128), jnp.bfloat16)
    exists = jax.ShapeDtypeStruct((batch, LENGTH), jnp.bool)
    return jax.value_and_grad(loss), (nnx.to_pure_dict(nnx.state(abstract)), x, exists)


def tpu_mesh(**sizes: int) -> jax.sharding.AbstractMesh:
    """A mesh of TPUs that are not there."""
    device = jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.sharding.AbstractMesh(shape, AXES, (jax.sharding.AxisType.Auto,) * len(AXES), abstract_device=device)


def largest(jaxpr) -> int:
    """Elements of the largest array of a jaxpr, inner jaxprs included."""
    sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "size")]
    return max([0, *sizes, *(largest(inner) for e in jaxpr.eqns for inner in jaxprs_in_params(e.params))])


@pytest.mark.parametrize("sizes", [{}, {"context": 4, "data": 2}], ids=str)
def test_nothing_quadratic_in_a_long_step_for_tpus(sizes):
    with jax.sharding.use_abstract_mesh(tpu_mesh(**sizes)):
        step, arguments = long_step(batch=2, remat="attention")
        jaxpr = jax.make_jaxpr(step)(*arguments).jaxpr
    assert "pallas_call" in str(jaxpr)
    assert largest(jaxpr) < LENGTH**2 // 8  # in fact 2,048 · length: what eight devices keep of the kernel's operands


def test_the_reference_is_quadratic():
    step, arguments = long_step(batch=1, remat="none")
    assert largest(jax.make_jaxpr(step)(*arguments).jaxpr) >= LENGTH**2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu")
def test_compiled_long_step_has_no_quadratic_buffer(run_python):
    done = run_python([__file__], devices=1)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    # One mask of 32,768 × 32,768 bytes alone is 1,024 MiB, one float32 score matrix 4,096 MiB.
    assert report["peak_bytes"] < 512 * 2**20, report
    # Forward, gradient of queries, gradient of keys: the remat policy keeps the kernel from running forward twice.
    assert report["kernels"] == 3, report


def compile_long_step() -> None:
    """Compiles the long step for a TPU v5e and prints what its memory report says, and its number of kernels."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[:1]
    mesh = make_mesh({}, devices)
    with jax.set_mesh(mesh):
        step, arguments = long_step(batch=1, remat="attention")
        place = NamedSharding(mesh, PartitionSpec())
        compiled = jax.jit(step, in_shardings=place).lower(*arguments).compile()
    kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    print(json.dumps({"peak_bytes": compiled.memory_analysis().peak_memory_in_bytes, "kernels": kernels}))


if __name__ == "__main__":
    compile_long_step()

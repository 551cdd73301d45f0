"""What all quantizers share: ids and codes name one thing to the bit, and gradients pass straight."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.metrics import codebook_usage, expected_usage
from videogen.parallel import cpu
from videogen.quantizers import QUANTIZERS, build
from videogen.quantizers import base as module
from videogen.quantizers.base import count_codes, nearest_euclidean

VQ = {"name": "vq", "size": 16, "width": 4, "cosine": False}
CONFIGS = {
    "vq-cosine": {"name": "vq", "size": 16, "width": 4},
    "vq-euclidean": VQ,
    "vq-gradient": VQ | {"codebook_update": "gradient", "estimator": "rotation", "entropy_weight": 0.1},
    "dual": {"name": "dual_codebook", "size": 16, "widths": (2, 2)},
    "simvq": {"name": "simvq", "size": 16, "width": 4},
    "ibq": {"name": "ibq", "size": 16, "width": 4, "entropy_weight": 0.1},
    "stochastic": {"name": "stochastic", "size": 16, "width": 4},
    "fsq": {"name": "fsq", "levels": [4, 3, 5, 8]},
    "fsq-symmetric": {"name": "fsq", "levels": [4, 2, 5, 8], "bound": "symmetric"},
    "fsq-clamp": {"name": "fsq", "levels": [4, 2, 5, 8], "bound": "clamp"},
    "lfq": {"name": "lfq", "bits": 4},
    "lfq-factorised": {"name": "lfq", "bits": 4, "levels": 2},
    "bsq": {"name": "bsq", "bits": 4},
    "bernoulli": {"name": "bernoulli", "bits": 4},
    "bernoulli-grouped": {"name": "bernoulli", "bits": 4, "levels": 2},
    "residual": {"name": "residual", "base": VQ, "levels": 3},
    "residual-lfq": {"name": "residual", "base": {"name": "lfq", "bits": 4}, "levels": 3, "scale": 0.5},
    "product": {"name": "product", "base": VQ | {"width": 2}, "groups": 2},
    "additive": {"name": "additive", "size": 16, "width": 4, "levels": 3, "beam": 4},
    "per-dimension": {"name": "per_dimension", "width": 4, "bins": 8, "posterior": False},
    "posterior": {"name": "per_dimension", "width": 2, "bins": 8, "spacing": "uniform"},
    "gaussian": {"name": "gaussian", "width": 2},
    "two-paths": {"name": "two_paths", "width": 2, "codes": VQ | {"width": 2}},
}
DISCRETE = [name for name in CONFIGS if name != "gaussian"]
# A sum of codes may have a nearer sum, and the largest product may be with a longer code; posteriors are no codes.
BIJECTIVE = [name for name in DISCRETE if not name.startswith(("residual", "additive", "ibq", "posterior", "two"))]


def make(name: str):
    return build(CONFIGS[name], rngs=nnx.Rngs(0))


@functools.cache
def forward(name: str):
    """Compiled once for all tests."""
    return jax.jit(make(name))


def latents(dtype=jnp.float32) -> jax.Array:
    return (2 * jax.random.normal(jax.random.key(1), (2, 3, 5, 4))).astype(dtype)


GRIDS = {"multi_scale"}
"""These code whole grids, without padding, into tokens of several scales; tests of their own say what they promise."""

APART = GRIDS | {"unquantized"}
"""These, and what leaves latents as they are, are tested elsewhere."""


def test_every_family_is_tested_here():
    assert {config["name"] for config in CONFIGS.values()} | APART == QUANTIZERS.keys()


@pytest.mark.parametrize("name", DISCRETE)
def test_codes_of_the_indices_equal_the_forward_output_to_the_bit(name):
    quantizer = make(name)
    lookup = jax.jit(quantizer.lookup)
    assert quantizer.input_width == 4
    for scale in (1.0, 37.3):
        quantized = forward(name)(scale * latents())
        assert quantized.latents.shape == (2, 3, 5, quantizer.width) and quantized.latents.dtype == jnp.float32
        assert quantized.indices.shape == (2, 3, 5, len(quantizer.vocabulary)) and quantized.indices.dtype == jnp.int32
        np.testing.assert_array_equal(quantized.latents, lookup(quantized.indices))


@pytest.mark.parametrize("name", BIJECTIVE)
def test_every_id_maps_to_itself_through_its_code(name):
    quantizer = make(name)
    sizes = quantizer.vocabulary
    every = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=-1)
    ids = every if len(every) < 1000 else np.random.default_rng(0).choice(every, 300, replace=False)
    codes = quantizer.lookup(jnp.asarray(ids))
    assert codes.shape == (len(ids), quantizer.width) and len(np.unique(codes, axis=0)) == len(ids)
    np.testing.assert_array_equal(jax.jit(quantizer)(jnp.asarray(source(name, codes))).indices, ids)


def source(name: str, codes) -> np.ndarray:
    """Latents whose code is ``codes``: FSQ bounds its input, so a code comes from where the bound has it."""
    if name == "fsq-symmetric":
        return np.arctanh(0.999 * codes)
    if name != "fsq":
        return codes
    levels = np.array(CONFIGS[name]["levels"])
    offset, half = np.where(levels % 2 == 0, 0.5, 0), (levels - 1) * 1.001 / 2
    return np.arctanh(np.clip((codes * (levels // 2) + offset) / half, -0.999, 0.999)) - np.arctanh(offset / half)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_latents_are_quantised_in_float32(name):
    quantizer, half = make(name), latents(jnp.bfloat16)
    quantized, exact = jax.jit(quantizer)(half), forward(name)(half.astype(jnp.float32))
    np.testing.assert_array_equal(quantized.indices, exact.indices)
    assert quantized.latents.dtype == jnp.float32
    assert all(loss.dtype == jnp.float32 for loss in quantized.losses.values())


@pytest.mark.parametrize("name", DISCRETE)
def test_counts_are_those_of_the_indices(name):
    quantizer = make(name)
    quantized = forward(name)(latents())
    levels = np.asarray(quantized.indices).reshape(-1, len(quantizer.vocabulary)).T
    expected = [np.bincount(ids, minlength=size) for ids, size in zip(levels, quantizer.vocabulary, strict=True)]
    np.testing.assert_array_equal(quantized.statistics["counts"], np.concatenate(expected))


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluation_changes_no_state(name):
    quantizer = make(name)
    before = jax.tree.map(jnp.copy, nnx.state(quantizer))
    quantizer(latents(), key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(quantizer))


def test_usage_of_even_ids_follows_the_formula():
    ids = jax.random.randint(jax.random.key(0), (30, 400), 0, 256)
    usage = [float(codebook_usage(count_codes(row, 256))) for row in ids]
    assert np.mean(usage) == pytest.approx(expected_usage(400, 256), abs=0.01)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "fsqq", "levels": [3]}, "'fsq'"),
        ({"name": "fsq", "levels": [3, 2]}, "levels >= 3"),
        ({"name": "fsq", "levels": []}, "at least one dimension"),
        ({"name": "fsq", "levels": [3], "bound": "clip"}, "'clamp'"),
        ({"name": "lfq", "bits": 0}, "bits of quantizer .lfq. must be"),
        ({"name": "bsq", "bits": 36}, "1 to 24 bits per level"),
        ({"name": "lfq", "bits": 9, "levels": 2}, "split evenly"),
        ({"name": "simvq", "size": 4, "width": 2, "estimator": "rotate"}, "'rotation'"),
        ({"name": "residual", "base": {"name": "vq", "size": 4, "width": 2}, "levels": 2}, "cosine=False"),
        ({"name": "residual", "base": {"name": "fsq", "levels": [3]}, "levels": 2}, "bound='clamp'"),
        ({"name": "residual", "base": {"name": "lfq", "bits": 2}, "levels": 0}, "levels of .* must be"),
        ({"name": "product", "base": {"name": "lfq", "bits": 2}, "groups": 0}, "at least one group"),
        ({"name": "product", "base": {"name": "gaussian", "width": 2}, "groups": 2}, "groups with ids"),
        ({"name": "additive", "size": 4, "width": 2, "levels": 2, "beam": 5}, "a beam of 1 … 4"),
        ({"name": "per_dimension", "width": 2, "spacing": "normal"}, "unknown spacing"),
        ({"name": "per_dimension", "width": 2, "bins": 1}, "bins >= 2"),
        ({"name": "vq", "size": 4, "width": 2, "codebook_update": "momentum"}, "'ema' or 'gradient'"),
        ({"name": "vq", "size": 4, "widht": 2}, "'width'"),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        build(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("owner", "name", "limit"), [(module, "LARGEST_TABLE", 4), (cpu, "CACHED", 70)])
@pytest.mark.parametrize("size", [5, 8, 9, 30])
def test_blocks_find_what_one_table_finds(size, owner, name, limit, monkeypatch):
    """Of many codes for each latent, and of the latents whose scores a cache holds."""
    z = jax.random.normal(jax.random.key(0), (50, 3))
    codes = jax.random.normal(jax.random.key(1), (size, 3)).at[-1].set(0.1).at[1].set(0.1)  # two are equal
    expected = jnp.argmin(jnp.sum((z[:, None] - codes) ** 2, -1), -1)
    np.testing.assert_array_equal(nearest_euclidean(z, codes), expected)
    monkeypatch.setattr(owner, name, limit)
    np.testing.assert_array_equal(jax.jit(nearest_euclidean)(z, codes), expected)


def test_a_large_codebook_has_no_table_of_distances():
    """4096 latents and 2^18 codes: the table would take 4 GB."""
    shapes = (jax.ShapeDtypeStruct((4096, 8), jnp.float32), jax.ShapeDtypeStruct((2**18, 8), jnp.float32))
    memory = jax.jit(nearest_euclidean).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.6e9


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from videogen.parallel import batch_sharding, make_mesh
from tests.quantizers.training import train
from videogen.quantizers import build

vq = {"name": "vq", "size": 16, "width": 4, "cosine": False, "restart_threshold": 0.02}
configs = [
    {"name": "residual", "base": vq, "levels": 2, "dropout": 0.5},
    {"name": "product", "base": {"name": "simvq", "size": 16, "width": 2}, "groups": 2},
    {"name": "additive", "size": 16, "width": 4, "levels": 2, "beam": 2},
    {"name": "ibq", "size": 16, "width": 4, "entropy_weight": 0.1},
    {"name": "stochastic", "size": 16, "width": 4},
    {"name": "bsq", "bits": 4},
]
z = jax.random.normal(jax.random.key(0), (8, 5, 4))
mesh = make_mesh({"data": 2, "fsdp": 4})
for config in configs:
    graph, start = nnx.split(build(config, rngs=nnx.Rngs(0)))

    @jax.jit
    def step(state, z):
        quantizer = nnx.merge(graph, state)
        quantized = train(quantizer, z, key=jax.random.key(1))
        return nnx.state(quantizer), quantized

    alone, plain = step(start, z)
    with jax.set_mesh(mesh):
        state, quantized = step(start, jax.device_put(z, batch_sharding(mesh, len(z))))
    np.testing.assert_array_equal(quantized.statistics["counts"], plain.statistics["counts"])
    np.testing.assert_array_equal(quantized.indices, plain.indices)
    for a, b in zip(jax.tree.leaves((state, quantized)), jax.tree.leaves((alone, plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
"""


@pytest.mark.slow
def test_results_and_statistics_are_those_of_one_device_on_a_mesh(run_python):
    result = run_python(SHARDED, devices=8)
    assert result.returncode == 0, result.stderr


def test_of_equal_codes_the_first_is_taken_on_every_path(monkeypatch):
    codes = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    z = jnp.array([[1.0, 0.1], [0.1, 1.0]] * 4)
    for cached, table in ((cpu.CACHED, 2), (4, module.LARGEST_TABLE), (cpu.CACHED, module.LARGEST_TABLE)):
        monkeypatch.setattr(cpu, "CACHED", cached)
        monkeypatch.setattr(module, "LARGEST_TABLE", table)
        np.testing.assert_array_equal(nearest_euclidean(z, codes), [0, 1] * 4)

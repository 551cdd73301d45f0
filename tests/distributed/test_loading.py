"""Runs and exports read onto a mesh: the same arrays, each device with its part, and none ever whole."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.distributed.train_on_meshes import tiny
from tests.untrained import save_untrained
from videogen.errors import UserError
from videogen.training.loading import MODEL, export_safetensors, load
from videogen.training.state import split
from videogen.weights import map_tensors, place_weights, read_tensors, save_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A generator of 128 channels with its frozen tokenizer."""
    return save_untrained(tiny("generator", "none"), tmp_path_factory.mktemp("mesh") / "run")


@pytest.fixture(scope="module")
def export(run):
    export_safetensors(load(run), run.parent / "export")
    return run.parent / "export"


def weights(loaded) -> tuple[dict, dict]:
    """Parameters, and other variables, of all modules."""
    return split(loaded.modules)[1:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "export"])
def test_parameters_are_converted_as_they_are_read_and_the_hash_is_that_of_the_saved(kind, request):
    directory = request.getfixturevalue(kind)
    saved, converted = load(directory), load(directory, dtype="bfloat16")
    (params, variables), (rounded, kept) = weights(saved), weights(converted)
    quantizers = {
        jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params) if "quantizer" in str(p)
    }

    def check(path, before, after):
        stays = jax.tree_util.keystr(path) in quantizers
        expected = before if stays else np.asarray(before).astype(jnp.bfloat16)
        assert after.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(after), np.asarray(expected))

    jax.tree_util.tree_map_with_path(check, params, rounded)
    jax.tree.map(np.testing.assert_array_equal, variables, kept)
    assert "bfloat16" in {str(x.dtype) for x in jax.tree.leaves(rounded["tokenizer"])}  # frozen ones, too
    assert converted.hash == saved.hash and converted.coder_hash == saved.coder_hash


def test_another_mesh_or_dtype_is_one_line(run):
    for mesh, dtype, message in (
        ({"dta": 1}, None, "unknown mesh axis 'dta'; did you mean 'data'"),
        ({"data": 3}, None, "the mesh data=3 needs 3 devices but there are 1"),
        (Mesh(np.array(jax.devices()[:1]), "x"), None, "the mesh has the axes"),
        (None, "float16", "unknown dtype 'float16'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load(run, mesh, dtype)
        assert "\n" not in str(error.value)


def test_a_part_of_a_mapped_file_is_read_alone(tmp_path):
    """As a whole the array has 32 MB."""
    random = np.random.default_rng(0)
    tree = {
        "a": random.standard_normal((2048, 4096)).astype(np.float32),
        "b": random.integers(0, 9, (3, 5)),
        "c": np.asarray(jnp.arange(6, dtype=jnp.bfloat16)),
        "d": np.float32(7),
    }
    save_weights(tmp_path / "x.safetensors", tree)
    for name, array in read_tensors(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(map_tensors(tmp_path / "x.safetensors")[name], array)
    tracemalloc.start()
    whole = map_tensors(tmp_path / "x.safetensors")["a"]
    part = whole[:, 128:256]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = place_weights(part, jax.ShapeDtypeStruct(part.shape, jnp.bfloat16, sharding=here))
    assert tracemalloc.get_traced_memory()[1] < 4 * part.nbytes < whole.nbytes
    tracemalloc.stop()
    np.testing.assert_array_equal(placed, tree["a"][:, 128:256].astype(jnp.bfloat16))


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_a_damaged_file_is_refused_however_it_is_read(export, tmp_path, size):
    content = (export / MODEL).read_bytes()
    (tmp_path / "x").write_bytes(content[:size])
    for read in (read_tensors, map_tensors):
        with pytest.raises(UserError, match="is no valid safetensors file"):
            read(tmp_path / "x")
    for read in (read_tensors, map_tensors):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "y")


ON_MESH = """
import json, sys
import jax, numpy as np
from flax import nnx
from tests.distributed.test_loading import weights
from videogen.training.loading import load
from videogen.training.state import state_shardings, structure_of, frozen_shardings

def check(placed, expected):
    assert placed.sharding == expected, (placed.sharding, expected)
    assert {s.data.shape for s in placed.addressable_shards} == {expected.shard_shape(placed.shape)}
    return int(not placed.is_fully_replicated)

for directory in sys.argv[1:]:
    whole, spread = load(directory), load(directory, {"data": 2, "fsdp": 4})
    for one, other in zip(weights(whole), weights(spread), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    params, variables = weights(spread)
    mesh, task = spread.mesh, spread.task
    abstract = structure_of(task, spread.config)[1]
    rest = {"optimizer": {"generator": {}}, "ema": {}}
    placement = state_shardings(abstract, {"params": params, "variables": variables, **rest}, mesh)
    count = sum(jax.tree.leaves(jax.tree.map(check, params["generator"], placement["params"]["generator"])))
    frozen = frozen_shardings({"tokenizer": spread.modules["tokenizer"]}, mesh, spread.config.parallel.frozen)
    tokenizer = nnx.to_pure_dict(nnx.state(spread.modules["tokenizer"]))
    of_frozen = sum(jax.tree.leaves(jax.tree.map(check, tokenizer, frozen["tokenizer"])))
    assert spread.hash == whole.hash and spread.coder_hash == whole.coder_hash
    print(json.dumps([count, of_frozen]))
"""


@pytest.mark.slow
def test_every_array_lies_as_in_training(run, export, run_python):
    done = run_python(["-c", ON_MESH, run, export])
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        of_generator, of_tokenizer = json.loads(line)
        assert of_generator >= 6 and of_tokenizer >= 6

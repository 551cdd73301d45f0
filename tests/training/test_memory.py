"""What a run says when the memory of a device is used up."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.training_configs import tiny
from videogen.errors import UserError
from videogen.parallel import make_mesh
from videogen.training import loop
from videogen.training.memory import OutOfMemory, breakdown, held, memory_errors, remedies

GIB = 2**30
KINDS = {"parameters": 4.0 * GIB, "optimizer": 8.0 * GIB, "ema": 4.0 * GIB, "frozen": 1.0 * GIB, "inputs": 0.0}
ONE = {"replica": 1, "data": 1, "fsdp": 1, "tensor": 1, "context": 1}


def settings(found: list[str]) -> list[str]:
    return [setting.partition(" (")[0] for setting in found]


def test_bytes_of_a_device_by_kind():
    mesh = make_mesh({"data": -1})
    here = NamedSharding(mesh, PartitionSpec())
    array = jax.ShapeDtypeStruct((3, 5), jnp.float32, sharding=here)
    state = {"step": array, "params": {"a": array, "b": array}, "variables": {"c": array}, "ema": {}}
    state["optimizer"] = {"mu": {"a": array}}
    placement = jax.tree.map(lambda x: here, state)
    counts = held(state, placement, {"vgg": array}, {"vgg": here}, {"video": array})
    assert counts == {"parameters": 180.0, "optimizer": 60.0, "ema": 0.0, "frozen": 60.0, "inputs": 120.0}


def test_the_three_settings_that_free_most_come_first():
    config = tiny(**{"data.batch_size": 8, "ema.decay": 0.9})
    # Weights and optimizer weigh most: share them out.
    found = remedies(KINDS, 1.0 * GIB, config, ONE | {"data": 8})
    assert settings(found)[:2] == ["parallel.mesh.fsdp=8 with parallel.mesh.data=1", "ema.decay=0"]
    assert len(found) == 3 and "frees about 14.0 GiB" in found[0]
    # Activations weigh most.
    config.parallel.dtype, config.parallel.remat = "bfloat16", "none"
    found = remedies(KINDS, 90.0 * GIB, config, ONE)
    assert settings(found) == ["parallel.remat=full", "accumulate=2", "data.batch_size=4"]
    config.parallel.remat = "full"
    assert settings(remedies(KINDS, 90.0 * GIB, config, ONE))[0] == "accumulate=2"
    assert breakdown(KINDS, 90.0 * GIB).startswith("activations 90.0 GiB, optimizer 8.0 GiB, parameters 4.0 GiB")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("Ran out of memory in memory space hbm. Used 40.00G of 31.25G hbm.", "needs 40.0 GiB and has 31.2 GiB: activ"),
        ("Out of memory while trying to allocate 123 bytes.", "has 31.2 GiB: optimizer 8.0 GiB"),
    ],
)
def test_what_the_compiler_or_the_device_says_becomes_one_line(words, said):
    mesh = make_mesh({"data": -1})
    with pytest.raises(OutOfMemory) as error, memory_errors(KINDS, tiny(), mesh, 31.25 * GIB):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}\nmore lines")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert "what helps most" in str(error.value) and "--topology=local" in str(error.value)
    with pytest.raises(jax.errors.JaxRuntimeError), memory_errors(KINDS, tiny(), mesh, None):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.slow
def test_a_step_that_needs_more_than_a_device_has_is_refused_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "memory_of_a_device", lambda: 2**14)
    with pytest.raises(OutOfMemory, match="out of memory: a device needs .* MiB and has 0.0 MiB: ") as error:
        loop.train(tiny(), tmp_path / "run")
    kinds = re.findall(r"(\w+) [\d.]+ MiB", str(error.value).partition("what helps")[0].partition(": a device")[2])
    assert {"activations", "parameters", "optimizer"} <= set(kinds)
    monkeypatch.undo()
    assert int(loop.train(tiny(), tmp_path / "run").state["step"]) == 1
    assert not issubclass(OutOfMemory, UserError)  # exit code 1: the input was right

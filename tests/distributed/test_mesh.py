"""The same training on one device and on eight virtual ones: the same losses, parameters in shards."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from videogen.configs import phenaki
from videogen.data.inputs import check_batch
from videogen.errors import UserError
from videogen.nn import REMAT_POLICIES
from videogen.parallel import batch_axes, parameter_spec

TINY = [
    "--config=phenaki:stage=tokenizer,size=debug",
    "--config.data.clip.frames=5",
    "--config.data.clip.height=16",
    "--config.data.clip.width=16",
    "--config.data.batch_size=8",
    # So few that on the mesh below two groups of devices share an image.
    "--config.data.image_batch_size=2",
    "--config.data.eval_batch_size=4",
    "--config.model.encoder_layers=(1,1)",
    "--config.model.decoder_layers=(1,1)",
    "--config.model.quantizer.size=32",
    "--config.log_every=1",
    "--config.steps=3",
]


def losses(run_command, workdir, devices: int, sizes: dict[str, int]) -> list[float]:
    flags = [f"--config.parallel.mesh.{axis}={size}" for axis, size in ({"data": 1} | sizes).items()]
    done = run_command("train", *TINY, *flags, f"--workdir={workdir}", devices=devices)
    assert done.returncode == 0, done.stderr
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [r["train/loss"] for r in records if "train/loss" in r]


@pytest.fixture(scope="module")
def one_device(run_command, tmp_path_factory):
    return losses(run_command, tmp_path_factory.mktemp("one"), 1, {})


@pytest.mark.slow
def test_the_command_on_a_mesh_agrees_with_one_device(run_command, tmp_path, one_device):
    mesh = {"data": 2, "fsdp": 2, "context": 2}
    np.testing.assert_allclose(losses(run_command, tmp_path, 8, mesh), one_device, atol=1e-5)


SCRIPT = Path(__file__).with_name("train_on_meshes.py")
AXES = ("data", "fsdp", "tensor", "context")
MESHES = [
    *({axis: 8} for axis in AXES),
    *(dict.fromkeys(three, 2) for three in itertools.combinations(AXES, 3)),
]
"""Eight devices along every axis alone, and along every three of them."""


@pytest.fixture(scope="module", params=["tokenizer", "generator"])
def stage_losses(request, run_python):
    """Losses of two steps on one device and on every mesh, by mesh."""
    done = run_python([SCRIPT, request.param, json.dumps([{}, *MESHES])], timeout=1200)
    assert done.returncode == 0, done.stderr
    values = map(json.loads, done.stdout.splitlines())
    return dict(zip(map(str, [{}, *MESHES]), values, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_trains_as_one_device_does(stage_losses, mesh):
    assert len(set(stage_losses["{}"])) == 2  # the parameters move
    np.testing.assert_allclose(stage_losses[str(mesh)], stage_losses["{}"], atol=1e-5)


@pytest.mark.slow
def test_remat_policies_do_not_change_losses(run_python):
    policies = list(REMAT_POLICIES)
    meshes = [{"data": 2, "fsdp": 2, "context": 2}]
    done = run_python([SCRIPT, "tokenizer", json.dumps(meshes), json.dumps(policies)], timeout=1200)
    assert done.returncode == 0, done.stderr
    first, *others = map(json.loads, done.stdout.splitlines())
    for policy, values in zip(policies[1:], others, strict=True):
        np.testing.assert_allclose(values, first, atol=1e-6, err_msg=policy)


@pytest.mark.slow
def test_fsdp_holds_no_full_copy_of_the_parameters(run_python):
    done = run_python([SCRIPT, "memory", json.dumps({"fsdp": 8})], timeout=1200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    # Nowhere in the step or in the initialisation is a stacked parameter (or its gradient, or a moment) whole, ...
    assert report["sharded"] >= 6 and report["whole"] == []
    # ... what the step works with beside its shards is less than the parameters, activations included, and a shard of
    # the changes, all of which are known to be finite before anything is written, ...
    assert report["temporary"] < report["parameters"] * (1 / 2 + 1 / 8)
    assert report["state_shards"] < report["arguments"] < report["state_shards"] + report["frozen"]
    # ... and the parameters are created in their shards.
    assert report["start_output"] == pytest.approx(report["state_shards"], rel=0.01)
    assert report["start_temporary"] < report["parameters"] / 2


PLACE = """
import numpy as np
from videogen.parallel import make_mesh
from videogen.data.inputs import place

rows = np.arange(16, dtype=np.int32)[:, None]
placed = place({"image": {"label": rows}}, make_mesh({"data": 2, "fsdp": 2, "context": 2}), 8, 16)["image"]["label"]
for shard in placed.addressable_shards:
    group = shard.device.id // 2  # data × fsdp; the two context devices hold the same rows
    np.testing.assert_array_equal(np.asarray(shard.data), rows[4 * group : 4 * group + 4])
"""


def test_a_batch_goes_to_the_data_parallel_devices(run_python):
    done = run_python(PLACE)
    assert done.returncode == 0, done.stderr


def test_a_batch_that_the_devices_cannot_share_is_refused():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.data.batch_size = 6
    with pytest.raises(UserError, match="data.batch_size = 6 does not divide by the 8 data-parallel devices"):
        check_batch(config, {"replica": 1, "data": 4, "fsdp": 2})


def test_few_images_are_shared_by_half_of_the_devices():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.data.batch_size, config.data.image_batch_size = 16, 4
    mesh = {"replica": 1, "data": 2, "fsdp": 4}
    check_batch(config, mesh)
    assert batch_axes(mesh, 16) == ("replica", "data", "fsdp")
    assert batch_axes(mesh, 4) == ("replica", "fsdp") and batch_axes(mesh, 2) == ("replica", "data")
    assert batch_axes(mesh, 3) == ("replica",)
    with pytest.raises(UserError, match="data.image_batch_size = 4 does not divide by the 16"):
        check_batch(config, mesh | {"fsdp": 8})


def test_parameters_are_sharded_by_rules_and_size():
    mesh = {"replica": 1, "data": 2, "fsdp": 4, "tensor": 2, "context": 1}
    assert parameter_spec((512, 2048), ("embed", "mlp"), mesh) == PartitionSpec("fsdp", "tensor")
    assert parameter_spec((24, 512, 2048), ("layers", "embed", "mlp"), mesh) == PartitionSpec(None, "fsdp", "tensor")
    assert parameter_spec((512,), ("embed",), mesh) == PartitionSpec(None)  # small: gathering costs more than it saves
    assert parameter_spec((513, 2047), ("embed", "mlp"), mesh) == PartitionSpec(None, None)  # nothing divides

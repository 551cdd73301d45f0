"""The same run on one device and on eight virtual ones: the same losses, parameters in shards."""

import json

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from videogen.parallel import parameter_spec

TINY = [
    "--config=configs/phenaki.py:stage=tokenizer,size=debug",
    "--config.data.clip.frames=5",
    "--config.data.clip.height=16",
    "--config.data.clip.width=16",
    "--config.data.batch_size=8",
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
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_meshes_agree_with_one_device(run_command, tmp_path, one_device, mesh):
    np.testing.assert_allclose(losses(run_command, tmp_path, 8, mesh), one_device, atol=1e-5)


def test_parameters_are_sharded_by_rules_and_size():
    mesh = {"replica": 1, "data": 2, "fsdp": 4, "tensor": 2, "context": 1}
    assert parameter_spec((512, 2048), ("embed", "mlp"), mesh) == PartitionSpec("fsdp", "tensor")
    assert parameter_spec((24, 512, 2048), ("layers", "embed", "mlp"), mesh) == PartitionSpec(None, "fsdp", "tensor")
    assert parameter_spec((512,), ("embed",), mesh) == PartitionSpec(None)  # small: gathering costs more than it saves
    assert parameter_spec((513, 2047), ("embed", "mlp"), mesh) == PartitionSpec(None, None)  # nothing divides

"""`videogen.plan`: a tiny step compiled for absent TPUs, and what it refuses."""

import importlib.util
import json

import pytest

from videogen.configs import phenaki
from videogen.parallel import AXES
from videogen.parallel.topology import parse_topology
from videogen.planning.programs import abstract_run
from videogen.planning.search import abstract_mesh, sharded_bytes
from videogen.training.state import state_shardings

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
TINY = [
    "--config=phenaki:stage=tokenizer,size=debug",
    "--config.data.clip.height=16",
    "--config.data.clip.width=16",
    "--config.model.encoder_layers=(1,1)",
    "--config.model.decoder_layers=(1,1)",
]
KEYS = {
    *("topology", "chips", "mesh", "parameters", "bytes_per_chip", "hbm_bytes", "fits", "flops_per_step"),
    *("collectives", "seconds", "mfu", "bound", "plan_seconds"),
}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5z:4x4x4"], "unknown chip 'v5z'"),
        pytest.param(
            ["--topology=v6e:2x2", "--config.parallel.mesh.data=3"],
            "needs 3 devices but there are 4",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--topology=v6e:4x4", "--search", "--config.data.batch_size=7"],
            "data.batch_size = 7 does not divide",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--topology=v6e:2x2", "--out=/proc/absent/plan.json"],
            "--out: cannot write to /proc/absent",
            marks=pytest.mark.slow,
        ),
    ],
)
@needs_libtpu
def test_what_cannot_be_planned_is_one_line(run_command, flags, words):
    done = run_command("plan", *TINY, *flags)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.slow
@needs_libtpu
def test_plan_of_a_tiny_step(run_command, tmp_path):
    out = tmp_path / "plan.json"
    mesh = ["--config.parallel.mesh.data=2", "--config.parallel.mesh.fsdp=2"]
    done = run_command("plan", *TINY, *mesh, "--topology=v6e:2x2", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "fits" in done.stdout and "v6e:2x2" in done.stdout
    plan = json.loads(out.read_text())
    assert set(plan) >= KEYS
    assert plan["chips"] == 4 and plan["fits"] and 0 < plan["mfu"] < 1
    assert plan["mesh"] == dict(zip(AXES, (1, 2, 2, 1, 1), strict=True))
    memory = plan["bytes_per_chip"]
    assert memory["total"] == pytest.approx(sum(size for kind, size in memory.items() if kind != "total"))
    assert memory["total"] < plan["hbm_bytes"]

    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.data.clip.update({"height": 16, "width": 16})
    config.model.update({"encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    run = abstract_run(config)
    placement = state_shardings(run.modules, run.state, abstract_mesh(parse_topology("v6e:2x2"), plan["mesh"]))
    for ours, kind in (("params", "parameters"), ("optimizer", "optimizer")):
        assert memory[kind] == pytest.approx(sharded_bytes(run.state[ours], placement[ours]), rel=0.01)

    # Gradients meet over both batch axes, and weights that are large enough are gathered.
    axes = {collective["axis"] for collective in plan["collectives"]}
    assert axes <= {"data", "fsdp", "data,fsdp"} and "data,fsdp" in axes
    assert all(collective["bytes"] > 0 for collective in plan["collectives"])


@pytest.mark.slow
@needs_libtpu
def test_running_out_of_memory_is_a_result(run_command, tmp_path):
    out = tmp_path / "plan.json"
    huge = ["--config.data.batch_size=65536", "--topology=v5e:2x2", f"--out={out}"]
    done = run_command("plan", *TINY, *huge)
    assert done.returncode == 0, done.stderr
    plan = json.loads(out.read_text())
    assert plan["fits"] is False
    assert plan["bytes_per_chip"]["total"] > plan["hbm_bytes"]
    assert "DOES NOT FIT" in done.stdout


@pytest.mark.slow
def test_plan_for_the_devices_of_this_machine(run_command, tmp_path):
    out = tmp_path / "plan.json"
    done = run_command("plan", *TINY, "--config.parallel.mesh.fsdp=2", "--topology=local", f"--out={out}", devices=2)
    assert done.returncode == 0, done.stderr
    plan = json.loads(out.read_text())
    assert plan["topology"] == "cpu:2" and plan["chips"] == 2 and plan["fits"]
    assert plan["mesh"] == dict(zip(AXES, (1, 1, 2, 1, 1), strict=True))
    memory = plan["bytes_per_chip"]
    # Two moments for each parameter; float32 at this size.
    assert memory["parameters"] > 0 and memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    assert memory["total"] == pytest.approx(sum(size for kind, size in memory.items() if kind != "total"))
    assert memory["total"] < plan["hbm_bytes"] and plan["seconds"]["step"] > 0

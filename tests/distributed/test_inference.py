"""Sampling, reconstruction, evaluation and token caches on one device and on meshes of two and eight: the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.train_on_meshes import tiny
from tests.untrained import save_untrained

SCRIPT = Path(__file__).with_name("infer_on_mesh.py")
MESHES = [{"data": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of a tokenizer and of a generator."""
    root = tmp_path_factory.mktemp("inference")
    config = tiny("tokenizer", "none")
    config.data.eval_batch_size = 4
    tokenizer = save_untrained(config, root / "tokenizer", ema=1.0)
    config = tiny("generator", "none")
    config.data.eval_batch_size = 4
    return tokenizer, save_untrained(config, root / "generator", ema=1.0)


def infer(run_python, runs, out: Path, mesh: dict[str, int]) -> tuple[dict, dict, bytes]:
    out.mkdir()
    done = run_python([SCRIPT, *runs, out, json.dumps(mesh)], devices=np.prod(list(mesh.values()), dtype=int))
    assert done.returncode == 0, done.stderr
    codes = (out / "cache" / "video.bin").read_bytes()
    return dict(np.load(out / "arrays.npz")), json.loads((out / "metrics.json").read_text()), codes


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether pixels differ by rounding alone."""
    return np.abs(one.astype(int) - other).max() <= 1


@pytest.fixture(scope="module")
def one_device(run_python, runs, tmp_path_factory):
    return infer(run_python, runs, tmp_path_factory.mktemp("one") / "out", {})


@pytest.mark.slow
def test_a_draw_depends_on_its_place_among_all(one_device):
    arrays, metrics, _ = one_device
    assert near(arrays["last"], arrays["windows"][3:])
    assert arrays["windows"].shape == (5, 7, 8, 32, 3) and metrics["written"] == {"clips": 5}
    assert len(np.unique(arrays["windows"].reshape(5, -1), axis=0)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_computes_what_one_device_does(run_python, runs, one_device, tmp_path, mesh):
    arrays, metrics, codes = infer(run_python, runs, tmp_path / "out", mesh)
    expected, measured, written = one_device
    for name, clips in arrays.items():
        assert near(clips, expected[name]), name
    for name, values in metrics.items():
        assert values == pytest.approx(measured[name], rel=1e-4), name
    assert codes == written


@pytest.mark.slow
def test_commands_share_batches_by_default_or_as_they_are_told(run_command, runs, tmp_path):
    """The batch of four of the config: by default four devices share it, of two axes as told."""
    prompts = [f"--prompt={prompt}" for prompt in ("a red circle moves left", "a", "b", "c", "a blue square")]
    flags = [f"--checkpoint={runs[1]}", *prompts]
    drawn = []
    for devices, mesh in ((1, []), (4, []), (4, ["--mesh=data=2,tensor=2"])):
        out = tmp_path / f"{len(drawn)}.npz"
        done = run_command("sample", *flags, *mesh, f"--out={out}", devices=devices)
        assert done.returncode == 0, done.stderr
        drawn.append(np.load(out)["videos"])
    assert drawn[0].shape == (5, 5, 8, 32, 3) and near(drawn[1], drawn[0]) and near(drawn[2], drawn[0])
    assert sorted(path.name for path in tmp_path.glob("*.parts")) == []
    for mesh, words in (
        ("data=x", "a mesh is written like data=4,fsdp=2"),
        ("data=3", "needs 3 devices but there are 1"),
    ):
        done = run_command("sample", *flags, f"--mesh={mesh}", f"--out={tmp_path}/x.npz")
        assert done.returncode == 2 and words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1

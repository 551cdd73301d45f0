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
    return tokenizer, save_untrained(tiny("generator", "none"), root / "generator", ema=1.0)


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

"""VBench of a folder: samples by a manifest, nothing missing taken for a value, and no total without all."""

import json
import os

import numpy as np
import pytest

from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.evaluation import vbench as module
from videogen.evaluation.measures import Network
from videogen.evaluation.vbench import vbench
from videogen.metrics.vbench import DIMENSIONS

BOTH = ["temporal_flickering", "background_consistency"]


def write(folder, *entries):
    lines = [json.dumps({"file": file, "prompt": "a cat", "dimensions": names}) for file, names in entries]
    (folder / "vbench.jsonl").write_text("\n".join(lines) + "\n")


def steps(folder, name, *levels, fps=8.0):
    """A video whose frames are of one grey each."""
    frames = np.broadcast_to(np.array(levels)[:, None, None, None], (len(levels), 64, 64, 3))
    write_video(folder / name, frames.astype(np.uint8), fps)


@pytest.fixture(autouse=True)
def clip(monkeypatch):
    """In the place of CLIP: the brightness of a frame, and how far it is from white."""

    def encode(frames):
        grey = frames.astype(np.float32).mean((1, 2, 3)) / 255
        return np.stack([grey, 1 - grey], axis=-1)

    monkeypatch.setattr(module, "load_network", lambda name, weights, mesh: Network(encode, "0123"))


def test_values_are_means_over_the_samples_that_are_listed(tmp_path):
    steps(tmp_path, "A cat.mp4", 100, 100, 100), steps(tmp_path, "a cat.mp4", 0, 255, 0)
    steps(tmp_path, "old.mp4", 0, 255, 0)  # of an older run: not listed
    steps(tmp_path, "sky.mp4", 0, 255, 255)  # for its background alone
    write(tmp_path, ("A cat.mp4", BOTH), ("a cat.mp4", BOTH[:1]), ("sky.mp4", BOTH[1:]))
    record = vbench(tmp_path, "clip")
    found = record["metrics"]["dimensions"]
    assert found["temporal_flickering"]["value"] == pytest.approx((1 + 0) / 2, abs=0.02)
    assert found["temporal_flickering"]["samples"] == found["temporal_flickering"]["expected"] == 2
    assert found["background_consistency"] == {
        # Of the second one black turns white, and white stays: cosines with the frame before 0 and 1, with the first 0.
        **{"value": pytest.approx((1 + 0.25) / 2), "normalised": pytest.approx((0.625 - 0.2615) / (1 - 0.2615))},
        **{"from": "measured", "samples": 2, "expected": 2},
    }
    # The value of .5 is below what VBench calls 0 (.6293), and is shown as it is.
    assert found["temporal_flickering"]["normalised"] == pytest.approx((0.5 - 0.6293) / (1 - 0.6293), abs=0.05)
    assert record["metrics"]["outside"] == ["temporal_flickering"] and "total" not in record["metrics"]
    assert record["protocol"]["fps"] == [8.0] and record["protocol"]["network_hash"] == "0123"
    json.dumps(record)


def test_a_missing_sample_leaves_its_dimension_out_of_every_total(tmp_path, caplog):
    values = {name: dimension.high for name, dimension in DIMENSIONS.items() if name != BOTH[0]}
    (tmp_path / "values.json").write_text(json.dumps(values))
    steps(tmp_path, "a.mp4", 9, 9)
    write(tmp_path, ("a.mp4", BOTH), ("b.mp4", BOTH))
    record = vbench(tmp_path, values=tmp_path / "values.json")
    assert record["protocol"]["counts"] == {"temporal_flickering": "1 of 2"}
    assert "1 listed files are missing: b.mp4" in caplog.text
    found = record["metrics"]
    assert found["incomplete"] == found["missing"] == ["temporal_flickering"]
    assert found["semantic"] == pytest.approx(1) and not {"quality", "total"} & found.keys()
    assert found["dimensions"]["background_consistency"]["from"] == "given"
    steps(tmp_path, "b.mp4", 9, 9)
    assert vbench(tmp_path, values=tmp_path / "values.json")["metrics"]["total"] == pytest.approx(1, abs=0.01)


def test_pipes_are_not_waited_for_and_a_byte_order_mark_is_none_of_the_text(tmp_path):
    steps(tmp_path, "a.mp4", 9, 9), write(tmp_path, ("a.mp4", BOTH[:1]))
    os.mkfifo(tmp_path / "values.json")
    with pytest.raises(UserError, match="no regular file"):
        vbench(tmp_path, values=tmp_path / "values.json")
    manifest = tmp_path / "vbench.jsonl"
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes())
    assert vbench(tmp_path)["protocol"]["counts"] == {"temporal_flickering": "1 of 1"}


def test_what_was_measured_of_another_file_is_not_kept(tmp_path):
    """A file of the same name, size and place in the list."""
    steps(tmp_path, "a.mp4", 9, 9), write(tmp_path, ("a.mp4", BOTH[:1]))
    labels = []

    def keep(label, compute):
        labels.append(label)
        return compute()

    vbench(tmp_path, keep=keep), vbench(tmp_path, keep=keep)
    os.utime(tmp_path / "a.mp4", (1, 1))
    vbench(tmp_path, keep=keep)
    assert labels[0] == labels[1] != labels[2]


def test_files_of_two_rates_are_refused(tmp_path):
    steps(tmp_path, "a.mp4", 9, 9), steps(tmp_path, "b.mp4", 9, 9, fps=24.0)
    write(tmp_path, ("a.mp4", BOTH[:1]), ("b.mp4", BOTH[:1]))
    with pytest.raises(UserError, match="8, 24 frames per second"):
        vbench(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1 is no JSON object like"),
        ("[1]", "line 1 is no JSON object like"),
        ('{"file": 1, "dimensions": []}', "line 1 is no JSON object like"),
        (r'{"file": "\u0000", "dimensions": []}', "line 1 is no JSON object like"),
        (r'{"file": "\ud800", "dimensions": []}', "line 1 is no JSON object like"),
        ('{"file": "a.mp4", "dimensions": {}}', "line 1 is no JSON object like"),
        ('{"file": "../a.mp4", "dimensions": []}', r"../a.mp4 is outside"),
        ('{"file": "a.mp4", "dimensions": ["colour"]}', "unknown dimension 'colour'.*did you mean 'color'"),
        ('{"file": "a.mp4", "dimensions": [["color"]]}', "unknown dimension"),
        ('{"file": "a.mp4", "dimensions": []}\n' * 2, "line 2: a.mp4 is listed twice"),
        (
            '{"file": "a.mp4", "dimensions": []}\n{"file": "./a.mp4", "dimensions": []}',
            "line 2: ./a.mp4 is listed twice",
        ),
        ('{"file": "' + 300 * "a" + '", "dimensions": []}', "aaa cannot be a file: .*too long"),
        ('{"file": "loop.mp4", "dimensions": []}', "loop.mp4 cannot be a file"),
        ('{"file": ".", "dimensions": []}', "line 1: . is no regular file"),
        ('{"file": "", "dimensions": []}', "line 1: an empty name is no regular file"),
        ("\n", "lists no sample"),
    ],
)
def test_manifests_that_cannot_be_are_refused(tmp_path, line, words):
    (tmp_path / "vbench.jsonl").write_text(line)
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(UserError, match=words):
        vbench(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no JSON object"),
        ("{", "no JSON object"),
        ('{"scene": NaN}', "scene must be a number from -1000 to 1000, got nan"),
        ('{"scene": 1001}', "scene must be a number from -1000 to 1000, got 1001"),
        ('{"scene": 1' + 400 * "0" + "}", "scene must be a number"),
        ('{"scene": true}', "scene must be a number"),
        ('{"scene": {}}', "scene must be a number"),
        ('{"scene": 1, "scene": 2}', "scene is named twice"),
        ('{"scenes": 1}', "did you mean 'scene'"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path, content, words):
    steps(tmp_path, "a.mp4", 9, 9), write(tmp_path, ("a.mp4", BOTH))
    (tmp_path / "values.json").write_text(content)
    with pytest.raises(UserError, match=words):
        vbench(tmp_path, values=tmp_path / "values.json")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*vbench.jsonl"):
        vbench(tmp_path)
    write(tmp_path, ("a.mp4", BOTH))
    with pytest.raises(UserError, match="--weights is missing: openai/clip-vit-base-patch32"):
        vbench(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*values.json"):
        vbench(tmp_path, values=tmp_path / "values.json")
    (tmp_path / "a.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match="a.mp4.*every listed sample counts"):
        vbench(tmp_path, "clip")


def test_the_command_writes_the_record_and_refuses_other_flags(tmp_path, run_command):
    steps(tmp_path, "a.mp4", 9, 9), write(tmp_path, ("a.mp4", BOTH[:1]))
    common = ["--protocol=vbench", f"--generated={tmp_path}", f"--out={tmp_path / 'vbench.json'}"]
    result = run_command("evaluate", *common)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "vbench.json").read_text())
    assert record["metrics"]["dimensions"]["temporal_flickering"]["value"] == pytest.approx(1, abs=1e-3)
    result = run_command("evaluate", *common, "--count=3")
    assert result.returncode == 2 and "--count means nothing to vbench" in result.stderr

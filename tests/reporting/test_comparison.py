"""Results side by side: what was measured alike is shown, anything else is refused by the field that differs."""

import copy
import json
import subprocess
import sys

import pytest

from tests.processes import REPOSITORY, environment
from videogen.errors import UserError
from videogen.reporting.comparison import compare

RESULT = {
    "protocol": {
        "name": "reconstruction",
        "clip": {"frames": 5, "height": 24},
        "clips": {"counted": 128, "skipped": {}},
        "step": 900,
    },
    "seed": 0,
    "metrics": {"psnr": 28.14, "judge": {"form": 0.984375}, "note": "words"},
}


@pytest.fixture
def results(tmp_path):
    """Two results of the same protocol, in the directories of their runs."""
    other = copy.deepcopy(RESULT)
    other["protocol"]["step"] = 300
    other["metrics"] = {"psnr": 25.5, "ssim": 0.75}
    paths = [tmp_path / run / "evaluation.json" for run in ("long", "short")]
    for path, record in zip(paths, (RESULT, other), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps(record))
    return paths


def changed(path, **fields):
    record = json.loads(path.read_text())
    record["protocol"].update(fields)
    path.write_text(json.dumps(record))


def test_results_of_one_protocol_stand_side_by_side(results, tmp_path):
    table = compare(results, tmp_path / "page.html").splitlines()
    assert [line.split() for line in table] == [
        ["metric", "long", "short"],
        ["psnr", "28.14", "25.5", "higher", "is", "better"],
        ["judge.form", "0.984375", "–"],
        ["ssim", "–", "0.75", "higher", "is", "better"],
    ]
    page = (tmp_path / "page.html").read_text()
    assert "<td>28.14</td>" in page and "clip.frames: 5" in page and "seed: 0" in page


def test_results_are_called_by_what_their_paths_do_not_share(results, monkeypatch):
    monkeypatch.chdir(results[0].parent)
    results[1].rename("other.json")
    header = compare(["evaluation.json", "other.json"]).splitlines()[0]
    assert header.split() == ["metric", "evaluation", "other"]
    results[1].parent.joinpath("evaluation.json").write_text(results[0].read_text())
    header = compare(["evaluation.json", "../short/evaluation.json"]).splitlines()[0]
    assert header.split() == ["metric", "evaluation", "../short/evaluation"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "tasks", "clip": {"frames": 17}},
            "protocol.name is reconstruction in the first and tasks in the other",
        ),
        ({"clip": {"frames": 17, "height": 24}}, "protocol.clip.frames is 5 in the first and 17 in the other"),
        ({"clips": {"counted": 127, "skipped": {}}}, "protocol.clips.counted is 128 in the first and 127"),
        ({"beside": {"clip": [9]}, "clip": {"frames": 17, "height": 24}}, "protocol.clip.frames is 5 in the first"),
        ({"split": "train"}, "protocol.split is nothing in the first and train in the other"),
    ],
)
def test_the_field_that_differs_is_named(results, fields, message):
    changed(results[1], **fields)
    with pytest.raises(UserError, match=message):
        compare(results)


def preset(path, name, **fields):
    """A result of a preset, as ``videogen.evaluate`` writes it."""
    real = {"split": fields.pop("split", "eval"), "rule": "centre"}
    side = {"hash": fields.pop("hash", "abc"), "counted": 100, "split": real["split"]}
    protocol = {"name": name, "real_clips": real, "counts": {"real": 100, "generated": 100}, "real": side, **fields}
    protocol |= {"generated": {"counted": 100, "size": [path.stem]}, "step": len(path.stem)}
    path.write_text(json.dumps({"protocol": protocol, "seed": 0, "metrics": {"frechet_distance": 1.5}}))
    return path


def test_reconstructions_beside_samples_and_train_beside_val_are_refused(tmp_path):
    """Case 11: an rFID of 2.28 beside a gFID of 1.48; 1.22 on train beside 0.53 on val."""
    rfid = preset(tmp_path / "a.json", "rfid.imagenet_50k")
    assert "frechet_distance" in compare([rfid, preset(tmp_path / "other.json", "rfid.imagenet_50k")])
    gfid = preset(tmp_path / "b.json", "fid.imagenet_50k", split="train")
    with pytest.raises(UserError, match="protocol.name is rfid.imagenet_50k in the first and fid.imagenet_50k in the"):
        compare([rfid, gfid])
    train = preset(tmp_path / "c.json", "rfid.imagenet_50k", split="train")
    with pytest.raises(UserError, match="protocol.real.split is eval in the first and train in the other"):
        compare([rfid, train])
    # Folders do not say of what split they are; their content does.
    folder = preset(tmp_path / "d.json", "rfid.imagenet_50k", hash="def")
    with pytest.raises(UserError, match="protocol.real.hash is abc in the first and def in the other"):
        compare([rfid, folder])


def test_what_is_no_result_is_one_line(results, tmp_path):
    for text, message in (("{", "cannot read"), ("[]", "no 'protocol' and 'metrics'"), ('{"metrics": {}}', "no 'prot")):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(UserError, match=message):
            compare([results[0], tmp_path / "odd.json"])
    with pytest.raises(UserError, match="cannot read"):
        compare([results[0], tmp_path / "absent.json"])
    with pytest.raises(UserError, match="named twice"):
        compare([results[0], results[0]])
    with pytest.raises(UserError, match="at least two"):
        compare(results[:1])


@pytest.mark.slow
def test_the_command_refuses_with_exit_code_2(results):
    command = [sys.executable, "-m", "videogen.compare", *map(str, results)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment())
    assert shown.returncode == 0 and "psnr" in shown.stdout
    changed(results[1], split="train")
    refused = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment())
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "protocol.split" in refused.stderr

import json
import shutil

import numpy as np
import pytest

from videogen import data
from videogen.data import Pipeline, records
from videogen.data.array_record import write_array_record
from videogen.data.clip import Clip
from videogen.data.records import Records, RecordWriter
from videogen.data.source import SampleError
from videogen.errors import UserError

CLIP = Clip(4, 32, 32)


def build(path, split="train"):
    return data.build({"name": "array_record", "path": str(path)}, clip=CLIP, seed=0, split=split)


def test_clips_come_back_like_from_their_files(make_video, tmp_path, numbers):
    file = make_video("videos/x.mp4", frames=20)
    samples = [{"video": file.read_bytes(), "caption": f"süß {i}", "label": i % 2} for i in range(3)]
    write_array_record(tmp_path / "clips", samples, classes=("a", "b"))
    source = build(tmp_path / "clips", "eval")
    assert len(source) == 3 and source.classes == ("a", "b")
    settings = {"name": "video_folder", "path": str(file.parent), "holdout": 0.0}
    folder = data.build(settings, clip=CLIP, seed=0, split="eval")
    for i in range(3):
        sample = source[i]
        np.testing.assert_array_equal(sample["video"], folder[0]["video"])
        assert sample["caption"] == source.caption(i) == f"süß {i}" and sample["label"] == i % 2


def test_unreadable_clips_are_skipped_by_record_number(make_video, tmp_path):
    good = make_video("x.mp4").read_bytes()
    write_array_record(tmp_path / "clips", [{"video": v} for v in (good, b"", b"nothing", good[:200])])
    pipeline = Pipeline(build(tmp_path / "clips"), batch_size=2, seed=0, workers=1, text=None)
    assert next(pipeline)["video"].shape == (2, 4, 32, 32, 3)
    next(pipeline)
    pipeline.close()
    reasons = {name.rsplit(" ", 1)[1]: reason for name, reason in pipeline.skipped.items()}
    assert reasons == {"1": "empty file", "2": "not a video container", "3": "index missing / truncated"}


def test_captions_are_read_without_the_videos(tmp_path, monkeypatch):
    write_array_record(tmp_path / "clips", [{"video": b"", "caption": f"clip {i}"} for i in range(5)])
    source = build(tmp_path / "clips")
    monkeypatch.setattr(source, "_clips", None)
    assert [source.caption(i) for i in range(5)] == [f"clip {i}" for i in range(5)]


def test_windows_and_crops_are_random_in_train_only(make_video, tmp_path, numbers):
    encoded = make_video("x.mp4", frames=20).read_bytes()
    write_array_record(tmp_path / "clips", [{"video": encoded}])
    train, held_out = build(tmp_path / "clips"), build(tmp_path / "clips", "eval")
    generators = [np.random.default_rng(i) for i in range(12)]
    assert len({numbers(train.sample(0, rng)["video"])[0] for rng in generators}) > 3
    assert {tuple(numbers(held_out.sample(0, rng)["video"])) for rng in generators} == {(8, 9, 10, 11)}


@pytest.mark.parametrize("label", [None, -1, 2])
def test_labels_must_be_classes(tmp_path, label):
    with pytest.raises(UserError, match="none of the 2 classes"):
        write_array_record(tmp_path / "clips", [{"video": b"x", "label": label}], classes=("a", "b"))
    with pytest.raises(UserError, match="no complete directory of encoded clips"):
        build(tmp_path / "clips")


def test_damaged_records_are_skipped(tmp_path):
    noise = np.random.default_rng(0).bytes(200_000)
    write_array_record(tmp_path / "clips", [{"video": noise}])
    file = tmp_path / "clips" / "records-00000.array_record"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(SampleError, match="record 0: damaged record"):
        build(tmp_path / "clips")[0]


def test_half_written_foreign_and_missing_directories_are_refused(tmp_path):
    with pytest.raises(RuntimeError), RecordWriter(tmp_path / "half", {"kind": "k"}) as writer:
        writer.write({}, b"x")
        raise RuntimeError
    with pytest.raises(UserError, match="no complete directory of k"):
        Records(tmp_path / "half", "k")
    with pytest.raises(UserError, match="exists already"):
        RecordWriter(tmp_path / "half", {"kind": "k"})
    with RecordWriter(tmp_path / "other", {"kind": "other"}):
        pass
    with pytest.raises(UserError, match="holds 'other', not 'k'"):
        Records(tmp_path / "other", "k")
    with pytest.raises(UserError, match="no directory"):
        Records(tmp_path / "none", "k")


@pytest.mark.parametrize(
    "damage", [lambda c: b"", lambda c: c[:-1], lambda c: c[: len(c) // 2], lambda c: b"x" * 10**5]
)
def test_damaged_files_are_named(tmp_path, damage):
    with RecordWriter(tmp_path / "r", {"kind": "k"}) as writer:
        writer.write({}, b"x" * 1000)
    file = tmp_path / "r" / "records-00000.array_record"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="records-00000.array_record is damaged") as error:
        Records(tmp_path / "r", "k")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("meta", ["", "[]", "null", "[" * 100_000, '{"kind": "k"}', '{"kind": "k", "count": "1"}'])
def test_damaged_meta_json_is_named(tmp_path, meta):
    with RecordWriter(tmp_path / "r", {"kind": "k"}) as writer:
        writer.write({}, b"x")
    (tmp_path / "r" / "meta.json").write_text(meta)
    with pytest.raises(UserError, match=r"r/meta.json (cannot be read|does not say how many records)"):
        Records(tmp_path / "r", "k")


def test_foreign_headers_classes_and_labels_are_named(make_video, tmp_path):
    encoded = make_video("x.mp4").read_bytes()
    write_array_record(tmp_path / "clips", [{"video": encoded, "caption": "a \ud83d", "label": 0}] * 3, classes=("a",))
    assert build(tmp_path / "clips")[0]["caption"] == "a \ufffd"
    shutil.rmtree(tmp_path / "clips" / "captions")
    with RecordWriter(tmp_path / "clips" / "captions", {"kind": "captions"}) as writer:
        for header in ({"caption": None, "label": 0}, {"caption": "x", "label": 1}, ["x"]):
            writer.write(header, b"")
    for index in range(3):
        with pytest.raises(SampleError, match=f"record {index}: damaged record"):
            build(tmp_path / "clips")[index]
    meta = json.loads((tmp_path / "clips" / "meta.json").read_text())
    (tmp_path / "clips" / "meta.json").write_text(json.dumps(meta | {"classes": 3}))
    with pytest.raises(UserError, match="no list of names"):
        build(tmp_path / "clips")


def test_rate_is_that_of_the_first_readable_clip(make_video, tmp_path):
    write_array_record(tmp_path / "clips", [{"video": b"nothing"}, {"video": make_video("x.mp4", fps=24).read_bytes()}])
    assert build(tmp_path / "clips").fps == 24


def test_missing_records_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SHARD_BYTES", 100)
    with RecordWriter(tmp_path / "r", {"kind": "k"}) as writer:
        for i in range(10):
            writer.write({"i": i}, bytes([i]) * 50)
    files = sorted((tmp_path / "r").glob("*.array_record"))
    assert len(files) == 5
    read = Records(tmp_path / "r", "k")
    assert [read[i] for i in (9, 0, 5)] == [({"i": i}, bytes([i]) * 50) for i in (9, 0, 5)]
    assert json.loads((tmp_path / "r" / "meta.json").read_text())["count"] == len(read) == 10
    files[2].unlink()
    with pytest.raises(UserError, match="8 of 10 records"):
        Records(tmp_path / "r", "k")

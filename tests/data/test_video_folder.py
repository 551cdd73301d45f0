import json
import os
import re

import numpy as np
import pytest
from absl import logging as absl_logging
from PIL import Image

from videogen import data
from videogen.data import Pipeline
from videogen.data.clip import Clip
from videogen.errors import UserError

CLIP = Clip(4, 32, 32)


def build(path, split="train", clip=CLIP, **settings):
    settings = {"holdout": 0.0, **settings}
    return data.build({"name": "video_folder", "path": str(path), **settings}, clip=clip, seed=0, split=split)


def write_captions(folder, lines):
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def test_files_are_found_in_sorted_order_with_captions_and_labels(make_video, tmp_path):
    for name in ("b.mp4", "a.webm", "deeper/c.mp4"):
        make_video(name, codec="libvpx-vp9" if name.endswith("webm") else "libx264")
    (tmp_path / "notes.txt").write_text("no video")
    write_captions(
        tmp_path,
        [
            {"file": "a.webm", "caption": "grey", "class": "zebra"},
            {"file": "b.mp4", "class": "ant"},
            {"file": "deeper/c.mp4", "caption": "späť", "class": "zebra"},
        ],
    )
    source = build(tmp_path)
    assert source.classes == ("ant", "zebra")
    assert [source.caption(i) for i in range(3)] == ["grey", "", "späť"]
    assert [source[i]["label"] for i in range(3)] == [1, 0, 1]
    assert source[0]["video"].shape == (4, 32, 32, 3)


def test_several_folders_and_no_classes_unless_all_have_one(make_video, tmp_path):
    make_video("one/x.mp4")
    make_video("two/x.mp4")
    write_captions(tmp_path / "two", [{"file": "x.mp4", "caption": "second", "class": "c"}])
    source = build(f"{tmp_path / 'one'},{tmp_path / 'two'}")
    assert [source.caption(i) for i in range(2)] == ["", "second"]
    assert source.classes == () and "label" not in source[0]


def test_train_windows_vary_and_eval_windows_do_not(make_video, tmp_path, numbers):
    make_video("x.mp4", frames=30)
    train, held_out = build(tmp_path), build(tmp_path, split="eval")
    draws = [np.random.default_rng(i) for i in range(20)]
    assert len({tuple(numbers(train.sample(0, rng)["video"])) for rng in draws}) > 5
    assert {tuple(numbers(held_out.sample(0, rng)["video"])) for rng in draws} == {(13, 14, 15, 16)}


def test_holdout_divides_the_files(make_video, tmp_path):
    for i in range(24):
        make_video(f"{i:02}.mp4", frames=1, size=(16, 16))
    one = Clip(1, 16, 16)
    train, held_out = build(tmp_path, clip=one, holdout=0.3), build(tmp_path, "eval", one, holdout=0.3)
    names = [{file.name for file in source._files} for source in (train, held_out)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 24
    assert 2 <= len(names[1]) <= 14
    assert len(build(tmp_path, clip=one)) == len(build(tmp_path, "eval", one)) == 24


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_a_tenth_of_the_files_is_held_out_by_default_and_never_none_or_all(make_video, tmp_path, count):
    """Of two or three files the hash of the names often put all into one split, and the run could not start."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.mp4").write_bytes(b"")
    for path in (str(folder), f"{folder},{folder}"):
        train, held_out = (
            data.build({"name": "video_folder", "path": path}, clip=Clip(1, 16, 16), seed=0, split=split)
            for split in ("train", "eval")
        )
        total = count * (1 + path.count(","))
        if total == 1:
            assert len(train) == len(held_out) == 1 and not train.keeps_apart
            continue
        assert train.keeps_apart and held_out.keeps_apart and len(train) + len(held_out) == total
        assert 1 <= len(held_out) <= max(2, total // 5)
    assert not build(folder).keeps_apart


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda folder: folder.rmdir(), "no folder"),
        (lambda folder: None, "no video in"),
    ],
)
def test_bad_folders_are_one_clear_error(tmp_path, prepare, message):
    folder = tmp_path / "videos"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(UserError, match=message):
        build(folder)


@pytest.fixture
def clips(make_video, tmp_path):
    """A folder with a.mp4, b.mp4, sub/c.mp4, and one of a composed letter, é.mp4."""
    for name in ("a.mp4", "b.mp4", "sub/c.mp4", "\u00e9.mp4"):
        make_video(f"clips/{name}", frames=4, size=(16, 16))
    return tmp_path / "clips"


@pytest.mark.parametrize(
    "line, message",
    [
        ("null", "line 1 is no JSON object"),
        ('{"file": "a.mp4"}\n{"caption": "x"}', "line 2 is no JSON object"),
        ("[1]", "line 1 is no JSON object"),
        ("3", "line 1 is no JSON object"),
        ("[" * 100_000, "line 1 is no JSON object"),
        ('{"caption": "x"}', "line 1 is no JSON object"),
        ('{"file": null, "caption": "x"}', "line 1: 'file' must be text, got null"),
        ('{"file": "a.mp4", "caption": null}', "line 1: 'caption' must be text, got null"),
        ('{"file": "a.mp4", "caption": ["x"]}', "line 1: 'caption' must be text, got "),
        ('{"file": "a.mp4", "caption": 3}', "line 1: 'caption' must be text, got 3"),
        ('{"file": "a.mp4", "caption": "x", "class": null}', "line 1: 'class' must be text, got null"),
        ('{"file": "a.mp4", "caption": "caf\u00e9"}'.encode("latin-1"), "line 1 is no UTF-8"),
    ],
)
def test_fields_that_are_no_text_are_errors(clips, line, message):
    """``null`` became the caption 'None', and ``"class": null`` a class of that name."""
    (clips / "captions.jsonl").write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(UserError, match=re.escape(message)) as error:
        build(clips)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, file",
    [
        ("./a.mp4", "a.mp4"),
        ("sub//c.mp4", "c.mp4"),
        ("sub/../b.mp4", "b.mp4"),
        ("{folder}/sub/c.mp4", "c.mp4"),
        ("A.MP4", "a.mp4"),
        ("Sub/C.mp4", "c.mp4"),
        ("e\u0301.mp4", "\u00e9.mp4"),
        ("E\u0301.mp4", "\u00e9.mp4"),
    ],
)
def test_names_that_are_written_differently_find_their_file(clips, name, file):
    write_captions(clips, [{"file": name.format(folder=clips), "caption": "found"}])
    source = build(clips)
    assert {f.name: source.caption(i) for i, f in enumerate(source._files)}[file] == "found"
    assert source.captioned == 1


def test_relative_names_begin_in_the_folder(make_video, tmp_path, monkeypatch):
    for name in ("clips/a.mp4", "clips/clips/a.mp4"):
        make_video(name, frames=4, size=(16, 16))
    monkeypatch.chdir(tmp_path)
    write_captions(tmp_path / "clips", [{"file": "clips/a.mp4", "caption": "inner"}])
    source = build("clips")
    assert {str(file): source.caption(i) for i, file in enumerate(source._files)} == {
        "clips/a.mp4": "",
        "clips/clips/a.mp4": "inner",
    }


def test_letter_case_is_no_guess_where_it_distinguishes_files(make_video, tmp_path):
    for name in ("x.mp4", "X.mp4"):
        make_video(f"clips/{name}", frames=4, size=(16, 16))
    write_captions(tmp_path / "clips", [{"file": "X.mp4", "caption": "large"}, {"file": "x.MP4", "caption": "lost"}])
    assert [build(tmp_path / "clips").caption(i) for i in range(2)] == ["large", ""]


def test_marks_blank_lines_and_unusual_ends_of_lines(clips):
    """U+2028 and U+0085 cut lines in two."""
    captions = ["a\u2028b", "c\u0085d", "e\x1cf"]
    lines = [
        json.dumps({"file": name, "caption": text}, ensure_ascii=False)
        for name, text in zip(("a.mp4", "b.mp4", "sub/c.mp4"), captions, strict=True)
    ]
    lines[2] = lines[2].replace("\x1c", "\\u001c")
    (clips / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n\n  \n".join(lines).encode() + b"\n")
    source = build(clips)
    assert [source.caption(i) for i in range(3)] == captions


def test_halves_of_surrogate_pairs_become_text_that_can_be_written(clips):
    write_captions(clips, [{"file": "a.mp4", "caption": "a \ud83d b \ud83d\ude00", "class": "\udc00"}])
    assert build(clips).caption(0) == "a \ufffd b \U0001f600"


def test_one_line_counts_captions_and_names_lines_without_a_file(clips, caplog):
    absl_logging.get_absl_logger().propagate = True
    lines = [{"file": "a.mp4", "caption": "x"}, {"file": "b.mp4", "caption": ""}]
    write_captions(clips, [*lines, {"file": "../out.mp4", "caption": "x"}, {"file": "100%d.mp4", "caption": "x"}])
    for split in ("train", "eval", "train"):
        assert build(clips, split).captioned == 1
    said = [r.getMessage() for r in caplog.records if "have captions" in r.getMessage()]
    assert said == [
        f"{clips}: 1 of 4 videos have captions; 2 lines of captions.jsonl match no video: '../out.mp4', '100%d.mp4'"
    ]


def test_linked_folders_are_followed_once(make_video, tmp_path):
    make_video("elsewhere/deep/y.mp4")
    make_video("clips/real/x.mp4")
    clips = tmp_path / "clips"
    (clips / "aaa").symlink_to(clips / "real")  # the same folder again
    (clips / "linked").symlink_to(tmp_path / "elsewhere")
    (clips / "real" / "loop").symlink_to(clips)
    (clips / "gone").symlink_to(tmp_path / "nothing")
    names = [file.relative_to(clips).as_posix() for file in build(clips)._files]
    assert names == ["linked/deep/y.mp4", "real/x.mp4"]
    (tmp_path / "link").symlink_to(clips)
    assert len(build(tmp_path / "link")) == 2


def test_pictures_are_clips_of_one_frame(make_video, tmp_path):
    make_video("clips/x.mp4")
    clips = tmp_path / "clips"
    for name in ("p.png", "q.JPG", "r.jpeg", "s.webp"):
        Image.new("RGB", (40, 30), (200, 100, 50)).save(clips / name)
    source = build(clips, clip=Clip(1, 16, 16))
    assert [file.name for file in source._files] == ["p.png", "q.JPG", "r.jpeg", "s.webp", "x.mp4"]
    for i in range(4):
        assert np.abs(source[i]["video"].astype(int) - (200, 100, 50)).max() < 8
    assert len(build(clips, clip=Clip(2, 16, 16))) == len(build(clips, clip=Clip(1, 16, 16), pictures=False)) == 1
    (clips / "x.mp4").unlink()
    with pytest.raises(UserError, match="no video in .*; pictures are read where data.clip.frames is 1"):
        build(clips)


def test_names_that_are_no_utf8_are_read_and_printed(make_video, tmp_path):
    """``held_out`` could not hash them."""
    folder = tmp_path / "clips"
    folder.mkdir()
    make_video("x.mp4").rename(folder / os.fsdecode(b"a\xff.mp4"))
    (folder / os.fsdecode(b"b\xfe.mp4")).write_bytes(b"nothing")
    sources = [build(folder, split, holdout=0.5) for split in ("train", "eval")]
    assert sum(map(len, sources)) == 2
    source = build(folder)
    assert source[0]["video"].shape == (4, 32, 32, 3)
    with pytest.raises(data.SampleError) as error:
        source[1]
    assert error.value.name.endswith("b\\xfe.mp4")


def test_rate_is_the_clips_or_the_files(make_video, tmp_path):
    make_video("clips/b.mp4", fps=24)
    (tmp_path / "clips/a.mp4").write_bytes(b"nothing")
    assert build(tmp_path / "clips").fps == 24
    assert build(tmp_path / "clips", clip=Clip(2, 16, 16, fps=6.0)).fps == 6


def test_audio_has_the_length_of_the_clip(shared, tmp_path):
    for name in ("bird_on_branch.mp4", "coffee_pour.mp4"):
        (tmp_path / name).symlink_to(shared / "data/clips" / name)
    source = build(tmp_path, clip=Clip(8, 32, 32, fps=8.0), audio=True, audio_rate=8000)
    sample = source[0]
    assert sample["audio"].shape == (8000, 1) and 0.01 < sample["audio"].std() < 0.5
    with pytest.raises(data.SampleError, match="no audio stream"):
        source[1]
    with pytest.raises(UserError, match="clip.fps"):
        build(tmp_path, audio=True)


def test_a_run_over_broken_files_goes_on_and_names_each_once(shared):
    source = build(shared / "data/broken", clip=Clip(9, 32, 32))
    pipeline = Pipeline(source, batch_size=4, seed=0, workers=0, text=None)
    for _ in range(10):
        assert next(pipeline)["video"].shape == (4, 9, 32, 32, 3)
    pipeline.close()
    skipped = {name.rsplit("/", 1)[1]: reason for name, reason in pipeline.skipped.items()}
    assert skipped == {
        "audio_only.mp4": "no video stream",
        "empty.mp4": "empty file",
        "huge_size_budget.mp4": "above the pixel budget (8180x8192), see data.source.pixel_budget",
        "huge_size_in_stream.mp4": "size unknown or too large",
        "single_frame.mp4": "too short, 1 frames where a clip needs 9 frames",
        "text_renamed.mp4": "not a video container",
        "truncated_index_at_end.mp4": "index missing / truncated",
    }


def test_every_real_clip_is_read_with_its_caption(shared):
    source = build(shared / "data/clips", clip=Clip(5, 32, 48, fps=4.0))
    assert len(source) == 40 and len(source.classes) == 8
    for i in range(len(source)):
        sample = source[i]
        assert sample["video"].shape == (5, 32, 48, 3) and sample["caption"].endswith(".")
        assert 0 <= sample["label"] < 8

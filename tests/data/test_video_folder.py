import json

import numpy as np
import pytest

from videogen import data
from videogen.data import Pipeline
from videogen.data.clip import Clip
from videogen.errors import UserError

CLIP = Clip(4, 32, 32)


def build(path, split="train", clip=CLIP, **settings):
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


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda folder: folder.rmdir(), "no folder"),
        (lambda folder: None, "no video in"),
        (lambda folder: (folder / "captions.jsonl").write_text('{"file": "a"}\n{"caption": 1}'), "line 2"),
        (lambda folder: (folder / "captions.jsonl").write_text("[1]"), "line 1"),
    ],
)
def test_bad_folders_are_one_clear_error(tmp_path, prepare, message):
    folder = tmp_path / "videos"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(UserError, match=message):
        build(folder)


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

"""Published sets of captions: their layouts, caption rules, lists, and what the source makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from videogen.data import Clip, build
from videogen.data.caption_conversion import convert_captions, names_in
from videogen.data.caption_sets import SETS
from videogen.data.captions import read_captions
from videogen.data.video_io import write_video
from videogen.errors import UserError


def folder(tmp_path: Path, *names: str) -> Path:
    videos = tmp_path / "videos"
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    return videos


def converted(tmp_path, name: str, file: Path, videos: Path, **settings) -> list[dict]:
    convert_captions(name, str(file), str(videos), str(tmp_path / "out.jsonl"), **settings)
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def msrvtt_file(tmp_path: Path) -> Path:
    sentences = [("video1", "a cat"), ("video0", "a dog runs"), ("video1", "a kitten"), ("video7", "nobody")]
    rows = [{"caption": said, "video_id": name, "sen_id": i} for i, (name, said) in enumerate(sentences)]
    file = tmp_path / "MSRVTT_data.json"
    file.write_text(json.dumps({"info": {}, "videos": [{"video_id": "video0", "split": "train"}], "sentences": rows}))
    return file


def test_msrvtt_has_all_captions_of_a_video(tmp_path):
    videos, file = folder(tmp_path, "all/video0.mp4", "all/video1.mp4"), msrvtt_file(tmp_path)
    expected = [{"file": "all/video1.mp4", "captions": ["a cat", "a kitten"]}]
    expected += [{"file": "all/video0.mp4", "caption": "a dog runs"}]
    assert converted(tmp_path, "msrvtt", file, videos) == expected
    first = converted(tmp_path, "msrvtt", file, videos, rule="first")
    assert first == [{"file": "all/video1.mp4", "caption": "a cat"}, expected[1]]
    found = convert_captions("msrvtt", str(file), str(videos), str(tmp_path / "out.jsonl"))
    assert dict(found.missing) == {"video7": 1} and found.others == 0
    assert next(found.said()) == "3 captions of 2 videos, 1 left out, 0 not listed"


def test_the_test_list_of_msrvtt_has_one_caption_each(tmp_path):
    file = tmp_path / "MSRVTT_JSFUSION_test.csv"
    file.write_text('key,vid_key,video_id,sentence\nret0,msr9770,video9770,"a person, who sits"\n')
    videos = folder(tmp_path, "video9770.mp4")
    assert converted(tmp_path, "msrvtt", file, videos) == [{"file": "video9770.mp4", "caption": "a person, who sits"}]


def test_a_list_keeps_the_videos_of_a_split(tmp_path):
    videos, file = folder(tmp_path, "video0.mp4", "video1.mp4"), msrvtt_file(tmp_path)
    (tmp_path / "train.csv").write_text("video_id\nvideo0\n")
    (tmp_path / "test.txt").write_text("video1.mp4\n\n")
    assert names_in(str(tmp_path / "train.csv")) == {"video0"} and names_in(str(tmp_path / "test.txt")) == {"video1"}
    rows = converted(tmp_path, "msrvtt", file, videos, listed=str(tmp_path / "train.csv"))
    assert rows == [{"file": "video0.mp4", "caption": "a dog runs"}]
    found = convert_captions("msrvtt", str(file), str(videos), str(tmp_path / "o"), listed=str(tmp_path / "test.txt"))
    assert found.others == 2 and list(found.lines) == ["video1.mp4"]


def test_msvd(tmp_path):
    file = tmp_path / "AllVideoDescriptions.txt"
    file.write_text("# comment\n\nmv89psg6zh4_33_46 A bird in a sink.\nmv89psg6zh4_33_46 a bird bathes\n")
    videos = folder(tmp_path, "mv89psg6zh4_33_46.avi")
    expected = {"file": "mv89psg6zh4_33_46.avi", "captions": ["A bird in a sink.", "a bird bathes"]}
    assert converted(tmp_path, "msvd", file, videos) == [expected]
    file.write_text("mv89psg6zh4_33_46\n")
    with pytest.raises(UserError, match="line 1 has no caption behind its video"):
        list(SETS["msvd"].read(file))


def test_lsmdc(tmp_path):
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    file = tmp_path / "LSMDC16_annos_training.csv"
    file.write_text(f'{clip}\t1\t2\t3\t4\tSOMEONE says "no.\n')
    videos = folder(tmp_path, f"0001_American_Beauty/{clip}.avi")
    expected = {"file": f"0001_American_Beauty/{clip}.avi", "caption": 'SOMEONE says "no.'}
    assert converted(tmp_path, "lsmdc", file, videos) == [expected]
    file.write_text("a,b\n")
    with pytest.raises(UserError, match="line 1 has 1 columns and not 6"):
        list(SETS["lsmdc"].read(file))


def test_didemo_and_activitynet_are_paragraphs(tmp_path):
    moments = [
        {"annotation_id": i, "description": said, "video": "12@N00_4.avi"} for i, said in enumerate(["a", "b c"])
    ]
    (tmp_path / "test_data.json").write_text(json.dumps(moments))
    videos = folder(tmp_path, "12@N00_4.avi", "v_abc.mp4")
    rows = converted(tmp_path, "didemo", tmp_path / "test_data.json", videos)
    assert rows == [{"file": "12@N00_4.avi", "caption": "a b c"}]
    events = {"duration": 9.0, "timestamps": [[0, 1], [1, 2]], "sentences": ["He runs.", " He stops."]}
    (tmp_path / "val_1.json").write_text(json.dumps({"v_abc": events}))
    rows = converted(tmp_path, "activitynet", tmp_path / "val_1.json", videos)
    assert rows == [{"file": "v_abc.mp4", "caption": "He runs. He stops."}]
    rows = converted(tmp_path, "activitynet", tmp_path / "val_1.json", videos, rule="all")
    assert rows == [{"file": "v_abc.mp4", "captions": ["He runs.", "He stops."]}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("msrvtt", "[]", "has no list of sentences"),
        ("msrvtt", '{"sentences": [1]}', "sentence 1 is no object"),
        ("didemo", '[{"video": "a"}]', "description 1 lacks description"),
        ("activitynet", "[]", "is no object of videos"),
        ("activitynet", '{"v_a": 1}', "v_a is no object"),
        ("activitynet", '{"v_a": {"sentences": "x"}}', "'sentences' must be a list"),
        ("activitynet", "{", "is no JSON file"),
    ],
)
def test_files_of_another_layout_are_one_line(tmp_path, name, content, words):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(UserError, match=words):
        list(SETS[name].read(tmp_path / "file.json"))


def test_nothing_that_can_be_kept_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no caption of .* can be kept: 0 captions of 0 videos, 4 left out"):
        converted(tmp_path, "msrvtt", msrvtt_file(tmp_path), folder(tmp_path, "other.mp4"))


def test_training_draws_one_of_several_captions_and_evaluation_has_the_first(tmp_path):
    said = ["one", "two", "three"]
    write_video(tmp_path / "a.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8.0)
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "a.mp4", "captions": said}) + "\n")
    entries, unknown = read_captions(tmp_path, ["a.mp4"])
    assert entries == {"a.mp4": {"caption": "one", "captions": tuple(said)}} and unknown == []
    made = dict(clip=Clip(2, 16, 16, 8.0), seed=0)
    source = build({"name": "video_folder", "path": str(tmp_path), "holdout": 0.0}, split="train", **made)
    drawn = [source.sample(0, np.random.default_rng(i))["caption"] for i in range(30)]
    assert set(drawn) == set(said) and source.caption(0) == "one" and source.texts_at(0) == said
    source = build({"name": "video_folder", "path": str(tmp_path), "holdout": 0.0}, split="eval", **made)
    assert {source.sample(0, np.random.default_rng(i))["caption"] for i in range(9)} == {"one"}
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "a.mp4", "captions": "one"}) + "\n")
    with pytest.raises(UserError, match="'captions' must be a list of texts"):
        read_captions(tmp_path, ["a.mp4"])


@pytest.mark.slow
def test_the_command(run_python, tmp_path):
    videos, file = folder(tmp_path, "video0.mp4", "video1.mp4"), msrvtt_file(tmp_path)
    arguments = ["launch/captions.py", "--dataset=msrvtt", f"--annotations={file}", f"--videos={videos}"]
    done = run_python([*arguments, "--rule=first"], devices=1)
    assert done.returncode == 0, done.stderr
    assert (videos / "captions.jsonl").read_text().count("\n") == 2
    done = run_python([*arguments, "--rule=last"], devices=1)
    assert done.returncode == 2 and "unknown caption rule 'last'" in done.stderr

"""Folders of pictures and of videos with classes and splits, as public data sets have them."""

import logging

import numpy as np
import pytest
from PIL import Image

from videogen import data
from videogen.configs import data_sets
from videogen.data import Clip, SampleError
from videogen.data import lists as data_lists
from videogen.defaults import base
from videogen.errors import UserError

ONE = Clip(1, 8, 8)


def picture(path, level, size=(12, 12), **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path, **settings)
    return path


def images(path, split="train", clip=ONE, **settings):
    return data.build({"name": "image_folder", "path": str(path), **settings}, clip=clip, seed=0, split=split)


def labels(source):
    return {source[i]["label"]: source.classes[source[i]["label"]] for i in range(len(source))}


def level(source, index):
    return round(float(source[index]["video"].mean()))


def test_classes_are_the_names_of_the_folders_and_numbers_sort_as_numbers(tmp_path):
    for i in (0, 1, 2, 9, 10, 11):
        picture(tmp_path / str(i) / "a.png", 10 * i)
    source = images(tmp_path, holdout=0.0)
    assert source.classes == ("0", "1", "2", "9", "10", "11") and len(source) == 6
    assert {source[i]["label"]: level(source, i) for i in range(6)} == {0: 0, 1: 10, 2: 20, 3: 90, 4: 100, 5: 110}
    assert source[0]["video"].shape == (1, 8, 8, 3) and source[0]["caption"] == ""


def test_labels_of_wordnet_ids_are_places_among_those_of_the_list(tmp_path, caplog):
    for name in ("n01443537", "n02444819"):
        picture(tmp_path / "train" / name / "a.JPEG", 100)
        picture(tmp_path / "val" / name / "b.JPEG", 50)
    (tmp_path / "ids.txt").write_text("n02444819 otter\nn01440764 tench\nn01443537 goldfish\n")
    section = data_sets.source("imagenet")
    with caplog.at_level(logging.WARNING, "absl"):
        source = data.build(section | {"path": str(tmp_path)}, clip=ONE, seed=0, split="train")
    assert "has 2 WordNet ids" in caplog.text and labels(source) == {0: "n01443537", 1: "n02444819"}
    whole = images(tmp_path, train_split="train", eval_split="val", class_list="ids.txt")
    assert labels(whole) == {1: "n01443537", 2: "n02444819"} and whole.classes[0] == "n01440764"
    picture(tmp_path / "val" / "n09999999" / "c.png", 1)
    with pytest.raises(UserError, match="1 classes are not among the 3 of ids.txt, the first is 'n09999999'"):
        images(tmp_path, train_split="train", eval_split="val", class_list="ids.txt")


def test_pictures_without_class_folders_have_no_labels(tmp_path):
    """COCO's pictures lie in the folders of the splits."""
    picture(tmp_path / "train2017" / "1.jpg", 100)
    for name in ("2.jpg", "3.jpg"):
        picture(tmp_path / "val2017" / name, 200)
    sources = [
        data.build(data_sets.source("coco2017") | {"path": str(tmp_path)}, clip=ONE, seed=0, split=split)
        for split in ("train", "eval")
    ]
    assert [len(source) for source in sources] == [1, 2] and [source.classes for source in sources] == [(), ()]
    assert level(sources[0], 0) == 100 and level(sources[1], 1) == 200 and sources[0].keeps_apart


def test_pictures_are_read_as_video_folder_reads_them(tmp_path):
    """Turned by EXIF, transparency over white, broken files named, larger ones than the budget refused."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise by a quarter
    halves = Image.fromarray(np.repeat(np.array([[[0] * 3], [[200] * 3]], np.uint8), 6, axis=0).repeat(12, axis=1))
    halves.save(tmp_path / "a.jpg", exif=exif, quality=100)
    Image.new("RGBA", (12, 12), (0, 0, 0, 0)).save(tmp_path / "b.png")
    (tmp_path / "c.webp").write_bytes(b"no picture")
    picture(tmp_path / "d.png", 30)
    source = images(tmp_path, "eval", holdout=0.0)
    turned = source[0]["video"][0, :, :, 0]
    assert (turned[:, :3] > 150).all() and (turned[:, -3:] < 50).all()
    assert level(source, 1) == 255 and level(source, 3) == 30
    with pytest.raises(SampleError, match="c.webp"):
        source[2]
    with pytest.raises(SampleError, match="pixel budget"):
        images(tmp_path, "eval", holdout=0.0, pixel_budget=16 * 100)[3]
    videos = data.build({"name": "video_folder", "path": str(tmp_path), "holdout": 0.0}, clip=ONE, seed=0, split="eval")
    for i in (0, 1, 3):
        np.testing.assert_array_equal(source[i]["video"], videos[i]["video"])


@pytest.mark.parametrize(
    ("settings", "clip", "message"),
    [
        ({}, Clip(2, 8, 8), "data.clip.frames is 2; set it to 1"),
        ({"train_split": "train"}, ONE, "train_split and eval_split go together"),
        ({"train_split": "train", "eval_split": "test"}, ONE, "no files below test, and no list of that name"),
        ({"holdout": 1.0}, ONE, "holdout is a share of the pictures"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, settings, clip, message):
    picture(tmp_path / "train" / "a.png", 0)
    with pytest.raises(UserError, match=message):
        images(tmp_path, clip=clip, **settings)


def test_captions_and_held_out_pictures(tmp_path):
    for i in range(5):
        picture(tmp_path / "c" / f"{i}.png", 10 * i)
    (tmp_path / "captions.jsonl").write_text('{"file": "c/3.png", "caption": "three", "class": "other"}\n')
    parts = [images(tmp_path, split, holdout=0.4) for split in ("train", "eval")]
    assert sum(map(len, parts)) == 5 and all(len(part) and part.keeps_apart for part in parts)
    said = {part.caption(i): part[i]["label"] for part in parts for i in range(len(part))}
    assert said == {"": 0, "three": 0} and sum(part.captioned for part in parts) == 1


CLASSES = ("Hammering", "HammerThrow", "HandstandPushups", "JumpingJack", "JumpRope")
"""In the order of a short list; sorted by code point HammerThrow comes first, and JumpRope before JumpingJack."""


@pytest.fixture
def ucf101(tmp_path, make_video, monkeypatch):
    """UCF-101 with two videos of each class and one file of each list missing."""
    monkeypatch.setattr(data_lists, "LENGTHS", {"trainlist01.txt": 6, "testlist01.txt": 5})
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES, 1)))
    train, test = ["Hammering/v_Hammering_g09_c01.avi 1"], []
    for i, name in enumerate(CLASSES, 1):
        # The folder and its files are written differently.
        stem = "HandStandPushups" if name == "HandstandPushups" else name
        train.append(f"{name}/v_{stem}_g08_c01.avi {i}")
        test.append(f"{name}/v_{stem}_g01_c01.avi")
        for group in ("g08", "g01"):
            make_video(f"UCF-101/{name}/v_{stem}_{group}_c01.avi", frames=4, size=(16, 16))
    (tmp_path / "UCF-101/JumpRope/v_JumpRope_g01_c01.avi").unlink()
    (lists / "trainlist01.txt").write_text("\n".join(train))
    (lists / "testlist01.txt").write_text("\n".join(test))
    return tmp_path


def read(name, path, split="train", clip=Clip(2, 8, 8), **settings):
    return data.build({**data_sets.source(name), "path": str(path), **settings}, clip=clip, seed=0, split=split)


def test_ucf101_has_the_labels_and_splits_of_its_lists(ucf101, caplog):
    with caplog.at_level(logging.INFO, "absl"):
        train, held_out = (read("ucf101", ucf101, split) for split in ("train", "eval"))
    assert train.classes == held_out.classes == CLASSES and train.keeps_apart
    assert (len(train), train.listed, len(held_out), held_out.listed) == (5, 6, 4, 5)
    assert "5 of 6 listed files are there, 'Hammering/v_Hammering_g09_c01.avi' is not" in caplog.text
    assert [train[i]["label"] for i in range(5)] == [0, 1, 2, 3, 4]
    # Lists of the held-out videos carry no label.
    assert [held_out[i]["label"] for i in range(4)] == [0, 1, 2, 3]


def test_lists_of_ucf101_that_contradict_each_other_are_refused(ucf101):
    lists = ucf101 / "ucfTrainTestlist"
    listed = (lists / "trainlist01.txt").read_text()
    (lists / "trainlist01.txt").write_text(listed.replace("g08_c01.avi 2", "g08_c01.avi 1"))
    with pytest.raises(UserError, match="v_HammerThrow_g08_c01.avi is of class 1 in its list"):
        read("ucf101", ucf101)
    (lists / "trainlist01.txt").write_text(listed.replace("v_JumpRope_g08_c01", "v_JumpRope_g01_c02"))
    with pytest.raises(UserError, match="group g01 of JumpRope/v_JumpRope stands in both lists"):
        read("ucf101", ucf101)
    (lists / "trainlist01.txt").write_text(listed.partition("\n")[2])
    with pytest.raises(UserError, match="lists 5 files, and the published one 6"):
        read("ucf101", ucf101)
    (ucf101 / "UCF-101/HandstandPushups").rename(ucf101 / "UCF-101/HandStandPushups")
    (lists / "trainlist01.txt").write_text(listed.replace("HandstandPushups/", "HandStandPushups/"))
    with pytest.raises(UserError, match="calls otherwise"):
        read("ucf101", ucf101)


def test_kinetics_by_folders_and_by_lists(make_video, tmp_path, caplog):
    for name in ("train/zumba/a_000000_000010.mp4", "train/abseiling/b_000005_000015.mp4", "val/zumba/c_1.mp4"):
        make_video(name, frames=4, size=(16, 16))
    train, held_out = (read("kinetics600", tmp_path, split) for split in ("train", "eval"))
    assert train.classes == ("abseiling", "zumba") and len(train) == 2 and held_out[0]["label"] == 1
    head = "label,youtube_id,time_start,time_end,split\n"
    both = "air drumming,b,5,15,x\n"
    (tmp_path / "train.csv").write_text(f"{head}zumba,a,0,10,train\n{both}zumba,gone,0,10,train\n")
    (tmp_path / "validate.csv").write_text(head + both)
    lists = {"train_split": "train.csv", "eval_split": "validate.csv"}
    with caplog.at_level(logging.INFO, "absl"):
        train, held_out = (read("kinetics600", tmp_path, split, **lists) for split in ("train", "eval"))
    # What stands in both is held out, and its class is what the list says.
    assert (len(train), train.listed, len(held_out), held_out.listed) == (1, 2, 1, 1)
    assert "1 of 2 listed files are there, 'gone_000000_000010' is not; 1 stand in both lists" in caplog.text
    assert train.classes == ("air drumming", "zumba") and (train[0]["label"], held_out[0]["label"]) == (1, 0)


def test_sections_of_data_sets_are_settings_of_their_sources():
    for name, section in data_sets.SOURCES.items():
        assert set(section) <= set(base("float32").data.source), name
        assert section["train_split"] != section["eval_split"] and section["name"] in data.SOURCES
    assert set(data_sets.CLASSES) <= set(data_sets.SOURCES)
    with pytest.raises(UserError, match="did you mean 'ucf101'"):
        data_sets.source("ucf100")


def test_a_damaged_picture_is_called_none(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(SampleError, match="broken.jpg: not a picture"):
        images(tmp_path, holdout=0.0)[0]

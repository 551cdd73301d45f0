"""The data sets are prepared here through NumPy alone, since the tests run without TensorFlow.

Only ``Video`` features cannot be written so; they are stored exactly like a sequence of images, hence one is
made of that by changing the name of the feature in ``features.json``.
"""

import io
import json
import shutil

import matplotlib.image
import numpy as np
import pytest
import tensorflow_datasets as tfds

from videogen import data
from videogen.data import Pipeline
from videogen.data.clip import Clip
from videogen.data.source import SampleError
from videogen.errors import UserError

CLIP = Clip(4, 16, 16)


def png(value):
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.full((16, 24, 3), value, np.uint8))
    buffer.seek(0)
    return buffer


class Images(tfds.core.GeneratorBasedBuilder):
    """Frame t of sample i is grey of value 20·i + t; sample 2 has only two frames."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features = {
            "video": tfds.features.Sequence(tfds.features.Image(shape=(16, 24, 3))),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(range(4)), "test": self._generate_examples(range(4, 6))}

    def _generate_examples(self, numbers):
        for i in numbers:
            frames = [png(20 * i + t) for t in range(2 if i == 2 else 12)]
            yield i, {"video": frames, "label": i % 2, "caption": f"clip {i}"}


class Grey(tfds.core.GeneratorBasedBuilder):
    """Raw grey frames in the field image_sequence; no labels, no captions, only a train split."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        video = tfds.features.Sequence(tfds.features.Tensor(shape=(16, 16, 1), dtype=np.uint8))
        features = tfds.features.FeaturesDict({"image_sequence": video})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image_sequence": np.full((5, 16, 16, 1), 9, np.uint8)}


class Odd(tfds.core.GeneratorBasedBuilder):
    """Sample 0 has two captions, sample 1 none and a frame that is no picture; the label is a bare number."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features = {
            "video": tfds.features.Sequence(tfds.features.Image(shape=(16, 24, 3))),
            "label": tfds.features.Scalar(dtype=np.int64),
            "caption": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"video": [png(1) for _ in range(4)], "label": 3, "caption": ["first", "second"]}
        junk = io.BytesIO(png(1).getvalue()[:40])
        yield 1, {"video": [png(1), png(1), png(1), junk], "label": 3, "caption": []}


class Robot(tfds.core.GeneratorBasedBuilder):
    """Frames with fields of their own, as BAIR's are; frame t of the second camera is of value 20·i + t."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        camera = tfds.features.Image(shape=(16, 24, 3))
        features = {
            "image_main": camera,
            "image_aux1": camera,
            "action": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Sequence(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(range(3)), "test": self._generate_examples(range(3, 5))}

    def _generate_examples(self, numbers):
        for i in numbers:
            frames = [
                {"image_main": png(9), "image_aux1": png(20 * i + t), "action": np.zeros(4, np.float32)}
                for t in range(6)
            ]
            yield i, frames


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Picture i is of value 20·i and class i mod 2."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(16, 24, 3)),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            yield i, {"image": png(20 * i), "label": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Images, Grey, Odd, Robot, Pictures):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    path = folder / "images" / "1.0.0"
    description = json.loads((path / "features.json").read_text())
    shape = {"dimensions": ["-1", "16", "24", "3"]}
    description["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"},
    }
    (path / "features.json").write_text(json.dumps(description))
    return folder


def build(prepared, name, split="train", clip=CLIP, **settings):
    config = {"name": "tfds", "path": str(prepared / name / "1.0.0"), **settings}
    return data.build(config, clip=clip, seed=0, split=split)


def test_video_feature_label_and_caption_without_tensorflow(prepared):
    source = build(prepared, "images", "eval")
    assert len(source) == 2 and source.classes == ("a", "b")
    for sample in (source[0], source[1]):
        number = int(sample["caption"].split()[1])
        assert number in (4, 5) and sample["label"] == number % 2
        assert sample["video"].shape == (4, 16, 16, 3)
        np.testing.assert_array_equal(sample["video"][:, 0, 0, 0], 20 * number + np.arange(4, 8))
        assert source.caption(0) == source[0]["caption"]


def test_tensorflow_is_not_imported_even_where_it_is_installed(prepared, tmp_path, run_python):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('TensorFlow was imported')")
    path = prepared / "images" / "1.0.0"
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import pickle
from videogen import data
clip = data.Clip(4, 16, 16)
source = data.build({{"name": "tfds", "path": {str(path)!r}}}, clip=clip, seed=0, split="train")
for reader in (source, pickle.loads(pickle.dumps(source))):
    print(reader[0]["video"].shape, reader.caption(1), reader.classes)
assert "tensorflow" not in sys.modules
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("(4, 16, 16, 3) clip") == 2


def test_only_the_window_is_decoded_and_captions_decode_nothing(prepared, monkeypatch):
    source = build(prepared, "images", "eval")
    decoded = []
    decode = source._decode
    monkeypatch.setattr(source, "_decode", lambda picture: decoded.append(picture) or decode(picture))
    assert source.caption(0).startswith("clip") and not decoded
    source.sample(0, np.random.default_rng(0))
    assert len(decoded) == 4


def test_windows_are_spread_over_the_video_in_train(prepared):
    source = build(prepared, "images")
    index = next(i for i in range(4) if source.caption(i) == "clip 0")
    samples = [source.sample(index, np.random.default_rng(seed)) for seed in range(60)]
    assert {int(sample["video"][0, 0, 0, 0]) for sample in samples} == set(range(9))


def test_several_captions_broken_pictures_and_labels_that_are_no_classes(prepared):
    source = build(prepared, "odd")
    assert len(source) == 2 and source.classes == ()
    sample = next(source[i] for i in range(2) if source.caption(i) == "first")
    assert sample["caption"] == "first" and "label" not in sample
    broken = next(i for i in range(2) if source.caption(i) == "")
    with pytest.raises(SampleError, match=r"odd.*, train record \d: damaged picture"):
        source[broken]


def test_damaged_records_are_skipped(prepared, monkeypatch):
    source = build(prepared, "images")
    monkeypatch.setattr(type(source._records), "__getitem__", lambda self, index: {}["video"])
    with pytest.raises(SampleError, match=r"damaged record in images-train.array_record-00000-of-00001 \(KeyError\)"):
        source[0]


def test_frames_of_other_types_are_refused(prepared, tmp_path):
    target = shutil.copytree(prepared / "images", tmp_path / "images") / "1.0.0" / "features.json"
    target.write_text(target.read_text().replace('"uint8"', '"uint16"'))
    with pytest.raises(UserError, match="must be uint8"):
        build(tmp_path, "images")


def test_frames_are_sampled_at_the_clips_rate(prepared):
    source = build(prepared, "images", "eval", Clip(3, 16, 16, fps=5.0), fps=20.0)
    sample = source[0]
    assert sample["fps"] == 5.0
    assert np.diff(sample["video"][:, 0, 0, 0].astype(int)).tolist() == [4, 4]
    with pytest.raises(UserError, match="no time stamps"):
        build(prepared, "images", clip=Clip(3, 16, 16, fps=5.0))
    with pytest.raises(UserError, match="positive number"):
        build(prepared, "images", fps=-1)


def test_short_videos_are_skipped_in_workers(prepared):
    pipeline = Pipeline(build(prepared, "images"), batch_size=4, seed=0, workers=1, text=None)
    for _ in range(2):
        assert next(pipeline)["video"].shape == (4, 4, 16, 16, 3)
    pipeline.close()
    assert list(pipeline.skipped.values()) == ["too short, 2 frames where a clip needs 4"]


def test_grey_raw_frames_become_rgb(prepared):
    sample = build(prepared, "grey")[0]
    assert sample["video"].shape == (4, 16, 16, 3) and (sample["video"] == 9).all()
    assert sample["caption"] == "" and "label" not in sample


def test_transparent_frames_are_over_white_and_other_channels_are_no_pictures(prepared):
    source = build(prepared, "grey")
    frames = np.zeros((5, 16, 16, 4), np.uint8)
    frames[..., 1] = 255  # green, of which the right half is hidden
    frames[:, :, :8, 3] = 255
    source._records = [{"image_sequence": frames}, {"image_sequence": frames[..., :2]}, {"image_sequence": frames[0]}]
    video = source[0]["video"]
    assert (video[:, :, :8] == (0, 255, 0)).all() and (video[:, :, 8:] == 255).all()
    for index in (1, 2):
        with pytest.raises(SampleError, match="are no pictures"):
            source[index]


def test_splits(prepared):
    assert len(build(prepared, "images", train_split="train[:50%]")) == 2
    assert len(build(prepared, "images", "eval", eval_split="train[50%:]")) == 2
    with pytest.raises(UserError, match="set eval_split"):
        build(prepared, "grey", "eval")
    with pytest.raises(UserError, match="known: t"):
        build(prepared, "images", train_split="trian")


def test_other_formats_and_missing_data_are_one_clear_error(prepared, tmp_path):
    with pytest.raises(UserError, match="no prepared data set"):
        data.build({"name": "tfds", "path": str(tmp_path)}, clip=CLIP, seed=0, split="train")
    target = tmp_path / "grey" / "1.0.0"
    target.mkdir(parents=True)
    for file in (prepared / "grey" / "1.0.0").glob("*.json"):
        (target / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match='prepare it again with file_format="array_record"'):
        build(tmp_path, "grey")


PLANTED = [
    ("pythonClassName", "planted.Feature"),
    ("pythonClassName", "os.path.Feature"),
    ("pythonClassName", "tensorflow_datasets_of_mine.Feature"),
]


@pytest.mark.parametrize("key, name", PLANTED)
def test_code_that_a_data_set_names_is_not_run(prepared, tmp_path, run_python, key, name):
    """A module in the working directory was imported because ``features.json`` named it."""
    target = shutil.copytree(prepared / "images" / "1.0.0", tmp_path / "images" / "1.0.0")
    module = name.split(".")[0]
    if module != "os":
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for place in ("the whole", "one feature", "a legacy entry"):
        description = json.loads((prepared / "images/1.0.0/features.json").read_text())
        if place == "one feature":
            description["featuresDict"]["features"]["caption"][key] = name
        elif place == "the whole":
            description[key] = name
        else:
            description = {"type": name, "content": {}}
        (target / "features.json").write_text(json.dumps(description))
        with pytest.raises(UserError, match=f"names the class '{name}'"):
            build(tmp_path, "images")
        code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
sys.path.insert(0, "")
from videogen import data
from videogen.errors import UserError
try:
    data.build({{"name": "tfds", "path": "images/1.0.0"}}, clip=data.Clip(4, 16, 16), seed=0, split="train")
except UserError as error:
    print(error)
"""
    result = run_python(code)
    assert "code that a data set names is not run" in result.stdout, result.stderr
    assert not (tmp_path / "ran").exists()


def test_shards_outside_the_directory_are_refused(prepared, tmp_path):
    target = shutil.copytree(prepared / "images" / "1.0.0", tmp_path / "images" / "1.0.0")
    for file in target.glob("*train*"):
        shutil.move(file, tmp_path / file.name)
    info = json.loads((target / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = "../../" + split["filepathTemplate"]
    (target / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="names files outside it"):
        build(tmp_path, "images")


def test_missing_and_damaged_shards_are_named(prepared, tmp_path):
    target = shutil.copytree(prepared / "images" / "1.0.0", tmp_path / "images" / "1.0.0")
    (shard,) = target.glob("*train*")
    content = shard.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"nothing" * 20_000):
        shard.write_bytes(damaged)
        with pytest.raises(SampleError, match=rf"damaged record in {shard.name}"):
            build(tmp_path, "images")[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        build(tmp_path, "images")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"splits": 3, "version": 7, "featuresDict": []}', "\xff"])
def test_damaged_descriptions_are_one_line(prepared, tmp_path, file, content):
    target = shutil.copytree(prepared / "images" / "1.0.0", tmp_path / "images" / "1.0.0")
    (target / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as error:
        build(tmp_path, "images")
    assert "\n" not in str(error.value)


def test_rate_is_the_clips_or_the_stored_one(prepared):
    assert build(prepared, "images", fps=20.0).fps == 20.0
    assert build(prepared, "images", clip=Clip(3, 16, 16, fps=5.0), fps=20.0).fps == 5.0
    assert build(prepared, "images").fps is None
    assert build(prepared, "grey").captioned == 0 and build(prepared, "images").captioned is None


def test_frames_with_fields_of_their_own_are_read_from_the_field_that_is_named(prepared):
    source = build(prepared, "robot", "eval", field="image_aux1")
    assert len(source) == 2 and source.classes == () and source.keeps_apart
    # TFDS keeps examples in an order of its own.
    found = sorted(source[i]["video"].mean((1, 2, 3)).round().tolist() for i in range(2))
    assert found == [[61, 62, 63, 64], [81, 82, 83, 84]]
    main = build(prepared, "robot", field="image_main")
    assert main[0]["video"].min() == main[0]["video"].max() == 9
    with pytest.raises(UserError, match="no field video or image_sequence or image, only .*action.*; set field"):
        build(prepared, "robot")
    with pytest.raises(UserError, match="frames of 'action' must be uint8"):
        build(prepared, "robot", field="action")


def test_a_picture_is_a_clip_of_one_frame(prepared):
    source = build(prepared, "pictures", clip=Clip(1, 16, 16))
    found = {round(float(source[i]["video"].mean())): source[i]["label"] for i in range(3)}
    assert found == {0: 0, 20: 1, 40: 0} and source[0]["video"].shape == (1, 16, 16, 3)
    assert source.classes == ("a", "b")
    with pytest.raises(SampleError, match="too short, 1 frames where a clip needs 4"):
        build(prepared, "pictures")[0]

"""TensorFlow is not installed where the tests run, so the data sets here are prepared through NumPy alone.

``Video`` features cannot be written without TensorFlow; they are stored exactly like a sequence of images, so one is
made of that by changing the name of the feature in ``features.json``.
"""

import io
import json
import sys

import matplotlib.image
import numpy as np
import pytest
import tensorflow_datasets as tfds

from videogen import data
from videogen.data import Pipeline
from videogen.data.clip import Clip
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

    def _info(self):
        video = tfds.features.Sequence(tfds.features.Tensor(shape=(16, 16, 1), dtype=np.uint8))
        features = tfds.features.FeaturesDict({"image_sequence": video})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image_sequence": np.full((5, 16, 16, 1), 9, np.uint8)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Images, Grey):
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
    assert "tensorflow" not in sys.modules


def test_frames_are_sampled_at_the_clips_rate(prepared):
    source = build(prepared, "images", "eval", Clip(3, 16, 16, fps=5.0), fps=20.0)
    sample = source[0]
    assert sample["fps"] == 5.0
    assert np.diff(sample["video"][:, 0, 0, 0].astype(int)).tolist() == [4, 4]
    with pytest.raises(UserError, match="no time stamps"):
        build(prepared, "images", clip=Clip(3, 16, 16, fps=5.0))


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

"""Prepared TensorFlow Datasets, read without TensorFlow."""

import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow_datasets
from jaxtyping import UInt8
from tensorflow_datasets.core.decode import SkipDecoding
from tensorflow_datasets.core.features import ClassLabel, FeatureConnector, Image, Sequence, video_feature

from videogen.data.captions import clean_text
from videogen.data.clip import Clip
from videogen.data.picture import over_background
from videogen.data.source import SampleError, Source
from videogen.errors import UserError

VIDEO_FIELDS = ("video", "image_sequence", "image")
EVAL_SPLITS = ("validation", "test")


class TFDSSource(Source):
    """A data set prepared with ``file_format="array_record"``; only that format has random access.

    The video is the field ``video`` or ``image_sequence``, or a picture in ``image``, which is a clip of one frame;
    grey, RGB or RGBA (over white). Examples may be sequences of frames with fields of their own, as BAIR's are. A
    ``label`` is used where it is a class, and a ``caption`` where there is one, the first of several. Windows and crops
    are random in 'train' and central in 'eval'. Of frames stored as pictures only the window's are decoded.

    Args:
      clip: the size of the samples; without ``fps`` they are consecutive frames.
      seed: with the index, decides window and crop of ``source[index]``.
      split: 'train' or 'eval'.
      path: the directory that holds ``dataset_info.json``.
      fps: rate of the stored frames, which the data set does not tell; needed with ``clip.fps``.
      train_split: the part of the data set to train on; slices such as "train[:90%]" work.
      eval_split: the part to evaluate on; by default 'validation' or else 'test'.
      field: name of the video, where it is another one.

    Raises:
      UserError: no prepared data set, another file format, no such split or field, frames that are not uint8.
    """

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        fps: float | None = None,
        train_split: str = "train",
        eval_split: str = "",
        field: str = "",
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if fps is not None and not fps > 0:
            raise UserError(f"data.source.fps is the rate of the stored frames, a positive number, got {fps}")
        if clip.fps is not None and fps is None:
            raise UserError("these videos have no time stamps: give data.source.fps, or no data.clip.fps")
        self._path = path
        self._stored_fps = fps
        self._stride = fps / clip.fps if clip.fps else 1.0
        self._fps = clip.fps or fps or 1.0
        builder = _builder(path)
        info = builder.info
        if split == "eval" and not eval_split:
            eval_split = next((name for name in EVAL_SPLITS if name in info.splits), "")
            if not eval_split:
                known = ", ".join(info.splits)
                raise UserError(f"{path} has no validation or test split, only {known}; set eval_split")
        features, wanted = _fields(info), (field,) if field else VIDEO_FIELDS
        self._field = next((name for name in wanted if name in features), None)
        if self._field is None:
            raise UserError(f"{path} has no field {' or '.join(wanted)}, only {', '.join(features)}; set field")
        if features[self._field].np_dtype != np.uint8:
            raise UserError(f"{path}: the frames of {self._field!r} must be uint8 pictures")
        if "label" in features and isinstance(features["label"], ClassLabel):
            self.classes = tuple(features["label"].names)
        if "caption" not in features:
            self.captioned = 0
        self._part = train_split if split == "train" else eval_split
        self.keeps_apart = eval_split != train_split
        try:
            self._open(builder)
        except ValueError as error:
            known = ", ".join(info.splits)
            raise UserError(f"{path}: {str(error).splitlines()[0]}; known: {known}") from error
        self._shards = [(part.filename, part.take) for part in info.splits[self._part].file_instructions]
        self._check_shards()

    def _check_shards(self) -> None:
        """Refuses shards that are not there, or not below the directory that was named."""
        top = Path(self._path).resolve()
        for file, _ in self._shards:
            if not Path(file).resolve().is_relative_to(top):
                raise UserError(
                    f"dataset_info.json of {self._path} names files outside it ({file}); use another data set"
                )
            if not Path(file).exists():
                raise UserError(f"{file} is missing; prepare the data set again")

    @property
    def fps(self) -> float | None:
        """The clip's rate, or else that of the stored frames, where it was given."""
        return self.clip.fps or self._stored_fps

    def _open(self, builder: tensorflow_datasets.core.DatasetBuilder) -> None:
        features, alone = _fields(builder.info), not isinstance(builder.info.features, Sequence)
        pictures = {name: _picture(feature) for name, feature in features.items()}
        pictures = {name: picture for name, picture in pictures.items() if picture is not None}
        own = pictures.get(self._field)
        self._decode = own.decode_example_np if own else np.asarray
        # An example that is one picture is a clip of one frame.
        self._single = alone and features[self._field] is own
        skip = {name: SkipDecoding() if alone and features[name] is p else _Undecoded() for name, p in pictures.items()}
        self._records = builder.as_data_source(self._part, decoders=skip or None)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the data set itself, which must happen without TensorFlow there, too.
        return {key: value for key, value in self.__dict__.items() if key not in ("_records", "_decode")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open(_builder(self._path))

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Cuts one window out of video ``index``; in 'eval' it does not depend on ``rng``."""
        record = self._record(index)
        choice = self.choice(rng)
        frames = [record[self._field]] if self._single else record[self._field]
        offsets = np.floor(np.arange(self.clip.frames) * self._stride + 1e-6).astype(int)
        spare = len(frames) - 1 - offsets[-1]
        if spare < 0:
            reason = f"too short, {len(frames)} frames where a clip needs {offsets[-1] + 1}"
            raise SampleError(self._name(index), reason)
        start = self.clip.start_frame(spare, choice)
        try:
            window = np.stack([self._decode(frames[start + offset]) for offset in offsets])
        except (ValueError, OSError, SyntaxError) as error:  # Pillow calls a broken PNG a SyntaxError
            raise SampleError(self._name(index), "damaged picture") from error
        sample = {"video": self.clip.fit(self._rgb(window, index), choice), "caption": _text(record), "fps": self._fps}
        if self.classes:
            sample["label"] = int(record["label"])
            if not 0 <= sample["label"] < len(self.classes):
                raise SampleError(self._name(index), f"label {sample['label']} is none of the classes")
        return sample

    def _rgb(self, window: np.ndarray, index: int) -> UInt8[np.ndarray, "time h w 3"]:
        """Grey, RGB or RGBA frames as RGB."""
        if window.ndim != 4 or window.shape[-1] not in (1, 3, 4) or not window.size:
            raise SampleError(self._name(index), f"frames of shape {list(window.shape[1:])} are no pictures")
        return over_background(window) if window.shape[-1] == 4 else np.broadcast_to(window, (*window.shape[:3], 3))

    def caption(self, index: int) -> str:
        return _text(self._record(index))

    def _name(self, index: int) -> str:
        return f"{self._path}, {self._part} record {index}"

    def _record(self, index: int) -> dict[str, Any]:
        try:
            record = self._records[index]
            if record[self._field] is None:
                raise ValueError("an empty record")
            return record
        except Exception as error:  # the parsers of TFDS promise no type of their own
            rest = index
            for file, count in self._shards:  # noqa: B007 (the shard of the record is used below)
                if rest < count:
                    break
                rest -= count
            reason = f"damaged record in {Path(file).name} ({type(error).__name__})"
            raise SampleError(self._name(index), reason) from error


def _fields(info: tensorflow_datasets.core.DatasetInfo) -> dict[str, FeatureConnector]:
    """The features of an example by name; where it is a sequence of frames, those of a frame."""
    features = info.features
    return dict((features.feature if isinstance(features, Sequence) else features).items())


def _picture(feature: FeatureConnector) -> Image | None:
    """What decodes the pictures of a feature; ``None`` where it holds others."""
    inner = feature.feature if isinstance(feature, Sequence) else feature
    return inner if isinstance(inner, Image) else None


class _Undecoded(SkipDecoding):
    """Leaves the pictures of a sequence encoded; TFDS has this for single pictures only."""

    def decode_batch_example_np(self, pictures: np.ndarray) -> np.ndarray:
        return pictures


def _text(record: dict[str, Any]) -> str:
    texts = np.ravel(np.asarray(record.get("caption", ""), object))
    text = texts[0] if texts.size else ""
    return text.decode(errors="replace") if isinstance(text, bytes) else clean_text(str(text))


def _builder(path: str) -> tensorflow_datasets.core.DatasetBuilder:
    """Opens a prepared data set."""
    # The Video feature asks TensorFlow for one thing only, to turn the name of a dtype into a dtype.
    numpy_for_tensorflow = types.SimpleNamespace(dtypes=types.SimpleNamespace(as_dtype=np.dtype))
    try:
        with (
            mock.patch.object(video_feature, "tf", numpy_for_tensorflow),
            mock.patch.object(FeatureConnector, "cls_from_name", _feature_of_tfds(path)),
        ):
            builder = tensorflow_datasets.builder_from_directory(path)
    except UserError:
        raise
    except (OSError, ValueError, tensorflow_datasets.core.dataset_info.DatasetInfoFileError) as error:
        raise UserError(f"no prepared data set in {path}: it must hold dataset_info.json") from error
    except Exception as error:  # damaged descriptions raise errors of JSON, protobuf and more
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset_info.json or features.json in {path} is damaged ({said[:200]})") from error
    stored = builder.info.file_format.value
    if stored != "array_record":
        raise UserError(
            f"{path} is stored as {stored}, which has no random access; prepare it again "
            'with file_format="array_record"'
        )
    return builder


def _feature_of_tfds(path: str) -> classmethod:
    """``FeatureConnector.cls_from_name``, which imports what ``features.json`` names, for names of TFDS alone."""
    imported = FeatureConnector.cls_from_name.__func__

    def cls_from_name(cls, python_class_name: str) -> type[FeatureConnector]:
        if not python_class_name.startswith("tensorflow_datasets."):
            raise UserError(
                f"features.json in {path} names the class {python_class_name!r}, which is none of tensorflow_datasets; "
                "code that a data set names is not run"
            )
        return imported(cls, python_class_name)

    return classmethod(cls_from_name)

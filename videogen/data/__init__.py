"""Sources of clips and the pipeline that turns them into batches."""

from collections.abc import Mapping
from typing import Any

from videogen.building import build as build_entry
from videogen.building import look_up
from videogen.data.array_record import ArrayRecordSource
from videogen.data.buckets import Bucket, read_buckets
from videogen.data.clip import Clip
from videogen.data.image_folder import ImageFolderSource
from videogen.data.mixture import MixtureSource
from videogen.data.pipeline import Pipeline
from videogen.data.shapes_source import ShapesSource
from videogen.data.source import SampleError, Source
from videogen.data.tfds import TFDSSource
from videogen.data.tokens import TokenSource
from videogen.data.video_folder import VideoFolderSource

SOURCES = {
    "array_record": ArrayRecordSource,
    "image_folder": ImageFolderSource,
    "mixture": MixtureSource,
    "shapes": ShapesSource,
    "tfds": TFDSSource,
    "tokens": TokenSource,
    "video_folder": VideoFolderSource,
}

__all__ = ["SOURCES", "Bucket", "Clip", "Pipeline", "SampleError", "Source", "build", "class_of", "read_buckets"]


def class_of(config: Mapping[str, Any]) -> type[Source]:
    """The class of a source config; raises ``UserError`` for an unknown name."""
    return look_up(SOURCES, config, "source")


def build(config: Mapping[str, Any], *, clip: Clip, seed: int, split: str) -> Source:
    """Builds the source of a config section ``{name: …, path: …, …}``; settings that are empty or ``None`` are absent.

    Raises:
      UserError: an unknown name or setting, or data that is not there.
    """
    settings = {key: config[key] for key in config if config[key] is not None and config[key] != ""}
    return build_entry(SOURCES, settings, "source", clip=clip, seed=seed, split=split)

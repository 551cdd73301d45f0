"""Sources of clips and the pipeline that turns them into batches."""

from collections.abc import Mapping
from typing import Any

from videogen.building import build as build_entry
from videogen.building import look_up
from videogen.data.array_record import ArrayRecordSource
from videogen.data.buckets import Bucket, read_buckets
from videogen.data.clip import Clip
from videogen.data.events_source import EventsSource
from videogen.data.expression_folder import ExpressionFolderSource
from videogen.data.expressions_source import ExpressionsSource
from videogen.data.image_folder import ImageFolderSource
from videogen.data.mixture import MixtureSource
from videogen.data.pipeline import Pipeline
from videogen.data.pose_folder import PoseFolderSource
from videogen.data.question_folder import QuestionFolderSource
from videogen.data.questions_source import QuestionsSource
from videogen.data.segments import WithSegments
from videogen.data.shapes_source import ShapesSource
from videogen.data.signer_source import SignerSource
from videogen.data.skeletons import SkeletonSource
from videogen.data.source import SampleError, Source
from videogen.data.streams_source import StreamsSource
from videogen.data.tfds import TFDSSource
from videogen.data.tokens import TokenSource
from videogen.data.video_folder import VideoFolderSource
from videogen.data.with_maps import WithMaps

SOURCES = {
    "array_record": ArrayRecordSource,
    "events": EventsSource,
    "expression_folder": ExpressionFolderSource,
    "image_folder": ImageFolderSource,
    "mixture": MixtureSource,
    "pose_folder": PoseFolderSource,
    "question_folder": QuestionFolderSource,
    "shapes": ShapesSource,
    "shapes_expressions": ExpressionsSource,
    "shapes_questions": QuestionsSource,
    "shapes_streams": StreamsSource,
    "signer": SignerSource,
    "skeletons": SkeletonSource,
    "tfds": TFDSSource,
    "tokens": TokenSource,
    "video_folder": VideoFolderSource,
}

__all__ = [
    "SOURCES",
    "Bucket",
    "Clip",
    "Pipeline",
    "SampleError",
    "Source",
    "build",
    "class_of",
    "read_buckets",
    "texts_of",
]


def class_of(config: Mapping[str, Any]) -> type[Source]:
    """The class of a source config; raises ``UserError`` for an unknown name."""
    return look_up(SOURCES, config, "source")


def texts_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of the samples of a source config (``Source.texts``); of a mixture those of its parts."""
    return texts_of(config["parts"][0]) if config.get("parts") else class_of(config).texts_said(config)


def build(config: Mapping[str, Any], *, clip: Clip, seed: int, split: str) -> Source:
    """Builds the source of a config section ``{name: …, path: …, …}``; settings that are empty or ``None`` are absent.

    With ``maps`` its samples have maps of their points, too (``WithMaps``); with ``segments`` label maps and links of
    ``things`` (``WithSegments``).

    Raises:
      UserError: an unknown name or setting, or data that is not there.
    """
    settings = {key: config[key] for key in config if config[key] is not None and config[key] != ""}
    drawn, rule, things = (settings.pop(name, None) for name in ("maps", "segments", "things"))
    source = build_entry(SOURCES, settings, "source", clip=clip, seed=seed, split=split)
    source = WithMaps(source) if drawn else source
    return WithSegments(source, rule, **({} if things is None else {"things": things})) if rule else source

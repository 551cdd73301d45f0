"""Sources of clips and the pipeline that turns them into batches."""

from collections.abc import Mapping
from typing import Any

from videogen.building import build as build_entry
from videogen.data.clip import Clip
from videogen.data.pipeline import Pipeline
from videogen.data.shapes_source import ShapesSource
from videogen.data.source import SampleError, Source

SOURCES = {
    "shapes": ShapesSource,
}

__all__ = ["SOURCES", "Clip", "Pipeline", "SampleError", "Source", "build"]


def build(config: Mapping[str, Any], *, clip: Clip, seed: int, split: str) -> Source:
    """Builds the source a config section ``{name: …, path: …, …}`` describes; an empty ``path`` counts as absent.

    Raises:
      UserError: an unknown name or setting, or data that is not there.
    """
    settings = {key: config[key] for key in config if key != "path" or config[key]}
    return build_entry(SOURCES, settings, "source", clip=clip, seed=seed, split=split)

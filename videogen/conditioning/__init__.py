"""Text, labels and given pixels."""

from videogen.conditioning.clip import ClipSentence
from videogen.conditioning.context import NullableContext
from videogen.conditioning.language import CaptionModel, LanguageModel
from videogen.conditioning.maps import MapEncoder
from videogen.conditioning.regions import SHORT_NAMES, TASKS, USES_CONDITIONING, Given, TaskTables, task_index
from videogen.conditioning.t5 import T5Encoder
from videogen.conditioning.text import TextEncoder
from videogen.conditioning.types import NULL_LABEL, ChunkTokens, Conditioning, EncodedText
from videogen.encoders import T5Config

FROZEN_TEXT = {"clip_text": ClipSentence, "t5": T5Encoder, "decoder": LanguageModel, "shapes_captions": CaptionModel}
"""Public name -> class of the encoders that nothing trains; those of language models give a vector of every layer,
that of CLIP one of the text."""

TEXT_ENCODERS = {"transformer": TextEncoder, **{name: kind.load for name, kind in FROZEN_TEXT.items()}}
"""Public name -> class or loader; each gives a module ``(ids, mask) -> EncodedText`` with a ``width``."""

__all__ = [
    "FROZEN_TEXT",
    "NULL_LABEL",
    "SHORT_NAMES",
    "TASKS",
    "TEXT_ENCODERS",
    "USES_CONDITIONING",
    "CaptionModel",
    "ClipSentence",
    "ChunkTokens",
    "Conditioning",
    "Given",
    "LanguageModel",
    "MapEncoder",
    "NullableContext",
    "T5Config",
    "T5Encoder",
    "TaskTables",
    "TextEncoder",
    "EncodedText",
    "task_index",
]

"""Text, labels and given pixels."""

from videogen.conditioning.context import NullableContext
from videogen.conditioning.regions import SHORT_NAMES, TASKS, USES_CONDITIONING, Given, TaskTables, task_index
from videogen.conditioning.t5 import T5Encoder
from videogen.conditioning.text import TextEncoder
from videogen.conditioning.types import NULL_LABEL, Conditioning, EncodedText
from videogen.encoders import T5Config

TEXT_ENCODERS = {"transformer": TextEncoder, "t5": T5Encoder.load}
"""Public name -> class or loader; each gives a module ``(ids, mask) -> EncodedText`` with a ``width``."""

__all__ = [
    "NULL_LABEL",
    "SHORT_NAMES",
    "TASKS",
    "TEXT_ENCODERS",
    "USES_CONDITIONING",
    "Conditioning",
    "Given",
    "NullableContext",
    "T5Config",
    "T5Encoder",
    "TaskTables",
    "TextEncoder",
    "EncodedText",
    "task_index",
]

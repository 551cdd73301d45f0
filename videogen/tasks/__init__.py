"""What is optimised: networks + losses + metrics + pictures, one file per task."""

from typing import Any

from videogen.errors import UserError, near_matches
from videogen.tasks.adaptive import AdaptiveTokenizerTask
from videogen.tasks.base import Batch, Modules, Outcome, Picture, Task, to_pixels, to_video
from videogen.tasks.detokenizer import DetokenizerTask
from videogen.tasks.distillation import DistilledDetokenizerTask, DistilledGeneratorTask
from videogen.tasks.generation import VideoGenerator
from videogen.tasks.generator import GeneratorTask
from videogen.tasks.latent_tokenizer import LatentTokenizerTask
from videogen.tasks.stand_ins import CaptionsTask, ClassifierTask
from videogen.tasks.tokenizer import TokenizerTask, reconstruct, reconstructor

TASKS = {
    "adaptive": AdaptiveTokenizerTask,
    "captions": CaptionsTask,
    "classifier": ClassifierTask,
    "detokenizer": DetokenizerTask,
    "generator": GeneratorTask,
    "latent_tokenizer": LatentTokenizerTask,
    "tokenizer": TokenizerTask,
}
STUDENTS = {GeneratorTask: DistilledGeneratorTask, DetokenizerTask: DistilledDetokenizerTask}
"""Task -> the task that learns in few steps what it has trained."""


def build(config: Any) -> Task:
    """Builds the task of a whole stage config."""
    return class_of(config)(config)


def class_of(config: Any) -> type[Task]:
    """The class of the task ``config.task``; of a stage with a part ``teacher``, its student's."""
    if config.task not in TASKS:
        raise UserError(f"unknown task {config.task!r}{near_matches(config.task, TASKS)}")
    task = TASKS[config.task]
    if "teacher" in config.parts:
        if task not in STUDENTS:
            raise UserError("only generators and de-tokenizers learn from a teacher; leave it out")
        task = STUDENTS[task]
    return task


__all__ = [
    "STUDENTS",
    "TASKS",
    "AdaptiveTokenizerTask",
    "Batch",
    "CaptionsTask",
    "ClassifierTask",
    "DetokenizerTask",
    "DistilledDetokenizerTask",
    "DistilledGeneratorTask",
    "GeneratorTask",
    "LatentTokenizerTask",
    "Modules",
    "Outcome",
    "Picture",
    "Task",
    "TokenizerTask",
    "VideoGenerator",
    "build",
    "class_of",
    "reconstruct",
    "reconstructor",
    "to_pixels",
    "to_video",
]

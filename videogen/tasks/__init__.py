"""What is optimised: networks + losses + metrics + pictures, one file per task."""

from typing import Any

from videogen.errors import UserError, near_matches
from videogen.tasks.base import Batch, Modules, Outcome, Picture, Task, to_pixels, to_video
from videogen.tasks.detokenizer import DetokenizerTask
from videogen.tasks.distillation import DistilledDetokenizerTask, DistilledGeneratorTask, check_teacher
from videogen.tasks.generation import VideoGenerator
from videogen.tasks.generator import GeneratorTask
from videogen.tasks.latents import LatentGeneratorTask
from videogen.tasks.tokenizer import TokenizerTask, reconstruct

TASKS = {"tokenizer": TokenizerTask, "detokenizer": DetokenizerTask, "generator": GeneratorTask}
LATENT_GENERATORS = ("flow",)
"""Names of the generators that model continuous latents instead of codes."""
STUDENTS = {LatentGeneratorTask: DistilledGeneratorTask, DetokenizerTask: DistilledDetokenizerTask}
"""Task -> the task that learns in few steps what it has trained."""


def build(config: Any) -> Task:
    """Builds the task ``config.task`` of a whole stage config; with a ``teacher``, its student's."""
    if config.task not in TASKS:
        raise UserError(f"unknown task {config.task!r}{near_matches(config.task, TASKS)}")
    task = TASKS[config.task]
    if config.task == "generator" and config.model.name in LATENT_GENERATORS:
        task = LatentGeneratorTask
    if "teacher" in config:
        if task not in STUDENTS:
            raise UserError("only generators of latents (flow) and de-tokenizers learn from a teacher; leave it out")
        task = STUDENTS[task]
    return task(config)


__all__ = [
    "STUDENTS",
    "TASKS",
    "Batch",
    "DetokenizerTask",
    "DistilledDetokenizerTask",
    "DistilledGeneratorTask",
    "GeneratorTask",
    "LatentGeneratorTask",
    "Modules",
    "Outcome",
    "Picture",
    "Task",
    "TokenizerTask",
    "VideoGenerator",
    "build",
    "check_teacher",
    "reconstruct",
    "to_pixels",
    "to_video",
]

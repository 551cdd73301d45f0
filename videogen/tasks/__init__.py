"""What is optimised: networks + losses + metrics + pictures, one file per task."""

from typing import Any

from videogen.errors import UserError, near_matches
from videogen.tasks.base import Batch, Modules, Outcome, Picture, Task, to_pixels, to_video
from videogen.tasks.detokenizer import DetokenizerTask
from videogen.tasks.generation import VideoGenerator
from videogen.tasks.generator import GeneratorTask
from videogen.tasks.latents import LatentGeneratorTask
from videogen.tasks.tokenizer import TokenizerTask, reconstruct

TASKS = {"tokenizer": TokenizerTask, "detokenizer": DetokenizerTask, "generator": GeneratorTask}
LATENT_GENERATORS = ("flow",)
"""Names of the generators that model continuous latents instead of codes."""


def build(config: Any) -> Task:
    """Builds the task ``config.task`` of a whole stage config."""
    if config.task not in TASKS:
        raise UserError(f"unknown task {config.task!r}{near_matches(config.task, TASKS)}")
    if config.task == "generator" and config.model.name in LATENT_GENERATORS:
        return LatentGeneratorTask(config)
    return TASKS[config.task](config)


__all__ = [
    "TASKS",
    "Batch",
    "DetokenizerTask",
    "GeneratorTask",
    "LatentGeneratorTask",
    "Modules",
    "Outcome",
    "Picture",
    "Task",
    "TokenizerTask",
    "VideoGenerator",
    "build",
    "reconstruct",
    "to_pixels",
    "to_video",
]

"""What is optimised: networks + losses + metrics + pictures, one file per task."""

from typing import Any

from videogen.errors import UserError, near_matches
from videogen.tasks.adaptive import AdaptiveTokenizerTask
from videogen.tasks.base import Batch, Modules, Outcome, Picture, Task, to_pixels, to_video
from videogen.tasks.clip_classes import ClipClassesTask, LongShortTask
from videogen.tasks.denoised_tokenizer import DenoisedTokenizerTask
from videogen.tasks.detokenizer import DetokenizerTask
from videogen.tasks.distillation import DistilledDetokenizerTask, DistilledGeneratorTask
from videogen.tasks.generation import VideoGenerator
from videogen.tasks.generator import GeneratorTask
from videogen.tasks.language import LanguageTask
from videogen.tasks.latent_tokenizer import LatentTokenizerTask
from videogen.tasks.lifting import LiftingTask
from videogen.tasks.plans import BesideTokensTask, PlanTask
from videogen.tasks.retrieval import RetrievalTask
from videogen.tasks.segmentation import SegmentationTask
from videogen.tasks.signs import SignCodecTask, SignDiffusionTask
from videogen.tasks.stand_ins import CaptionsTask, ClassifierTask
from videogen.tasks.tokenizer import TokenizerTask, reconstruct, reconstructor
from videogen.tasks.understanding import UnderstandingTask
from videogen.tasks.video_text import VideoTextTask
from videogen.tasks.watching import WatchingTask

TASKS = {
    "adaptive": AdaptiveTokenizerTask,
    "beside_tokens": BesideTokensTask,
    "captions": CaptionsTask,
    "classifier": ClassifierTask,
    "clip_classes": ClipClassesTask,
    "denoised_tokenizer": DenoisedTokenizerTask,
    "detokenizer": DetokenizerTask,
    "generator": GeneratorTask,
    "language": LanguageTask,
    "latent_tokenizer": LatentTokenizerTask,
    "lifting": LiftingTask,
    "long_short": LongShortTask,
    "plan": PlanTask,
    "retrieval": RetrievalTask,
    "segmentation": SegmentationTask,
    "sign_codec": SignCodecTask,
    "sign_diffusion": SignDiffusionTask,
    "tokenizer": TokenizerTask,
    "understanding": UnderstandingTask,
    "video_text": VideoTextTask,
    "watching": WatchingTask,
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
    "BesideTokensTask",
    "CaptionsTask",
    "ClassifierTask",
    "ClipClassesTask",
    "DenoisedTokenizerTask",
    "DetokenizerTask",
    "DistilledDetokenizerTask",
    "DistilledGeneratorTask",
    "GeneratorTask",
    "LanguageTask",
    "LatentTokenizerTask",
    "LiftingTask",
    "LongShortTask",
    "Modules",
    "Outcome",
    "Picture",
    "PlanTask",
    "RetrievalTask",
    "SegmentationTask",
    "SignCodecTask",
    "SignDiffusionTask",
    "Task",
    "TokenizerTask",
    "UnderstandingTask",
    "VideoGenerator",
    "VideoTextTask",
    "WatchingTask",
    "build",
    "class_of",
    "reconstruct",
    "reconstructor",
    "to_pixels",
    "to_video",
]

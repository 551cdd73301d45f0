"""Evaluation protocols: every number with how it was obtained beside it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Int

from videogen import data
from videogen.data.inputs import HeldOut, build_source, held_out, pixel_source
from videogen.data.shapes_source import COMPOSITION, ShapesSource
from videogen.errors import UserError, near_matches
from videogen.evaluation import geneval, stand_in
from videogen.evaluation.captioning import captions
from videogen.evaluation.completion import completion
from videogen.evaluation.downstream import downstream
from videogen.evaluation.measured import MEASURED
from videogen.evaluation.origin import commit, hardware, of_model
from videogen.evaluation.presets import PRESETS
from videogen.evaluation.prompts import clips_of_split, unseen_prompts
from videogen.evaluation.questions import questions
from videogen.evaluation.rate_distortion import rate_distortion
from videogen.evaluation.recognition import recognition
from videogen.evaluation.retrieval import retrieval
from videogen.evaluation.signs import signs
from videogen.evaluation.streams import streams
from videogen.evaluation.variety import within_prompts
from videogen.inference.files import use_clip
from videogen.inference.sampling import Pixels, encode_prompts
from videogen.metrics.judge import fidelity, judge
from videogen.metrics.temporal import in_time
from videogen.tasks import reconstruct
from videogen.tasks.base import Keep, compute_now
from videogen.tasks.detokenizer import DETERMINISTIC
from videogen.tasks.tokenizer import FIDELITY, TokenizerTask, check_pixels
from videogen.training.loading import Loaded

DENOISING_STEPS = (1, 2, 4, 8)
JUDGED = ("colour", "form", "direction")
"""What a prompt is judged by, the columns of ``correct`` in the clips of ``prompt_fidelity``."""
SHOWN = 12

Result = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Metrics, and arrays of clips to look at."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a protocol measures.

    Attributes:
      loaded: the run or export.
      count: clips, or prompts, that are asked for.
      seed: decides every draw.
      split: where prompts come from.
      other: whether the clips are of another test set than the run's own.
      keep: what is computed of a batch passes through it.
      label: begins the names that batches of samples are kept by.
      beside: protocols of numbers that are measured beside, for the record.
      weights: file of the frozen network of a protocol that has one; ``None``: that of the installed package.
    """

    loaded: Loaded
    count: int
    seed: int
    split: str = "eval"
    other: bool = False
    keep: Keep = compute_now
    label: str = "samples"
    beside: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    weights: str | None = None

    @property
    def batch_size(self) -> int:
        """Clips that are in memory at a time."""
        return self.loaded.config.data.eval_batch_size

    @functools.cached_property
    def source(self) -> data.Source:
        """The held-out clips to read."""
        return build_source(self.loaded.config, "eval")

    @functools.cached_property
    def clips(self) -> HeldOut:
        """Samples of the held-out split, each once.

        Raises:
          UserError: they have no pixels.
        """
        clips = held_out(self.source, self.count, self.loaded.text)
        if "video" not in clips.samples[0]:
            raise UserError("a token cache holds no pixels; name the videos with --source and --path")
        return clips

    @functools.cached_property
    def videos(self) -> Pixels:
        """All clips that were read, uint8 ``[clips, time, height, width, channel]``."""
        return np.stack([sample["video"] for sample in self.clips.samples])

    def batches(self) -> list[dict[str, np.ndarray]]:
        """The videos in batches, of which the last may be smaller."""
        return [{"video": self.videos[i : i + self.batch_size]} for i in range(0, len(self.videos), self.batch_size)]

    def rows(self, count: int) -> Iterator[tuple[Int[np.ndarray, "batch"], int]]:
        """The numbers 0 … ``count`` - 1 in batches, and how many of each count: a short last one is filled up, so that
        one program serves all."""
        size = min(self.batch_size, count)
        for start in range(0, count, size):
            yield np.minimum(np.arange(start, start + size), count - 1), min(size, count - start)

    def rebuilt(self, model: nnx.Module, name: str) -> Pixels:
        """The clips after a tokenizer, kept by this name, has coded and decoded them."""
        return np.concatenate(
            [
                self.keep(f"{name}_{i}", lambda video=batch["video"]: {"videos": reconstruct(model, video)})["videos"]
                for i, batch in enumerate(self.batches())
            ]
        )

    def from_real(self, real: Pixels, generated: Pixels, sides: str) -> dict[str, float]:
        """The distance of clips of shapes from real ones on the stand-in classifier, noted with its protocol
        (``stand_in.protocol``)."""
        if found := stand_in.distance(real, generated):
            self.beside[stand_in.PRESET] = stand_in.protocol(real, generated, sides)
        return found

    def used(self) -> dict[str, Any]:
        """What was asked for, found, left out and counted, as far as clips were read, and whether training saw it."""
        if "clips" not in self.__dict__:
            # Prompts of these splits are never seen; classes are.
            return {"held_out": self.loaded.text is not None}
        clips, apart = self.clips, {} if self.other else {"held_out": self.source.keeps_apart}
        used = {"asked": self.count, "found": clips.found, "counted": len(clips.samples), "skipped": clips.skipped}
        return {"clips": used, **apart}


def reconstruction(evaluation: Evaluation) -> Result:
    """PSNR, SSIM, sharpness, codebook usage and rate on held-out clips; for shapes also what the judge reads back.

    A de-tokenizer is measured beside the frozen tokenizer's own decoder, on the same codes.
    """
    loaded, model = evaluation.loaded, evaluation.loaded.tokenizer
    check_pixels(model)
    metrics: dict[str, Any] = loaded.task.evaluate(
        loaded.modules, evaluation.batches(), evaluation.seed, evaluation.keep
    )
    models = {"reconstructions": model}
    if model.coder is not model:
        models = {DETERMINISTIC: model.coder, **models}
    rebuilt = {name: evaluation.rebuilt(model, f"rebuilt_{name}") for name, model in models.items()}
    metrics["clips"] = len(evaluation.clips.samples)
    if evaluation.videos.shape[1] > 1:
        metrics |= {f"in_time_of_{name}": _in_time(videos, evaluation.videos) for name, videos in rebuilt.items()}
    captions = [sample["caption"] for sample in evaluation.clips.samples]
    if data.class_of(loaded.config.data.source).judged:
        for name, videos in rebuilt.items():
            metrics[f"judge_on_{name}"] = fidelity(videos, captions)
        # What the judge cannot read in the originals says nothing of the tokenizer.
        metrics["judge_on_originals"] = fidelity(evaluation.videos, captions)
        metrics |= evaluation.from_real(evaluation.videos, videos, "clips and their reconstructions")
    pictures = {name: videos[:SHOWN] for name, videos in rebuilt.items()}
    return metrics, {"originals": evaluation.videos[:SHOWN], **pictures, "captions": np.array(captions[:SHOWN])}


def _in_time(videos: Pixels, originals: Pixels) -> dict[str, float]:
    """Means over the clips, one by one so that few are floats at a time."""
    pairs = zip(videos, originals, strict=True)
    each = [in_time(*(clip[None].astype(np.float32) / 255 for clip in pair)) for pair in pairs]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def denoising_steps(evaluation: Evaluation) -> Result:
    """PSNR, SSIM and sharpness on held-out clips by the number of diffusion steps of the decoder."""
    model = evaluation.loaded.tokenizer
    if not model.diffuses:
        raise UserError("denoising_steps needs a tokenizer with a diffusion decoder (--config=cdt)")
    metrics = {}
    for steps in DENOISING_STEPS:
        kept = {"keep": evaluation.keep, "label": f"{steps}_steps"}
        scores = TokenizerTask.score(model, evaluation.batches(), **kept, steps=steps)
        metrics[str(steps)] = {name: scores[name] for name in FIDELITY if name in scores}
    return {"denoising_steps": metrics, "clips": len(evaluation.clips.samples)}, {}


def prompt_fidelity(evaluation: Evaluation) -> Result:
    """What the judge reads back from one sample of each of ``count`` unseen prompts (``judge.ATTRIBUTES``).

    A generator that takes labels and no text is asked for each class in turn, and judged by colour and form.
    """
    loaded, count = evaluation.loaded, evaluation.count
    if (name := pixel_source(loaded.config)["name"]) != "shapes":
        raise UserError(f"prompt_fidelity needs a generator trained on shapes, not on {name}: only they can be judged")
    if loaded.text is None and not loaded.config.classes:
        raise UserError("this generator is told nothing that a sample could be compared with; use --protocol=tasks")
    if loaded.text is not None:
        prompts = unseen_prompts(loaded, count, evaluation.split)
        wanted, story = prompts, encode_prompts(loaded, prompts)
    else:
        labels = np.arange(count, dtype=np.int32) % len(ShapesSource.classes)
        prompts = [ShapesSource.classes[label] for label in labels]
        wanted = [{"shapes": [dict(zip(("colour", "form"), name.split(), strict=True))]} for name in prompts]
        story = {"label": labels}
    videos = _samples(evaluation, story)
    shown = slice(0, SHOWN)
    readings = [judge(video).describe() for video in videos[shown]]
    each = [fidelity(v[None], [w]) for v, w in zip(videos[shown], wanted[shown], strict=True)]
    pictures = {
        "videos": videos[shown],
        "prompts": np.array(prompts[shown]),
        "readings": np.array(readings),
        "correct": np.array([[score.get(name) == 1 for name in JUDGED if name in each[0]] for score in each]),
    }
    metrics = {"prompt_fidelity": fidelity(videos, wanted), "prompts": len(prompts)}
    # In the order of the prompts, so that both sides show nearly the same.
    sides = f"clips of the split {evaluation.split!r} and samples of their captions"
    source = clips_of_split(loaded, evaluation.split, videos.shape[1])
    real = np.stack([source[i]["video"] for i in range(evaluation.count)])
    if loaded.text is not None:
        metrics |= within_prompts(source, prompts, lambda several: _drawn_of(evaluation, several))
    return metrics | evaluation.from_real(real, videos, sides), pictures


def _drawn_of(evaluation: Evaluation, prompts: list[str]) -> Pixels:
    """A sample of each of some prompts, which may be alike."""
    of_each = dataclasses.replace(evaluation, count=len(prompts), label="of_prompts")
    return _samples(of_each, encode_prompts(evaluation.loaded, prompts))


def geneval_of_shapes(evaluation: Evaluation) -> Result:
    """GenEval's six tasks (``geneval``) on unseen prompts of the shapes source, one sample of each.

    There are as many prompts as are asked for, less what is no multiple of 12.
    """
    loaded, count = evaluation.loaded, evaluation.count // geneval.EQUALLY * geneval.EQUALLY
    if not count:
        raise UserError(f"geneval.shapes takes at least {geneval.EQUALLY} prompts, and --count={evaluation.count}")
    if (name := pixel_source(loaded.config)["name"]) != "shapes":
        raise UserError(f"geneval.shapes needs a generator trained on shapes, not on {name}")
    captions = [unseen_prompts(loaded, count, evaluation.split, second_shape=share) for share in (0.0, 1.0)]
    prompts = geneval.shapes_prompts(*captions, count)
    story = encode_prompts(loaded, [prompt.text for prompt in prompts])
    videos = _samples(dataclasses.replace(evaluation, count=count), story)
    verdicts = [[geneval.shows(p, geneval.shapes_seen(v))] for p, v in zip(prompts, videos, strict=True)]
    return {**geneval.summed(prompts, verdicts), "prompts": count}, {}


def _samples(evaluation: Evaluation, story: dict[str, np.ndarray]) -> Pixels:
    """One window for each row of the conditioning."""
    generator, first = evaluation.loaded.generator(), None
    if generator.given_frames:
        first = evaluation.videos[:, : generator.given_frames]
    videos = []
    for rows, counted in evaluation.rows(evaluation.count):
        said = {name: part[rows] for name, part in story.items()}
        given = None if first is None else first[np.minimum(rows, len(first) - 1)]
        place = {"count": len(rows), "first": int(rows[0])}
        draw = functools.partial(generator.generate, said, generator.window, evaluation.seed, **place)
        drawn = evaluation.keep(
            f"{evaluation.label}_{rows[0]}", lambda draw=draw, given=given: {"videos": draw(first_frames=given)}
        )
        videos.append(drawn["videos"][:counted])
    return np.concatenate(videos)


PROTOCOLS: dict[str, Callable[[Evaluation], Result]] = {
    "reconstruction": reconstruction,
    "prompt_fidelity": prompt_fidelity,
    "composition": prompt_fidelity,
    "geneval.shapes": geneval_of_shapes,
    "captions": captions,
    "tasks": completion,
    "denoising_steps": denoising_steps,
    "downstream": downstream,
    "rate_distortion": rate_distortion,
    "signs": signs,
    "retrieval": retrieval,
    "recognition": recognition,
    "answers": questions,
    "streams": streams,
}

OF_GENERATORS = ("prompt_fidelity", "composition", "geneval.shapes", "captions", "tasks")
"""Protocols of what a generator draws; the others are of what a tokenizer reconstructs."""

OF_BOTH = ("signs",)
"""Protocols of what a generator draws from sentences, and a tokenizer from the points of clips."""

ALONE = {
    "retrieval": "what finds clips by texts",
    "recognition": "what tells the classes of clips",
    "streams": "models that watch streams",
    "answers": "what answers questions about clips",
}
"""Protocols that are the only ones of a kind of model -> that kind."""

READ_WEIGHTS = ("downstream", "rate_distortion")
"""Protocols with a frozen network, whose weights may be named."""


def use_test_set(loaded: Loaded, source: str | None, path: str | None, clip: str | None) -> bool:
    """Lets a stage be evaluated on other clips than those of its run: all that a source has, or of another size.

    Args:
      loaded: the run or export, whose config is changed.
      source: name of a source; by default the run's own where that reads files, else ``video_folder``.
      path: of the source.
      clip: ``FRAMESxHEIGHTxWIDTH``.

    Returns:
      Whether the clips come from another test set.

    Raises:
      UserError: a malformed size, one that the tokenizer cannot take, or a size for a generator.
    """
    section = loaded.config.data
    if clip is not None:
        if loaded.task.draws:
            raise UserError("--clip is for tokenizers: a generator draws clips of the one size it was trained on")
        use_clip(loaded, clip)
    if source is None and path is None:
        return False
    own = data.class_of(section.source)
    reads_files = own.field == "video" and "path" in inspect.signature(own).parameters
    name = source or (section.source.name if reads_files else "video_folder")
    # Of a test set nothing is kept back.
    takes = inspect.signature(data.class_of({"name": name})).parameters
    section.source = {"name": name, "path": path or "", **({"holdout": 0.0} if "holdout" in takes else {})}
    return True


def evaluate(
    loaded: Loaded,
    name: str,
    count: int,
    seed: int,
    other: bool = False,
    keep: Keep = compute_now,
    weights: str | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs a protocol; the record holds the numbers and everything needed to read them.

    Args:
      loaded: the run or export.
      name: of the protocol.
      count: clips, or prompts, that are asked for.
      seed: decides every draw.
      other: whether its config names another test set (``use_test_set``).
      keep: what is computed of a batch passes through it (``runs.finished``).
      weights: file of the frozen network of a protocol that has one; ``None``: that of the installed package.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{near_matches(name, [*PROTOCOLS, *PRESETS])}")
    own = ["retrieval"] * loaded.task.retrieves + ["recognition"] * loaded.task.recognises
    own += ["streams"] * loaded.task.watches
    own += ["answers"] * (loaded.task.default_protocol(loaded.config) == "answers")
    if name not in own and (own or name in ALONE):
        wanted = f"use --protocol={own[0]}" if own else f"it is for {ALONE[name]}"
        raise UserError(f"{loaded.directory} holds a {loaded.config.task}, and {name} is not for it: {wanted}")
    if name not in OF_BOTH and loaded.task.draws != (name in OF_GENERATORS):
        kinds = ("generator", "tokenizer")
        found, wanted = kinds if loaded.task.draws else reversed(kinds)
        raise UserError(f"{loaded.directory} holds a {found}, and {name} is for a {wanted}")
    split = COMPOSITION if name == "composition" else "eval"
    evaluation = Evaluation(loaded, count, seed, split, other, keep, weights=weights)
    metrics, pictures = PROTOCOLS[name](evaluation)
    config = loaded.config
    protocol = {
        "name": name,
        "source": {key: value for key, value in config.data.source.to_dict().items() if value not in (None, "", {})},
        "split": evaluation.split,
        "clip": config.data.clip.to_dict(),
        "count": metrics.get("prompts", metrics.get("clips")),
        **evaluation.used(),
        **of_model(loaded),
        "measured": {key: words for key, words in MEASURED.items() if key in _names(metrics)},
        **({"beside": evaluation.beside} if evaluation.beside else {}),
    }
    record = {"protocol": protocol, "seed": seed, "commit": commit(), "hardware": hardware(), "metrics": metrics}
    return record, pictures


def _names(metrics: dict[str, Any]) -> set[str]:
    """Every key of nested metrics."""
    return set(metrics).union(*(_names(value) for value in metrics.values() if isinstance(value, dict)))

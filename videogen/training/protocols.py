"""Evaluation protocols: every number with how it was obtained beside it."""

import functools
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

from videogen import data
from videogen.conditioning import TASKS
from videogen.data import SampleError
from videogen.data.shapes_source import COMPOSITION, ShapesSource
from videogen.detokenizers import DiffusionDecoder
from videogen.errors import UserError, near_matches
from videogen.evaluation import region_psnr
from videogen.evaluation.judge import fidelity, judge
from videogen.tasks import VideoGenerator, reconstruct
from videogen.tasks.detokenizer import DETERMINISTIC
from videogen.tasks.tokenizer import FIDELITY, TokenizerTask
from videogen.training.inputs import build_source, clip_of, pixel_source
from videogen.training.loading import Loaded
from videogen.training.sampling import encode_prompts

BATCH = 32
DENOISING_STEPS = (1, 2, 4, 8)
JUDGED = ("colour", "form", "direction")
"""What a prompt is judged by, the columns of ``correct`` in the clips of ``prompt_fidelity``."""
SHOWN = 12

Result = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Metrics, and arrays of clips to look at."""


def held_out(loaded: Loaded, count: int) -> list[dict[str, Any]]:
    """The first ``count`` readable samples of the held-out split."""
    source = build_source(loaded.config, "eval")
    samples = []
    for index in range(len(source)):
        if len(samples) == count:
            break
        try:
            samples.append(source[index])
        except SampleError:
            continue
    if not samples:
        raise UserError("the held-out split has no readable clip; check data.source.path")
    return samples


def batches_of(videos: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Equal batches of at most ``BATCH`` clips; clips beyond the last full batch are left out, never padded."""
    size = min(BATCH, len(videos))
    return [{"video": videos[i : i + size]} for i in range(0, len(videos) - size + 1, size)]


def reconstruction(loaded: Loaded, count: int, seed: int) -> Result:
    """PSNR, SSIM, sharpness, codebook usage and rate on held-out clips; for shapes also what the judge reads back.

    A de-tokenizer is measured beside the frozen tokenizer's own decoder, on the same codes.
    """
    tokenizer, samples = loaded.tokenizer, held_out(loaded, count)
    batches = batches_of(np.stack([s["video"] for s in samples]))
    metrics: dict[str, Any] = loaded.task.evaluate(loaded.modules, batches, seed)
    rebuilt = {"reconstructions": tokenizer}
    if loaded.config.task == "detokenizer":
        rebuilt = {DETERMINISTIC: loaded.modules["tokenizer"], **rebuilt}
    rebuilt = {name: np.concatenate([reconstruct(m, b["video"]) for b in batches]) for name, m in rebuilt.items()}
    metrics["clips"] = clips = len(rebuilt["reconstructions"])
    captions = [s["caption"] for s in samples[:clips]]
    if loaded.config.data.source.name == "shapes":
        for name, videos in rebuilt.items():
            metrics[f"judge_on_{name}"] = fidelity(videos, captions)
    shown = slice(0, SHOWN)
    originals = np.stack([s["video"] for s in samples[shown]])
    pictures = {name: videos[shown] for name, videos in rebuilt.items()}
    return metrics, {"originals": originals, **pictures, "captions": np.array(captions[shown])}


def denoising_steps(loaded: Loaded, count: int, seed: int) -> Result:
    """PSNR, SSIM and sharpness on held-out clips by the number of diffusion steps of the decoder."""
    model = loaded.tokenizer
    decoder = getattr(model, "detokenizer", None) or model.decoder
    if not isinstance(decoder, DiffusionDecoder):
        raise UserError("denoising_steps needs a tokenizer with a diffusion decoder (configs/cdt.py)")
    samples = held_out(loaded, count)
    batches = batches_of(np.stack([s["video"] for s in samples]))
    metrics = {}
    for steps in DENOISING_STEPS:
        scores = TokenizerTask.score(model, batches, steps=steps)
        metrics[str(steps)] = {name: scores[name] for name in FIDELITY}
    return {"denoising_steps": metrics, "clips": sum(len(b["video"]) for b in batches)}, {}


def unseen_prompts(loaded: Loaded, count: int, split: str = "eval") -> list[str]:
    """``count`` different captions of a split of the shapes source; none of them occurs in training.

    Raises:
      UserError: the split has fewer.
    """
    # A token cache holds training captions: the prompts come from the shapes that it was made from.
    settings = pixel_source(loaded.config)
    source = data.build(settings, clip=clip_of(loaded.config), seed=loaded.config.seed + 1, split=split)
    listed = source.captions()
    if listed is not None and count > len(listed):
        raise UserError(f"there are {len(listed)} different prompts in the split {split!r}, not {count}; ask for fewer")
    prompts: dict[str, None] = {}
    for index in range(len(source)):
        if len(prompts) == count:
            return list(prompts)
        prompts.setdefault(source.caption(index))
    raise UserError(f"{len(source)} clips of the split {split!r} have {len(prompts)} different prompts, not {count}")


def prompt_fidelity(loaded: Loaded, count: int, seed: int, split: str = "eval") -> Result:
    """What the judge reads back from one sample of each of ``count`` unseen prompts (``judge.ATTRIBUTES``).

    A generator that takes labels and no text is asked for each class in turn, and judged by colour and form.
    """
    if (name := pixel_source(loaded.config)["name"]) != "shapes":
        raise UserError(f"prompt_fidelity needs a generator trained on shapes, not on {name}: only they can be judged")
    if loaded.text is None and not loaded.config.classes:
        raise UserError("this generator is told nothing that a sample could be compared with; use --protocol=tasks")
    if loaded.text is not None:
        prompts = unseen_prompts(loaded, count, split)
        wanted, story = prompts, encode_prompts(loaded, prompts)
    else:
        labels = np.arange(count, dtype=np.int32) % len(ShapesSource.classes)
        prompts = [ShapesSource.classes[label] for label in labels]
        wanted = [{"shapes": [dict(zip(("colour", "form"), name.split(), strict=True))]} for name in prompts]
        story = {"label": labels}
    videos = _samples(loaded, story, count, seed)
    shown = slice(0, SHOWN)
    readings = [judge(video).describe() for video in videos[shown]]
    each = [fidelity(v[None], [w]) for v, w in zip(videos[shown], wanted[shown], strict=True)]
    pictures = {
        "videos": videos[shown],
        "prompts": np.array(prompts[shown]),
        "readings": np.array(readings),
        "correct": np.array([[score.get(name) == 1 for name in JUDGED if name in each[0]] for score in each]),
    }
    return {"prompt_fidelity": fidelity(videos, wanted), "prompts": len(prompts)}, pictures


def _samples(loaded: Loaded, story: dict[str, np.ndarray], count: int, seed: int) -> np.ndarray:
    """One window for each row of the conditioning; a short last batch is filled up, so that one program serves all."""
    generator, first = loaded.generator(), None
    if generator.given_frames:
        first = np.stack([s["video"][: generator.given_frames] for s in held_out(loaded, count)])
    videos = []
    for start in range(0, count, BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), count - 1)
        said = {name: part[rows] for name, part in story.items()}
        given = None if first is None else first[np.minimum(rows, len(first) - 1)]
        videos.append(generator.generate(said, generator.window, seed + start, count=BATCH, first_frames=given))
    return np.concatenate(videos)[:count]


def nearest_given(
    region: Bool[np.ndarray, "time height width"],
) -> tuple[Int[np.ndarray, "time height width"], ...]:
    """Of every pixel the frame, row and column of the nearest given one: in time at its place, else in its frame."""
    # A step in space counts more than all steps in time.
    far = len(region) + 1
    return tuple(ndimage.distance_transform_edt(~region, sampling=(1, far, far), return_indices=True)[1])


def completion(loaded: Loaded, count: int, seed: int) -> Result:
    """PSNR of what each task leaves unknown: of samples, of copies of the nearest given pixel, of reconstructions.

    A generator without tasks has one, frame prediction: from as many frames as it is always given, or from the first.
    A task has learned something where samples are better than copies; better than the tokenizer's reconstructions of
    the true clips they cannot be expected to be. Of conditional generation, which gives no pixel, there is no copy.
    """
    generator = loaded.generator()
    regions = _regions(loaded, generator)
    samples = held_out(loaded, count)
    if "video" not in samples[0]:
        raise UserError("the protocol tasks needs pixels, which a token cache does not hold; name the videos as source")
    videos = np.concatenate([b["video"] for b in batches_of(np.stack([s["video"] for s in samples]))])
    samples, size = samples[: len(videos)], min(BATCH, len(videos))
    rebuilt = np.concatenate([reconstruct(loaded.modules["tokenizer"], b["video"]) for b in batches_of(videos)])
    metrics, pictures = {}, {name: [] for name in ("originals", "given", "videos")}
    for name, region in regions.items():
        drawn, filled = [], []
        for start in range(0, len(videos), size):
            part = slice(start, start + size)
            story = _story(loaded, samples[part])
            if loaded.task.tasks is None:
                first = videos[part, : int(region[:, 0, 0].sum())]
                rest = ((0, 0), (0, generator.window - first.shape[1]), (0, 0), (0, 0), (0, 0))
                new = generator.generate(story, generator.window, seed + start, count=size, first_frames=first)
                both = new, np.pad(first, rest, mode="edge")
            else:
                both = generator.complete([name] * size, videos[part], seed + start, story)
            for clips, new in zip((drawn, filled), both, strict=True):
                clips.append(new)
        drawn, filled = np.concatenate(drawn), np.concatenate(filled)
        compared = {"psnr": drawn, "reconstruction": rebuilt}
        if region.any():
            time, row, column = nearest_given(region)
            compared["copy"] = videos[:, time, row, column]
        unknown = np.broadcast_to(~region, videos.shape[:-1])
        metrics[name] = {
            key: float(np.mean(region_psnr(clips / 255, videos / 255, unknown))) for key, clips in compared.items()
        }
        for shown, clips in zip(pictures.values(), (videos, filled, drawn), strict=True):
            shown.append(clips[: SHOWN // 4])
    captions = np.repeat(list(regions), len(pictures["videos"][0]))
    pictures = {name: np.concatenate(clips) for name, clips in pictures.items()}
    return {"tasks": metrics, "clips": len(videos)}, {**pictures, "captions": captions}


def _regions(loaded: Loaded, generator: VideoGenerator) -> dict[str, Bool[np.ndarray, "time height width"]]:
    """Task -> the given pixels of a clip, for each that the generator was trained on."""
    clip = loaded.config.data.clip
    shape = (generator.window, clip.height, clip.width)
    if loaded.task.tasks is not None:
        shares = zip(TASKS, loaded.task.tasks, strict=True)
        return {name: TASKS[name].region(*shape) for name, share in shares if share}
    known = generator.given_frames or next(iter(generator.prefix_lengths()), 1)
    generator.check_given(known)
    given = np.zeros(shape, bool)
    given[:known] = True
    return {"frame_prediction": given}


def _story(loaded: Loaded, samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Captions and labels of held-out clips, as far as the generator takes them."""
    story = encode_prompts(loaded, [s["caption"] for s in samples]) if loaded.text is not None else {}
    if loaded.config.classes:
        story["label"] = np.array([s["label"] for s in samples], np.int32)
    return story


PROTOCOLS: dict[str, Callable[[Loaded, int, int], Result]] = {
    "reconstruction": reconstruction,
    "prompt_fidelity": prompt_fidelity,
    "composition": functools.partial(prompt_fidelity, split=COMPOSITION),
    "tasks": completion,
    "denoising_steps": denoising_steps,
}


def evaluate(loaded: Loaded, name: str, count: int, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs a protocol; the record holds the numbers and everything needed to read them."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{near_matches(name, PROTOCOLS)}")
    metrics, pictures = PROTOCOLS[name](loaded, count, seed)
    clip = loaded.config.data.clip
    record = {
        "protocol": {
            "name": name,
            "source": loaded.config.data.source.to_dict(),
            "split": COMPOSITION if name == "composition" else "eval",
            "count": count,
            "clip": clip.to_dict(),
            "weights": "ema" if loaded.config.ema.decay else "last",
            "step": loaded.step,
            "sampler": loaded.config.sampler.to_dict() if "sampler" in loaded.config else None,
            "pixels": "clamped, rounded to uint8; PSNR per frame, mean over frames, then clips; SSIM per RGB channel; "
            "gradient_sharpness: 1-Wasserstein distance of the frames' gradient magnitudes in grey levels",
        },
        "seed": seed,
        "commit": commit(),
        "hardware": hardware(),
        "metrics": metrics,
    }
    return record, pictures


def commit() -> str:
    """The git commit of this code, ``+`` appended when the tree has changes, ``unknown`` outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """The devices in words."""
    devices = jax.devices()
    kind = f"{os.cpu_count()} cores, {platform.machine()}" if devices[0].platform == "cpu" else devices[0].device_kind
    return f"{len(devices)} × {devices[0].platform} ({kind})"

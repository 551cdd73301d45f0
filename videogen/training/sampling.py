"""Drawing videos from prompts with a loaded generator, and writing them down."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from videogen.conditioning import SHORT_NAMES, TASKS
from videogen.data.video_io import read_video, side_by_side, write_video
from videogen.errors import UserError
from videogen.training.inputs import clip_of
from videogen.training.loading import Loaded

Pixels = UInt8[np.ndarray, "videos time height width 3"]


def encode_prompts(loaded: Loaded, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Prompts -> the conditioning arrays of a batch."""
    if loaded.text is None:
        raise UserError(f"{loaded.directory} was trained without text; it takes no prompts")
    ids, mask = loaded.text.encode(list(prompts))
    return {"text_ids": ids, "text_mask": mask}


def draw_videos(
    loaded: Loaded,
    prompts: Sequence[str],
    *,
    seed: int,
    story: bool = False,
    frames: int | None = None,
    overlap: int | None = None,
    image: str | None = None,
    sampler: dict[str, Any] | None = None,
) -> Pixels:
    """Draws one video per prompt, or with ``story`` one video whose windows follow the prompts in order.

    Args:
      loaded: a generator stage.
      prompts: what to show.
      seed: decides every draw.
      story: the prompts are one video's story.
      frames: length; by default one window, or one window per prompt of a story.
      overlap: frames kept at every slide.
      image: file whose first frame every video starts with.
      sampler: overrides of the config's sampler.
    """
    generator = loaded.generator(sampler)
    overlap = generator.default_overlap() if overlap is None else overlap
    count = len(prompts) if story else 1
    frames = frames or generator.window + (count - 1) * (generator.window - overlap)
    steps = [[prompt] for prompt in prompts] if story else [list(prompts)]
    first = None
    if image is not None:
        still = clip_of(loaded.config).fit(read_video(image)[0][:1], None)
        first = np.repeat(still[None], len(steps[0]), axis=0)
    return generator.generate(
        [encode_prompts(loaded, step) for step in steps], frames, seed, overlap=overlap, first_frames=first
    )


def read_clip(loaded: Loaded, path: str, frames: int, needed: int) -> UInt8[np.ndarray, "time height width 3"]:
    """The first ``frames`` frames of a video file, at the rate and size of the generator's clips.

    Raises:
      UserError: it has fewer than the ``needed`` ones; those beyond may be missing, and repeat the last.
    """
    clip = clip_of(loaded.config)
    video, fps = read_video(path)
    step = fps / clip.fps if clip.fps and len(video) > 1 else 1.0
    wanted = np.floor(np.arange(frames) * step + 1e-6).astype(int)
    if wanted[needed - 1] >= len(video):
        raise UserError(f"{path} is too short: {needed} frames at {clip.fps or fps:g} fps are needed")
    return clip.fit(video[np.minimum(wanted, len(video) - 1)], None)


def complete_video(
    loaded: Loaded,
    task: str,
    video: str | None,
    prompts: Sequence[str],
    *,
    seed: int,
    sampler: dict[str, Any] | None = None,
) -> tuple[Pixels, Pixels]:
    """Completes a video file by a task of given pixels: once, or once for each prompt.

    Args:
      loaded: a generator stage trained with ``config.tasks``.
      task: a name in ``conditioning.TASKS`` or in ``SHORT_NAMES``.
      video: the file; ``None`` where the task gives no pixel.
      prompts: what to show, for tasks that are told; may be empty.
      seed: decides every draw.
      sampler: overrides of the config's sampler.

    Returns:
      The completed clips, and beside each other the file's clip, what was given of it, and the completed one.
    """
    task = SHORT_NAMES.get(task, task)
    generator = loaded.generator(sampler)
    generator.check_task(task)
    if prompts and not TASKS[task].told:
        raise UserError(f"{task} takes no prompt: it was trained on the given pixels alone")
    clip = loaded.config.data.clip
    region = TASKS[task].region(generator.window, clip.height, clip.width)
    if region.any() and video is None:
        raise UserError(f"{task} completes a video; name it with --video=FILE")
    original = np.zeros((*region.shape, 3), np.uint8)
    if video is not None:
        needed = int(np.flatnonzero(region.any(axis=(1, 2))).max(initial=0)) + 1
        original = read_clip(loaded, video, generator.window, needed)
    count = max(len(prompts), 1)
    originals = np.repeat(original[None], count, axis=0)
    story = encode_prompts(loaded, prompts) if prompts else None
    drawn, filled = generator.complete([task] * count, originals, seed, story)
    rows = zip(originals, filled, drawn, strict=True)
    return drawn, np.stack([side_by_side(row) for row in rows])


def write_samples(
    out: epath.PathLike,
    videos: Pixels,
    prompts: Sequence[str],
    loaded: Loaded,
    *,
    seed: int,
    story: bool,
    compared: Pixels | None = None,
) -> list[epath.Path]:
    """Writes ``sample_*.mp4`` and ``prompts.json`` (prompts, seed, checkpoint); returns the paths of the videos.

    ``compared`` clips, one for each video, become ``side_by_side_*.mp4``.
    """
    out = epath.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"sample_{i}.mp4" for i in range(len(videos))]
    scale = max(1, 256 // videos.shape[2])
    fps = loaded.config.data.clip.fps or 8
    for path, video in zip(paths, videos, strict=True):
        write_video(path, video, fps, scale=scale)
    for i, video in enumerate([] if compared is None else compared):
        write_video(out / f"side_by_side_{i}.mp4", video, fps, scale=scale)
    said = [" / ".join(prompts)] if story else [*prompts] or [""] * len(paths)
    record = {
        "videos": {path.name: text for path, text in zip(paths, said, strict=True)},
        "seed": seed,
        "checkpoint": str(loaded.directory),
        "step": loaded.step,
    }
    (out / "prompts.json").write_text(json.dumps(record, indent=2) + "\n")
    return paths

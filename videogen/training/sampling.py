"""Drawing videos from prompts with a loaded generator, and writing them down."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from videogen.data.video_io import read_video, write_video
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


def write_samples(
    out: epath.PathLike, videos: Pixels, prompts: Sequence[str], loaded: Loaded, *, seed: int, story: bool
) -> list[epath.Path]:
    """Writes ``sample_*.mp4`` and ``prompts.json`` (prompts, seed, checkpoint); returns the paths of the videos."""
    out = epath.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"sample_{i}.mp4" for i in range(len(videos))]
    scale = max(1, 256 // videos.shape[2])
    for path, video in zip(paths, videos, strict=True):
        write_video(path, video, loaded.config.data.clip.fps or 8, scale=scale)
    record = {
        "videos": {p.name: " / ".join(prompts) if story else prompts[i] for i, p in enumerate(paths)},
        "seed": seed,
        "checkpoint": str(loaded.directory),
        "step": loaded.step,
    }
    (out / "prompts.json").write_text(json.dumps(record, indent=2) + "\n")
    return paths

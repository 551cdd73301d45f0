"""Drawing videos from prompts with a loaded generator, and writing them down."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from videogen.conditioning import SHORT_NAMES, TASKS
from videogen.configuration import read_file, replace_text, shown_rate
from videogen.data.inputs import build_source, sample_clip
from videogen.data.video_io import read_beginning, side_by_side
from videogen.errors import UserError, near_matches
from videogen.inference.comparing import compare, pulse_of, record_of
from videogen.inference.pictures import WRITERS, write_arrays
from videogen.tasks import GeneratorTask, VideoGenerator
from videogen.tasks.base import Keep, compute_now
from videogen.training.loading import Loaded

Pixels = UInt8[np.ndarray, "videos time height width 3"]


def encode_prompts(loaded: Loaded, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Prompts -> the conditioning arrays of a batch."""
    if loaded.text is None:
        raise UserError(f"{loaded.directory} was trained without text; it takes no prompts")
    for prompt in filter(loaded.text.is_cut, prompts):
        logging.warning("only the first %d tokens of this prompt are read: %.200s", loaded.text.length, prompt)
    ids, mask = loaded.text.encode(list(prompts))
    return {"text_ids": ids, "text_mask": mask}


def draw_videos(
    loaded: Loaded,
    prompts: Sequence[str],
    *,
    seed: int,
    labels: Sequence[str] = (),
    count: int = 1,
    story: bool = False,
    frames: int | None = None,
    overlap: int | None = None,
    image: str | None = None,
    video: str | None = None,
    given: int | None = None,
    sampler: dict[str, Any] | None = None,
    tile: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    keep: Keep = compute_now,
    measured: dict[str, Any] | None = None,
) -> Pixels:
    """Draws ``count`` videos per prompt and label, or with ``story`` videos whose windows follow the prompts in order.

    They are drawn in batches of ``data.eval_batch_size``; each depends on its place among all alone.

    Args:
      loaded: a generator stage.
      prompts: what to show; may be empty, and is for a generator without text.
      seed: decides every draw.
      labels: numbers or names of classes: as many as prompts, or one for all, or without prompts any number.
      count: videos of each, of a generator without conditioning in all.
      story: the prompts are one video's story.
      frames: length; by default one window, or one window per prompt of a story.
      overlap: frames kept at every slide.
      image: file whose first frame every video starts with, or shows the signer of, where the decoder is told such a
        picture (``Tokenizer.needs``).
      video: file whose first ``given`` frames every video starts with.
      given: by default as many as the generator is always given, or about half a window.
      sampler: overrides of the config's sampler.
      tile: height and width in pixels of the tiles that large frames are decoded by; ``None``: as a whole.
      size: height and width in pixels of the videos; ``None``: those of training.
      keep: a finished batch passes through it (``runs.finished``).
      measured: takes the ``times`` of a solver, and what ``comparing`` finds: of a sampler with a ``shortcut``, and how
        long videos ``pulse`` where windows begin, and their ``overlap``; ``None``: nothing is measured.
    """
    generator = loaded.generator(sampler, tile, size)
    overlap = generator.default_overlap() if overlap is None else overlap
    windows = len(prompts) if story else 1
    frames = frames or generator.window + (windows - 1) * (generator.window - overlap)
    _name_unused(prompts if story else [], generator, frames, overlap)
    conditioning, examples = _conditioning(loaded, prompts, labels, count, story)
    shown, total = None, examples * count
    if needs := [*generator.task.tokenizer.needs] if image is not None else []:
        picture = np.repeat(read_clip(loaded, image, 1, 1), total, axis=0)
        conditioning = [window | dict.fromkeys(needs, picture) for window in conditioning]
    elif image is not None or video is not None:
        given = 1 if image is not None else given or generator.given_frames or overlap or 1
        generator.check_given(given)
        shown = read_clip(loaded, image or video, given, given, size)
    batch, videos = min(loaded.config.data.eval_batch_size, total), []
    for start in range(0, total, batch):
        # The last batch is filled up, so that one program serves all.
        rows = np.minimum(np.arange(start, start + batch), total - 1)
        part = [{name: array[rows] for name, array in window.items()} for window in conditioning]
        bar = functools.partial(tqdm, unit="window", desc=f"drawing {start + 1} … {rows[-1] + 1} of {total}")
        settings = {"count": batch, "first": start, "overlap": overlap, "progress": bar}
        settings["first_frames"] = None if shown is None else np.repeat(shown[None], batch, axis=0)

        def draw(generator: VideoGenerator, part: Any = part, settings: dict = settings, **kept: Any) -> Pixels:
            return generator.generate(part, frames, seed, **settings, **kept)

        # Tokens are kept apart from pixels, so that other tiles decode what was drawn.
        name = f"samples_{start}" + ("" if tile is None else f"_{tile[0]}x{tile[1]}")
        videos.append(keep(name, lambda draw=draw: {"videos": draw(generator, keep=keep)})["videos"][: total - start])
        if start == 0 and measured is not None and generator.sampler.compared is not None:
            beside = functools.partial(compare, loaded, generator, sampler or {}, tile, size, draw)
            measured["shortcut"] = keep("comparison", beside)
    videos = np.concatenate(videos)
    if measured is not None and (times := generator.solver_times()):
        measured["times"] = times
    if measured is not None and (starts := generator.window_starts(frames, overlap)):
        measured |= {"overlap": overlap, "pulse": pulse_of(videos, starts)}
    return videos


def at_rate(loaded: Loaded, fps: float) -> None:
    """Makes a generator with positions in seconds draw, and show, so many frames per second.

    Raises:
      UserError: it is no such generator.
    """
    if not isinstance(loaded.task, GeneratorTask) or loaded.task.generator.clock is None:
        raise UserError(
            f"{loaded.directory} has no positions in seconds, so nothing that it draws depends on the frame rate: "
            "leave --fps out"
        )
    with loaded.config.unlocked():
        loaded.config.data.frame_rate = loaded.config.data.clip.fps = float(fps)


def _conditioning(
    loaded: Loaded, prompts: Sequence[str], labels: Sequence[str], count: int, story: bool
) -> tuple[list[dict[str, np.ndarray]], int]:
    """What each window of the videos is told, ``count`` times of each prompt and label, and how many of these there
    are."""
    steps = [[prompt] for prompt in prompts] if story else [list(prompts)] if prompts else [[]]
    conditioning = [encode_prompts(loaded, step) if step else {} for step in steps]
    examples = max(len(steps[0]), len(labels), 1)
    if labels:
        numbers = np.array([label_of(loaded, label) for label in labels], np.int32)
        if steps[0] and len(labels) not in (1, len(steps[0])):
            raise UserError(f"give one label for all prompts or one for each, got {len(labels)} for {len(steps[0])}")
        conditioning = [window | {"label": np.resize(numbers, examples)} for window in conditioning]
    repeated = [{name: np.repeat(part, count, axis=0) for name, part in window.items()} for window in conditioning]
    return repeated, examples


def _name_unused(story: Sequence[str], generator: VideoGenerator, frames: int, overlap: int) -> None:
    """Says which prompts of a story a video of so many frames has no window for."""
    windows = generator.windows(frames, overlap)
    for prompt in story[windows:]:
        logging.warning("%d frames have %d windows; this prompt of the story is not used: %s", frames, windows, prompt)


def label_of(loaded: Loaded, label: str) -> int:
    """The number of a class, from its number or, where the source is at hand, its name.

    Raises:
      UserError: the generator takes no labels, or there is no such class.
    """
    classes = loaded.config.classes
    if not classes:
        raise UserError(f"{loaded.directory} was trained without classes; it takes no labels")
    if label.isdecimal():
        if int(label) >= classes:
            raise UserError(f"label {label} is none of this generator's classes, which are 0 to {classes - 1}")
        return int(label)
    names = build_source(loaded.config, "train").classes[:classes]
    if label not in names:
        raise UserError(f"unknown label {label!r}{near_matches(label, names)}")
    return names.index(label)


def read_clip(
    loaded: Loaded, path: str, frames: int, needed: int, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "time height width 3"]:
    """The first ``frames`` frames of a video file, at the rate and size of the generator's clips, or at ``size``.

    Raises:
      UserError: it has fewer than the ``needed`` ones; those beyond may be missing, and repeat the last.
    """
    other = {} if size is None else {"height": size[0], "width": size[1]}
    clip = dataclasses.replace(sample_clip(loaded.config), frames=frames, **other)
    return read_beginning(path, clip, needed)


def complete_video(
    loaded: Loaded,
    task: str,
    video: str | None,
    prompts: Sequence[str],
    *,
    seed: int,
    paste: bool = True,
    sampler: dict[str, Any] | None = None,
    tile: tuple[int, int] | None = None,
) -> tuple[Pixels, Pixels]:
    """Completes a video file by a task of given pixels: once, or once for each prompt.

    Args:
      loaded: a generator stage trained with ``config.tasks``.
      task: a name in ``conditioning.TASKS`` or in ``SHORT_NAMES``.
      video: the file; ``None`` where the task gives no pixel.
      prompts: what to show, for tasks that use them; may be empty.
      seed: decides every draw.
      paste: the file's given pixels stay as they are; else they are what the tokenizer makes of them.
      sampler: overrides of the config's sampler.
      tile: height and width in pixels of the tiles that large frames are decoded by; ``None``: as a whole.

    Returns:
      The completed clips, and beside each other the file's clip, what was given of it, and the completed one.
    """
    task = SHORT_NAMES.get(task, task)
    generator = loaded.generator(sampler, tile)
    generator.check_task(task)
    if prompts and not TASKS[task].uses_conditioning:
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
    drawn, filled = generator.complete([task] * count, originals, seed, story, paste=paste)
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
    labels: Sequence[str] = (),
    compared: Pixels | None = None,
    scale: int = 1,
    asked: Mapping[str, Any] | None = None,
    sampler: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> list[epath.Path]:
    """Writes the samples and what they were made from; returns the paths of the videos.

    Args:
      out: a directory for ``sample_*.mp4``, ``side_by_side_*.mp4`` and ``prompts.json``; or a file of a kind in
        ``pictures.WRITERS`` for one video (for any number, .npz), beside which its record stands as .json.
      videos: the samples.
      prompts, labels, seed, story: what they were drawn from.
      loaded: the generator.
      compared: clips that show each sample beside what was given.
      scale: whole factor that files are larger by.
      asked: further settings of the command, for the record.
      sampler: settings other than the config's.
      measured: what ``draw_videos`` has found.
    """
    out, count, fps = epath.Path(out), len(videos), shown_rate(loaded.config)
    single = out.suffix in WRITERS
    folder = out.parent if single else out
    folder.mkdir(parents=True, exist_ok=True)
    paths = [out] * count if single else [out / f"sample_{i}.mp4" for i in range(count)]
    if out.suffix == ".npz":
        write_arrays(out, videos, fps)
    else:
        check_single(out, count)
        for path, video in zip(paths, videos, strict=True):
            WRITERS[path.suffix](path, video, fps, scale)
    for i, video in enumerate([] if compared is None or single else compared):
        WRITERS[".mp4"](out / f"side_by_side_{i}.mp4", video, fps, scale)
    said = [" / ".join(prompts)] if story else [*prompts] or [""]
    names = [f"video_{i}" for i in range(count)] if single else [path.name for path in paths]
    record = {
        "videos": {name: said[i * len(said) // count] for i, name in enumerate(names)},
        "seed": seed,
        "checkpoint": str(loaded.directory),
        "step": loaded.step,
        "hash": loaded.hash,
        "sampler": {**loaded.config.sampler.to_dict(), **(sampler or {})},
        "frames": videos.shape[1],
        "fps": fps,
        "story": story,
        **({"decoder": dict(drawn)} if (drawn := loaded.coder.drawn_with) else {}),
        **{name: value for name, value in (asked or {}).items() if value is not None},
    }
    measured = dict(measured or {})
    if "shortcut" in measured:
        measured["shortcut"] = record_of(measured["shortcut"], videos)
    record |= measured
    if window := loaded.config.get("model", {}).get("window"):
        record["window"] = list(window)
    if labels:
        record["labels"] = {name: labels[i * len(labels) // count] for i, name in enumerate(names)}
    where = out.with_suffix(".json") if single else out / "prompts.json"
    replace_text(where, json.dumps(record, indent=2) + "\n")
    return paths[:1] if single else paths


def check_single(out: epath.PathLike, count: int) -> None:
    """Refuses a file for several videos.

    Raises:
      UserError: only .npz holds several.
    """
    suffix = epath.Path(out).suffix
    if suffix in WRITERS and suffix != ".npz" and count > 1:
        raise UserError(f"--out={out} holds one video, and {count} are drawn; name a directory, or a .npz file")


def read_prompts(path: str) -> list[str]:
    """The prompts of a text file, one a line; empty lines are left out.

    Raises:
      UserError: no such file, no UTF-8, or no prompt in it.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one on each line")
    return prompts

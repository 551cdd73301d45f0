"""Data of a stage: sources, text tokenizers and batches on the mesh."""

import collections
import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from videogen import data
from videogen.data.buckets import read_phases
from videogen.data.pipeline import REPORTS, Collate, check_texts
from videogen.data.segments import LINKS, SEGMENTS, THINGS
from videogen.data.text import build_text_tokenizer, load_text_tokenizer, train_bpe
from videogen.data.token_files import PREFIX
from videogen.data.with_maps import CHANNELS, MAPS
from videogen.errors import UserError
from videogen.parallel import batch_axes, batch_sharding
from videogen.parallel.mesh import BATCH_AXES
from videogen.tokens import Layout

TEXT_DIRECTORY = "text_tokenizer"
SAMPLES_FOR_BPE = 4096


def clip_of(config: Any) -> data.Clip:
    """The clip a config asks for."""
    clip = config.data.clip
    return data.Clip(clip.frames, clip.height, clip.width, clip.fps or None)


def build_source(
    config: Any, split: str, clip: data.Clip | None = None, section: Mapping[str, Any] | None = None
) -> data.Source:
    """The source of a config; the seed of the held-out split differs, so that procedural clips do too.

    A token cache is checked against the tokenizer of the run, whose hash the config holds once it has started.

    Args:
      config: the stage config.
      split: 'train' or 'eval'.
      clip: the size of its samples; ``None`` takes the config's clip.
      section: settings of another source than ``config.data.source``.
    """
    seed = config.seed if split == "train" else config.seed + 1
    settings = config.data.source.to_dict() if section is None else dict(section)
    takes = inspect.signature(data.class_of(settings)).parameters
    if "tokenizer_hash" in takes and "tokenizer" in config.parts:
        settings["tokenizer_hash"] = config.parts.tokenizer.hash
    return data.build(settings, clip=clip or clip_of(config), seed=seed, split=split)


def has_text(config: Any) -> bool:
    """Whether a stage reads captions."""
    return "text" in config and config.text.encoder.name != "none"


def text_tokenizer(config: Any, directory: epath.PathLike) -> Any:
    """The text tokenizer that a run or export holds; ``None`` for stages without text."""
    return load_text_tokenizer(epath.Path(directory) / TEXT_DIRECTORY) if has_text(config) else None


def new_text_tokenizer(config: Any, source: data.Source) -> Any:
    """The text tokenizer that a config asks for; ``None`` for stages without text.

    Args:
      config: the stage config.
      source: texts to train a BPE vocabulary on, when the config asks for one.

    Raises:
      UserError: no sample has a caption, or the tokenizer has ids that the text encoder does not know.
    """
    if not has_text(config):
        return None
    if source.captioned == 0 and not source.uncaptioned and source.texts == ("caption",):
        raise UserError(
            "no sample has a caption, and this model reads text; give captions, leave the text out "
            "(--config.text.encoder.name=none), or train on empty ones (--config.data.source.uncaptioned=True)"
        )
    settings = config.text.tokenizer.to_dict()
    if "teacher" in config.parts:
        # A student reads captions as its teacher does.
        return text_tokenizer(config, config.parts.teacher.checkpoint)
    if settings["name"] == "bpe" and not settings.get("path"):
        tokenizer = train_bpe(_words(source), settings["vocabulary_size"], settings["length"])
    else:
        tokenizer = build_text_tokenizer(settings)
    # That of a frozen encoder is what its own config says.
    encoder = config.parts.get("text_encoder", {}).get("model", {})
    known = encoder.get("vocabulary_size", settings.get("vocabulary_size"))
    if known is not None and tokenizer.largest_id >= known:
        raise UserError(
            f"the text tokenizer has ids up to {tokenizer.largest_id}, the text encoder knows {known}; give the "
            f"tokenizer of this encoder, or set text.tokenizer.vocabulary_size to {tokenizer.largest_id + 1} or more"
        )
    return tokenizer


def _words(source: data.Source) -> list[str]:
    """All texts of at most ``SAMPLES_FOR_BPE`` samples, evenly spread over a source."""
    words = []
    for index in np.linspace(0, len(source) - 1, min(len(source), SAMPLES_FOR_BPE)).astype(int):
        with contextlib.suppress(data.SampleError):
            words += source.texts_at(int(index))
    return words


def keep_findings(config: Any, source: data.Source) -> None:
    """Writes into a config what the source says of its samples, for commands that run without the source."""
    with config.unlocked(), config.ignore_type():
        config.data.frame_rate = source.fps
        config.data.made_from = source.made_from or {}
        config.data.held_out = source.keeps_apart


def sample_clip(config: Any) -> data.Clip:
    """The size and rate of what a stage learned: ``clip_of``, of a token cache at the rate of its clips."""
    clip = clip_of(config)
    of_cache = data.class_of(config.data.source).field != "video" and config.data.get("frame_rate")
    return dataclasses.replace(clip, fps=of_cache) if of_cache else clip


def pixel_source(config: Any) -> dict[str, Any]:
    """The source config of the videos a stage learns from; of a token cache that of the videos it was made from.

    Raises:
      UserError: a token cache that does not say what it was made from.
    """
    if data.class_of(config.data.source).field == "video":
        return config.data.source.to_dict()
    made_from = config.data.get("made_from") or {}
    if not made_from.get("source"):
        raise UserError("this token cache does not say what it was made from; write it again with videogen.tokenize")
    return dict(made_from["source"])


def save_text_tokenizer(tokenizer: Any, directory: epath.PathLike) -> None:
    """Writes a text tokenizer into a run or export, as a whole or not at all."""
    target = epath.Path(directory) / TEXT_DIRECTORY
    unfinished = target.parent / f"{target.name}.part"
    for path in (unfinished, target):
        if path.exists():
            path.rmtree()
        if path is unfinished:
            tokenizer.save(unfinished)
    unfinished.rename(target)


def build_pipeline(config: Any, source: data.Source, text: Any, start: int, mesh: Mesh) -> data.Pipeline:
    """The training pipeline of this process, from global position ``start`` on.

    Args:
      config: the stage config.
      source: the training source of the config's clip.
      text: the text tokenizer, ``None`` without text.
      start: videos the whole job has already consumed.
      mesh: the devices that batches go to.
    """
    buckets, pictures, section = data.read_buckets(config.data), None, config.data.get("image_source")
    if section and section.name and config.data.image_batch_size:
        given = {key: value for key, value in section.to_dict().items() if value not in (None, "")}
        stills = [dataclasses.replace(bucket.clip, frames=1) for bucket in buckets]
        pictures = [build_source(config, "train", still, given) for still in stills]
    return data.Pipeline(
        [source if b.clip == source.clip else build_source(config, "train", b.clip) for b in buckets],
        batch_size=[bucket.batch_size for bucket in buckets],
        shares=[bucket.share for bucket in buckets],
        phases=read_phases(config.data, len(buckets)),
        image_batch_size=config.data.image_batch_size,
        image_source=pictures,
        seed=config.seed,
        workers=config.data.workers,
        text=text,
        share=functools.partial(share, mesh=mesh),
        start=start,
    )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Samples of the held-out split, each of them once.

    Attributes:
      samples: the readable ones, in order.
      found: samples that the split has.
      skipped: why others could not be read, by their names.
      texts: which texts the samples have.
    """

    samples: list[dict[str, Any]]
    found: int
    skipped: dict[str, str]
    texts: tuple[str, ...] = ("caption",)

    def batches(self, size: int, text: Any) -> list[dict[str, np.ndarray]]:
        """Batches of ``size`` and, where the number does not divide, a smaller last one; no sample is padded.

        Where samples have ``options``, batches have ``options_ids`` and ``options_mask`` ``[batch, options, length]``,
        with the largest number of options there is, and ``answer_index`` ``[batch]``: -1 where the answer is none;
        ``kind`` ``uint8 [batch, KIND_BYTES]`` is the kind of the question (``kinds_in``).
        """
        options = max(len(sample.get("options", ())) for sample in self.samples)
        collate = Collate(text, all("label" in sample for sample in self.samples), self.texts, options)
        samples = [{**sample, **_kind(sample), "skipped": []} for sample in self.samples]
        batches = [collate(samples[i : i + size]) for i in range(0, len(samples), size)]
        return [{name: array for name, array in batch.items() if name not in REPORTS} for batch in batches]


KIND_BYTES = 32
MOST_TOO_LONG = 256
"""Held-out samples whose texts are all too long, after which no other is looked for."""


def _kind(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """The kind of a question as an array: UTF-8, filled up with zeros."""
    if "kind" not in sample:
        return {}
    return {"kind": np.frombuffer(sample["kind"].encode()[:KIND_BYTES].ljust(KIND_BYTES, b"\0"), np.uint8)}


def kinds_in(batch: Mapping[str, np.ndarray]) -> list[str]:
    """The kinds of the questions of a batch."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in np.asarray(batch["kind"])]


def held_out(source: data.Source, count: int, text: Any = None) -> HeldOut:
    """The first ``count`` readable samples of a held-out split, always the same; fewer where it has fewer.

    Args:
      source: the split.
      count: samples.
      text: the text tokenizer; samples whose questions or answers it would cut are skipped.

    Raises:
      UserError: none can be read.
    """
    samples, skipped, too_long = [], {}, 0
    for index in range(len(source)):
        # A source without end may have no question that is short enough.
        if len(samples) == count or (not samples and too_long == MOST_TOO_LONG):
            break
        try:
            sample, too_long = source[index], too_long + 1
            check_texts(sample, source, index, text, options=True)
            samples.append(sample)
        except data.SampleError as error:
            skipped[error.name] = error.reason
            logging.warning("skipped held-out %s", error)
    if not samples:
        first = next((f"; the first is {name}: {reason}" for name, reason in skipped.items()), "")
        raise UserError(
            f"the held-out split has no readable clip{first}; set a higher data.source.holdout, "
            "or check data.source.path"
        )
    return HeldOut(samples, len(source), skipped, source.texts)


def largest_bucket(config: Any) -> data.Bucket:
    """The bucket whose batch has the most pixels."""
    return max(data.read_buckets(config.data), key=lambda bucket: bucket.shape.pixels * bucket.batch_size)


def token_fields(layout: Layout) -> dict[str, tuple[tuple[int, ...], type]]:
    """The arrays of a sample of tokens without masks, as ``Source.fields``."""
    return {
        f"{PREFIX}{name}": ((*segment.shape, segment.width), np.int32 if segment.vocabulary else np.float32)
        for name, segment in layout.segments
    }


def abstract_batch(config: Any, task: Any, source: data.Source | None = None) -> dict[str, Any]:
    """Shapes of the global batch the input pipeline of a config makes; of the bucket with the most pixels.

    Args:
      config: the stage config.
      task: its task.
      source: the training source; without one samples have what the config and the task say.
    """
    section, largest = config.data, largest_bucket(config)
    shape = largest.shape
    labels = bool(config.get("classes") if source is None else source.classes)
    texts = data.texts_of(section.source) if source is None else source.texts
    questions = section.source.get("questions_per_clip") or 1 if source is None else source.questions_per_clip

    def part(count: int, frames: int) -> dict[str, Any]:
        if source is None:
            clip = data.Clip(frames, shape.height, shape.width)
            fields = dict(data.class_of(section.source).described(clip, section.source))
        else:
            fields = dict(source.fields)
        if "video" in fields:
            fields["video"] = (frames, shape.height, shape.width, 3), np.uint8
        if source is None and section.source.get("segments"):
            fields[SEGMENTS] = (frames, shape.height, shape.width), np.int16
            fields[LINKS] = (section.source.get("things") or THINGS, frames), np.int16
        if source is None and section.source.get("maps"):
            fields[MAPS] = (frames, shape.height, shape.width, CHANNELS), np.uint8
        if "times" in fields or (source is None and "question" in texts):
            fields["times"] = (frames,), np.float32
        if source is None and data.class_of(section.source).field == "tokens":
            fields = token_fields(task.layout)
        batch = {name: ((count, *sides), dtype) for name, (sides, dtype) in fields.items()}
        if has_text(config):
            for name in ("text", *texts[1:]):
                sides = (questions, config.text.tokenizer.length)[name == "text" or questions == 1 :]
                batch |= {f"{name}_ids": ((count, *sides), jnp.int32), f"{name}_mask": ((count, *sides), jnp.bool_)}
        if labels:
            batch["label"] = (count,), jnp.int32
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in batch.items()}

    batch = part(largest.batch_size, shape.frames)
    return batch | ({"image": part(section.image_batch_size, 1)} if section.image_batch_size else {})


def check_batch(config: Any, mesh: Mapping[str, int]) -> None:
    """Refuses batches that the data-parallel devices, or the micro-batches, cannot share evenly.

    Images are few beside videos: two groups of devices may compute the same ones.

    Raises:
      UserError: a batch size is no multiple of replica × data × fsdp × ``accumulate``; of images, of half of the first
        three or of the last.
    """
    shards = math.prod(mesh[axis] for axis in BATCH_AXES)
    name = "buckets[{}]" if config.data.get("buckets") else "batch_size"
    sizes = {name.format(i): bucket.batch_size for i, bucket in enumerate(data.read_buckets(config.data))}
    for key, size in {**sizes, "image_batch_size": config.data.image_batch_size}.items():
        sharing = math.prod(mesh[axis] for axis in batch_axes(mesh, size))
        if sharing < shards and not (key == "image_batch_size" and 2 * sharing == shards):
            raise UserError(
                f"data.{key} = {size} does not divide by the {shards} data-parallel devices (replica × data × fsdp); "
                f"use a multiple of {shards}, or lay out fewer of them with tensor or context"
            )
        if size % config.accumulate:
            raise UserError(f"a batch of {size} (data.{key}) does not divide by accumulate = {config.accumulate}")
        if key != "image_batch_size" and size % (config.accumulate * shards):
            raise UserError(
                f"data.{key} = {size} in {config.accumulate} micro-batches (accumulate) does not divide by the "
                f"{shards} data-parallel devices; use a multiple of {config.accumulate * shards}"
            )


def share(size: int, mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch of ``size`` this process reads, and how many shares there are.

    Processes read the same where their devices hold the same examples: along ``tensor`` and ``context``, and along the
    axes that do not divide the batch.

    Raises:
      UserError: the processes' examples are no equal shares.
    """
    rows: dict[int, set[int]] = collections.defaultdict(set)
    for device, index in batch_sharding(mesh, size).devices_indices_map((size,)).items():
        rows[device.process_index].update(range(*index[0].indices(size)))
    shares = sorted({tuple(sorted(held)) for held in rows.values()})
    if sum(map(len, shares)) != size or len({len(held) for held in shares}) > 1:
        raise UserError(
            f"on this mesh the processes hold unequal or overlapping parts of a batch of {size}; "
            "let tensor × context be a multiple or a divisor of the devices of a process"
        )
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def place(batch: dict[str, Any], mesh: Mesh, batch_size: int, image_batch_size: int = 0) -> dict[str, Any]:
    """Puts this process's share of a batch, and of its images, on its devices.

    Args:
      batch: what a pipeline gives.
      mesh: the devices.
      batch_size, image_batch_size: examples in the whole job.
    """

    def put(part: dict[str, Any], size: int) -> dict[str, Any]:
        sharding = batch_sharding(mesh, size)
        return {
            name: jax.make_array_from_process_local_data(sharding, array, (size, *array.shape[1:]))
            for name, array in part.items()
        }

    images = {"image": put(batch["image"], image_batch_size)} if "image" in batch else {}
    return put({name: array for name, array in batch.items() if name != "image"}, batch_size) | images

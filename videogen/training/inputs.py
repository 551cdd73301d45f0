"""Data of a stage: sources, text tokenizers and batches on the mesh."""

import collections
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from videogen import data
from videogen.data.text import build_text_tokenizer, load_text_tokenizer, train_bpe
from videogen.errors import UserError
from videogen.parallel import batch_axes, batch_sharding
from videogen.parallel.mesh import BATCH_AXES

TEXT_DIRECTORY = "text_tokenizer"
CAPTIONS_FOR_BPE = 4096


def clip_of(config: Any) -> data.Clip:
    """The clip a config asks for."""
    clip = config.data.clip
    return data.Clip(clip.frames, clip.height, clip.width, clip.fps or None)


def build_source(config: Any, split: str, clip: data.Clip | None = None) -> data.Source:
    """The source of a config; the seed of the held-out split differs, so that procedural clips do too.

    A token cache is checked against the tokenizer of the run, whose hash the config holds once it has started.

    Args:
      config: the stage config.
      split: 'train' or 'eval'.
      clip: the size of its samples; ``None`` takes the config's clip.
    """
    seed = config.seed if split == "train" else config.seed + 1
    settings = config.data.source.to_dict()
    if settings["name"] in ("tokens", "mixture") and "tokenizer" in config:
        settings["tokenizer_hash"] = config.tokenizer.hash
    return data.build(settings, clip=clip or clip_of(config), seed=seed, split=split)


def text_tokenizer(config: Any, workdir: epath.PathLike, source: data.Source | None = None) -> Any:
    """The text tokenizer of a run, from its directory; made and saved there on the first call.

    Args:
      config: the stage config; ``None`` is returned for stages without text.
      workdir: the run directory.
      source: captions to train a BPE vocabulary on, when the config asks for one.
    """
    if "text" not in config or config.text.encoder.name == "none":
        return None
    directory = epath.Path(workdir) / TEXT_DIRECTORY
    if directory.exists():
        return load_text_tokenizer(directory)
    settings = config.text.tokenizer.to_dict()
    if "teacher" in config:
        # A student reads captions as its teacher does.
        tokenizer = load_text_tokenizer(epath.Path(config.teacher.checkpoint) / TEXT_DIRECTORY)
    elif settings["name"] == "bpe" and not settings.get("path"):
        indices = np.linspace(0, len(source) - 1, min(len(source), CAPTIONS_FOR_BPE)).astype(int)
        captions = [source.caption(int(i)) for i in indices]
        tokenizer = train_bpe(captions, settings["vocabulary_size"], settings["length"])
    else:
        tokenizer = build_text_tokenizer(settings)
    if jax.process_index() == 0:
        tokenizer.save(directory)
    return tokenizer


def build_pipeline(config: Any, source: data.Source, text: Any, start: int, mesh: Mesh) -> data.Pipeline:
    """The training pipeline of this process, from global position ``start`` on.

    Args:
      config: the stage config.
      source: the training source of the config's clip.
      text: the text tokenizer, ``None`` without text.
      start: videos the whole job has already consumed.
      mesh: the devices that batches go to.
    """
    buckets = data.read_buckets(config.data)
    return data.Pipeline(
        [source if b.clip == source.clip else build_source(config, "train", b.clip) for b in buckets],
        batch_size=[bucket.batch_size for bucket in buckets],
        shares=[bucket.share for bucket in buckets],
        image_batch_size=config.data.image_batch_size,
        seed=config.seed,
        workers=config.data.workers,
        text=text,
        share=functools.partial(share, mesh=mesh),
        start=start,
    )


def held_out_batches(config: Any, text: Any, count: int) -> list[dict[str, np.ndarray]]:
    """The first ``count`` batches of the held-out split, always the same."""
    source = build_source(config, "eval")
    batch_size = min(config.data.eval_batch_size, len(source))
    pipeline = data.Pipeline(source, batch_size=batch_size, seed=config.seed, workers=0, text=text, shuffle=False)
    try:
        return [next(pipeline) for _ in range(count)]
    finally:
        pipeline.close()


def check_batch(config: Any, mesh: Mapping[str, int]) -> None:
    """Refuses batches that the data-parallel devices, or the micro-batches, cannot share evenly.

    Images are few beside videos: two groups of devices may compute the same ones.

    Raises:
      UserError: a batch size is no multiple of replica × data × fsdp (of half of it, for images), or of ``accumulate``.
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

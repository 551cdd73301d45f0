"""Caches of tokens that a generator has drawn, beside the clips whose captions they were drawn for (Divot, stage 5)."""

import functools
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array
from tqdm import tqdm

from videogen import generators
from videogen.data.inputs import build_source, clip_of, pixel_source
from videogen.data.records import check_new
from videogen.data.tokens import TokenWriter
from videogen.errors import UserError
from videogen.inference.caching import read_clips
from videogen.inference.normalising import Arrays
from videogen.nn import named_key
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.tasks.base import Keep, compute_now
from videogen.tasks.denoised_tokenizer import PIXELS, TOKENS, sampled_layout
from videogen.training.loading import Loaded


def write_sampled_cache(
    loaded: Loaded,
    out: epath.PathLike,
    source: dict[str, Any] | None = None,
    clips: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    keep: Keep = compute_now,
) -> int:
    """Draws tokens for the captions and labels of the training split, in order, and writes them beside the clips.

    The tokens are the latents that a decoder sees; the pixels are kept as they are, one byte each.

    Args:
      loaded: a generator stage of a tokenizer with continuous tokens.
      out: directory of the cache; must not exist.
      source: source config; ``None`` takes the videos that the generator was trained on.
      clips: how many; ``None``: all of the source.
      batch_size: clips at a time.
      seed: decides the draws; the tokens of a clip depend on its number, not on its neighbours.
      keep: a finished batch passes through it (``runs.finished``).

    Returns:
      The number of clips written.

    Raises:
      UserError: ``out`` exists, this is no generator, or its tokenizer has codes.
    """
    check_new(out)
    config, task = loaded.config.copy_and_resolve_references(), loaded.task
    if not task.draws or "tokenizer" not in loaded.modules:
        raise UserError(f"{loaded.directory} holds a {config.task}, and --from needs a generator")
    if loaded.coder.vocabulary:
        raise UserError("this generator draws codes; a cache of sampled tokens is of continuous ones")
    with config.unlocked(), config.ignore_type():
        config.data.source = source or pixel_source(config)
    reader, clip = build_source(config, "train"), clip_of(config)
    total = min(clips or len(reader), len(reader))
    draw = _drawer(loaded, batch_size, seed)
    meta = {"tokenizer_hash": config.parts.tokenizer.hash, "fps": reader.fps, "classes": list(reader.classes)}
    meta |= {"frames": clip.frames, "height": clip.height, "width": clip.width}
    made_from = {"source": config.data.source.to_dict(), "clip": config.data.clip.to_dict(), "split": "train"}
    written, writer = 0, None
    with tqdm(total=total, unit="clip") as bar:
        for start in range(0, total, batch_size):
            samples = read_clips(reader, range(start, min(start + batch_size, total)))
            bar.update(batch_size)
            if not samples:
                continue
            arrays = keep(f"sampled_{start}", functools.partial(draw, samples, start))
            if writer is None:
                layout = sampled_layout(arrays[TOKENS].shape[1:], loaded.coder.sides, clip)
                writer = TokenWriter(out, layout, meta | {"made_from": made_from}).__enter__()
            for row, sample in enumerate(samples):
                own = {name: array[row] for name, array in arrays.items()} | {PIXELS: sample["video"]}
                writer.write(own, sample["caption"], sample.get("label"))
            written += len(samples)
    if writer is None:
        raise UserError("no clip could be read; check the source")
    writer.__exit__(None, None, None)
    return written


def _drawer(loaded: Loaded, batch_size: int, seed: int) -> Any:
    """Compiled: clips and the number of the first -> the latents that were drawn for their captions and labels."""
    task, sampler = loaded.task, generators.build_sampler(loaded.config.sampler.to_dict())
    graph, state = nnx.split(nnx.Dict(loaded.modules))
    mesh = mesh_of(state)

    @jax.jit
    def draw(state: Any, said: Any, places: Array) -> Array:
        live = dict(nnx.merge(graph, state).items())
        key = named_key(jax.random.key(seed), "sampled")
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(places)
        generator = live["generator"].generator
        tokens = generator.sample(task.drawn_by(sampler), task.conditioning(live, said), keys, sampler)
        return live["tokenizer"].lookup(tokens)

    def run(samples: list[dict[str, Any]], start: int) -> Arrays:
        filled = samples + samples[-1:] * (batch_size - len(samples))
        said = dict(task.unprompted(batch_size))
        if loaded.text is not None:
            said["text_ids"], said["text_mask"] = loaded.text.encode([sample["caption"] for sample in filled])
        if loaded.config.classes:
            said["label"] = np.array([sample["label"] for sample in filled], np.int32)
        places = start + np.arange(batch_size, dtype=np.int32)
        with inside(mesh):
            drawn = on_host(draw(state, *(spread(padded(x, mesh), mesh) for x in (said, places))))
        return {TOKENS: drawn[: len(samples)]}

    return run

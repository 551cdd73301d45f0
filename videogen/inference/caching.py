"""Writing token caches with a trained tokenizer."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from tqdm import tqdm

from videogen import data
from videogen.data.bit_files import SUFFIX, BitWriter
from videogen.data.inputs import build_source, clip_of
from videogen.data.records import check_new
from videogen.data.token_files import MASKS, SPACES, TOKENIZER
from videogen.data.tokens import TokenWriter
from videogen.errors import UserError
from videogen.inference.normalising import Arrays, fit_normaliser
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.shapes import VideoShape
from videogen.tasks import to_video
from videogen.tasks.base import Keep, compute_now
from videogen.tokenizers import Request, Tokenizer
from videogen.tokens import Tokens
from videogen.training.loading import Loaded, export_safetensors

FORMS = ("cache", "bits")
"""How tokens are written: as arrays that generators train on, or each clip as a file of its bits."""


def write_token_cache(
    loaded: Loaded,
    out: epath.PathLike,
    source: dict[str, Any] | None,
    clips: int | None,
    batch_size: int,
    windows: int = 1,
    keep: Keep = compute_now,
    normalise: str | None = None,
    tokens: int | None = None,
    max_error: float | None = None,
    form: str = "cache",
) -> int:
    """Encodes the training split of a source, in order, into a token cache, on the mesh that the tokenizer lies on.

    Normalised latents take two passes over the batches: what ``keep`` does not keep is computed twice. The tokenizer
    with their statistics is exported to the directory ``tokenizer`` of the cache.

    Args:
      loaded: a tokenizer stage.
      out: directory of the cache; must not exist.
      source: source config; ``None`` takes the one the tokenizer was trained on.
      clips: number of clips; ``None`` takes every window of every sample of the source.
      batch_size: clips encoded at a time.
      windows: clips drawn from each sample, at random places; all samples come before any comes again.
      keep: a finished batch passes through it (``runs.finished``).
      normalise: the statistics, as ``read_normaliser`` reads them; ``None``: latents stay raw.
      tokens: how many tokens of a clip are kept, the first ones; ``None``: all.
      max_error: keep the tokens that this error needs, of the first ``tokens`` (``tokenizers.Request``).
      form: a name in ``FORMS``.

    Returns:
      The number of clips written.

    Raises:
      UserError: ``out`` exists, there is nothing to normalise, the tokenizer cannot do without some tokens, or it does
        not know which an error needs.
    """
    check_new(out)
    config, model = loaded.config, loaded.tokenizer
    if tokens is not None and not model.drops:
        raise UserError(f"{type(model).__name__} decodes whole clips of tokens only: leave out --tokens")
    if max_error is not None and not model.adapts:
        raise UserError(f"{type(model).__name__} does not decide how many tokens an error needs: leave out --max_error")
    request = tokens if max_error is None else Request(max_error, tokens)
    if source is not None:
        config.data.source = source
    reader, clip = build_source(config, "train"), clip_of(config)
    total, shape = _total(len(reader), windows, clips), VideoShape(clip.frames, clip.height, clip.width)
    if request is not None:
        # What cannot be is refused before anything is written.
        video = jax.ShapeDtypeStruct((1, clip.frames, clip.height, clip.width, 3), np.float32)
        jax.eval_shape(lambda video: model.encode(video, request).values, video)
    batches = functools.partial(_batches, reader, _encoder(model, batch_size, request), total, batch_size, keep)
    if normalise is None:
        kept = model.kept_by(request) if form == "bits" else None
        return _write(loaded, out, shape, reader, batches(), kept=kept)
    loaded, change = fit_normaliser(loaded, normalise, shape, batches())
    return _write(loaded, out, shape, reader, map(change, batches()), epath.Path(out) / TOKENIZER)


def _batches(
    reader: data.Source, encode: Callable[[list[dict[str, Any]]], Arrays], total: int, batch_size: int, keep: Keep
) -> Iterator[Arrays]:
    """The arrays of one batch of clips after another."""
    with tqdm(total=total, unit="clip") as bar:
        for start in range(0, total, batch_size):
            indices = range(start, min(start + batch_size, total))
            yield keep(f"clips_{start}", lambda indices=indices: encode(read_clips(reader, indices)))
            bar.update(len(indices))


def _write(
    loaded: Loaded,
    out: epath.PathLike,
    shape: VideoShape,
    reader: data.Source,
    batches: Iterable[Arrays],
    export: epath.Path | None = None,
    kept: str | None = None,
) -> int:
    """Writes a cache of batches, and where it says so an export of their tokenizer; gives the number of clips.

    With ``kept`` clips are written as bits, of which such tokens may be left out.
    """
    layout, space, written = loaded.tokenizer.layout(shape), SPACES[loaded.tokenizer.normalised], 0
    meta = _meta(loaded, reader)
    if kept is None:
        made = TokenWriter(out, layout, meta, space)
    else:
        made = BitWriter(out, layout, meta | {"tokenizer_hash": loaded.coder_hash}, kept)
    with made as writer:
        for arrays in batches:
            labels = json.loads(arrays[LABELS].tobytes())
            tokens = {name: array for name, array in arrays.items() if name != LABELS}
            for row, (caption, label) in enumerate(labels):
                writer.write({name: array[row] for name, array in tokens.items()}, caption, label)
            written += len(labels)
        if export is not None:
            export_safetensors(loaded, export)
    return written


def _total(samples: int, windows: int, clips: int | None) -> int:
    """How many clips are written; said in a warning where more were asked for."""
    available = samples * windows
    if clips and clips > available:
        logging.warning(
            "%d clips were asked for: the source has %d samples, of each of which %d windows are drawn, so %d are "
            "written; --windows draws more",
            *(clips, samples, windows, available),
        )
    return min(clips or available, available)


def _meta(loaded: Loaded, reader: data.Source) -> dict[str, Any]:
    """What a cache says of its clips."""
    section, clip = loaded.config.data, clip_of(loaded.config)
    return {
        "tokenizer_hash": loaded.hash,
        "frames": clip.frames,
        "height": clip.height,
        "width": clip.width,
        "fps": reader.fps,
        "made_from": {"source": section.source.to_dict(), "clip": section.clip.to_dict(), "split": "train"},
        "classes": list(reader.classes),
    }


def read_clips(reader: data.Source, indices: Iterable[int]) -> list[dict[str, Any]]:
    """The readable clips among these."""
    samples = []
    for index in indices:
        try:
            samples.append(_window(reader, index % len(reader), index // len(reader)))
        except data.SampleError as error:
            tqdm.write(f"skipped {error}")
    return samples


def _encoder(
    model: Tokenizer, batch_size: int, request: Request | int | None
) -> Callable[[list[dict[str, Any]]], dict[str, np.ndarray]]:
    """Compiled: clips -> the arrays of their tokens, their captions and labels."""
    graph, state = nnx.split(model)
    mesh = mesh_of(state)
    tokenize = jax.jit(lambda state, pixels: nnx.merge(graph, state).tokenize(to_video(pixels), request))

    def encode(samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        labels = {LABELS: _packed([[sample["caption"], sample.get("label")] for sample in samples])}
        if not samples:
            return labels
        # Filled up, so that one program serves all.
        read = [sample[model.field] for sample in samples]
        video = np.stack(read + read[-1:] * (batch_size - len(samples)))
        with inside(mesh):
            arrays = _arrays(tokenize(state, spread(padded(video, mesh), mesh)))
        return {name: array[: len(samples)] for name, array in arrays.items()} | labels

    return encode


LABELS = "captions and labels"
"""Of a batch: caption and label of every clip, as JSON."""


def _packed(labels: list[list[Any]]) -> np.ndarray:
    labels = [[caption, None if label is None else int(label)] for caption, label in labels]
    return np.frombuffer(json.dumps(labels).encode(), np.uint8)


def remove_unfinished(directory: epath.PathLike) -> None:
    """Removes what a killed ``write_token_cache`` has left: a directory of unfinished files and nothing else."""
    directory = epath.Path(directory)
    if not directory.is_dir():
        return
    found = {path.name for path in directory.iterdir()}
    files = {name for name in found if name.endswith((".bin", ".draft", SUFFIX))}
    # A normalised tokenizer is the last that is written, so there are files as well.
    if found == files or (files and found == files | {TOKENIZER}):
        directory.rmtree()


def _arrays(tokens: Tokens) -> dict[str, np.ndarray]:
    """The arrays of a batch of tokens as ``TokenWriter.write`` names them."""
    arrays = {}
    for name, segment in tokens.items():
        masks = {f"{name}/{mask}": getattr(segment, mask) for mask in MASKS}
        arrays |= {name: segment.values} | {key: mask for key, mask in masks.items() if mask is not None}
    return jax.tree.map(on_host, arrays)


def _window(reader: data.Source, index: int, window: int) -> dict[str, Any]:
    """The first window of a sample is the one that training reads first; the others are drawn by themselves."""
    if not window:
        return reader[index]
    return reader.sample(index, np.random.default_rng([reader.seed, index, window]))

"""Videos longer than the clips that a tokenizer was trained on, in the memory of such a clip.

Causal tokenizers go on with the caches of ``encode_chunk`` and ``decode_chunk``. Temporal attention over the whole past
would see more than in training, and decay; it then sees a window of the trained length: the first window is exact, and
every later one begins with the last latents of the window before, which are not coded again. Tokenizers that code a
clip as a whole take window after window.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Float, Int

from videogen.parallel import on_host
from videogen.shapes import VideoShape, check_video
from videogen.tokenizers.base import Tokenizer
from videogen.tokens import Segment, Tokens

Coded = Int[np.ndarray, "batch time height width levels"] | Float[np.ndarray, "batch time height width channels"]


def overlap_of(model: Tokenizer, direction: str, window: int) -> int:
    """Latents that a window shares with the one before: half of it where layers see the whole past, else none.

    Args:
      model: a tokenizer that streams.
      direction: ``encode`` or ``decode``.
      window: latents of a clip in training.
    """
    return window // 2 if direction in model.growing else 0


def lengths(total: int, window: int, overlap: int) -> Iterator[int]:
    """New latents of each window until ``total`` are covered: all have the same size but for the first."""
    yield window
    step = window - overlap
    for _ in range(math.ceil(max(total - window, 0) / step)):
        yield step


def keep(cache: Any, overlap: int) -> Any:
    """What of a growing cache the next window sees; other caches stay as they are (``overlap`` 0)."""
    return cache[:, cache.shape[1] - overlap :] if overlap else cache


class LongVideos:
    """A tokenizer for videos of any length.

    Args:
      model: the tokenizer.
      clip: the shape of a clip in training; height and width are those of every video.
    """

    def __init__(self, model: Tokenizer, clip: VideoShape):
        self.model = model
        # Windows are laid end to end along the first side of the tokens.
        self.window = model.layout(clip).only.shape[0]
        self.frames = clip.frames
        self.streams = model.streams
        self._graph, self._state = nnx.split(model)
        self.encoder_overlap = overlap_of(model, "encode", self.window)
        self.decoder_overlap = overlap_of(model, "decode", self.window)
        if overlap := max(self.encoder_overlap, self.decoder_overlap):
            logging.info(
                "its attention sees the whole past: beyond %d frames this tokenizer goes by windows of %d latents, "
                "each of which begins with the last %d of the one before",
                *(self.frames, self.window, overlap),
            )

    @functools.cached_property
    def _run(self) -> Any:
        """Compiled ``(name, state, *arguments)``, once for each shape."""

        @functools.partial(jax.jit, static_argnums=0)
        def run(name: str, state: Any, *arguments: Any) -> Any:
            return getattr(_Coder(nnx.merge(self._graph, state)), name)(*arguments)

        return run

    def encode(self, video: Float[np.ndarray, "batch time height width channel"]) -> Coded:
        """Codes, or of a tokenizer without any the latents that a generator models; the last frame fills the last
        window, of which only the latents that frames of the video need are kept.

        Raises:
          UserError: this is no video, or not of the trained height and width.
        """
        check_video(video)
        if not self.streams:
            count = math.ceil(video.shape[1] / self.frames)
            video = _filled(video, count * self.frames)
            windows = np.split(video, count, axis=1)
            return np.concatenate([on_host(self._run("encode", self._state, w)) for w in windows], axis=1)
        compression = self.model.compression
        total = compression.latent_of_frame(video.shape[1] - 1) + 1
        sizes = list(lengths(total, self.window, self.encoder_overlap))
        video = _filled(video, compression.frames(sum(sizes)))
        parts, cache, done = [], None, 0
        for size in sizes:
            start, stop = (compression.frames(n) if n else 0 for n in (done, done + size))
            cache, part = self._run("encode_chunk", self._state, cache, video[:, start:stop])
            cache, done = keep(cache, self.encoder_overlap), done + size
            parts.append(on_host(part))
        return np.concatenate(parts, axis=1)[:, :total]

    def decode(self, coded: Coded, frames: int | None = None) -> Float[np.ndarray, "batch time height width channel"]:
        """Pixels in [-1, 1] of what ``encode`` gave; ``frames`` says how many the video had, by default all."""
        total = coded.shape[1]
        if not self.streams:
            windows = np.split(coded, total // self.window, axis=1)
            parts = [on_host(self._run("decode", self._state, w)) for w in windows]
        else:
            sizes = list(lengths(total, self.window, self.decoder_overlap))
            coded, parts, cache, done = _filled(coded, sum(sizes)), [], None, 0
            for size in sizes:
                cache, part = self._run("decode_chunk", self._state, cache, coded[:, done : done + size])
                cache, done = keep(cache, self.decoder_overlap), done + size
                parts.append(on_host(part))
        whole = self.model.compression.frames(total) if self.streams else total // self.window * self.frames
        return np.concatenate(parts, axis=1)[:, : whole if frames is None else frames]


class _Coder:
    """One window of a tokenizer, in codes where it has any."""

    def __init__(self, model: Tokenizer):
        self.model = model

    def encode(self, video: jax.Array) -> jax.Array:
        return self.model.tokenize(video).only.values

    def encode_chunk(self, cache: Any, video: jax.Array) -> tuple[Any, jax.Array]:
        cache, encoded = self.model.encode_chunk(cache, video)
        return cache, self.model.bottleneck(encoded)[1].only.values

    def decode(self, coded: jax.Array) -> jax.Array:
        return self.model.detokenize(self._tokens(coded))

    def decode_chunk(self, cache: Any, coded: jax.Array) -> tuple[Any, jax.Array]:
        cache, video = self.model.decode_chunk(cache, self.model.lookup(self._tokens(coded)))
        return cache, jnp.clip(video, -1.0, 1.0)

    def _tokens(self, values: jax.Array) -> Tokens:
        layout = self.model.layout_of(values.shape[1:-1])
        return Tokens.of(**{name: Segment(values, segment) for name, segment in layout.segments})


def _filled(array: np.ndarray, length: int) -> np.ndarray:
    """The array with its last frame repeated up to ``length`` frames."""
    array = np.asarray(array)
    return np.concatenate([array, np.repeat(array[:, -1:], length - array.shape[1], axis=1)], axis=1)

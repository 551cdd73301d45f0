"""Videos of any length through a queue of frames (``generators.FrameQueue``), in the transformer's memory of a clip."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from videogen import generators
from videogen.conditioning import ChunkTokens
from videogen.tasks.base import to_pixels
from videogen.tokenizers import Tokenizer
from videogen.tokenizers.long import keep, lengths, overlap_of
from videogen.tokens import Layout, Tokens


class QueuedFrames:
    """Draws latent frames one after another and decodes them a window at a time, as one clip.

    Args:
      task: the ``LatentGeneratorTask`` of the modules.
      graphs: their graphs by name.
      sampler: how to draw.
      layout: of a window.
    """

    def __init__(self, task: Any, graphs: Mapping[str, nnx.GraphDef], sampler: Any, layout: Layout):
        self.task, self.graphs, self.sampler, self.layout = task, graphs, sampler, layout
        self._begin, self._advance = jax.jit(self._first), jax.jit(self._next)
        self._decode = jax.jit(lambda states, *chunk: self._decode_chunk(self._modules(states)["tokenizer"], *chunk))

    def _modules(self, states: Mapping[str, Any]) -> dict[str, nnx.Module]:
        return {name: nnx.merge(graph, states[name]) for name, graph in self.graphs.items()}

    @staticmethod
    def _decode_chunk(tokenizer: Tokenizer, cache: Any, values: Array) -> tuple[Any, Array]:
        tokens = Tokens.single(values, tokenizer.layout_of(values.shape[1:-1]))
        return tokenizer.decode_chunk(cache, tokenizer.lookup(tokens))

    def _first(self, states: Any, story: Any, keys: Array, beside: ChunkTokens | None) -> generators.State:
        modules = self._modules(states)
        conditioning = dataclasses.replace(self.task.conditioning(modules, story), beside=beside)
        return modules["generator"].generator.begin(self.layout, conditioning, keys, self.sampler)

    def _next(self, states: Any, state: generators.State, at: Array) -> tuple[generators.State, Array]:
        state, frame = self._modules(states)["generator"].generator.advance(state, None, at)
        return state, frame.only.values[:, 0]

    def draw(
        self,
        states: Mapping[str, Any],
        story: Mapping[str, Array],
        keys: Array,
        latent_frames: int,
        beside: ChunkTokens | None = None,
    ) -> UInt8[np.ndarray, "batch time height width 3"]:
        """Videos of so many latent frames; ``story``, and condensed tokens ``beside`` it, hold for all of them."""
        cache, pixels, time = None, [], self.layout.only.grid.time
        state = self._begin(states, dict(story), keys, beside)
        overlap, done = overlap_of(self.task.tokenizer, "decode", time), 0
        for size in lengths(latent_frames, time, overlap):
            window = []
            for at in range(done, min(done + size, latent_frames)):
                state, frame = self._advance(states, state, at)
                window.append(frame)
            done += len(window)
            # Filled up, so that all windows but the first are decoded by one program.
            cache, video = self._decode(states, cache, jnp.stack(window + window[-1:] * (size - len(window)), axis=1))
            cache = keep(cache, overlap)
            pixels.append(to_pixels(video))
        return np.concatenate(pixels, axis=1)[:, : self.task.tokenizer.compression.frames(latent_frames)]

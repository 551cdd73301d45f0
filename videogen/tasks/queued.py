"""Videos of any length through a queue of frames (``generators.FrameQueue``), in the transformer's memory of a clip."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from videogen import generators
from videogen.shapes import TokenGrid
from videogen.tasks.base import to_pixels
from videogen.tokenizers import Tokenizer
from videogen.tokenizers.long import keep, lengths, overlap_of
from videogen.tokens import Tokens


class QueuedFrames:
    """Draws latent frames one after another and decodes them a window at a time, as one clip.

    Args:
      task: the ``LatentGeneratorTask`` of the modules.
      graphs: their graphs by name.
      grid: of the latents of a window.
      sampler: how to draw.
    """

    def __init__(self, task: Any, graphs: Mapping[str, nnx.GraphDef], grid: TokenGrid, sampler: Any):
        self.task, self.graphs, self.grid, self.sampler = task, graphs, grid, sampler
        self._begin = jax.jit(lambda *arguments: self._queue(*arguments).begin())
        self._advance = jax.jit(lambda carry, *arguments: self._queue(*arguments).advance(carry))
        self._decode = jax.jit(lambda states, *chunk: self._decode_chunk(self._modules(states)["tokenizer"], *chunk))

    def _modules(self, states: Mapping[str, Any]) -> dict[str, nnx.Module]:
        return {name: nnx.merge(graph, states[name]) for name, graph in self.graphs.items()}

    @staticmethod
    def _decode_chunk(tokenizer: Tokenizer, cache: Any, values: Array) -> tuple[Any, Array]:
        tokens = Tokens.single(values, tokenizer.layout_of(values.shape[1:-1]))
        return tokenizer.decode_chunk(cache, tokenizer.lookup(tokens))

    def _queue(self, states: Any, story: Any, keys: Array) -> generators.FrameQueue:
        modules = self._modules(states)
        conditioning = self.task.conditioning(modules, story)
        return generators.FrameQueue(modules["generator"].generator, self.grid, conditioning, keys, self.sampler)

    def draw(
        self, states: Mapping[str, Any], story: Mapping[str, Array], keys: Array, latent_frames: int
    ) -> UInt8[np.ndarray, "batch time height width 3"]:
        """Videos of so many latent frames; ``story`` holds for all of them."""
        arguments, cache, pixels = (states, dict(story), keys), None, []
        carry = self._begin(*arguments)
        overlap, done = overlap_of(self.task.tokenizer, "decode", self.grid.time), 0
        for size in lengths(latent_frames, self.grid.time, overlap):
            window = []
            for _ in range(min(size, latent_frames - done)):
                carry, frame = self._advance(carry, *arguments)
                window.append(frame)
            done += len(window)
            # Filled up, so that all windows but the first are decoded by one program.
            cache, video = self._decode(states, cache, jnp.stack(window + window[-1:] * (size - len(window)), axis=1))
            cache = keep(cache, overlap)
            pixels.append(to_pixels(video))
        return np.concatenate(pixels, axis=1)[:, : self.task.tokenizer.compression.frames(latent_frames)]

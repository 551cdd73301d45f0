"""Long videos from a plan: condensed tokens of all chunks at once, then a queue of frames that is told them
(TokensGen, 2025); or from the tokens of a given video, which so is edited by another text."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from videogen import generators
from videogen.conditioning import ChunkTokens
from videogen.errors import UserError
from videogen.nn import named_key
from videogen.shapes import VideoShape
from videogen.tasks.base import to_video
from videogen.tasks.plans import chunk_tokens
from videogen.tasks.queued import QueuedFrames
from videogen.tokens import Layout, Tokens
from videogen.training.loading import Loaded

Pixels = UInt8[np.ndarray, "batch time height width 3"]


class PlannedVideos:
    """Draws videos with the stage that is told tokens (``to2v``), of a plan or of given videos.

    Args:
      painter: the stage ``to2v``.
      planner: the stage ``t2to``; ``None``: only given videos have tokens.
      sampler: overrides of the painter's sampler, which must be an ``adaptive_queue``.

    Raises:
      UserError: the painter is told no tokens, its sampler has no queue, or the plan is of other tokens.
    """

    def __init__(self, painter: Loaded, planner: Loaded | None = None, sampler: Mapping[str, Any] | None = None):
        self.painter, self.planner, task = painter, planner, painter.task
        self.generator = painter.trained.generator
        if not self.generator.beside_tokens:
            raise UserError(f"{painter.directory} is told no tokens; name a run of the stage to2v")
        self.sampler = generators.build_sampler({**painter.config.sampler.to_dict(), **(sampler or {})})
        task.check_sampler(self.sampler)
        if not self.sampler.queued:
            raise UserError("frames come out of a queue one by one: set sampler.extension to adaptive_queue")
        if planner is not None:
            wanted = (*self.generator.queries[1:], self.generator.resampler.outputs)
            tokens = jax.eval_shape(planner.coder.lookup, self._abstract_plan())
            if tokens.shape[2:] != wanted:
                raise UserError(f"the plan has slots of {tokens.shape[2:]}, and the painter is told such of {wanted}")

    def _abstract_plan(self) -> Any:
        task = self.planner.task
        shape = jax.ShapeDtypeStruct((1, *task.layout.only.shape, task.layout.only.width), jnp.float32)
        return jax.eval_shape(lambda values: _tokens(values, task.layout), shape)

    def plan(self, story: Mapping[str, Array], chunks: int, seed: int) -> ChunkTokens:
        """Condensed tokens of so many chunks, drawn at once and brought back to what the painter knows.

        Raises:
          UserError: there is no planner, or it has never seen so many chunks.
        """
        if self.planner is None:
            raise UserError("without a planner (a run of the stage t2to) only given videos have tokens: use edit")
        task, slots = self.planner.task, self.generator.queries[0]
        most = task.grid.time // slots
        if not 1 <= chunks <= most:
            raise UserError(f"this planner was trained on {most} chunks, and {chunks} are asked for")
        layout, keys = task.layout.with_time(slots * chunks), keys_of(seed, "plan", story)
        sampler = generators.build_sampler(self.planner.config.sampler.to_dict())
        graph, state = nnx.split(nnx.Dict(self.planner.modules))

        @jax.jit
        def draw(state: Any, story: Any) -> Array:
            live = dict(nnx.merge(graph, state).items())
            drawn = live["generator"].generator.sample(layout, task.conditioning(live, story), keys, sampler)
            return live["tokenizer"].lookup(drawn)

        return chunk_tokens(draw(state, dict(story)))

    def draw(self, story: Mapping[str, Array], chunks: int, seed: int) -> Pixels:
        """Videos of so many chunks from text alone.

        Args:
          story: conditioning arrays of a batch (``text_ids``, ``text_mask``); the same text holds for all chunks.
          chunks: how many.
          seed: decides every draw.
        """
        latents = chunks * self.generator.chunk
        return self.paint(self.plan(story, chunks, seed), story, latents, seed)

    def edit(self, video: Pixels, story: Mapping[str, Array], seed: int) -> Pixels:
        """Videos drawn anew from the tokens of given ones, of whole chunks, under another text."""
        tokens = jax.jit(self.painter.tokenizer.tokenize)(to_video(jnp.asarray(video)))
        latents = self.painter.task.tokenizer.grid(VideoShape(*video.shape[1:4])).time
        return self.paint(chunk_tokens(tokens.only.values), story, latents, seed)

    def paint(self, tokens: ChunkTokens, story: Mapping[str, Array], latents: int, seed: int) -> Pixels:
        """The videos of so many latent frames that condensed tokens and a text stand for."""
        split = {name: nnx.split(module) for name, module in self.painter.modules.items()}
        graphs, states = ({name: both[i] for name, both in split.items()} for i in range(2))
        task = self.painter.task
        queue = QueuedFrames(task, graphs, self.sampler, task.layout)
        return queue.draw(states, story, keys_of(seed, "paint", story), latents, beside=tokens)


def _tokens(values: Array, layout: Layout) -> Tokens:
    return Tokens.single(values, layout)


def keys_of(seed: int, name: str, story: Mapping[str, Array]) -> Array:
    """The key of each video: ``name`` tells the plan's from the painter's."""
    count = len(next(iter(story.values())))
    return jax.vmap(lambda i: jax.random.fold_in(named_key(jax.random.key(seed), name), i))(jnp.arange(count))

"""Summaries of one clip after another, each of which knows those before (VideoStreaming; Qian et al., 2024)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn import LayerNorm, Linear, TimeEmbedding, block_stack, normal, parameter, rotary_angles
from videogen.nn.structured_masks import CARRIER, CLIP, KIND, VISUAL, summary_flow
from videogen.ranges import Count, Positive
from videogen.reducers.base import Reducer, Report, need, report
from videogen.reducers.selection import NONE, gumbel
from videogen.reducers.tokens import TokenSet, best, unit

LONGEST = 1000
"""Frames that the time of a clip is a share of."""


class SummaryState(NamedTuple):
    """What is carried from clip to clip.

    Attributes:
      before: summaries of the last clip.
      x, exists, position, size: of the summaries of the clips that are remembered as such, the oldest first.
      count: how many of these there are.
    """

    before: Float[Array, "batch summaries width"]
    x: Float[Array, "batch clips summaries width"]
    exists: Bool[Array, "batch clips summaries"]
    position: Float[Array, "batch clips summaries 3"]
    size: Float[Array, "batch clips summaries"]
    count: Int[Array, ""]


class StreamingSummaries(Reducer):
    """A few tokens of every frame that have read its clip and the summaries of the clip before.

    A clip is ``[summaries before; tokens of its frames; places for summaries; places for what it is about]``, read by a
    stack in which only the places read the frames (``nn.structured_masks.summary_flow``). What stands at the summaries'
    places goes on to the next clip. With ``clips``, those whose last places are most like the question,
    ``aux["question"]`` ``[batch, question_width]``, are all that stays; in training ``aux["key"]`` draws Gumbel noise,
    and the likeness learns straight through the choice.

    Args:
      inputs: channels of the tokens.
      frames: of a clip; they must divide the frames of the video.
      each: summary tokens of a frame.
      about: places for what a clip is about.
      side: ``side × side`` tokens of a frame are read as one.
      layers, heads: of the stack.
      clips: that are kept; ``None``: all.
      question_width: channels of the question.
      temperature: of the choice.
    """

    laws = ("fixed_budget",)
    needs_grid = recurrent = True

    def __init__(
        self,
        inputs: Count,
        *,
        frames: Count = 16,
        each: Count = 4,
        about: Count = 1,
        side: Count = 2,
        layers: Count = 2,
        heads: Count = 8,
        clips: Count | None = None,
        question_width: Count = 1,
        temperature: Positive = 0.1,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        self.frames, self.each, self.about, self.side = frames, each, about, side
        self.clips, self.temperature, self.head_width = clips, temperature, inputs // heads
        self.needs = ("question",) if clips else ()
        common = dict(dtype=dtype, rngs=rngs)
        self.read = Linear(side * side * inputs, inputs, axes=(None, "embed"), **common)
        shape = (frames * each, inputs), (None, "embed"), normal(0.02)
        self.start, self.places = parameter(rngs, *shape), parameter(rngs, *shape)
        self.last_places = parameter(rngs, (about, inputs), (None, "embed"), normal(0.02))
        self.time = TimeEmbedding(inputs, rngs=rngs)
        sizes = dict(attention={"heads": heads}, mlp={"hidden": 4 * inputs})
        self.stack = block_stack(inputs, layers, **sizes, remat=remat, **common)
        self.norm = LayerNorm(inputs, rngs=rngs)
        self.question = Linear(question_width, inputs, axes=(None, "embed"), **common) if clips else None

    def clip(
        self,
        before: Float[Array, "batch summaries width"],
        x: Float[Array, "batch tokens width"],
        exists: Bool[Array, "batch tokens"],
        number: Int[Array, ""],
    ) -> tuple[Float[Array, "batch summaries width"], Float[Array, "batch width"]]:
        """The summaries of a clip and what it is about.

        Args:
          before: summaries of the clip before.
          x: tokens of its frames, as ``read`` made them.
          exists: which of them there are.
          number: of the clip.
        """
        batch, count, tokens = len(x), self.frames * self.each, x.shape[1]
        places = jnp.concatenate([self.places.get_value(), self.last_places.get_value()])
        places = places + self.time((number * self.frames / LONGEST)[None])
        whole = jnp.concatenate([before, x, jnp.broadcast_to(places, (batch, *places.shape)).astype(x.dtype)], axis=1)
        kind = np.full(whole.shape[1], CARRIER, np.int32)
        kind[count : count + tokens] = VISUAL
        clip = np.where(np.arange(whole.shape[1]) < count, -1, 0).astype(np.int32)
        there = jnp.ones((batch, whole.shape[1]), bool).at[:, count : count + tokens].set(exists)
        call = dict(mask=summary_flow(), tags={KIND: kind, CLIP: clip}, key_mask=there)
        y = self.stack(whole, rotary=rotary_angles([whole.shape[1]], self.head_width), **call)
        y = self.norm(y[:, count + tokens :])
        return y[:, :count], y[:, count:].mean(1)

    def summaries(
        self, tokens: TokenSet
    ) -> tuple[
        Float[Array, "batch clips summaries width"], Float[Array, "batch clips width"], Bool[Array, "batch clips"]
    ]:
        """The summaries of every clip, what it is about, and which clips there are; one that is missing changes
        nothing."""
        batch, count = len(tokens.x), self._sides(tokens)[0] // self.frames
        x, exists = self._boxes(tokens)
        start = jnp.broadcast_to(self.start.get_value().astype(x.dtype), (batch, *self.start.shape))
        graph, state = nnx.split(self)

        def step(before: Array, one: tuple) -> tuple[Array, tuple]:
            number, x, exists = one
            found, about = nnx.merge(graph, state).clip(before, x, exists, number)
            return jnp.where(exists.any(1)[:, None, None], found.astype(before.dtype), before), (found, about)

        scanned = jnp.arange(count), jnp.moveaxis(x, 1, 0), jnp.moveaxis(exists, 1, 0)
        _, (found, about) = jax.lax.scan(step, start, scanned)
        return jnp.moveaxis(found, 0, 1), jnp.moveaxis(about, 0, 1), exists.any(-1)

    def _boxes(
        self, tokens: TokenSet
    ) -> tuple[Float[Array, "batch clips tokens width"], Bool[Array, "batch clips tokens"]]:
        """The tokens of every clip as the stack reads them, and which there are."""
        time, height, width = self._sides(tokens)
        given, batch, side = tokens.filled(), len(tokens.x), self.side
        rows, columns = height // side, width // side

        def boxes(values: Array) -> Array:
            x = values.reshape(batch, time, rows, side, columns, side, -1).swapaxes(3, 4)
            return x.reshape(batch, time // self.frames, self.frames * rows * columns, -1)

        x = self.read(boxes(jnp.where(given.mask[..., None], given.x, 0)))
        return x, boxes(given.mask).any(-1)

    def begin(self, batch, grid, count):
        start = jnp.broadcast_to(self.start.get_value(), (batch, *self.start.shape))
        shape, none = (batch, count, self.frames * self.each), jnp.zeros((), jnp.int32)
        x, exists = jnp.zeros((*shape, start.shape[-1])), jnp.zeros(shape, bool)
        return SummaryState(start, x, exists, jnp.zeros((*shape, 3)), jnp.zeros(shape), none)

    def fold(self, carry, segment):
        if self.clips:
            raise UserError("summaries of clips that a question chooses cannot go on with a stream: leave clips out")
        x, exists = self._boxes(segment)
        room = carry.x.shape[1]
        full = carry.count == room
        at = carry.count - full
        # Clips behind the last one of training have its number.
        found, _ = self.clip(carry.before.astype(x.dtype), x[:, 0], exists[:, 0], at)
        there = exists[:, 0].any(1)[:, None, None]
        before = jnp.where(there, found.astype(carry.before.dtype), carry.before)
        own = self._of_frames(segment)
        values = (found.astype(carry.x.dtype), *(value[:, 0] for value in own))
        kept = []
        for old, new in zip(carry[1:5], values, strict=True):
            moved = jnp.where(full, jnp.roll(old, -1, axis=1), old)
            kept.append(jax.lax.dynamic_update_slice_in_dim(moved, new[:, None], at, axis=1))
        return SummaryState(before, *kept, at + 1)

    def remembered(self, carry):
        batch, clips, each = carry.exists.shape
        x, exists, position, size = (value.reshape(batch, -1, *value.shape[3:]) for value in carry[1:5])
        found = TokenSet(jnp.where(exists[..., None], x, 0), exists, position, jnp.where(exists, size, 0.0))
        return found, jnp.repeat(jnp.arange(clips), each)

    def _of_frames(self, tokens: TokenSet) -> tuple[Array, Array, Array]:
        """Which summaries of the frames of every clip there are, their places and sizes."""
        time, height, width = self._sides(tokens)
        grid = (len(tokens.x), time // self.frames, self.frames, height * width)
        given = tokens.filled()
        exists = jnp.repeat(given.mask.reshape(grid).any(-1), self.each, axis=2)
        position, size = given.position.reshape(*grid, 3).mean(3), given.size.reshape(grid).sum(-1) / self.each
        return exists, jnp.repeat(position, self.each, axis=2), jnp.repeat(size, self.each, axis=2)

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        x, about, there = self.summaries(tokens)
        batch = len(there)
        exists, position, size = self._of_frames(tokens)
        if self.clips:
            index, kept, passed = self._asked(about, there, aux)
            x, exists, position, size = (
                jax.vmap(lambda v, i: v[i])(values, index) for values in (x, exists, position, size)
            )
            x, exists = x * passed[..., None, None], exists & kept[..., None]
        flat = [v.reshape(batch, -1, *v.shape[3:]) for v in (x, exists, position, size)]
        flat[0] = jnp.where(flat[1][..., None], flat[0], 0).astype(tokens.x.dtype)
        flat[3] = jnp.where(flat[1], flat[3], 0.0)
        found = TokenSet(*flat, jnp.full((batch, tokens.shape[1]), -1))
        return found, report(tokens, found, found.shape[1])

    def _asked(
        self, about: Array, there: Array, aux: Mapping[str, Any]
    ) -> tuple[Int[Array, "batch kept"], Bool[Array, "batch kept"], Float[Array, "batch kept"]]:
        """The clips that the question asks for, which of these there are, and the factor that learns."""
        asked = self.question(need(aux, "question", self))
        alike = jnp.einsum("bkd,bd->bk", unit(about), unit(asked)) / self.temperature
        soft = jax.nn.softmax(jnp.where(there, alike, -1e30), axis=-1)
        if aux.get("key") is not None:
            alike = alike + gumbel(aux["key"], *alike.shape)
        index, kept = best(alike, there, min(self.clips, there.shape[1]))
        chance = jnp.take_along_axis(soft, index, axis=1)
        return index, kept, 1.0 + (chance - jax.lax.stop_gradient(chance))

    def _sides(self, tokens: TokenSet) -> tuple[int, int, int]:
        time, height, width = self.grid_of(tokens)
        if time % self.frames or height % self.side or width % self.side:
            raise UserError(
                f"{time} frames of {height}×{width} tokens do not divide into clips of {self.frames} and windows of "
                f"{self.side}; change frames or side"
            )
        return time, height, width

"""What a small language model says of a clip, as its hidden states: as many tokens as there is to say (LangDC; Wang et
al., 2025; R6).

Training the small model to caption is a pipeline of its own; here it is any ``Captioner``. The large model sees no
text, only hidden states.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.encoders.decoders import Decoder
from videogen.errors import UserError
from videogen.nn import Linear, Stream
from videogen.ranges import Count
from videogen.reducers.base import Report, report
from videogen.reducers.pooling import GridPooling
from videogen.reducers.tokens import TokenSet


class Captioner(Protocol):
    """A language model that goes on from a clip, word by word.

    Attributes:
      width: channels of its prompt and of its hidden states.
    """

    width: int

    def begin(self, prompt: Float[Array, "clips tokens width"], exists: Bool[Array, "clips tokens"]) -> Any:
        """The state behind the prompt; an array tree."""

    def next(self, state: Any) -> tuple[Any, Float[Array, "clips width"], Bool[Array, "clips"]]:
        """The state one word on, the hidden state of that word, and whether it is the end of the text."""


def soft_tokens(
    captioner: Captioner, prompt: Float[Array, "clips tokens width"], exists: Bool[Array, "clips tokens"], longest: int
) -> tuple[Float[Array, "clips longest width"], Bool[Array, "clips longest"]]:
    """Hidden states of the words up to the end of the text, which is none of them, and which there are.

    Args:
      captioner: the language model.
      prompt: what it sees.
      exists: of the prompt.
      longest: words at most.
    """

    def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        state, ended = carry
        state, hidden, ends = captioner.next(state)
        ended = ended | ends
        return (state, ended), (hidden, ~ended)

    begun = captioner.begin(prompt, exists), jnp.zeros(len(prompt), bool)
    _, (hidden, there) = jax.lax.scan(step, begun, None, length=longest)
    there = there.T
    return jnp.where(there[..., None], jnp.moveaxis(hidden, 0, 1), 0), there


class GreedyCaptioner:
    """A ``Decoder`` that says the likeliest words.

    Args:
      decoder: the language model.
      end: the id that ends a text.
      longest: words that there is room for.
    """

    def __init__(self, decoder: Decoder, end: int, longest: int):
        self.decoder, self.end, self.longest, self.width = decoder, end, longest, decoder.width

    def begin(self, prompt: Float[Array, "clips tokens width"], exists: Bool[Array, "clips tokens"]) -> Any:
        """The caches, the features that predict the next word, and its position."""
        caches = self.decoder.begin(len(prompt), prompt.shape[1] + self.longest, ())
        count = jnp.cumsum(exists, axis=1, dtype=jnp.int32)
        stream = Stream(caches)
        y = self.decoder.tokens(prompt, exists, positions=jnp.maximum(count - 1, 0), stream=stream)
        last = jnp.max(jnp.where(exists, jnp.arange(prompt.shape[1]), 0), axis=1)
        features = jnp.take_along_axis(y, last[:, None, None], axis=1)[:, 0]
        return stream.cache, features, count[:, -1]

    def next(self, state: Any) -> tuple[Any, Float[Array, "clips width"], Bool[Array, "clips"]]:
        """The likeliest word."""
        caches, features, position = state
        ids = jnp.argmax(self.decoder.scores(features[:, None])[:, 0], axis=-1)
        stream = Stream(caches)
        y = self.decoder.tokens(self.decoder.embedding(ids[:, None]), positions=position[:, None], stream=stream)
        return (stream.cache, y[:, 0].astype(features.dtype), position + 1), y[:, 0], ids == self.end


class SoftCaptions(nnx.Module):
    """The hidden states of a caption of every clip of some frames, behind its pooled tokens.

    Args:
      inputs: channels of the tokens.
      width: channels of the captioner.
      outputs: channels of the result.
      frames: of a clip; they must divide the frames of the video.
      side: a frame is averaged to ``side × side`` tokens, which the captioner sees.
      longest: words of a caption.
      base: whether the averaged tokens stand before the caption in the result.
    """

    def __init__(
        self,
        inputs: Count,
        width: Count,
        outputs: Count,
        *,
        frames: Count = 4,
        side: Count = 4,
        longest: Count = 128,
        base: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.frames, self.longest, self.pool = frames, longest, GridPooling(side)
        self.read = Linear(inputs, width, axes=(None, "embed"), **common)
        self.project = Linear(width, outputs, axes=("embed", None), **common)
        self.keep = Linear(inputs, outputs, axes=("embed", None), **common) if base else None

    def __call__(self, tokens: TokenSet, captioner: Captioner) -> tuple[TokenSet, Report]:
        """Clip after clip, its averaged tokens where these stay, then its words; and how many words a clip has on
        average (``words``)."""
        if captioner.width != self.read.outputs:
            raise UserError(
                f"a captioner of width {captioner.width} does not fit these projections of {self.read.outputs}"
            )
        small = self.pool.reduce(tokens)[0].filled()
        (time, height, width), batch = small.grid, len(small.x)
        if time % self.frames:
            raise UserError(f"{time} frames do not divide into clips of {self.frames}; change frames")
        clips = (batch * (time // self.frames), self.frames * height * width)

        def apart(values: Array) -> Array:
            return values.reshape(*clips, *values.shape[2:])

        x, exists, position, size = (apart(v) for v in (small.x, small.mask, small.position, small.size))
        there = exists.any(1, keepdims=True)
        # A clip without a frame has an empty caption; its prompt must not be empty.
        hidden, said = soft_tokens(captioner, self.read(x), exists.at[:, 0].set(True), self.longest)
        said = said & there
        middle = jnp.sum(jnp.where(exists[..., None], position, 0), axis=1) / jnp.maximum(exists.sum(1), 1)[:, None]
        parts = [
            (
                self.project(hidden),
                said,
                jnp.broadcast_to(middle[:, None], (clips[0], self.longest, 3)),
                said * 1.0,
            )
        ]
        if self.keep is not None:
            parts.insert(0, (self.keep(x), exists, position, size))
        joined = [jnp.concatenate(values, axis=1) for values in zip(*parts, strict=True)]
        flat = [v.reshape(batch, -1, *v.shape[2:]) for v in joined]
        flat[0] = jnp.where(flat[1][..., None], flat[0], 0).astype(tokens.x.dtype)
        found = TokenSet(*flat, jnp.full((batch, tokens.shape[1]), -1))
        words = said.sum() / jnp.maximum(there.sum(), 1)
        return found, report(tokens, found, found.shape[1], words=words)

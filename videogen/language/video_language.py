"""A video-language model: what is seen of clips, and a language model over streams that reads it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from videogen.language.model import StreamModel
from videogen.language.slots import Filled
from videogen.language.vision import Question, Seen, View, Vision
from videogen.nn import ExtraKeys
from videogen.reducers import Report


class VideoLanguage(nnx.Module):
    """Both parts.

    Args:
      vision: from clips to vectors of the backbone.
      stream: over texts and these vectors.
    """

    def __init__(self, vision: Vision, stream: StreamModel):
        self.vision, self.stream = vision, stream

    def question(
        self, ids: Int[Array, "batch words"], exists: Bool[Array, "batch words"], range_of_ids: str = "text"
    ) -> Question:
        """Questions as vectors; ``ids`` are those of a range of the vocabulary."""
        start = self.stream.vocabulary[range_of_ids].start
        return Question(self.stream.words.embed(self.stream.backbone, ids + start), exists)

    def vectors(self, seen: Seen, question: Question | None, view: View = View()) -> tuple[Filled, Report]:
        """What the backbone reads of clips that were seen, and what the reducers did."""
        tokens, said = self.vision.attend(seen, question, view)
        return Filled(self.vision.vectors(seen, tokens), tokens.filled().mask, self.vision.sizes(seen, tokens)), said

    def beside(
        self, seen: Seen, samples: int, exists: Bool[Array, "samples clips"] | None = None
    ) -> dict[int, ExtraKeys]:
        """What the backbone looks up of all tokens of the clips of samples, by layer; nothing where it does not.

        ``exists`` says which clips there are.
        """
        if not self.stream.backbone.looks_beside:
            return {}
        given = seen.original.filled()
        mask = given.mask.reshape(samples, -1, given.shape[1])
        mask = mask if exists is None else mask & exists[..., None]
        x = self.vision.vectors(seen, given)
        return self.stream.backbone.beside(x.reshape(samples, -1, x.shape[-1]), mask.reshape(samples, -1))


def repeated(question: Question, clips: int) -> Question:
    """The question of every sample for each of its clips."""
    return jax.tree.map(lambda x: jnp.repeat(x, clips, axis=0), question)

"""Frozen CLIP as a text encoder of generators: one vector for a text."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from videogen.conditioning.types import EncodedText
from videogen.encoders import ClipText


class ClipSentence(ClipText):
    """``encoders.ClipText`` whose embedding of a text is conditioning; keep it out of the trained parameter groups."""

    text_folder = ""
    """Where in its folder the text tokenizer is."""

    def __call__(self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]) -> EncodedText:
        """Encodes texts with their start and end tokens: features ``[batch, 1, embed]``; of one without tokens 0."""
        there = mask.any(axis=1, keepdims=True)
        return EncodedText(jnp.where(there[..., None], super().__call__(ids)[:, None], 0), there)

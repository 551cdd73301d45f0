"""Frozen language models as text encoders of generators: the hidden states of all their layers."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from videogen.conditioning.types import EncodedText
from videogen.encoders import Decoder, ShapesCaptions


class LanguageModel(Decoder):
    """``encoders.Decoder`` whose hidden states are conditioning; keep it out of the trained parameter groups."""

    text_folder = ""
    """Where in its folder the text tokenizer is."""

    def __call__(self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]) -> EncodedText:
        """Encodes padded texts: features ``[batch, length, layers, width]`` behind every layer, the embedding's not
        among them; those at padded places are zero."""
        states = jnp.moveaxis(self.states(self.embedding(jnp.where(mask, ids, 0)), mask), 0, 2)
        return EncodedText(jnp.where(mask[..., None, None], states, 0), mask)


class CaptionModel(LanguageModel, ShapesCaptions):
    """The stand-in for a language model (``videogen.stand_in``), with its hidden states as conditioning."""

    text_folder = "text_tokenizer"

    def read_beside(self, directory: str) -> None:
        """Captions come as ids."""

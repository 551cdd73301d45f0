"""Frozen T5 as a text encoder of generators."""

from jaxtyping import Array, Bool, Int

from videogen.conditioning.types import EncodedText
from videogen.encoders import T5


class T5Encoder(T5):
    """``encoders.T5`` whose features are conditioning; keep it out of the trained parameter groups."""

    text_folder = ""
    """Where in its folder the text tokenizer is."""

    def __call__(self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]) -> EncodedText:
        """Encodes padded texts of any length; features at padded places are zero."""
        return EncodedText(super().__call__(ids, mask), mask)

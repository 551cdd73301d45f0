"""De-tokenizers: decoders from latents or codes of any tokenizer to video (see ``docs/diffusion.md``).

``denoise(latents, video, key) -> video`` for training, ``decode(latents) -> video``, and
``decode_chunk(cache, latents) -> (cache, video)`` for videos longer than memory; ``compression`` is what they undo.
"""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.detokenizers.decoders import ConditionedDecoder, DiffusionDecoder, RegressionDecoder
from videogen.detokenizers.networks import ContextDecoder, Denoiser
from videogen.detokenizers.pyramid import Down, FrameAttention, Pyramid, Residual, Up

DETOKENIZERS = {"diffusion": DiffusionDecoder, "regression": RegressionDecoder}


def class_of(config: Mapping[str, Any]) -> type[ConditionedDecoder]:
    """The class of a de-tokenizer config; raises ``UserError`` for an unknown name."""
    return building.look_up(DETOKENIZERS, config, "detokenizer")


def build(config: Mapping[str, Any], **shared: Any) -> ConditionedDecoder:
    """Builds a de-tokenizer from ``{name, …}``; ``shared`` holds ``inputs``, ``rngs``, ``dtype``, ``remat``."""
    return building.build(DETOKENIZERS, config, "detokenizer", **shared)


__all__ = [
    "DETOKENIZERS",
    "ConditionedDecoder",
    "ContextDecoder",
    "Denoiser",
    "DiffusionDecoder",
    "Down",
    "FrameAttention",
    "Pyramid",
    "RegressionDecoder",
    "Residual",
    "Up",
    "build",
    "class_of",
]

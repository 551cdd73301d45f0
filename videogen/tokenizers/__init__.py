"""Tokenizers: video -> latents -> codes -> video, one contract (see ``docs/add_a_tokenizer.md``)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen import building, detokenizers
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokenizers.cdt import Cdt
from videogen.tokenizers.convolutional import ConvolutionalTokenizer
from videogen.tokenizers.cvivit import CViViT
from videogen.tokenizers.detokenized import Detokenized
from videogen.tokenizers.hitvideo import HitVideo
from videogen.tokenizers.karl import Karl
from videogen.tokenizers.magvit import Magvit
from videogen.tokenizers.normalised import Normalised
from videogen.tokenizers.normaliser import build as build_normaliser
from videogen.tokenizers.omnitokenizer import OmniTokenizer
from videogen.tokenizers.one_d import OneD
from videogen.tokenizers.one_d_any_size import OneDAnySize
from videogen.tokenizers.one_d_causal import CausalOneD
from videogen.tokenizers.one_d_flow import OneDFlow
from videogen.tokenizers.one_vae import OneVae
from videogen.tokenizers.over_latents import OverLatents, of_latents
from videogen.tokenizers.requests import Request
from videogen.tokenizers.tiling import Tiled
from videogen.tokenizers.tokenflow import TokenFlow


def build_detokenized(
    tokenizer: Mapping[str, Any],
    detokenizer: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Detokenized:
    """A tokenizer with a de-tokenizer in the place of its decoder, from the configs ``{name, …}`` of both."""
    common = dict(remat=remat, dtype=dtype, rngs=rngs)
    model = build(tokenizer, **common)
    return Detokenized(model, detokenizers.build(detokenizer, inputs=model.quantizer.width, **common))


def build_normalised(
    tokenizer: Mapping[str, Any],
    normaliser: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Normalised:
    """A tokenizer with a normaliser of its latents, from the configs ``{name, …}`` of both."""
    model = build(tokenizer, remat=remat, dtype=dtype, rngs=rngs)
    return Normalised(model, build_normaliser(normaliser, model.quantizer.width))


def build_over_latents(
    vae: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> OverLatents:
    """A tokenizer of the latents of a VAE, from the configs ``{name, …}`` of both; the clip of it is in pixels."""
    common = dict(remat=remat, dtype=dtype, rngs=rngs)
    frozen = build(vae, **common)
    return OverLatents(frozen, build(of_latents(tokenizer, frozen), **common))


TOKENIZERS = {
    "cdt": Cdt,
    "convolutional": ConvolutionalTokenizer,
    "cvivit": CViViT,
    "detokenized": build_detokenized,
    "hitvideo": HitVideo,
    "karl": Karl,
    "magvit": Magvit,
    "normalised": build_normalised,
    "omnitokenizer": OmniTokenizer,
    "one_d": OneD,
    "one_d_causal": CausalOneD,
    "one_d_any_size": OneDAnySize,
    "one_d_flow": OneDFlow,
    "one_vae": OneVae,
    "over_latents": build_over_latents,
    "tokenflow": TokenFlow,
}


def build(config: Mapping[str, Any], **shared: Any):
    """Builds a tokenizer from ``{name, …}``; ``shared`` holds ``rngs``, ``dtype``, ``remat``."""
    return building.build(TOKENIZERS, config, "tokenizer", **shared)


__all__ = [
    "TOKENIZERS",
    "CViViT",
    "CausalOneD",
    "Cdt",
    "Compared",
    "ConvolutionalTokenizer",
    "Detokenized",
    "Encoded",
    "HitVideo",
    "Karl",
    "Magvit",
    "Normalised",
    "OmniTokenizer",
    "OneD",
    "OneDAnySize",
    "Request",
    "OneDFlow",
    "OneVae",
    "OverLatents",
    "Tiled",
    "TokenFlow",
    "Tokenizer",
    "build",
    "build_normaliser",
    "of_latents",
]

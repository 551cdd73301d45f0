"""Tokenizers: video -> latents -> codes -> video, one contract (see ``docs/add_a_tokenizer.md``)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen import building, detokenizers, encoders
from videogen.tokenizers.base import Compared, Encoded, Tokenizer
from videogen.tokenizers.cdt import Cdt
from videogen.tokenizers.cogvideox import CogVideoX
from videogen.tokenizers.condensed import Condensed, Condenser, build_condenser
from videogen.tokenizers.convolutional import ConvolutionalTokenizer
from videogen.tokenizers.cosmos import Cosmos
from videogen.tokenizers.cvivit import CViViT
from videogen.tokenizers.denoised import Denoised, of_parts
from videogen.tokenizers.detokenized import Detokenized
from videogen.tokenizers.dicode import DiCoDe
from videogen.tokenizers.divot import Divot
from videogen.tokenizers.feature_codec import CodedFeatures, FeatureCodec, of_model
from videogen.tokenizers.hitvideo import HitVideo
from videogen.tokenizers.hunyuan_video import HunyuanVideo
from videogen.tokenizers.hunyuan_video_15 import HunyuanVideo15
from videogen.tokenizers.karl import Karl
from videogen.tokenizers.ltx import Ltx
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
from videogen.tokenizers.signs import SignDiffusion, SignVideo, of_vae
from videogen.tokenizers.tiling import Tiled
from videogen.tokenizers.token_conditioned import TokenConditioned
from videogen.tokenizers.tokenflow import TokenFlow
from videogen.tokenizers.vidtok import VidTok
from videogen.tokenizers.wan import Wan


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


def build_condensed(
    vae: Mapping[str, Any],
    condenser: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Condensed:
    """Condensed tokens of a VAE's latents, from the configs of both; that of the condenser has no name."""
    common = dict(remat=remat, dtype=dtype, rngs=rngs)
    frozen = build(vae, **common)
    about = dict(channels=frozen.quantizer.width, normalised=frozen.normalised)
    named = {"name": "condenser", **condenser}
    return Condensed(frozen, building.build({"condenser": build_condenser}, named, "section", **about, **common))


TOKEN_CONDITIONED = {"dicode": DiCoDe, "divot": Divot}
"""What is trained of tokenizers whose decoder is a diffusion transformer that is told the tokens."""


def build_token_conditioned(
    config: Mapping[str, Any], vae: Tokenizer, vision: nnx.Module, **shared: Any
) -> TokenConditioned:
    """What is trained of ``denoised``, from its config ``{name, …}`` and the structure of the frozen parts."""
    given = of_parts(config, vae, vision)
    return building.build(TOKEN_CONDITIONED, config, "tokenizer", given=given, **shared)


def build_denoised(
    vae: Mapping[str, Any],
    vision: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Denoised:
    """A tokenizer whose decoder is a diffusion transformer over a VAE's latents, from the configs of its parts."""
    common = dict(remat=remat, dtype=dtype, rngs=rngs)
    frozen, seeing = build(vae, **common), encoders.described(vision, dtype=dtype)
    return Denoised(frozen, seeing, build_token_conditioned(tokenizer, frozen, seeing, **common))


def build_sign_diffusion(config: Mapping[str, Any], vae: Tokenizer, **shared: Any) -> SignDiffusion:
    """What is trained of ``sign_video``, from its config ``{name, …}`` and the structure of the VAE."""
    return building.build({"sign_diffusion": SignDiffusion}, config, "tokenizer", **of_vae(config, vae), **shared)


def build_sign_video(
    vae: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> SignVideo:
    """A model from maps to an embedding and from there to videos, from the configs ``{name, …}`` of its parts."""
    common = dict(remat=remat, dtype=dtype, rngs=rngs)
    frozen = build(vae, **common)
    return SignVideo(frozen, build_sign_diffusion(tokenizer, frozen, **common))


def build_coded_features(
    model: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    remat: str = "none",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> CodedFeatures:
    """A codec of the features of a model, from the configs ``{name, …}`` of both; the clip of it is in pixels."""
    common = dict(remat=remat, dtype=dtype, rngs=rngs)
    frozen = build(model, **common)
    return CodedFeatures(frozen, build(of_model(tokenizer, frozen), **common))


TOKENIZERS = {
    "cdt": Cdt,
    "cogvideox": CogVideoX,
    "condensed": build_condensed,
    "coded_features": build_coded_features,
    "convolutional": ConvolutionalTokenizer,
    "cosmos": Cosmos,
    "cvivit": CViViT,
    "denoised": build_denoised,
    "detokenized": build_detokenized,
    "feature_codec": FeatureCodec,
    "hitvideo": HitVideo,
    "hunyuan_video": HunyuanVideo,
    "hunyuan_video_15": HunyuanVideo15,
    "karl": Karl,
    "ltx": Ltx,
    "magvit": Magvit,
    "normalised": build_normalised,
    "omnitokenizer": OmniTokenizer,
    "one_d": OneD,
    "one_d_causal": CausalOneD,
    "one_d_any_size": OneDAnySize,
    "one_d_flow": OneDFlow,
    "one_vae": OneVae,
    "over_latents": build_over_latents,
    "sign_video": build_sign_video,
    "tokenflow": TokenFlow,
    "vidtok": VidTok,
    "wan": Wan,
}


def build(config: Mapping[str, Any], **shared: Any):
    """Builds a tokenizer from ``{name, …}``; ``shared`` holds ``rngs``, ``dtype``, ``remat``."""
    return building.build(TOKENIZERS, config, "tokenizer", **shared)


__all__ = [
    "TOKENIZERS",
    "TOKEN_CONDITIONED",
    "CViViT",
    "CausalOneD",
    "Cdt",
    "CodedFeatures",
    "Compared",
    "Condensed",
    "Condenser",
    "ConvolutionalTokenizer",
    "Cosmos",
    "Denoised",
    "Detokenized",
    "DiCoDe",
    "Divot",
    "Encoded",
    "FeatureCodec",
    "HitVideo",
    "Karl",
    "Magvit",
    "Normalised",
    "OmniTokenizer",
    "OneD",
    "OneDAnySize",
    "Request",
    "SignDiffusion",
    "SignVideo",
    "OneDFlow",
    "OneVae",
    "OverLatents",
    "Tiled",
    "TokenConditioned",
    "TokenFlow",
    "Tokenizer",
    "VidTok",
    "build",
    "build_sign_diffusion",
    "build_token_conditioned",
    "build_normaliser",
    "of_latents",
    "of_model",
]

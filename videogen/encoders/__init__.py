"""Frozen public networks, read from their own files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from videogen import building
from videogen.encoders.archives import read_archive
from videogen.encoders.bert import Bert
from videogen.encoders.c3d import C3d
from videogen.encoders.clip import ClipImage, ClipText
from videogen.encoders.decoders import Decoder
from videogen.encoders.dinov2 import DinoV2
from videogen.encoders.efficientnet import EfficientNetLite0
from videogen.encoders.files import Weights, read_config
from videogen.encoders.i3d import I3d
from videogen.encoders.inception import Inception
from videogen.encoders.installed import installed_weights
from videogen.encoders.loading import Published, plain
from videogen.encoders.lpips import Lpips
from videogen.encoders.preprocessing import Preprocessing
from videogen.encoders.resnet import ResNet
from videogen.encoders.sam import SamMaskDecoder
from videogen.encoders.siglip import SiglipImage, SiglipText
from videogen.encoders.stand_ins import SHIPPED, ShapesCaptions, ShapesClassifier, folder_of
from videogen.encoders.t5 import T5, T5Config
from videogen.encoders.transnetv2 import TransNetV2
from videogen.encoders.vgg import AlexNet, Vgg16
from videogen.encoders.video_swin import VideoSwin
from videogen.encoders.videomae import VideoMae, VideoMaeV2
from videogen.encoders.vit import Seen
from videogen.encoders.vjepa import Vjepa
from videogen.encoders.vjepa2 import Vjepa2, Vjepa2Pooled

ENCODERS: dict[str, type[Published]] = {
    "alexnet": AlexNet,
    "bert": Bert,
    "c3d": C3d,
    "clip_image": ClipImage,
    "clip_text": ClipText,
    "decoder": Decoder,
    "dinov2": DinoV2,
    "efficientnet_lite0": EfficientNetLite0,
    "i3d": I3d,
    "inception": Inception,
    "resnet": ResNet,
    "sam_mask_decoder": SamMaskDecoder,
    "shapes_captions": ShapesCaptions,
    "shapes_classifier": ShapesClassifier,
    "siglip_image": SiglipImage,
    "siglip_text": SiglipText,
    "t5": T5,
    "transnetv2": TransNetV2,
    "vgg16": Vgg16,
    "video_swin": VideoSwin,
    "videomae": VideoMae,
    "videomae_v2": VideoMaeV2,
    "vjepa": Vjepa,
    "vjepa2": Vjepa2,
    "vjepa2_pooled": Vjepa2Pooled,
}
"""Public name -> class."""

SEEN: dict[str, type[Seen]] = {name: kind for name, kind in ENCODERS.items() if issubclass(kind, Seen)}
"""Those that give a vector for each patch of a clip (``Seen.grid``)."""


def build(config: Mapping[str, Any], *, dtype: jnp.dtype = jnp.float32) -> Published:
    """The encoder of a section ``{name, directory}``, with the weights of a published folder or file.

    Raises:
      UserError: an unknown name or setting, or the files are not those of that network.
    """
    loaders = {name: kind.load for name, kind in ENCODERS.items()}
    return building.build(loaders, config, "encoder", dtype=dtype, rngs=None)


def describe(name: str, directory: str | Path) -> dict[str, Any]:
    """The section ``{name, …}`` that ``described`` builds an encoder from, without its files."""
    return {"name": name, **building.look_up(ENCODERS, {"name": name}, "encoder").describe(directory)}


def described(section: Mapping[str, Any], *, dtype: jnp.dtype = jnp.float32) -> Published:
    """The encoder of ``describe``, with random parameters; trace it to have only shapes."""
    settings = {key: section[key] for key in section if key != "name"}
    return building.look_up(ENCODERS, section, "encoder").described(settings, dtype=dtype)


def trunk(section: Mapping[str, Any], *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Seen:
    """An encoder of ``SEEN`` from its section, as it is trained along: fresh float32 parameters, and no head.

    Raises:
      UserError: an unknown name, or a setting is missing, unknown or of another type.
    """
    settings = {key: plain(section[key]) for key in section if key != "preprocessing"}
    network = building.build(SEEN, settings, "encoder", dtype=dtype, rngs=rngs).with_preprocessing(section)
    for part in network.HEAD:
        setattr(network, part, None)
    return network


def load(name: str, directory: str | Path, *, dtype: jnp.dtype = jnp.float32) -> Published:
    """``build`` from its two settings."""
    return build({"name": name, "directory": directory}, dtype=dtype)


__all__ = [
    "ENCODERS",
    "SEEN",
    "SHIPPED",
    "SamMaskDecoder",
    "T5",
    "AlexNet",
    "Bert",
    "C3d",
    "ClipImage",
    "ClipText",
    "Decoder",
    "DinoV2",
    "EfficientNetLite0",
    "I3d",
    "Inception",
    "Lpips",
    "Preprocessing",
    "Published",
    "ResNet",
    "Seen",
    "ShapesCaptions",
    "ShapesClassifier",
    "SiglipImage",
    "SiglipText",
    "T5Config",
    "TransNetV2",
    "Vgg16",
    "VideoMae",
    "VideoMaeV2",
    "VideoSwin",
    "Vjepa",
    "Vjepa2",
    "Vjepa2Pooled",
    "Weights",
    "build",
    "describe",
    "described",
    "folder_of",
    "installed_weights",
    "load",
    "read_archive",
    "read_config",
    "trunk",
]

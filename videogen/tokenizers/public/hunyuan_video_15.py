"""The published files of the VAE of HunyuanVideo 1.5: folders of diffusers."""

from collections.abc import Mapping
from typing import Any

from videogen.encoders.files import Weights, refuse_unpublished
from videogen.encoders.loading import Source, Table, linear_names
from videogen.tokenizers.hunyuan_video_15 import HunyuanVideo15
from videogen.tokenizers.public.family import Description, Family, Statistics, Writing
from videogen.tokenizers.public.hunyuan_video import SKIPPED, attention_names

CLASS = "AutoencoderKLHunyuanVideo15"


def _of_config(config: Mapping[str, Any]) -> Description:
    widths, channels = tuple(map(int, config["block_out_channels"])), int(config["in_channels"])
    fixed = {
        "spatial_compression_ratio": 2 ** (len(widths) - 1),
        "temporal_compression_ratio": 4,
        "out_channels": channels,
        "downsample_match_channel": True,
        "upsample_match_channel": True,
    }
    refuse_unpublished(config, fixed, CLASS)
    settings = {
        "widths": widths,
        "latents": int(config["latent_channels"]),
        "blocks": int(config["layers_per_block"]),
        "channels": channels,
    }
    normaliser = {"name": "fixed", "scale": float(config["scaling_factor"])}
    return Description({"name": "hunyuan_video_15", **settings}, normaliser, skipped=SKIPPED)


def _of_weights(weights: Weights) -> None:
    """None is known by its tensors: how the original file names them is not known here."""


def hunyuan_video_15_names(model: HunyuanVideo15) -> Table:
    """Our parameters -> names of tensors."""
    found: dict[str, str | Source] = {}

    def block(ours: str, theirs: str) -> None:
        for own, number in (("first", 1), ("second", 2)):
            found[f"{ours}.{own}_norm.scale"] = f"{theirs}.norm{number}.gamma"
            found.update(linear_names(f"{ours}.{own}", f"{theirs}.conv{number}.conv"))

    for side, network, way in (("encoder", model.encoder, "down"), ("decoder", model.decoder, "up")):
        found |= linear_names(f"{side}.input", f"{side}.conv_in.conv")
        found |= linear_names(f"{side}.output", f"{side}.conv_out.conv")
        found[f"{side}.norm.scale"] = f"{side}.norm_out.gamma"
        block(f"{side}.first", f"{side}.mid_block.resnets.0")
        block(f"{side}.second", f"{side}.mid_block.resnets.1")
        found[f"{side}.attention.norm.scale"] = f"{side}.mid_block.attentions.0.norm.gamma"
        found |= attention_names(f"{side}.attention.attention", f"{side}.mid_block.attentions.0", "proj_out")
        for i, level in enumerate(network.levels):
            for j in range(len(level)):
                block(f"{side}.levels.{i}.{j}", f"{side}.{way}_blocks.{i}.resnets.{j}")
            ours = f"{side}.levels.{i}.{len(level) - 1}.convolution"
            found |= linear_names(ours, f"{side}.{way}_blocks.{i}.{way}samplers.0.conv.conv")
    return found


def _to_config(settings: Mapping[str, Any], statistics: Statistics) -> dict[str, Any]:
    """The inverse of ``_of_config``."""
    return {
        "_class_name": CLASS,
        "in_channels": settings["channels"],
        "out_channels": settings["channels"],
        "latent_channels": settings["latents"],
        "block_out_channels": settings["widths"],
        "layers_per_block": settings["blocks"],
        "spatial_compression_ratio": 2 ** (len(settings["widths"]) - 1),
        "temporal_compression_ratio": 2 ** settings["temporal"],
        "downsample_match_channel": True,
        "upsample_match_channel": True,
        "scaling_factor": statistics.scale(),
    }


LAYOUTS = {
    "*.gamma": (-1, 1, 1, 1),
    "*.attentions.0.*.weight": (1, 1, 1),
}
"""Of the folder: layers over channels are convolutions of videos."""

HUNYUAN_VIDEO_15 = Family(
    "hunyuan_video_15",
    "Tencent Hunyuan Community License",
    (CLASS,),
    _of_config,
    _of_weights,
    hunyuan_video_15_names,
    writing=Writing(HunyuanVideo15, _to_config, LAYOUTS, SKIPPED),
)

"""The published files of the VAE of HunyuanVideo: the original (``pytorch_model.pt``) and folders of diffusers.

Tensors are called the same in both. The original code has no windows unless it is told so, and then of 64 frames
(``window=64, step=48``); here they are as long as those of diffusers for both.
"""

from collections.abc import Mapping
from typing import Any

from videogen.encoders.files import Weights, refuse_unpublished
from videogen.encoders.loading import Source, Table, linear_names, norm_names
from videogen.tokenizers.hunyuan_video import HunyuanVideo
from videogen.tokenizers.public.family import Description, Family, Statistics, Writing

CLASS = "AutoencoderKLHunyuanVideo"
SCALE = 0.476986
"""Of latents, in the original code; its file does not have it."""

SKIPPED = ("*.mid_block.attentions.0.to_k.bias",)
"""A bias of keys adds the same to all scores of a query, which changes nothing."""


def _of_config(config: Mapping[str, Any]) -> Description:
    widths, channels = tuple(map(int, config["block_out_channels"])), int(config["in_channels"])
    fixed = {
        "down_block_types": ["HunyuanVideoDownBlock3D"] * len(widths),
        "up_block_types": ["HunyuanVideoUpBlock3D"] * len(widths),
        "spatial_compression_ratio": 2 ** (len(widths) - 1),
        "temporal_compression_ratio": 4,
        "out_channels": channels,
        "act_fn": "silu",
        "mid_block_add_attention": True,
    }
    refuse_unpublished(config, fixed, CLASS)
    settings = {
        "widths": widths,
        "latents": int(config["latent_channels"]),
        "blocks": int(config["layers_per_block"]),
        "groups": int(config["norm_num_groups"]),
        "channels": channels,
    }
    return _described(settings, float(config["scaling_factor"]))


def _of_weights(weights: Weights) -> Description | None:
    wanted = ("encoder.mid_block.attentions.0.to_q.weight", "decoder.conv_norm_out.weight", "post_quant_conv.weight")
    if any(name not in weights for name in wanted):
        return None

    def count(pattern: str) -> int:
        return next(i for i in range(len(weights) + 1) if pattern.format(i) not in weights)

    levels = count("encoder.down_blocks.{}.resnets.0.norm2.weight")
    settings = {
        "widths": tuple(len(weights[f"encoder.down_blocks.{i}.resnets.0.norm2.weight"]) for i in range(levels)),
        "latents": len(weights["post_quant_conv.weight"]),
        "blocks": count("encoder.down_blocks.0.resnets.{}.norm2.weight"),
    }
    return _described(settings, SCALE)


def _described(settings: dict[str, Any], scale: float) -> Description:
    return Description({"name": "hunyuan_video", **settings}, {"name": "fixed", "scale": scale}, skipped=SKIPPED)


def hunyuan_video_names(model: HunyuanVideo) -> Table:
    """Our parameters -> names of tensors."""
    found: dict[str, str | Source] = {}

    def block(ours: str, theirs: str) -> None:
        for own, number in (("first", 1), ("second", 2)):
            found.update(norm_names(f"{ours}.{own}_norm", f"{theirs}.norm{number}"))
            found.update(linear_names(f"{ours}.{own}", f"{theirs}.conv{number}.conv"))
        found.update(linear_names(f"{ours}.skip", f"{theirs}.conv_shortcut.conv"))

    for side, network, way in (("encoder", model.encoder, "down"), ("decoder", model.decoder, "up")):
        found |= linear_names(f"{side}.input", f"{side}.conv_in.conv")
        found |= linear_names(f"{side}.output", f"{side}.conv_out.conv")
        found |= norm_names(f"{side}.norm", f"{side}.conv_norm_out")
        block(f"{side}.first", f"{side}.mid_block.resnets.0")
        block(f"{side}.second", f"{side}.mid_block.resnets.1")
        found |= norm_names(f"{side}.attention.norm", f"{side}.mid_block.attentions.0.group_norm")
        found |= attention_names(f"{side}.attention.attention", f"{side}.mid_block.attentions.0", "to_out.0")
        for i, level in enumerate(network.levels):
            for j in range(len(level)):
                block(f"{side}.levels.{i}.{j}", f"{side}.{way}_blocks.{i}.resnets.{j}")
            ours = f"{side}.levels.{i}.{len(level) - 1}"
            ours = ours if side == "encoder" else f"{ours}.convolution"
            found |= linear_names(ours, f"{side}.{way}_blocks.{i}.{way}samplers.0.conv.conv")
    return found | linear_names("posterior", "quant_conv") | linear_names("prior", "post_quant_conv")


def attention_names(ours: str, theirs: str, out: str) -> Table:
    """The part of a table that ``FrameAttention.attention`` needs.

    Args:
      ours: path of the attention.
      theirs: that of the published one, whose queries, keys and values are layers of their own.
      out: what its last layer is called.
    """
    parts = tuple(f"{theirs}.to_{part}.weight" for part in "qkv")
    biases = {f"{ours}.{own}_bias": f"{theirs}.to_{own[0]}.bias" for own in ("query", "value")}
    return {f"{ours}.query_key_value.kernel": Source(parts), **biases, **linear_names(f"{ours}.out", f"{theirs}.{out}")}


def _to_config(settings: Mapping[str, Any], statistics: Statistics) -> dict[str, Any]:
    """The inverse of ``_of_config``."""
    levels = len(settings["widths"])
    return {
        "_class_name": CLASS,
        "in_channels": settings["channels"],
        "out_channels": settings["channels"],
        "latent_channels": settings["latents"],
        "down_block_types": ["HunyuanVideoDownBlock3D"] * levels,
        "up_block_types": ["HunyuanVideoUpBlock3D"] * levels,
        "block_out_channels": settings["widths"],
        "layers_per_block": settings["blocks"],
        "act_fn": "silu",
        "norm_num_groups": settings["groups"],
        "scaling_factor": statistics.scale(),
        "spatial_compression_ratio": 2 ** (levels - 1),
        "temporal_compression_ratio": 2 ** settings["temporal"],
        "mid_block_add_attention": True,
    }


LAYOUTS = {"*.conv_shortcut.conv.weight": (1, 1, 1), "*quant_conv.weight": (1, 1, 1)}
"""Of the folder: layers over channels are convolutions."""

HUNYUAN_VIDEO = Family(
    "hunyuan_video",
    "Tencent Hunyuan Community License",
    (CLASS,),
    _of_config,
    _of_weights,
    hunyuan_video_names,
    writing=Writing(HunyuanVideo, _to_config, LAYOUTS, SKIPPED),
)

"""How VAEs of LTX-Video and LTX-2 are written as folders of diffusers: their stages as the lists of a config."""

from collections.abc import Mapping, Sequence
from typing import Any

from videogen.errors import UserError, shown
from videogen.tokenizers.ltx import Ltx
from videogen.tokenizers.public.family import Statistics, Writing

CLASS, CLASS_2 = "AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"
"""Classes of the VAEs of LTX-Video and LTX-2."""

DIFFUSERS_STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
"""What diffusers calls the strides of stages."""


def _to_config(settings: Mapping[str, Any], statistics: Statistics) -> dict[str, Any]:
    """The inverse of ``_of_config``: of LTX-2 what only its class can be, of LTX-Video all else."""
    statistics.by_channel()
    strides = {tuple(stage.get("stride", (2, 2, 2))) for stage in settings["decoder"] if stage["name"] == "unfold"}
    second = "mirrored" in settings["frames"] or bool(strides - {(2, 2, 2)})
    config = {
        "_class_name": CLASS_2 if second else CLASS,
        "in_channels": settings["channels"],
        "out_channels": settings["channels"],
        "latent_channels": settings["latents"],
        **_encoder_config(settings["width"], _grouped(settings["encoder"], first=True), second),
        **_decoder_config(settings["decoder_width"], _grouped(settings["decoder"][1:], first=False), second),
        "timestep_conditioning": settings["time"] is not None,
        "patch_size": settings["patch"],
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "scaling_factor": 1.0,
        "encoder_causal": True,
        "decoder_causal": settings["causal"],
    }
    # The list of the decoder's blocks ends with the one next to the latents, which stands alone.
    nearest = settings["decoder"][0]
    config["decoder_layers_per_block"].append(nearest.get("count", 0))
    config["decoder_inject_noise"].append(nearest.get("noise", False))
    if second:
        modes = ("zeros" if around == "zeros" else "reflect" for around in settings["frames"])
        config |= dict(zip(("encoder_spatial_padding_mode", "decoder_spatial_padding_mode"), modes, strict=True))
    return config


def _grouped(stages: Sequence[Mapping[str, Any]], first: bool) -> list[dict[str, Mapping[str, Any]]]:
    """Stages by name, in groups that begin or end with blocks.

    Raises:
      UserError: a group has a stage twice, or does not begin or end so.
    """
    groups: list[dict[str, Mapping[str, Any]]] = [{}]
    for stage in stages:
        ends = stage["name"] == "blocks"
        if ends and first and groups[-1]:
            groups.append({})
        if stage["name"] in groups[-1]:
            raise UserError(f"an {CLASS} has blocks behind every stage {shown(stage['name'])}")
        groups[-1][stage["name"]] = stage
        if ends and not first:
            groups.append({})
    groups = groups if first else groups[:-1]
    if any("blocks" not in group for group in groups):
        raise UserError(f"an {CLASS} has blocks at both ends of its networks, and between all stages")
    return groups


def _way(stage: Mapping[str, Any]) -> str:
    """How diffusers calls the stride of a stage."""
    names = {stride: name for name, stride in DIFFUSERS_STRIDES.items()}
    stride = tuple(stage.get("stride", (2, 2, 2)))
    if stride not in names:
        raise UserError(f"a stage of an {CLASS} with the stride {list(stride)} is not known to diffusers")
    return names[stride]


def _encoder_config(width: int, groups: list[dict[str, Mapping[str, Any]]], second: bool) -> dict[str, Any]:
    inner, counts = groups[:-1], [group["blocks"]["count"] for group in groups]
    folded = second or any("fold" in group for group in inner)
    widths = [width]
    for group in inner:
        wider = group.get("fold") or group.get("widen")
        widths.append(wider["width"] if wider else widths[-1])
    kind = "LTX2VideoDownBlock3D" if second else "LTXVideo095DownBlock3D" if folded else "LTXVideoDownBlock3D"
    return {
        # LTX-2 does not say the first, which is as wide as latents are; nor do plain blocks the last.
        "block_out_channels": widths[1:] if second else widths if folded else widths[:-1],
        "down_block_types": [kind] * len(inner),
        "layers_per_block": counts,
        "spatio_temporal_scaling": ["fold" in group or "strided" in group for group in inner],
        "downsample_type": [_way(group["fold"]) if "fold" in group else "conv" for group in inner],
    }


def _decoder_config(width: int, groups: list[dict[str, Mapping[str, Any]]], second: bool) -> dict[str, Any]:
    widths, factors = [], []
    for group in groups:
        unfold, widen = group.get("unfold", {}), group.get("widen")
        width = widen["width"] if widen else width
        own = unfold.get("width", width)
        # Channels that up-sampling leaves fewer of are counted before it.
        widths.append(width)
        factors.append(width // own)
        width = own
    found = {
        "decoder_block_out_channels": widths,
        "decoder_layers_per_block": [group["blocks"]["count"] for group in groups],
        "decoder_inject_noise": [group["blocks"].get("noise", False) for group in groups],
        "decoder_spatio_temporal_scaling": ["unfold" in group for group in groups],
        "upsample_residual": [group.get("unfold", {}).get("around", False) for group in groups],
        "upsample_factor": factors,
    }
    turned = {name: values[::-1] for name, values in found.items()}
    return turned | ({"upsample_type": [_way(group.get("unfold", {})) for group in groups]} if second else {})


LAYOUTS = {"*.conv_shortcut.conv.weight": (1, 1, 1), "*.per_channel_scale?": (-1, 1, 1)}
"""Of the folder: layers over channels are convolutions."""

WRITING = Writing(Ltx, _to_config, LAYOUTS, unsaid=("time", "noise_scale"))

"""The published files of the VAE of CogVideoX: folders of diffusers."""

import math
from collections.abc import Mapping
from typing import Any

from videogen.encoders.files import Weights, refuse_unpublished
from videogen.encoders.loading import Source, Table, linear_names, norm_names
from videogen.tokenizers.cogvideox import CogVideoX
from videogen.tokenizers.public.family import Description, Family, Statistics, Writing

CLASS = "AutoencoderKLCogVideoX"

FIXED = {
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
"""What all published ones have. ``invert_scale_latents`` is about the picture that some of the generators are given."""


def _of_config(config: Mapping[str, Any]) -> Description:
    widths = tuple(map(int, config["block_out_channels"]))
    kinds = {"down_block_types": "CogVideoXDownBlock3D", "up_block_types": "CogVideoXUpBlock3D"}
    channels = int(config["in_channels"])
    own = {name: [kind] * len(widths) for name, kind in kinds.items()} | {"out_channels": channels}
    refuse_unpublished(config, FIXED | own, CLASS)
    settings = {
        "widths": widths,
        "latents": int(config["latent_channels"]),
        "blocks": int(config["layers_per_block"]),
        "temporal": int(math.log2(config["temporal_compression_ratio"])),
        "groups": int(config["norm_num_groups"]),
        "channels": channels,
    }
    scale = float(config["scaling_factor"])
    return Description({"name": "cogvideox", **settings}, {"name": "fixed", "scale": scale})


def _of_weights(weights: Weights) -> None:
    """None is known by its tensors: the scale of its latents differs (2B: 1.15258426, 5B: 0.7) and is not in them."""


def cogvideox_names(model: CogVideoX) -> Table:
    """Our parameters -> names of tensors."""
    found: dict[str, str | Source] = {}

    def adaptive(ours: str, theirs: str) -> None:
        found.update(norm_names(f"{ours}.norm", f"{theirs}.norm_layer"))
        for own, name in (("kernel", "weight"), ("bias", "bias")):
            both = tuple(f"{theirs}.{part}.conv.{name}" for part in ("conv_y", "conv_b"))
            found[f"{ours}.modulation.{own}"] = Source(both)

    def norm(ours: str, theirs: str) -> None:
        found.update(norm_names(ours, theirs))

    for side, network, norms in (("encoder", model.encoder, norm), ("decoder", model.decoder, adaptive)):
        found |= linear_names(f"{side}.input", f"{side}.conv_in.conv")
        found |= linear_names(f"{side}.output", f"{side}.conv_out.conv")
        norms(f"{side}.norm", f"{side}.norm_out")
        way = "down" if side == "encoder" else "up"
        names = [f"{side}.{way}_blocks.{i}" for i in range(len(network.levels) - 1)]
        # The middle stands at the coarsest level: at the end of the encoder, at the beginning of the decoder.
        names.insert(len(names) if side == "encoder" else 0, f"{side}.mid_block")
        for i, (level, name) in enumerate(zip(network.levels, names, strict=True)):
            for j in range(len(level.blocks)):
                ours, theirs = f"{side}.levels.{i}.blocks.{j}", f"{name}.resnets.{j}"
                for own, number in (("first", 1), ("second", 2)):
                    norms(f"{ours}.{own}_norm", f"{theirs}.norm{number}")
                    found |= linear_names(f"{ours}.{own}", f"{theirs}.conv{number}.conv")
                found |= linear_names(f"{ours}.skip", f"{theirs}.conv_shortcut")
            found |= linear_names(f"{side}.levels.{i}.resample.space", f"{name}.{way}samplers.0.conv")
    return found


def _to_config(settings: Mapping[str, Any], statistics: Statistics) -> dict[str, Any]:
    """The inverse of ``_of_config``."""
    levels = len(settings["widths"])
    return {
        "_class_name": CLASS,
        "in_channels": settings["channels"],
        "out_channels": settings["channels"],
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        "block_out_channels": settings["widths"],
        "latent_channels": settings["latents"],
        "layers_per_block": settings["blocks"],
        "norm_num_groups": settings["groups"],
        "temporal_compression_ratio": 2 ** settings["temporal"],
        "scaling_factor": statistics.scale(),
        **FIXED,
    }


LAYOUTS = {
    "*.conv_shortcut.weight": (1, 1, 1),
    "*.conv_y.conv.weight": (1, 1, 1),
    "*.conv_b.conv.weight": (1, 1, 1),
    "*samplers.0.conv.weight": (3, 3),
}
"""Of the folder: layers over channels are convolutions, and those that resample are of pictures."""

COGVIDEOX = Family(
    "cogvideox",
    "Apache-2.0 (2B), CogVideoX licence (5B)",
    (CLASS,),
    _of_config,
    _of_weights,
    cogvideox_names,
    writing=Writing(CogVideoX, _to_config, LAYOUTS),
)

"""The published files of the VAEs of Wan 2.1 and 2.2: the originals (``Wan2.1_VAE.pth``) and folders of diffusers."""

from collections.abc import Mapping
from typing import Any

from videogen.encoders.files import Weights
from videogen.encoders.loading import Source, Table
from videogen.errors import UserError
from videogen.tokenizers.public.family import Description, Family, Statistics, Writing
from videogen.tokenizers.wan import Wan

CLASS = "AutoencoderKLWan"

# fmt: off
STATISTICS = {
    16: (
        (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
         -0.9497, 0.2503, -0.2921),
        (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
         2.8251, 1.9160),
    ),
    48: (
        (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.157,
         -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055,
         -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839,
         -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885,
         0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338,
         0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458,
         1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
}
# fmt: on
"""Channels of a latent -> means and deviations, which stand in the code of Wan 2.1 (16) and 2.2 (48), not in files."""


def _of_config(config: Mapping[str, Any]) -> Description:
    patch = int(config.get("patch_size") or 1)
    settings = {
        "width": int(config["base_dim"]),
        "decoder_width": int(config.get("decoder_base_dim") or config["base_dim"]),
        "latents": int(config["z_dim"]),
        "multipliers": tuple(map(int, config["dim_mult"])),
        "blocks": int(config["num_res_blocks"]),
        "temporal": tuple(map(bool, config["temperal_downsample"])),
        "around": bool(config.get("is_residual", False)),
        "patch": patch,
        "channels": int(config.get("in_channels", 3 * patch**2)) // patch**2,
    }
    if config.get("attn_scales"):
        raise UserError(f"an {CLASS} with attn_scales is not one that was published; it cannot be read")
    return _described(settings, tuple(tuple(map(float, config[name])) for name in ("latents_mean", "latents_std")))


def _of_weights(weights: Weights) -> Description | None:
    wanted = ("encoder.conv1.weight", "decoder.head.0.gamma", "conv2.weight")
    if any(name not in weights for name in wanted):
        return None
    pixels, latents = weights[wanted[0]].shape[1], weights[wanted[2]].shape[0]
    if latents not in STATISTICS or pixels not in (3, 12):
        raise UserError(
            f"{weights.path} has latents of {latents} channels and pixels of {pixels}: no published VAE of Wan"
        )
    settings = {
        "width": weights[wanted[0]].shape[0],
        "decoder_width": weights[wanted[1]].shape[0],
        "latents": latents,
        "around": "encoder.downsamples.0.downsamples.0.residual.0.gamma" in weights,
        "patch": 1 if pixels == 3 else 2,
    }
    return _described(settings, STATISTICS[latents])


def _described(settings: dict[str, Any], statistics: tuple[tuple[float, ...], ...]) -> Description:
    return Description({"name": "wan", **settings}, {"name": "mean"}, statistics)


def wan_names(model: Wan) -> Table:
    """Our parameters -> their names in folders of diffusers and, behind the bar, in original files."""
    found: dict[str, str | Source] = {}

    def layer(ours: str, *theirs: str) -> None:
        for own, name in (("kernel", "weight"), ("bias", "bias")):
            found[f"{ours}.{own}"] = "|".join(f"{their}.{name}" for their in theirs)

    def norm(ours: str, *theirs: str) -> None:
        found[f"{ours}.scale"] = "|".join(f"{their}.gamma" for their in theirs)

    def block(ours: str, new: str, old: str) -> None:
        for own, number, place in (("first", 1, 0), ("second", 2, 3)):
            norm(f"{ours}.{own}_norm", f"{new}.norm{number}", f"{old}.residual.{place}")
            layer(f"{ours}.{own}", f"{new}.conv{number}", f"{old}.residual.{(2, 6)[number - 1]}")
        layer(f"{ours}.skip", f"{new}.conv_shortcut", f"{old}.shortcut")

    for side, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        layer(f"{side}.input", f"{side}.conv_in", f"{side}.conv1")
        norm(f"{side}.norm", f"{side}.norm_out", f"{side}.head.0")
        layer(f"{side}.output", f"{side}.conv_out", f"{side}.head.2")
        block(f"{side}.first", f"{side}.mid_block.resnets.0", f"{side}.middle.0")
        block(f"{side}.second", f"{side}.mid_block.resnets.1", f"{side}.middle.2")
        new, old = f"{side}.mid_block.attentions.0", f"{side}.middle.1"
        norm(f"{side}.attention.norm", f"{new}.norm", f"{old}.norm")
        layer(f"{side}.attention.attention.out", f"{new}.proj", f"{old}.proj")
        found[f"{side}.attention.attention.query_key_value.kernel"] = f"{new}.to_qkv.weight|{old}.to_qkv.weight"
        for name, part in (("query", 0), ("value", 2)):
            biases = Source((f"{new}.to_qkv.bias|{old}.to_qkv.bias",), part=(part, part + 1, 3))
            found[f"{side}.attention.attention.{name}_bias"] = biases
        for i, level in enumerate(network.levels):
            count = len(level.blocks)
            for j in range(count):
                block(f"{side}.levels.{i}.blocks.{j}", *(names[0] for names in _level(side, model.around, i, j, count)))
            ours = f"{side}.levels.{i}.resample"
            new, old = (names[1] for names in _level(side, model.around, i, count, count))
            layer(f"{ours}.space", f"{new}.resample.1", f"{old}.resample.1")
            layer(f"{ours}.time", f"{new}.time_conv", f"{old}.time_conv")
    layer("posterior", "quant_conv", "conv1")
    layer("prior", "post_quant_conv", "conv2")
    return found


def _level(side: str, around: bool, i: int, j: int, count: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Of module j of a level, names as a block and as the resampling behind them, of diffusers and original."""
    way, many = ("down", "downsamples") if side == "encoder" else ("up", "upsamples")
    old = f"{side}.{many}.{i}.{many}.{j}" if around else f"{side}.{many}.{i * (count + 1) + j}"
    if side == "encoder" and not around:
        new = f"{side}.down_blocks.{i * (count + 1) + j}"
        return (new, new), (old, old)
    name = f"{side}.{way}_blocks.{i}"
    sampler = f"{way}sampler" if around else f"{way}samplers.0"
    return (f"{name}.resnets.{j}", f"{name}.{sampler}"), (old, old)


def _to_config(settings: Mapping[str, Any], statistics: Statistics) -> dict[str, Any]:
    """The inverse of ``_of_config``."""
    mean, deviation = statistics.by_channel()
    patch, temporal = settings["patch"], settings["temporal"]
    pixels = settings["channels"] * patch**2
    return {
        "_class_name": CLASS,
        "base_dim": settings["width"],
        "decoder_base_dim": None if settings["decoder_width"] == settings["width"] else settings["decoder_width"],
        "z_dim": settings["latents"],
        "dim_mult": settings["multipliers"],
        "num_res_blocks": settings["blocks"],
        "attn_scales": [],
        "temperal_downsample": temporal,
        "dropout": 0.0,
        "latents_mean": mean,
        "latents_std": deviation,
        "is_residual": settings["around"],
        "in_channels": pixels,
        "out_channels": pixels,
        "patch_size": None if patch == 1 else patch,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": patch * 2 ** len(temporal),
    }


LAYOUTS = {
    "*.attentions.0.norm.gamma": (-1, 1, 1),
    "*.gamma": (-1, 1, 1, 1),
    "*.to_qkv.weight": (1, 1),
    "*.attentions.0.proj.weight": (1, 1),
    "*.resample.1.weight": (3, 3),
    "*.conv_shortcut.weight": (1, 1, 1),
    "*quant_conv.weight": (1, 1, 1),
}
"""Of the folder: layers inside frames are convolutions of pictures, and those over channels convolutions of videos."""

WRITING = Writing(Wan, _to_config, LAYOUTS)
WAN = Family("wan", "Apache-2.0", (CLASS,), _of_config, _of_weights, wan_names, writing=WRITING)

"""The published files of VidTok: folders of diffusers, and the originals (``vidtok_….ckpt``, MIT).

The names in originals are those of the published code, which diffusers kept; no published file was at hand. Causal ones
of version 1.0 and 1.1 differ in what they compute and not in their tensors: that is read in the name of the file.
"""

from collections.abc import Mapping
from typing import Any

from videogen.encoders.files import Weights
from videogen.encoders.loading import Source, Table
from videogen.errors import UserError
from videogen.tokenizers.public.family import Description, Family, Statistics, Writing
from videogen.tokenizers.vidtok import VidTok

CLASS = "AutoencoderVidTok"

SKIPPED = ("loss.*", "*.attn_1.k.conv.bias", "*.attn_1.k.bias")
"""The losses of the training, and biases of keys: they add the same to all scores of a query, which changes nothing."""

LEVELS = 8
"""Levels of each dimension of the codes."""


def _of_config(config: Mapping[str, Any]) -> Description:
    multipliers = tuple(map(int, config["ch_mult"]))
    count, latents, discrete = len(multipliers), int(config["z_channels"]), config["regularizer"] == "fsq"
    for name, wrong in (
        ("regularizer", config["regularizer"] not in ("kl", "fsq")),
        ("double_z", bool(config["double_z"]) == discrete),
        ("codebook_size", discrete and int(config["codebook_size"]) != LEVELS**latents),
        ("out_channels", config["out_channels"] != config["in_channels"]),
    ):
        if wrong:
            raise UserError(f"an {CLASS} with {name} {config[name]} is not one that was published; it cannot be read")

    def levels(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        found = config.get(name)
        return default if found is None else tuple(map(int, found))

    settings = {
        "width": int(config["ch"]),
        "multipliers": multipliers,
        "quantizer": _quantizer(latents, discrete),
        "blocks": int(config["num_res_blocks"]),
        "spatial": levels("spatial_ds", tuple(range(count - 1))),
        "temporal": levels("tempo_ds", (count - 2, count - 3)),
        "spatial_up": levels("spatial_us", tuple(range(1, count))),
        "temporal_up": levels("tempo_us", (1, 2)),
        "time": "causal" if config["is_causal"] else "symmetric",
        "channels": int(config["in_channels"]),
    }
    return Description({"name": "vidtok", **settings}, None, skipped=SKIPPED)


def _quantizer(latents: int, discrete: bool) -> dict[str, Any]:
    """The config of the quantizer."""
    if discrete:
        return {"name": "fsq", "levels": (LEVELS,) * latents}
    return {"name": "gaussian", "width": latents}


def _of_weights(weights: Weights) -> Description | None:
    if "encoder.down_temporal.0.block.0.norm1.norm.weight" not in weights:
        return None
    conv = ".conv" if "encoder.conv_in.conv.weight" in weights else ""

    def outputs(name: str) -> int:
        return _shape(weights, name)[0]

    count = _count(weights, "encoder.down.{}.block.0.conv1.weight")
    width, channels = _shape(weights, f"encoder.conv_in{conv}.weight")[:2]
    latents = _shape(weights, f"decoder.conv_in{conv}.weight")[1]
    widths = [outputs(f"encoder.down.{i}.block.0.conv1.weight") for i in range(count)]
    if any(n % width for n in widths):
        raise UserError(f"{weights.path} has levels of {widths} channels, no multiples of {width}: no published VidTok")

    def levels(name: str) -> tuple[int, ...]:
        return tuple(i for i in range(count) if name.format(i) in weights)

    settings = {
        "width": width,
        "multipliers": tuple(n // width for n in widths),
        "quantizer": _quantizer(latents, outputs(f"encoder.conv_out{conv}.weight") == latents),
        "blocks": _count(weights, "encoder.down.0.block.{}.conv1.weight"),
        "spatial": levels("encoder.down.{}.downsample.conv.weight"),
        "temporal": levels("encoder.down_temporal.{}.downsample.mix_factor"),
        "spatial_up": levels("decoder.up.{}.upsample.conv.weight"),
        "temporal_up": levels("decoder.up_temporal.{}.upsample.mix_factor"),
        "time": _time(weights) if conv else "symmetric",
        "channels": channels,
    }
    return Description({"name": "vidtok", **settings}, None, skipped=SKIPPED)


def _time(weights: Weights) -> str:
    """Which version of the causal ones a file is of, by its published name."""
    name = weights.path.name
    if not name.startswith("vidtok_"):
        raise UserError(
            f"{weights.path} is a causal VidTok of version 1.0 or 1.1, which its tensors do not tell; give it its "
            "published name, as vidtok_kl_causal_488_4chn_v1_1.ckpt"
        )
    return "causal" if "_v1_1" in name else "causal_1.0"


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    if name not in weights:
        raise UserError(f"{weights.path} lacks the tensors {name}; is it a published file of VidTok?")
    shape = weights[name].shape
    if len(shape) < 2 or 0 in shape:
        raise UserError(f"{weights.path}: {name} has shape {list(shape)}, where a kernel is needed")
    return shape


def _count(weights: Weights, name: str) -> int:
    return next(i for i in range(len(weights) + 1) if name.format(i) not in weights)


def vidtok_names(model: VidTok) -> Table:
    """Our parameters -> names of tensors, in folders of diffusers and in original files."""
    found: dict[str, str | Source] = {}
    # Convolutions over frames are modules within modules where they are causal.
    conv = ".conv" if model.causal else ""

    def layer(ours: str, theirs: str) -> None:
        found[f"{ours}.kernel"], found[f"{ours}.bias"] = f"{theirs}.weight", f"{theirs}.bias"

    def norm(ours: str, theirs: str) -> None:
        found[f"{ours}.scale"], found[f"{ours}.shift"] = f"{theirs}.norm.weight", f"{theirs}.norm.bias"

    def block(ours: str, theirs: str, conv: str) -> None:
        for own, number in (("first", 1), ("second", 2)):
            norm(f"{ours}.{own}_norm", f"{theirs}.norm{number}")
            layer(f"{ours}.{own}", f"{theirs}.conv{number}{conv}")
        layer(f"{ours}.skip", f"{theirs}.nin_shortcut{conv}")

    for side, way, network in (("encoder", "down", model.encoder), ("decoder", "up", model.decoder)):
        layer(f"{side}.input", f"{side}.conv_in{conv}")
        block(f"{side}.first", f"{side}.mid.block_1", conv)
        block(f"{side}.second", f"{side}.mid.block_2", conv)
        ours, theirs = f"{side}.attention", f"{side}.mid.attn_1"
        norm(f"{ours}.norm", f"{theirs}.norm")
        kernels = tuple(f"{theirs}.{name}{conv}.weight" for name in "qkv")
        found[f"{ours}.attention.query_key_value.kernel"] = Source(kernels)
        found[f"{ours}.attention.query_bias"] = f"{theirs}.q{conv}.bias"
        found[f"{ours}.attention.value_bias"] = f"{theirs}.v{conv}.bias"
        layer(f"{ours}.attention.out", f"{theirs}.proj_out{conv}")
        norm(f"{side}.norm", f"{side}.norm_out")
        layer(f"{side}.output", f"{side}.conv_out{conv}")
        for i, level in enumerate(network.levels):
            # Levels are counted from the pixels down.
            number = i if way == "down" else len(network.levels) - 1 - i
            ours, space, time = f"{side}.levels.{i}", f"{side}.{way}.{number}", f"{side}.{way}_temporal.{number}"
            for j in range(len(level.space)):
                block(f"{ours}.space.{j}", f"{space}.block.{j}", "")
                block(f"{ours}.time.{j}", f"{time}.block.{j}", conv)
            layer(f"{ours}.sides.convolution", f"{space}.{way}sample.conv")
            layer(f"{ours}.frames.convolution", f"{time}.{way}sample.conv{conv}")
            found[f"{ours}.frames.mix"] = f"{time}.{way}sample.mix_factor"
    return found


def _to_config(settings: Mapping[str, Any], statistics: Statistics) -> dict[str, Any]:
    """The inverse of ``_of_config``.

    Raises:
      UserError: its latents are normalised, or of a quantizer that none was published with.
    """
    statistics.check_none()
    quantizer = settings["quantizer"] or {"name": "gaussian"}
    kinds = {"gaussian": "kl", "fsq": "fsq"}
    levels = quantizer.get("levels", ())
    if quantizer["name"] not in kinds or {*levels} - {LEVELS}:
        raise UserError(f"an {CLASS} has latents of a Gaussian, or codes of {LEVELS} levels in each dimension")
    count = statistics.mean.shape[1]
    return {
        "_class_name": CLASS,
        "in_channels": settings["channels"],
        "out_channels": settings["channels"],
        "ch": settings["width"],
        "ch_mult": settings["multipliers"],
        "z_channels": count,
        "double_z": not levels,
        "num_res_blocks": settings["blocks"],
        "spatial_ds": settings["spatial"],
        "spatial_us": settings["spatial_up"],
        "tempo_ds": settings["temporal"],
        "tempo_us": settings["temporal_up"],
        "dropout": 0.0,
        "regularizer": kinds[quantizer["name"]],
        "codebook_size": LEVELS**count if levels else 262_144,
        "is_causal": settings["time"] != "symmetric",
    }


LAYOUTS = {
    "*.attn_1.[qkvp]*.weight": (1, 1, 1),
    "*_temporal.*.block.*.conv?.weight": (3,),
    "*_temporal.*.block.*.conv?.conv.weight": (3,),
    "*.nin_shortcut.weight": (1, 1),
    **{f"*.{way}.*.{name}.weight": (3, 3) for way in ("down", "up") for name in ("block.*.conv?", f"{way}sample.conv")},
}
"""Of the folder: blocks over frames are convolutions of one side, and those inside frames of two."""

WRITING = Writing(VidTok, _to_config, LAYOUTS, SKIPPED, ("quantizer",))
VIDTOK = Family("vidtok", "MIT", (CLASS,), _of_config, _of_weights, vidtok_names, writing=WRITING)

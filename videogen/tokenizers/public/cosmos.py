"""The published files of Cosmos's video tokenizers: folders of diffusers (CV), and the originals (CV and DV).

Originals are ``autoencoder.jit``, or ``encoder.jit`` and ``decoder.jit``, and of some CV ``mean_std.pt`` beside them.
The names in them are those of the published code of Cosmos-Tokenizer and of the program with which diffusers converts
them; no published file was at hand. Their tensors do not say how many pixels a latent stands for: down-samplings that
are switched off have weights as well. That is read in the name of the file or of a folder above it (``…-CV8x8x8``).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videogen.encoders.archives import read_archive
from videogen.encoders.files import Weights
from videogen.encoders.loading import Source, Table
from videogen.errors import UserError
from videogen.tokenizers.cosmos import Cosmos, Network
from videogen.tokenizers.public.family import Description, Family, Statistics, Writing

CLASS = "AutoencoderKLCosmos"
FILES = (("autoencoder.jit",), ("encoder.jit", "decoder.jit"))
STATISTICS = "mean_std.pt"
KIND = re.compile(r"(?<![A-Za-z])(?:([CD]V)(\d{1,2})x(\d{1,2})x\3|[CD]I\d{1,2}x\d{1,2})(?![\dx])")
"""Continuous or discrete, frames and rows of a latent of videos, or that it is of pictures, as published names say."""

BUFFERS = (
    *("*.wavelets", "*._arange", "*.patch_size_buffer"),
    *("*quantizer._levels", "*quantizer._basis", "*quantizer.implicit_codebook"),
)
"""Constants that TorchScript stores: those of the wavelets and of the quantizer, which have no weights."""

KEY_BIASES = ("*.to_k.bias", "*.k.conv3d.bias")
"""They add the same to all scores of a query, which changes nothing."""


def _of_config(config: Mapping[str, Any]) -> Description:
    widths = tuple(map(int, config["encoder_block_out_channels"]))
    patch, latents = int(config["patch_size"]), int(config["latent_channels"])
    attended = {int(config["resolution"]) // patch // 2**i for i in range(len(widths) - 1)}
    for name, wrong in (
        ("patch_type", config["patch_type"] != "haar"),
        ("out_channels", config["out_channels"] != config["in_channels"]),
        ("attention_resolutions", attended & set(map(int, config["attention_resolutions"]))),
    ):
        if wrong:
            raise UserError(f"an {CLASS} with {name} {config[name]} is not one that was published; it cannot be read")
    settings = {
        "widths": widths,
        "decoder_widths": tuple(map(int, config["decode_block_out_channels"])),
        "latents": latents,
        "blocks": int(config["num_layers"]),
        "patch": patch,
        "time": int(config["temporal_compression_ratio"]),
        "side": int(config["spatial_compression_ratio"]),
        "channels": int(config["in_channels"]),
    }
    both = config.get("latents_mean"), config.get("latents_std")
    found = None if both == (None, None) else tuple(np.asarray(each, np.float32) for each in both)
    return _described(settings, latents, found, KEY_BIASES, f"the config.json of an {CLASS}")


def _of_weights(weights: Weights) -> Description | None:
    kind = _kind(weights.path)
    pictures = kind is not None and kind[1] is None
    if "encoder.patcher.wavelets" in weights or (pictures and weights.sources[0].suffix == ".jit"):
        raise UserError(f"{weights.path} is a tokenizer of pictures of Cosmos (CI or DI); only CV and DV can be read")
    one, other = "encoder.conv_in.0.conv3d.weight", "decoder.conv_in.0.conv3d.weight"
    if one not in weights and other not in weights:
        return None
    if one not in weights or other not in weights:
        raise UserError(
            f"{weights.path} is half of a tokenizer of Cosmos; give the folder of encoder.jit and decoder.jit"
        )
    count = _count(weights, "encoder.down.{}.block.0.conv1.0.conv3d.weight")
    blocks = _count(weights, "encoder.down.0.block.{}.conv1.0.conv3d.weight")
    if kind is None or pictures:
        raise UserError(
            f"{weights.path} does not say how many pixels a latent of it stands for; give its folder the published "
            "name, as Cosmos-1.0-Tokenizer-CV8x8x8"
        )
    first, pixels = _shape(weights, one)[:2]
    latents, width = (
        _shape(weights, f"{name}.weight")[0] for name in ("encoder.conv_out.1.conv3d", "quant_conv.conv3d")
    )
    channels = 3
    settings = {
        "widths": (
            first,
            *(_shape(weights, f"encoder.down.{i}.block.0.conv1.0.conv3d.weight")[0] for i in range(count)),
        ),
        "decoder_widths": (
            *(_shape(weights, f"decoder.up.{i}.block.0.conv1.0.conv3d.weight")[0] for i in range(count)),
            _shape(weights, other)[0],
        ),
        "latents": latents,
        "quantizer": {"name": "unquantized", "width": width},
        "blocks": blocks,
        "patch": round((pixels / channels) ** (1 / 3)),
        "time": int(kind[2]),
        "side": int(kind[3]),
        "channels": channels,
    }
    skipped = (*BUFFERS, *KEY_BIASES, *_unused(count, settings))
    if kind[1] == "DV":
        levels = next((weights[name] for name in weights if name.endswith("quantizer._levels")), (8, 8, 8, 5, 5, 5))
        settings["quantizer"] = {"name": "fsq", "levels": tuple(map(int, levels))}
        return Description({"name": "cosmos", **settings}, None, skipped=skipped)
    path = (weights.path if weights.path.is_dir() else weights.path.parent) / STATISTICS
    found = None
    if path.is_file():
        found = tuple(np.asarray(array, np.float32) for array in read_archive(path).values())
    return _described(settings, width, found, skipped, path)


def _described(
    settings: dict[str, Any], width: int, found: Sequence[np.ndarray] | None, skipped: Sequence[str], where: Any
) -> Description:
    """The description of continuous latents; their statistics are ``[channels, latent frames]``, however nested."""
    model = {"name": "cosmos", **settings}
    if found is None:
        return Description(model, None, skipped=skipped)
    if len(found) != 2 or found[0].size != found[1].size or not found[0].size or found[0].size % width:
        sizes = ", ".join(str(each.size) for each in found)
        raise UserError(f"{where} needs means and deviations of {width} channels by latent frames, got {sizes} numbers")
    tables = tuple(each.reshape(width, -1).T for each in found)
    return Description(model, {"name": "mean", "frames": len(tables[0])}, tables, skipped)


def _kind(path: Path) -> re.Match[str] | None:
    """What the published name says, which the file or a folder above it has, the nearest one first."""
    parts = (*reversed(path.absolute().parts), *reversed(path.resolve().parts))
    return next((found for part in parts if (found := KIND.search(part))), None)


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    if name not in weights:
        raise UserError(f"{weights.path} lacks the tensors {name}; is it a published file of Cosmos?")
    shape = weights[name].shape
    if len(shape) != 5:
        raise UserError(f"{weights.path}: {name} has shape {list(shape)}, where a kernel of 5 sides is needed")
    return shape


def _count(weights: Weights, name: str) -> int:
    return next(i for i in range(len(weights) + 1) if name.format(i) not in weights)


def _unused(count: int, settings: Mapping[str, Any]) -> list[str]:
    """Patterns of the weights of resampling that is switched off, which original files may have."""
    space, times = (int(np.log2(max(settings[name] // settings["patch"], 1))) for name in ("side", "time"))
    found = []
    for i in range(count - 1):
        down, up = f"encoder.down.{i}.downsample", f"decoder.up.{count - 1 - i}.upsample"
        found += [f"{down}.*"] if i >= space else [f"{down}.conv2.*"] if i >= times else []
        in_time = 0 < i <= times
        found += [] if in_time else [f"{up}.conv1.*"] if i < space > times else [f"{up}.*"]
    return found


def cosmos_names(model: Cosmos) -> Table:
    """Our parameters -> their names in folders of diffusers and, behind the bar, in original files."""
    found: dict[str, str | Source] = {}

    def both(new: str, old: str, tensor: str) -> str:
        return f"{new}.{tensor}|{old}.{tensor}"

    def layer(ours: str, new: str, old: str) -> None:
        for own, tensor in (("kernel", "weight"), ("bias", "bias")):
            found[f"{ours}.{own}"] = both(new, f"{old}.conv3d", tensor)

    def factorised(ours: str, new: str, old: str) -> None:
        layer(f"{ours}.space", f"{new}.conv_s", f"{old}.0")
        layer(f"{ours}.time", f"{new}.conv_t", f"{old}.1")

    def norm(ours: str, new: str, old: str) -> None:
        found[f"{ours}.scale"] = both(f"{new}.norm", f"{old}.norm", "weight")
        found[f"{ours}.shift"] = both(f"{new}.norm", f"{old}.norm", "bias")

    def block(ours: str, new: str, old: str) -> None:
        for own, number in (("first", 1), ("second", 2)):
            norm(f"{ours}.{own}_norm", f"{new}.norm{number}", f"{old}.norm{number}")
            factorised(f"{ours}.{own}", f"{new}.conv{number}", f"{old}.conv{number}")
        layer(f"{ours}.skip", f"{new}.conv_shortcut", f"{old}.nin_shortcut")

    def attention(ours: str, new: str, old: str) -> None:
        norm(f"{ours}.norm", f"{new}.norm", f"{old}.norm")
        projections = [(f"{new}.to_{name}", f"{old}.{name}.conv3d") for name in "qkv"]
        kernels = tuple(both(*names, "weight") for names in projections)
        found[f"{ours}.attention.query_key_value.kernel"] = Source(kernels)
        found[f"{ours}.attention.query_bias"] = both(*projections[0], "bias")
        found[f"{ours}.attention.value_bias"] = both(*projections[2], "bias")
        layer(f"{ours}.attention.out", f"{new}.to_out.0", f"{old}.proj_out")

    def network(side: str, way: str, own: Network, resampling: Sequence[str]) -> None:
        factorised(f"{side}.input", f"{side}.conv_in", f"{side}.conv_in")
        for ours, new, old in (("first", 0, 1), ("second", 1, 2)):
            block(f"{side}.{ours}", f"{side}.mid_block.resnets.{new}", f"{side}.mid.block_{old}")
        attention(f"{side}.space", f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1.0")
        attention(f"{side}.time", f"{side}.mid_block.temp_attentions.0", f"{side}.mid.attn_1.1")
        norm(f"{side}.norm", f"{side}.norm_out", f"{side}.norm_out")
        factorised(f"{side}.output", f"{side}.conv_out", f"{side}.conv_out")
        for i, level in enumerate(own.levels):
            ours, new = f"{side}.levels.{i}", f"{side}.{way}_blocks.{i}"
            # Original decoders count their levels from the pixels down.
            old = f"{side}.{way}.{i if way == 'down' else len(own.levels) - 1 - i}"
            for j in range(len(level.blocks)):
                block(f"{ours}.blocks.{j}", f"{new}.resnets.{j}", f"{old}.block.{j}")
            for number, name in enumerate(resampling, start=1):
                place = f"{ours}.resample.{name}"
                layer(place, f"{new}.{way}samplers.0.conv{number}", f"{old}.{way}sample.conv{number}")

    network("encoder", "down", model.encoder, ("space", "time", "out"))
    network("decoder", "up", model.decoder, ("time", "space", "out"))
    layer("posterior", "quant_conv", "quant_conv")
    layer("prior", "post_quant_conv", "post_quant_conv")
    return found


def _to_config(settings: Mapping[str, Any], statistics: Statistics) -> dict[str, Any]:
    """The inverse of ``_of_config``.

    Raises:
      UserError: its latents are codes, or of another width than the network has there.
    """
    quantizer = settings["quantizer"] or {}
    if quantizer.get("name", "unquantized") != "unquantized" or quantizer.get("width", 0) not in (
        0,
        settings["latents"],
    ):
        raise UserError(f"an {CLASS} has continuous latents of {settings['latents']} channels, and here are others")
    mean, deviation = ([float(str(value)) for value in table.T.ravel().astype(np.float32)] for table in statistics[1:])
    raw = not statistics.mean.any() and (statistics.deviation == 1).all()
    return {
        "_class_name": CLASS,
        "in_channels": settings["channels"],
        "out_channels": settings["channels"],
        "latent_channels": settings["latents"],
        "encoder_block_out_channels": settings["widths"],
        "decode_block_out_channels": settings["decoder_widths"],
        "attention_resolutions": [32],
        "resolution": 1024,
        "num_layers": settings["blocks"],
        "patch_size": settings["patch"],
        "patch_type": "haar",
        "scaling_factor": 1.0,
        "spatial_compression_ratio": settings["side"],
        "temporal_compression_ratio": settings["time"],
        "latents_mean": None if raw else mean,
        "latents_std": None if raw else deviation,
    }


LINEAR = ("*.conv_shortcut.weight", "*quant_conv.weight", "*attentions.0.to_*.weight", "*samplers.0.conv3.weight")
LAYOUTS = dict.fromkeys(LINEAR, (1, 1, 1))
"""Of the folder: layers over channels are convolutions."""

WRITING = Writing(Cosmos, _to_config, LAYOUTS, KEY_BIASES, ("quantizer",))
COSMOS = Family(
    "cosmos", "NVIDIA Open Model License", (CLASS,), _of_config, _of_weights, cosmos_names, FILES, writing=WRITING
)

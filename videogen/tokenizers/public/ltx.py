"""The published files of the VAEs of LTX-Video and LTX-2: the one original file, and folders of diffusers.

Original files hold the whole model, its VAE under ``vae.``, or the VAE alone. Their header has the config as JSON text,
whose lists of blocks are our stages; where a program has dropped it, the shapes say which published version it is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from videogen.encoders.files import Weights, refuse_unpublished
from videogen.encoders.loading import Table, linear_names, norm_names
from videogen.errors import UserError, shown
from videogen.tokenizers.ltx import Ltx
from videogen.tokenizers.public.family import Description, Family
from videogen.tokenizers.public.ltx_writing import CLASS, CLASS_2, DIFFUSERS_STRIDES, WRITING
from videogen.tokenizers.staged import Blocks, Network, Strided, Widen

ORIGINAL_CLASS = "CausalVideoAutoencoder"

TIME = 0.05
"""That decoders are told by the configs of the original code, which mix the share ``NOISE`` of noise in."""
NOISE = 0.025

STRIDES = {"space": (1, 2, 2), "time": (2, 1, 1), "all": (2, 2, 2)}

FIRST, PREFIXES = "encoder.down_blocks.0.res_blocks.0.conv1.conv.weight", ("vae.", "")
STATISTICS = ("per_channel_statistics.mean-of-means", "per_channel_statistics.std-of-means")

BLOCKS = [["res_x", 4], ["compress_all", 1], ["res_x_y", 1], ["res_x", 3], ["compress_all", 1], ["res_x_y", 1]]
BLOCKS += [["res_x", 3], ["compress_all", 1], ["res_x", 3], ["res_x", 4]]
RESIDUAL = {"residual": True, "multiplier": 2}


def _upwards(counts: Sequence[int], noisy: Sequence[bool]) -> list[list[Any]]:
    """The blocks of a decoder of 0.9.1 and later, from the pixels up."""
    parts = [["res_x", {"num_layers": n, "inject_noise": own}] for n, own in zip(counts, noisy, strict=True)]
    return [each for part in parts for each in (part, ["compress_all", RESIDUAL])][:-1]


VERSIONS = {
    "0.9.0": {"blocks": BLOCKS},
    "0.9.1": {
        "encoder_blocks": BLOCKS,
        "decoder_blocks": _upwards((5, 6, 7, 8), (True, True, True, False)),
        "timestep_conditioning": True,
    },
    "0.9.5": {
        "encoder_blocks": [
            *(["res_x", 4], ["compress_space_res", {"multiplier": 2}], ["res_x", 6]),
            *(["compress_time_res", {"multiplier": 2}], ["res_x", 6], ["compress_all_res", {"multiplier": 2}]),
            *(["res_x", 2], ["compress_all_res", {"multiplier": 2}], ["res_x", 2]),
        ],
        "decoder_blocks": _upwards((5, 5, 5, 5), (False,) * 4),
        "timestep_conditioning": True,
    },
}
"""What the configs of the original files of these versions (and of later ones) say."""


# Folders of diffusers -------------------------------------------------------------------------------------------------


def _of_config(config: Mapping[str, Any]) -> Description:
    if config.get("_class_name") == CLASS_2:
        config = {**DEFAULTS_2, **config}
    config = {**DEFAULTS, **config}
    fixed = {"patch_size_t": 1, "encoder_causal": True, "scaling_factor": 1.0}
    refuse_unpublished(config, fixed, config["_class_name"])
    if config["out_channels"] != config["in_channels"]:
        raise UserError(f"{config['out_channels']} colour channels cannot be decoded from {config['in_channels']}")
    width, encoder = _diffusers_encoder(config)
    decoder_width, decoder = _diffusers_decoder(config)
    settings = {
        "width": width,
        "decoder_width": decoder_width,
        "latents": int(config["latent_channels"]),
        "encoder": encoder,
        "decoder": decoder,
        "patch": int(config["patch_size"]),
        "channels": int(config["in_channels"]),
        "causal": bool(config["decoder_causal"]),
        "frames": tuple(_around(config[f"{side}_spatial_padding_mode"]) for side in ("encoder", "decoder")),
    }
    return _described(settings, bool(config["timestep_conditioning"]), ("latents_mean", "latents_std"))


DEFAULTS = {
    "_class_name": CLASS,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("LTXVideoDownBlock3D",) * 4,
    "decoder_block_out_channels": (128, 256, 512, 512),
    "layers_per_block": (4, 3, 3, 3, 4),
    "decoder_layers_per_block": (4, 3, 3, 3, 4),
    "spatio_temporal_scaling": (True, True, True, False),
    "decoder_spatio_temporal_scaling": (True, True, True, False),
    "decoder_inject_noise": (False,) * 5,
    "downsample_type": ("conv",) * 4,
    "upsample_type": ("spatiotemporal",) * 4,
    "upsample_residual": (False,) * 4,
    "upsample_factor": (1,) * 4,
    "timestep_conditioning": False,
    "patch_size": 4,
    "patch_size_t": 1,
    "scaling_factor": 1.0,
    "encoder_causal": True,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "zeros",
}
"""What a folder's config leaves out: that of 0.9.0 does not know the later settings."""

DEFAULTS_2 = {
    "block_out_channels": (256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5,) * 4,
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_type": ("spatiotemporal",) * 3,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "decoder_causal": True,
    "decoder_spatial_padding_mode": "reflect",
}
"""The same of LTX-2."""


def _around(mode: str) -> str:
    if mode not in ("zeros", "reflect"):
        raise UserError(f"frames padded with {shown(mode)} are of no VAE of LTX that was published")
    return "zeros" if mode == "zeros" else "mirrored"


def _per_block(config: Mapping[str, Any], name: str, count: int) -> list[Any]:
    """The values of a setting for each block; some may be given once for all."""
    value = config[name]
    values = [value] * count if isinstance(value, bool) else list(value)
    if len(values) < count:
        raise UserError(f"{name} has {len(values)} values, and there are {count} blocks")
    return values[:count]


def _diffusers_encoder(config: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Channels behind the first convolution, and the stages."""
    widths, kinds = [int(w) for w in config["block_out_channels"]], set(config["down_block_types"])
    # LTX-2 does not say how wide its first convolution is: as the latents are.
    second = config["_class_name"] == CLASS_2
    folded = second or kinds == {"LTXVideo095DownBlock3D"}
    if not folded and kinds != {"LTXVideoDownBlock3D"}:
        raise UserError(f"an encoder of {', '.join(map(str, sorted(kinds)))} cannot be read")
    widths = [int(config["latent_channels"]), *widths] if second else widths if folded else [*widths, widths[-1]]
    count = len(widths) - 1
    counts = _per_block(config, "layers_per_block", count + 1)[:-1] + list(config["layers_per_block"])[-1:]
    scaled = _per_block(config, "spatio_temporal_scaling", count)
    ways = _per_block(config, "downsample_type", count) if folded else ["conv"] * count
    stages: list[dict[str, Any]] = []
    for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        stages.append({"name": "blocks", "count": int(counts[i])})
        if scaled[i] and ways[i] == "conv":
            stages.append({"name": "strided"})
        elif scaled[i]:
            stages.append({"name": "fold", "width": b, "stride": DIFFUSERS_STRIDES[ways[i]]})
            continue
        if a != b and folded:
            raise UserError(f"a block from {a} to {b} channels that is not folded is of no VAE that was published")
        if a != b:
            stages.append({"name": "widen", "width": b})
    return widths[0], [*stages, {"name": "blocks", "count": int(counts[count])}]


def _diffusers_decoder(config: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Channels behind the first convolution, and the stages."""
    widths = [int(w) for w in config["decoder_block_out_channels"]][::-1]
    count, width = len(widths), widths[0]
    # Of shorter lists the last entries are those of the blocks next to the latents.
    counts, noisy, scaled, factors, around, ways = (
        _per_block(config, name, len(config[name]) if not isinstance(config[name], bool) else count + 1)[::-1]
        for name in (
            *("decoder_layers_per_block", "decoder_inject_noise", "decoder_spatio_temporal_scaling"),
            *("upsample_factor", "upsample_residual", "upsample_type"),
        )
    )
    # This one list is not turned round, and only LTX-2 has it.
    ways = ways[::-1] if config["_class_name"] == CLASS_2 else ["spatiotemporal"] * count
    if min(len(counts), len(noisy)) <= count or min(map(len, (scaled, factors, around, ways))) < count:
        raise UserError(f"the settings of the decoder have too few values for {count} blocks")
    stages: list[dict[str, Any]] = [{"name": "blocks", "count": int(counts[0]), "noise": bool(noisy[0])}]
    for i in range(count):
        factor = int(factors[i])
        a, b = width // factor, widths[i] // factor
        if factor > 1 and (a != b or not scaled[i]) or a != b and (noisy[i + 1] or config["timestep_conditioning"]):
            raise UserError(f"a decoder from {width} to {widths[i]} channels as the config has it cannot be built")
        if a != b:
            stages.append({"name": "widen", "width": b})
        if scaled[i]:
            stride = DIFFUSERS_STRIDES[ways[i]]
            stages.append({"name": "unfold", "width": b, "stride": stride, "around": bool(around[i])})
        stages.append({"name": "blocks", "count": int(counts[i + 1]), "noise": bool(noisy[i + 1])})
        width = b
    return widths[0], stages


# Original files -------------------------------------------------------------------------------------------------------


def _of_weights(weights: Weights) -> Description | None:
    prefix = next((each for each in PREFIXES if each + FIRST in weights), None)
    if prefix is None:
        return None
    config = _header(weights)
    config = VERSIONS[_version(weights, prefix)] if config is None else config
    try:
        settings = _original_settings(config, weights, prefix)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{weights.path}: the config in its header lacks or has another kind of {error}") from None
    names = partial(ltx_names, original=True)
    kept = tuple(prefix + name for name in STATISTICS)
    others = [f"{prefix}per_channel_statistics.*"]
    if prefix:
        first = {name.split(".")[0] for name in weights}
        others += [part if part in weights else f"{part}.*" for part in first - {prefix.removesuffix(".")}]
    described = _described(settings, bool(config.get("timestep_conditioning", False)), kept)
    return described._replace(names=names, prefix=prefix, skipped=others)


def _header(weights: Weights) -> Mapping[str, Any] | None:
    """The config of the VAE in a file's header; ``None`` where there is none."""
    if (text := weights.metadata.get("config")) is None:
        return None
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{weights.path}: the config in its header is no JSON text: {error}") from None
    config = whole.get("vae", whole) if isinstance(whole, dict) else None
    if not isinstance(config, dict):
        raise UserError(f"{weights.path}: the config in its header is no dictionary")
    if config.get("_class_name", ORIGINAL_CLASS) != ORIGINAL_CLASS:
        raise UserError(f"{weights.path} is of a {shown(config['_class_name'])}; of LTX a {ORIGINAL_CLASS} can be read")
    return config


def _version(weights: Weights, prefix: str) -> str:
    """Which published version a file without a config is, as its tensors show it."""
    folded = prefix + "encoder.down_blocks.1.conv.conv.weight" in weights
    timed = prefix + "decoder.last_scale_shift_table" in weights
    if folded and not timed:
        raise UserError(
            f"{weights.path}: its header has no config, and its tensors do not say which VAE of LTX-2 it is"
        )
    return "0.9.5" if folded else "0.9.1" if timed else "0.9.0"


def _original_settings(config: Mapping[str, Any], weights: Weights, prefix: str) -> dict[str, Any]:
    for name, value in (("dims", 3), ("norm_layer", "pixel_norm"), ("latent_log_var", "uniform")):
        if config.get(name, value) != value:
            raise UserError(f"{weights.path}: a VAE of LTX with {name} {shown(config[name])} cannot be read")
    first, last = (weights[f"{prefix}{side}.conv_in.conv.weight"].shape for side in ("encoder", "decoder"))
    patch, both = int(config.get("patch_size", 4)), config.get("spatial_padding_mode")
    encoder = _original_encoder(config.get("encoder_blocks", config.get("blocks")), first[0])
    # Where nothing is said, the code of LTX-2 mirrors frames in the decoder and that of LTX-Video does not; decoders of
    # LTX-Video behind an encoder that folds are all told a time.
    second = any(stage["name"] == "fold" for stage in encoder) and not config.get("timestep_conditioning", False)
    usual = {"encoder": "zeros", "decoder": "reflect" if second else "zeros"}
    modes = [config.get(f"{side}_spatial_padding_mode", both or mode) for side, mode in usual.items()]
    return {
        "width": first[0],
        "decoder_width": last[0],
        "latents": last[1],
        "encoder": encoder,
        "decoder": _original_decoder(config.get("decoder_blocks", config.get("blocks")), last[0]),
        "patch": patch,
        "channels": first[1] // patch**2,
        "causal": bool(config.get("causal_decoder", False)),
        "frames": tuple(map(_around, modes)),
    }


def _blocks(listed: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and settings of the blocks of an original config, where a number is one of layers."""
    for name, settings in listed:
        yield name, {"num_layers": settings} if isinstance(settings, int) else dict(settings)


def _original_encoder(listed: Sequence[Any], width: int) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    for name, settings in _blocks(listed):
        way, _, rest = name.removeprefix("compress_").partition("_")
        wider = width * int(settings.get("multiplier", 2))
        if name == "res_x":
            stages.append({"name": "blocks", "count": int(settings["num_layers"])})
        elif name == "res_x_y":
            stages.append({"name": "widen", "width": wider})
        elif name.startswith("compress_") and way in STRIDES and rest in ("", "x_y"):
            stages.append({"name": "strided", "width": wider if rest else width, "stride": STRIDES[way]})
        elif name.startswith("compress_") and way in STRIDES and rest == "res":
            stages.append({"name": "fold", "width": wider, "stride": STRIDES[way]})
        else:
            raise UserError(f"an encoder of LTX with a block {shown(name)} cannot be read")
        width = stages[-1].get("width", width)
    return stages


def _original_decoder(listed: Sequence[Any], width: int) -> list[dict[str, Any]]:
    """The stages from the latents up; published configs list them from the pixels."""
    stages: list[dict[str, Any]] = []
    for name, settings in list(_blocks(listed))[::-1]:
        way = name.removeprefix("compress_")
        if name == "res_x":
            noise = bool(settings.get("inject_noise", False))
            stages.append({"name": "blocks", "count": int(settings["num_layers"]), "noise": noise})
        elif name == "res_x_y" and not settings.get("inject_noise", False):
            width //= int(settings.get("multiplier", 2))
            stages.append({"name": "widen", "width": width})
        elif name.startswith("compress_") and way in STRIDES:
            width //= int(settings.get("multiplier", 1))
            around = bool(settings.get("residual", False))
            stages.append({"name": "unfold", "width": width, "stride": STRIDES[way], "around": around})
        else:
            raise UserError(f"a decoder of LTX with a block {shown(name)} cannot be read")
    return stages


def _described(settings: dict[str, Any], timed: bool, statistics: tuple[str, ...]) -> Description:
    times = {"time": TIME, "noise_scale": NOISE} if timed else {}
    return Description({"name": "ltx", **settings, **times}, {"name": "mean"}, statistics)


# Names ----------------------------------------------------------------------------------------------------------------


def ltx_names(model: Ltx, original: bool = False) -> Table:
    """Our parameters -> their names in folders of diffusers, or in original files, there without ``vae.``."""
    found: dict[str, Any] = {"time_scale": "decoder.timestep_scale_multiplier"}
    last = "last_" if original else ""
    for side, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        found |= linear_names(f"{side}.input", f"{side}.conv_in.conv")
        found |= linear_names(f"{side}.output", f"{side}.conv_out.conv")
        found |= _time(f"{side}.time", f"{side}.{last}time_embedder")
        found[f"{side}.modulation.table"] = f"{side}.{last}scale_shift_table"
        places = _original_places(side, network) if original else _diffusers_places(side, network)
        for i, (stage, place) in enumerate(zip(network.stages, places, strict=True)):
            ours = f"{side}.stages.{i}"
            # A convolution of its own, or one inside a block that folds; the first is what is written.
            inside = (f"{place}.conv", f"{place}.conv.conv")
            order = inside if isinstance(stage, Strided) and not original else inside[::-1]
            found |= linear_names(f"{ours}.convolution", "|".join(order))
            if isinstance(stage, Widen):
                found |= _block(f"{ours}.block", place, original)
            if isinstance(stage, Blocks):
                # Of a time its own embedding stands beside the blocks.
                found |= _time(f"{ours}.time", f"{place}.time_embedder")
                inner = "res_blocks" if original else "resnets"
                for j in range(len(stage.blocks)):
                    found |= _block(f"{ours}.blocks.{j}", f"{place}.{inner}.{j}", original)
    return found


def _original_places(side: str, network: Network) -> list[str]:
    return [f"{side}.{'down' if side == 'encoder' else 'up'}_blocks.{i}" for i in range(len(network.stages))]


def _diffusers_places(side: str, network: Network) -> list[str]:
    """Where diffusers, which groups stages to blocks, has each of them: its blocks begin with layers, or end so."""
    down, i, places = side == "encoder", 0, []
    way, sampler, widen = ("down", "downsamplers.0", "conv_out") if down else ("up", "upsamplers.0", "conv_in")
    for stage in network.stages if down else list(network.stages)[1:]:
        layers = isinstance(stage, Blocks)
        i += down and layers and bool(places)
        inner = "" if layers else f".{widen}" if isinstance(stage, Widen) else f".{sampler}"
        places.append(f"{side}.{way}_blocks.{i}{inner}")
        i += not down and layers
    middle = f"{side}.mid_block"
    return [*places[:-1], middle] if down else [middle, *places]


def _time(ours: str, theirs: str) -> dict[str, Any]:
    steps = (("inner", "linear_1"), ("outer", "linear_2"))
    inner = [linear_names(f"{ours}.{own}", f"{theirs}.timestep_embedder.{name}") for own, name in steps]
    return inner[0] | inner[1]


def _block(ours: str, theirs: str, original: bool) -> dict[str, Any]:
    """The parameters of a ``Block``."""
    found = norm_names(f"{ours}.skip_norm", f"{theirs}.norm3.norm" if original else f"{theirs}.norm3")
    found |= linear_names(f"{ours}.skip", f"{theirs}.conv_shortcut.conv|{theirs}.conv_shortcut")
    for own, number in (("first", 1), ("second", 2)):
        found |= linear_names(f"{ours}.{own}", f"{theirs}.conv{number}.conv")
        found[f"{ours}.{own}_noise"] = f"{theirs}.per_channel_scale{number}"
    return {**found, f"{ours}.modulation.table": f"{theirs}.scale_shift_table"}


LICENCE = "LTX community licence"
LTX = Family("ltx", LICENCE, (CLASS, CLASS_2), _of_config, _of_weights, ltx_names, writing=WRITING)

"""The text-to-video transformers of Wan 2.1 (1.3B, 14B) and Wan 2.2 (5B), from folders of diffusers and in the names of
the original files."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from videogen.encoders.files import refuse_unpublished
from videogen.encoders.loading import Table, norm_names
from videogen.errors import UserError
from videogen.generators.public.family import Described, Family, sampler, transformer_names

WAN_CLASS = "WanTransformer3DModel"

WAN_TEXT = 512
"""Rows of every text: those behind its last token are zeros, which are attended to."""


def wan_transformer(width: int, layers: int, heads: int, mlp_width: int, epsilon: float = 1e-6) -> dict[str, Any]:
    """The section ``transformer`` of Wan: queries and keys are normalised over the full width; all have biases."""
    return {
        "width": width,
        "layers": layers,
        "heads": heads,
        "mlp_width": mlp_width,
        "norm": {"name": "layer", "epsilon": epsilon},
        "attention": {"qk_norm": "width", "bias": ("query", "key", "value", "out"), "interleaved": True},
        "mlp": {"bias": True},
    }


CLIPS = {
    16: {"frames": 81, "height": 480, "width": 832, "fps": 16.0},
    48: {"frames": 121, "height": 704, "width": 1280, "fps": 24.0},
}
"""Channels of the latents -> the clips that Wan 2.1 and Wan 2.2 (5B) draw unless a command says otherwise."""

SHIFT = 5.0
"""Of the times, where a folder does not say it."""


def wan_described(config: Mapping[str, Any], pipeline: str = "") -> Described:
    """What a ``config.json`` of ``WAN_CLASS`` describes, whatever the ``pipeline``.

    Raises:
      UserError: it is no text-to-video transformer of Wan, or lacks a setting.
    """
    try:
        heads, head = int(config["num_attention_heads"]), int(config["attention_head_dim"])
        section = wan_transformer(
            heads * head, int(config["num_layers"]), heads, int(config["ffn_dim"]), float(config.get("eps", 1e-6))
        )
        patch, channels = tuple(map(int, config["patch_size"])), int(config["in_channels"])
        text_width, out = int(config["text_dim"]), int(config["out_channels"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json of a {WAN_CLASS} lacks or has another kind of {error}") from None
    if config.get("image_dim") or config.get("added_kv_proj_dim") or out != channels:
        raise UserError(
            f"a {WAN_CLASS} with {channels} channels in and {out} out draws from pictures, which is not supported yet; "
            "take a text-to-video one"
        )
    refuse_unpublished(
        config, {"qk_norm": "rms_norm_across_heads", "cross_attn_norm": True, "freq_dim": 256}, WAN_CLASS
    )
    return Described(wan_model(section, patch), channels, text_width)


def wan_model(transformer: dict[str, Any], patch: tuple[int, ...] = (1, 2, 2)) -> dict[str, Any]:
    """The section ``model`` of Wan."""
    return {
        "name": "flow",
        "transformer": transformer,
        "patch": patch,
        "text": {"name": "cross", "length": WAN_TEXT},
        "modulation": "single",
        "prefix_share": 0.0,
    }


def wan_names(model: nnx.Module) -> Table:
    """Our parameters of a ``FlowTransformer`` -> their names in folders of diffusers and, behind the bar, originals."""
    embedder, layer = "condition_embedder", "blocks.{}"
    places = {
        "attention": (f"{layer}.attn1", f"{layer}.self_attn"),
        "cross_attention": (f"{layer}.attn2", f"{layer}.cross_attn"),
    }
    parts = {part: (f"to_{part[0]}", part[0]) for part in ("query", "key", "value")} | {"out": ("to_out.0", "o")}
    parts |= {f"{part}_norm": (f"norm_{part[0]}",) * 2 for part in ("query", "key")}

    def attention(place: str, part: str) -> str:
        return "|".join(f"{module}.{name}" for module, name in zip(places[place], parts[part], strict=True))

    outside = {
        "embed": "patch_embedding",
        "time.inner": f"{embedder}.time_embedder.linear_1|time_embedding.0",
        "time.outer": f"{embedder}.time_embedder.linear_2|time_embedding.2",
        "shared": f"{embedder}.time_proj|time_projection.1",
        "text_inner": f"{embedder}.text_embedder.linear_1|text_embedding.0",
        "text_outer": f"{embedder}.text_embedder.linear_2|text_embedding.2",
        "head": "proj_out|head.head",
    }
    table = transformer_names(
        outside,
        attention,
        up=f"{layer}.ffn.net.0.proj|{layer}.ffn.0",
        down=f"{layer}.ffn.net.2|{layer}.ffn.2",
        tables=(f"{layer}.scale_shift_table|{layer}.modulation", "scale_shift_table|head.modulation"),
    )
    return table | norm_names("stack.layers.cross_norm", f"{layer}.norm2|{layer}.norm3")


def wan_sampler(scheduler: Mapping[str, Any], pipeline: str = "") -> dict[str, Any]:
    """The section ``sampler``: as the original code draws, with the shift of a folder's scheduler."""
    shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or SHIFT)
    return sampler(5.0, {"name": "unipc"}, {"name": "uniform", "start": 0.999}, shift)


def _clip(channels: int) -> dict[str, Any]:
    return CLIPS.get(channels, CLIPS[16])


TEXT = {"length": WAN_TEXT, "cleaned": True}
WAN = Family("wan", WAN_CLASS, wan_described, wan_names, TEXT, wan_sampler, _clip)

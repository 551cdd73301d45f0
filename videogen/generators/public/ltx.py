"""The text-to-video transformer of LTX-Video (2B and 13B; HaCohen et al., 2024), from folders of diffusers and in the
names of the original files."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from videogen.encoders.files import refuse_unpublished
from videogen.encoders.loading import Table
from videogen.errors import UserError
from videogen.generators.public.family import Described, Family, of, sampler, transformer_names

LTX_CLASS = "LTXVideoTransformer3DModel"

LTX_TEXT = 256
"""Tokens of a text at most, by the word of the makers (their first code and diffusers' LTXPipeline cut at 128)."""

LTX_CELL = (8, 32, 32)
"""Frames, rows and columns of pixels of a latent of the published VAEs."""

LTX_CLIP = {"frames": 161, "height": 512, "width": 704, "fps": 25.0}
"""Clips that are drawn unless a command says otherwise: those of diffusers' pipelines."""

CONDITION_PIPELINE = "LTXConditionPipeline"
"""The pipeline of LTX-Video 0.9.5 and later, whose first latent is alone on the clock."""

SHIFT = {"base_image_seq_len": 1024, "base_shift": 0.95, "max_image_seq_len": 4096, "max_shift": 2.05}
"""How the published shift follows the number of tokens (``diffusion.shift_by_exponent``)."""


def ltx_transformer(
    width: int,
    layers: int,
    heads: int,
    *,
    epsilon: float = 1e-6,
    biases: tuple[bool, bool] = (True, True),
    **clock: Any,
) -> dict[str, Any]:
    """The section ``transformer`` of LTX-Video.

    Args:
      width: of the tokens; an MLP is four times as wide.
      layers: blocks.
      heads: of all attentions.
      epsilon: of the norms of the blocks.
      biases: of queries, keys and values, and of what comes out of an attention.
      **clock: settings of ``nn.ClipRotary``.
    """
    bias = (("query", "key", "value") if biases[0] else ()) + (("out",) if biases[1] else ())
    return {
        "width": width,
        "layers": layers,
        "heads": heads,
        "mlp_width": 4 * width,
        "norm": {"name": "rms", "epsilon": epsilon},
        "norms": {"cross": "none", "last": {"name": "layer", "epsilon": 1e-6}},
        "rotary": {"name": "clip", "cell": LTX_CELL, **clock},
        "attention": {"qk_norm": {"name": "width", "epsilon": 1e-5}, "bias": bias, "interleaved": True},
        "mlp": {"bias": True},
    }


def ltx_model(transformer: dict[str, Any]) -> dict[str, Any]:
    """The section ``model`` of LTX-Video; times are shifted by the number of tokens, in training as in sampling."""
    return {
        "name": "flow",
        "transformer": transformer,
        "patch": (1, 1, 1),
        "text": "cross",
        "modulation": "single",
        "prefix_share": 0.0,
        "noise": {"shift": "exponent"},
    }


def ltx_described(config: Mapping[str, Any], pipeline: str = "") -> Described:
    """What a ``config.json`` of ``LTX_CLASS`` describes.

    The clock is what ``causal_temporal_positioning`` says; folders of diffusers do not have it, and there the class of
    the ``pipeline`` decides.

    Raises:
      UserError: it is no text-to-video transformer of LTX-Video, or lacks a setting.
    """
    known = {"activation_fn": "gelu-approximate", "qk_norm": "rms_norm_across_heads", "patch_size": 1}
    known |= {"patch_size_t": 1, "norm_elementwise_affine": False}
    refuse_unpublished(config, known, LTX_CLASS)
    try:
        heads, head = int(config["num_attention_heads"]), int(config["attention_head_dim"])
        layers, channels, text = (int(config[name]) for name in ("num_layers", "in_channels", "caption_channels"))
        cross, out = int(config["cross_attention_dim"]), int(config.get("out_channels") or channels)
        epsilon = float(config.get("norm_eps", 1e-6))
        biases = bool(config.get("attention_bias", True)), bool(config.get("attention_out_bias", True))
        alone = bool(config.get("causal_temporal_positioning", pipeline == CONDITION_PIPELINE))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json of an {LTX_CLASS} lacks or has another kind of {error}") from None
    if cross != heads * head or out != channels:
        raise UserError(
            f"an {LTX_CLASS} with {channels} channels in and {out} out, {heads * head} wide and with texts of {cross}, "
            "is not one that was published: both pairs are equal there"
        )
    section = ltx_transformer(heads * head, layers, heads, epsilon=epsilon, biases=biases, first_alone=alone)
    return Described(ltx_model(section), channels, text)


def ltx_names(model: nnx.Module) -> Table:
    """Our parameters of a ``FlowTransformer`` -> their names in folders of diffusers and, behind the bar, originals."""
    time, layer = "time_embed|adaln_single", "transformer_blocks.{}"
    numbers = {"attention": 1, "cross_attention": 2}
    parts = {part: f"to_{part[0]}" for part in ("query", "key", "value")} | {"out": "to_out.0"}
    parts |= {f"{part}_norm": f"norm_{part[0]}|{part[0]}_norm" for part in ("query", "key")}

    def attention(place: str, part: str) -> str:
        return "|".join(f"{layer}.attn{numbers[place]}.{name}" for name in parts[part].split("|"))

    outside = {
        "embed": "proj_in|patchify_proj",
        "time.inner": of(time, "emb.timestep_embedder.linear_1"),
        "time.outer": of(time, "emb.timestep_embedder.linear_2"),
        "shared": of(time, "linear"),
        "text_inner": "caption_projection.linear_1",
        "text_outer": "caption_projection.linear_2",
        "head": "proj_out",
    }
    mlp = {"up": f"{layer}.ff.net.0.proj", "down": f"{layer}.ff.net.2"}
    return transformer_names(outside, attention, **mlp, tables=(f"{layer}.scale_shift_table", "scale_shift_table"))


def ltx_sampler(scheduler: Mapping[str, Any], pipeline: str = "") -> dict[str, Any]:
    """The section ``sampler``: Euler's steps with guidance 3, at the times of a folder's scheduler and pipeline.

    Raises:
      UserError: the shift follows the tokens by another rule than the published one.
    """
    dynamic = bool(scheduler.get("use_dynamic_shifting", not scheduler))
    if pipeline == CONDITION_PIPELINE and not dynamic:
        # It hands its scheduler the times itself.
        grid, shift = {"name": "linear_quadratic"}, float(scheduler.get("shift", 1.0))
        return sampler(3.0, {"name": "euler"}, grid, shift)
    terminal = scheduler.get("shift_terminal", 0.1 if not scheduler else None)
    grid = {"name": "uniform", "start": 1.0} | ({} if terminal is None else {"last": float(terminal)})
    if not dynamic:
        return sampler(3.0, {"name": "euler"}, grid, float(scheduler.get("shift", 1.0)))
    other = {name: scheduler[name] for name, value in SHIFT.items() if scheduler.get(name, value) != value}
    if other or scheduler.get("time_shift_type", "exponential") != "exponential":
        raise UserError(
            f"a shift of the times with {other or scheduler['time_shift_type']} is not LTX-Video's: {SHIFT}"
        )
    return sampler(3.0, {"name": "euler"}, grid, None)


def _clip(channels: int) -> dict[str, Any]:
    return LTX_CLIP


TEXT = {"length": LTX_TEXT, "cleaned": False}
LTX = Family("ltx", LTX_CLASS, ltx_described, ltx_names, TEXT, ltx_sampler, _clip)

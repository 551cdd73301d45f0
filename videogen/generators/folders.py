"""Generators as folders of diffusers: the ``config.json`` of one and its tensors, the way back of ``public``.

So far those ``flow`` generators that are the transformer of Wan in every part.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from videogen.encoders.loading import tensors_of
from videogen.errors import UserError
from videogen.generators.flow import FlowTransformer
from videogen.generators.flow_sampling import TrainingNoise
from videogen.generators.public.wan import WAN_CLASS, wan_described, wan_names
from videogen.generators.stepping import Generator
from videogen.nn import read_transformer

WAN_FREQUENCIES = 256
"""Cosines and sines of a time."""

WAN_EPSILON = 1e-6
"""Of norms whose section does not say it."""


def wan_folder(generator: Generator, model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``config.json`` and tensors of a transformer of Wan.

    Training and sampling settings are not the network's, and the features of the empty text are the text encoder's:
    neither is in the folder.

    Args:
      generator: with its weights, without low-rank updates.
      model: the section that builds it.

    Raises:
      UserError: it is another network.
    """
    if type(generator) is not FlowTransformer or generator.text_inner is None:
        raise UserError(f"this generator is no transformer from text that a {WAN_CLASS} can be")
    settings = {name: value for name, value in model.items() if name != "name"}
    noise = dict(settings.get("noise") or {})
    if TrainingNoise(**noise).of_bits:
        raise UserError(f"this generator draws bits, and a {WAN_CLASS} draws latents")
    section = read_transformer(settings["transformer"], norm="layer", rotary=True)
    norm = section.norm if isinstance(section.norm, Mapping) else {}
    config = {
        "_class_name": WAN_CLASS,
        "patch_size": generator.patch,
        "num_attention_heads": section.heads,
        "attention_head_dim": section.width // section.heads,
        "in_channels": generator.channels,
        "out_channels": generator.channels,
        "text_dim": generator.text_inner.inputs,
        "freq_dim": WAN_FREQUENCIES,
        "ffn_dim": section.mlp_width,
        "num_layers": section.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": float(norm.get("epsilon", WAN_EPSILON)),
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
    }
    described = {name: value for name, value in wan_described(config).model.items() if name != "name"}
    # Of how it was trained nothing is the network's but what it predicts.
    described |= {
        "noise": {name: value for name, value in noise.items() if name not in ("process", "prediction")},
        "prefix_share": settings.get("prefix_share", 0.0),
        "causal": False,
        "window": (),
    }
    classes = None if generator.label is None else generator.label.size - 1
    if _structure(generator, settings, classes) != _structure(generator, {**settings, **described}, None):
        raise UserError(
            f"this generator is not a {WAN_CLASS} in every part (transformer, patch, text of its rows, modulation, "
            "velocity of a rectified flow, frames that all see each other)"
        )
    names = dict(wan_names(generator))
    names |= dict.fromkeys(_statistics(generator), "/")
    return config, tensors_of(generator, names, layouts=_layouts(generator))


def _structure(generator: FlowTransformer, settings: Mapping[str, Any], classes: int | None) -> Any:
    """What of a network is no array."""

    def build() -> FlowTransformer:
        common = dict(context_width=generator.text_inner.inputs, classes=classes, dtype=jnp.float32, rngs=nnx.Rngs(0))
        return FlowTransformer(generator.channels, generator.grid.shape, **settings, **common)

    return nnx.graphdef(nnx.eval_shape(build))


def _statistics(generator: FlowTransformer) -> list[str]:
    """Parameters of the statistics of latents, which are a part of the VAE in a folder."""
    flat = nnx.to_flat_state(nnx.state(generator))
    return [".".join(map(str, path)) for path, _ in flat if path[0] == "statistics"]


def _layouts(generator: FlowTransformer) -> dict[str, tuple[int, ...]]:
    """A patch is embedded by a convolution, and tables have an axis of one example."""
    return {"patch_embedding.weight": generator.patch, "*scale_shift_table": (1, -1, generator.width)}

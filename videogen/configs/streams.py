"""A video-language model that watches streams and speaks by itself (VideoLLM-online, VideoLLM-MoD).

    --config=streams:stage=watching,size=debug|small|paper,layers=depth|dense

Every frame is ten tokens (at ``debug`` five), its mean and 3 × 3 pooled places, and a separator stands between two
frames: at 8,192 slots and 2 frames per second 744 frames fit, 6.2 minutes. With ``layers=depth`` every second layer
lets a fifth of the tokens of a frame through (VideoLLM-MoD); with ``dense`` all layers see all of them
(VideoLLM-online).

At ``debug`` and ``small`` encoder and decoder are trained here, on streams of shapes. At ``paper`` a published decoder,
Llama 3 8B, and a frozen image encoder, SigLIP L/16 at 384 pixels, are read from folders, and low-rank updates of the
decoder are trained with the projector: --config.parts.language_model.checkpoint=FOLDER
--config.parts.encoder.checkpoint=FOLDER. Rate, tokens, context and shares are the published ones, the rest is ours.
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import stream_text, tuned_decoder
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("watching",)

LLAMA3 = {
    **{"vocabulary_size": 128_256, "width": 4096, "layers": 32, "heads": 32, "hidden": 14_336},
    **{"key_value_heads": 8, "head_width": 128, "epsilon": 1e-5, "rope": {"rope_theta": 500_000.0}, "tied": False},
}
"""Llama 3 8B, as ``encoders.Decoder`` takes it."""

SIGLIP = {
    **{"name": "siglip_image", "patch": 16, "places": 24 * 24, "image_size": 384},
    "sizes": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "kind": "gelu_tanh", "epsilon": 1e-6},
}
"""SigLIP L/16 at 384 pixels."""

CONTEXT = 8192
"""Slots of the main line of a row at ``paper``."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    settings = {"stage": STAGES, "size": ("debug", "small", "paper"), "layers": ("depth", "dense")}
    chosen = parse_argument(argument, **settings)
    size = chosen["size"]
    config = _begun(size)
    {"debug": _debug, "small": _small, "paper": _paper}[size](config)
    if chosen["layers"] == "depth":
        depth = {"debug": 4, "small": 8, "paper": LLAMA3["layers"]}[size]
        config.model.backbone.hooks = tuple({"name": "depth", "layer": i, "share": 0.2} for i in range(1, depth, 2))
    return config


def _begun(size: str) -> ConfigDict:
    """What all sizes share."""
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "watching"
    config.classes = config_dict.placeholder(int)
    config.data.source.name = "shapes_streams"
    config.model = {
        "name": "watching",
        "backbone": {"name": "tower"},
        "vision": {
            "encoder": {"name": "patches"},
            "reducers": ({"name": "grid_and_mean", "side": 3},),
            "projector": {"layers": 2},
        },
    }
    config.session = {"threshold": 0.8, "evict": "oldest", "keep": 0.5}
    config.losses = {"streaming": {"name": "streaming", "weight": 1.0, "silence": 1.0}}
    return config


def _debug(config: ConfigDict) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 700, 350, 350
    config.data.clip.update({"frames": 24, "height": 24, "width": 24, "fps": 2.0})
    config.data.batch_size, config.data.eval_batch_size = 16, 32
    encoder = {"width": 64, "layers": 2, "heads": 4, "mlp_width": 256}
    config.model.vision.encoder = {"name": "patches", "patch": 12, "transformer": encoder, "temporal": 0}
    config.model.vision.reducers = ({"name": "grid_and_mean", "side": 2},)
    config.model.backbone.transformer = {"width": 64, "layers": 4, "heads": 4, "mlp_width": 256, "rotary": True}
    config.ema.decay = 0.98
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 512, "length": 8})
    muon = {"learning_rate": 8e-3, "adam_share": 0.2, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"language": optimizer("muon", **muon)}


def _small(config: ConfigDict) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
    config.data.clip.update({"frames": 64, "height": 48, "width": 48, "fps": 2.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 64, 64, 8
    encoder = {"width": 256, "layers": 4, "heads": 4, "mlp_width": 1024}
    config.model.vision.encoder = {"name": "patches", "patch": 8, "transformer": encoder, "temporal": 0}
    config.model.backbone.transformer = {"width": 384, "layers": 8, "heads": 6, "mlp_width": 1536, "rotary": True}
    config.ema.decay = 0.999
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 1024, "length": 16})
    config.optimizer = {"language": optimizer(learning_rate=6e-4, warmup=1000, b2=0.95, final=0.02)}


def _paper(config: ConfigDict) -> None:
    """A published decoder with low-rank updates, and a frozen public encoder."""
    config.steps, config.eval_every, config.checkpoint_every = 10_000, 1000, 1000
    each = 3 * 3 + 1
    config.data.clip.update({"frames": CONTEXT // (each + 1), "height": 384, "width": 384, "fps": 2.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 64, 8, 16
    lora = {"rank": 128, "alpha": 256}
    tuned_decoder(config, LLAMA3, SIGLIP, lora, length=64, learning_rate=2e-4, warmup=300)

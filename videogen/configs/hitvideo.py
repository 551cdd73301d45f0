"""HiTVideo (AAAI 2026): a causal tokenizer with several layers of codes of different compression, coarse to fine.

    --config=hitvideo:stage=tokenizer|generator,size=debug|small|paper,quantizer=fsq|lfq|vq

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` codes clips of
17 × 128 × 128 in layers of 3 × 4 × 4, 5 × 8 × 8 and 5 × 16 × 16 codes of 16 bits, 0.095 bits per pixel together. The
first layers decode without the others: ``videogen.tokenize --tokens=K`` keeps those that have K tokens.

``generator`` draws the codes of all layers as one row, the coarsest layer first, with rotary positions in common units.

Only the abstract was found: a causal 3-D encoder with several layers of discrete codes, the higher ones coarse and
strongly compressed, and 70 % fewer bits per pixel than flat tokenizers; what its keywords "masked decoding" and
"dynamic encoding" mean was not. Of the generator it says a Llama of 3B, Flan-T5-XL, 3-D rotary positions and guidance;
here the text comes in by cross-attention, at ``paper`` from T5-XXL. All else is our choice: the networks, which are
those of ``magvit2``, the grids and codes of the layers, that a layer codes what those above it leave open
(--config.model.form=conditioned: a convolution of its features and theirs), the drop of layers in training, the losses
and the whole recipe. The perceptual loss, weight 1 in our reading, is off until the user names a file:
--config.losses.perceptual.name=lpips
--config.losses.perceptual.path=FILE --config.losses.perceptual.weight=1
"""

from ml_collections import ConfigDict

from videogen.configs.common import adversarial, loss_terms
from videogen.configs.generators import from_text, next_token, of_captions, videos
from videogen.configs.networks import convolutional
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "generator")

LFQ = {"name": "lfq", "entropy_weight": 0.1, "diversity": 1.0, "commitment_weight": 0.25}
VQ = {"name": "vq", "cosine": True, "codebook_update": "ema", "width": 16}
CODES = {
    "fsq": {
        "debug": {"name": "fsq", "levels": (8, 5, 5, 5)},
        "small": {"name": "fsq", "levels": (8, 8, 8, 5, 5)},
        "paper": {"name": "fsq", "levels": (8, 8, 8, 5, 5, 5)},
    },
    "lfq": {
        # A short run cannot afford all codes alike: with an entropy weight of 0.1 colours are lost.
        "debug": LFQ | {"bits": 10, "entropy_weight": 0.03},
        "small": LFQ | {"bits": 14},
        "paper": LFQ | {"bits": 16},
    },
    "vq": {
        "debug": VQ | {"size": 1024, "decay": 0.95, "restart_threshold": 0.05},
        "small": VQ | {"size": 2**14, "restart_threshold": 0.01},
        "paper": VQ | {"size": 2**16, "restart_threshold": 0.01},
    },
}
"""Quantizer -> size -> its config, the same for every layer: about 10, 14 and 16 bits."""

SWEEPS = {
    "form": [{"model.form": form} for form in ("residual", "conditioned")],
    "layer_drop": [{"model.layer_drop": share} for share in (0.0, 0.25, 0.5)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), quantizer=("fsq", "lfq", "vq"))
    size = chosen["size"]
    if chosen["stage"] == "generator":
        return generator(size, chosen["quantizer"])
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    clips = {"name": "clip", "channels": 128, "multipliers": (2, 4, 4, 4, 4)}
    config.losses = loss_terms(l1=1.0, adversarial=adversarial(clips, lecam=0.001))
    config.model = hitvideo(size, chosen["quantizer"])
    if size == "debug":
        config.steps = 2100
        config.eval_every = 700
        config.checkpoint_every = 700
        config.data.clip.update({"height": 24, "width": 24})
        config.losses.l1.weight = 0.0
        config.losses.l2.weight = 5.0
        config.losses.adversarial.discriminator.update({"channels": 16, "multipliers": (2, 4)})
        config.ema.decay = 0.99
        config.optimizer = {
            "tokenizer": optimizer("muon", learning_rate=3e-3, adam_share=0.7, warmup=30, final=0.02, weight_decay=0.0),
            "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.0),
        }
    elif size == "small":
        config.steps = 20_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.data.batch_size = 32
        config.data.image_batch_size = 8
        config.data.workers = 8
        config.losses.adversarial.discriminator.update({"channels": 64, "multipliers": (2, 4, 4, 4)})
        config.ema.decay = 0.999
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=3e-4, warmup=1000, final=0.02, weight_decay=0.0),
            "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.0),
        }
    else:
        config.steps = 200_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 17, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 128
        config.data.workers = 16
        config.losses.adversarial.weight = 0.1
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=1e-4, warmup=5000, b1=0.0, weight_decay=0.0),
            "discriminator": optimizer(learning_rate=1e-4, warmup=5000, b1=0.0, weight_decay=0.0),
        }
    return config


def generator(size: str, quantizer: str) -> ConfigDict:
    """Next-token prediction of the codes of all layers."""
    config = next_token(size, hitvideo(size, quantizer))
    if size != "paper":
        from_text(config, size, rotary=True)
        config.data.clip = videos(size)
        return config
    of_captions(config)
    config.data.clip = {"frames": 65, "height": 128, "width": 128, "fps": 8.0}
    config.data.own = ("clip",)
    config.data.batch_size = 128
    mlp = {"mlp_width": 8192, "mlp": {"kind": "swiglu"}}
    config.model.transformer = {"layers": 28, "width": 3072, "heads": 24, "rotary": True, **mlp}
    return config


def hitvideo(size: str, quantizer: str) -> ConfigDict:
    """The tokenizer at each size: the networks of ``magvit2``, and two stages below them."""
    config = convolutional(size)
    del config.quantizer
    config.name = "hitvideo"
    # Clips of the debug size are too small for a third grid in space.
    config.layer_strides = ((1, 2, 2), (2, 1, 1) if size == "debug" else (2, 2, 2))
    config.quantizers = {f"layer_{i}": dict(CODES[quantizer][size]) for i in (3, 2, 1)}
    config.code_width = {"debug": 32, "small": 64, "paper": 256}[size]
    config.form = "residual"
    config.layer_drop = 0.25
    return config

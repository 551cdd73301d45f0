"""E-ViLM (Fang et al., 2023; the abstract): a compact model of clips and words that learns from semantic visual tokens.

    --config=evilm:stage=tokenizer|pretraining,size=debug|small|paper

The stage ``tokenizer`` makes ids of what a frozen public encoder sees: an MLP leads from the quantised vectors of a
C-ViViT to the encoder's features, and their cosine is the loss; no pixels are reconstructed, and the pixel decoder
stays as it is. At ``debug`` and ``small`` the teacher is the classifier of shapes that comes with videogen, at
``paper`` CLIP's B/16: --config.parts.semantic.checkpoint=FOLDER. In ``pretraining`` its ids are what masked places
should be told to be, beside masked words and matching (1 of 4).

Sizes of networks, codebook and the teacher were not found; those of ``paper`` are ours, about 15 % of VIOLET's.
"""

from ml_collections import ConfigDict

from videogen.configs.common import frozen
from videogen.configs.networks import cvivit
from videogen.configs.tokenflow import CLIP_B, STAND_IN
from videogen.configs.video_text import MASKED_PLACES, MASKED_WORDS, begun, joint
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "pretraining")

CLIPS = {"debug": (5, 24, 24), "small": (9, 48, 48), "paper": (5, 224, 224)}
PATCHES = {"debug": 6, "small": 8, "paper": 16}

BERTS = {
    "debug": {"width": 64, "layers": 2, "heads": 4},
    "small": {"width": 256, "layers": 4, "heads": 4},
    "paper": {"vocabulary_size": 30_522, "length": 512, "width": 312, "layers": 4, "heads": 12, "hidden": 1200},
}


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES[::-1], size=("debug", "small", "paper"))
    return tokenizer(chosen["size"]) if chosen["stage"] == "tokenizer" else pretraining(chosen["size"])


def codes(size: str) -> ConfigDict:
    """The C-ViViT whose codes are learned from features, on patches as large as those of the network."""
    model = cvivit(size)
    model.patch = (2, PATCHES[size], PATCHES[size])
    if size == "debug":
        # Its encoder has to see more than a patch.
        model.update({"width": 64, "mlp_width": 256, "encoder_layers": (1, 1), "decoder_layers": (0, 0)})
        model.quantizer.size = 64
    else:
        model.decoder_layers = (0, 0)
        model.quantizer.size = {"small": 1024, "paper": 8192}[size]
    return model


def tokenizer(size: str) -> ConfigDict:
    """Ids of what a frozen encoder sees."""
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    config.model = codes(size)
    config.data.clip.update(dict(zip(("frames", "height", "width"), CLIPS[size], strict=True)))
    config.parts.semantic = frozen(CLIP_B if size == "paper" else STAND_IN)
    config.losses = {
        "distillation": {
            "name": "distillation",
            "weight": 1.0,
            "teacher": "semantic",
            "feature": "vectors",
            "objective": "cosine",
            "hidden": (512, 512) if size == "paper" else (64,),
            "side": 0,
            "reading": "last",
            "projected": True,
        }
    }
    settings = {
        "debug": {"name": "muon", "learning_rate": 2e-3, "adam_share": 0.7, "warmup": 30, "weight_decay": 0.0},
        "small": {"learning_rate": 3e-4, "warmup": 500, "weight_decay": 0.0},
        "paper": {"learning_rate": 1e-4, "warmup": 5000, "weight_decay": 0.0},
    }[size]
    config.optimizer = {name: optimizer(**{"final": 0.02, **settings}) for name in ("tokenizer", "distillation")}
    config.optimizer.tokenizer.freeze = ("from_code", "decoder_norm", "pixels")
    if size == "debug":
        config.steps, config.eval_every, config.checkpoint_every = 600, 300, 300
        config.data.batch_size = 16
        config.ema.decay = 0.98
    elif size == "small":
        config.steps, config.eval_every, config.checkpoint_every = 10_000, 1000, 1000
        config.data.batch_size, config.data.workers = 64, 8
        config.ema.decay = 0.999
    else:
        config.steps, config.eval_every, config.checkpoint_every = 100_000, 5000, 5000
        config.data.source.name = "video_folder"
        config.data.batch_size, config.data.workers = 256, 16
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
    return config


def pretraining(size: str) -> ConfigDict:
    """Masked words, masked semantic tokens and matching."""
    inside = {
        "debug": {"width": 64, "layers": 2, "heads": 2, "mlp_width": 256},
        "small": {"width": 256, "layers": 4, "heads": 4, "mlp_width": 1024},
        "paper": {"width": 312, "layers": 6, "heads": 12, "mlp_width": 1248},
    }[size]
    encoder = {"name": "patches", "patch": PATCHES[size], "transformer": inside, "temporal": 0}
    targets = {"codes": {"name": "codes", "frames": "together"}}
    config = begun(size, joint(size, encoder, BERTS[size]), CLIPS[size], targets=targets)
    config.losses = {
        "words": MASKED_WORDS,
        "codes": MASKED_PLACES,
        "matching": {"name": "matching", "reads": "matching", "weight": 1.0, "temperature": 0.05},
    }
    config.parts.tokenizer = frozen(codes(size))
    config.checkpoint.keep_best.metric = "text_to_video_recall_sum"
    if size == "paper":
        config.data.batch_size = 256
        config.steps = 200_000
        config.optimizer = {"model": optimizer(learning_rate=1e-4, warmup=2000, b2=0.98, weight_decay=0.01)}
    return config

"""Selective S4: classes of long clips in linear time, over the half of the tokens that a slower copy finds worth it.

    --config=selective_s4:stage=pretraining|classification,size=debug|small|paper,recipe=s5|all|random

``recipe`` is which tokens the state-space layers see: half of them, as a selector chooses that is guided by the moving
average of the network (S5), all (S4), or a random half. The stage ``pretraining`` (LSMCL) brings short masked windows
of a clip near to long ones that the moving average has seen; ``classification`` goes on from it, or begins anew where
it is called by itself. ``debug`` and ``small`` learn ordered pairs of events that lie far apart in a clip; ``paper``
has ViS4mer's sizes, over the features of a frozen public encoder and a folder of videos with classes:
--config.parts.encoder.checkpoint=FOLDER --config.data.source.path=FOLDER.
"""

from ml_collections import ConfigDict

from videogen.configs.common import frozen
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("pretraining", "classification")

START_FROM = {"classification": "pretraining"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

SELECTIONS = {"s5": "learned", "all": "all", "random": "random"}
"""Recipe -> which tokens are looked at."""

DINO = {
    **{"name": "dinov2", "image_size": 518, "patch": 14, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
}
"""DINOv2 ViT-L/14: features of 1,024 channels, as those of ViS4mer have."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    settings = {"stage": STAGES[::-1], "size": ("debug", "small", "paper"), "recipe": tuple(SELECTIONS)}
    chosen = parse_argument(argument, **settings)
    size = chosen["size"]
    config = base("float32" if size == "debug" else "bfloat16")
    config.data.source.name = "events"
    config.classes = 16
    config.model = {"name": "selective_state_space", "pool": 1, "layers": 3, "states": 32, "dropout": 0.0}
    config.model.selection, config.model.share = SELECTIONS[chosen["recipe"]], 0.5
    {"debug": _debug, "small": _small, "paper": _paper}[size](config)
    config.checkpoint.keep_best.metric = "accuracy"
    if chosen["stage"] == "classification":
        config.task = "clip_classes"
        config.losses = {"classes": {"name": "cross_entropy", "weight": 1.0, "reads": "classes"}}
    else:
        config.task = "long_short"
        config.losses = {
            "windows": {"name": "momentum_contrast", "weight": 1.0, "reads": "windows", "temperature": 0.1}
        }
        frames = config.data.clip.frames
        config.windows = {"short": frames // 4, "long": frames, "masked": 0.5}
    return config


def _debug(config: ConfigDict) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 600, 200, 200
    config.data.clip.update({"frames": 48, "height": 16, "width": 16, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size = 16, 64
    layers = {"width": 48, "layers": 1, "heads": 2, "mlp_width": 96}
    config.model.encoder = {"name": "patches", "patch": 8, "transformer": layers, "temporal": 0}
    config.model.update({"width": 64, "layers": 2, "states": 4, "hidden": 64, "embed": 32})
    config.ema.decay = 0.99
    muon = {"learning_rate": 1e-2, "adam_share": 0.3, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"model": optimizer("muon", **muon)}


def _small(config: ConfigDict) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 20_000, 2000, 2000
    config.data.clip.update({"frames": 256, "height": 32, "width": 32, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 64, 64, 8
    layers = {"width": 192, "layers": 2, "heads": 3, "mlp_width": 768}
    config.model.encoder = {"name": "patches", "patch": 8, "transformer": layers, "temporal": 0}
    config.model.update({"width": 256, "hidden": 128, "embed": 128, "dropout": 0.1})
    config.ema.decay = 0.999
    config.optimizer = {"model": optimizer(learning_rate=5e-4, warmup=500, final=0.02, weight_decay=0.05)}


def _paper(config: ConfigDict) -> None:
    """2,048 tokens of 1,024 channels: 128 frames of 4 × 4 windows over the patches of a frozen encoder."""
    config.steps, config.eval_every, config.checkpoint_every = 20_000, 2000, 2000
    config.classes = 10
    config.data.source.name = "video_folder"
    config.data.source.whole = True
    config.data.clip.update({"frames": 128, "height": 224, "width": 224, "fps": 2.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 16, 16, 16
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parts.encoder = frozen(DINO)
    config.model.encoder = {"name": "frozen", "reading": "last", "side": 224}
    config.model.update({"width": 1024, "pool": 4, "hidden": 256, "embed": 128, "dropout": 0.2})
    config.ema.decay = 0.999
    config.optimizer = {"model": optimizer(learning_rate=1e-3, warmup=500, final=0.0, weight_decay=0.05)}

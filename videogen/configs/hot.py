"""HoT: a pose transformer whose middle layers see a part of the frames, and whose result has all of them.

    --config=hot:size=debug|small|paper,recipe=hot|host

It tells where the joints of a figure are in space from where they are in the pictures of a clip. ``recipe`` is the
hourglass, or the same transformer without one (``host``). ``debug`` and ``small`` learn from a figure that signs before
cameras all around; ``paper`` is MixSTE on 243 frames of Human3.6M's 17 joints, with 81 frames kept behind layer 3, from
a folder of poses: --config.data.source.path=FOLDER.
"""

from ml_collections import ConfigDict

from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("lifting",)

BIASES = ("query", "key", "value", "out")


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), recipe=("hot", "host"))
    size = chosen["size"]
    config = base("float32" if size == "debug" else "bfloat16")
    config.task, config.root = "lifting", 1
    config.data.source.name = "skeletons"
    config.model = {"name": "pose_lifter", "joints": 8}
    config.losses = {"joint_error": {"name": "joint_error", "weight": 1.0, "reads": "poses", "root": 1}}
    config.checkpoint.keep_best = {"metric": "mpjpe", "mode": "min"}
    {"debug": _debug, "small": _small, "paper": _paper}[size](config)
    if chosen["recipe"] == "hot":
        kept = {"debug": 9, "small": 27, "paper": 81}[size]
        start, stop = {"debug": (1, 4), "small": (2, 6), "paper": (3, 8)}[size]
        middle = {"start": start, "stop": stop, "kept": kept, "neighbours": 2, "recover": "queries"}
        config.model.hourglass = middle
    return config


def _debug(config: ConfigDict) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 1500, 500, 500
    config.data.clip.update({"frames": 27, "height": 1, "width": 1, "fps": 25.0})
    config.data.batch_size, config.data.eval_batch_size = 16, 64
    config.model.transformer = {"width": 48, "layers": 4, "heads": 4, "mlp_width": 96}
    config.ema.decay = 0.99
    muon = {"learning_rate": 1e-2, "adam_share": 0.3, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"model": optimizer("muon", **muon)}


def _small(config: ConfigDict) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
    config.data.clip.update({"frames": 81, "height": 1, "width": 1, "fps": 25.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 64, 64, 8
    config.model.transformer = {"width": 256, "layers": 6, "heads": 8, "mlp_width": 512}
    config.ema.decay = 0.999
    config.optimizer = {"model": optimizer(learning_rate=3e-4, warmup=500, final=0.02, weight_decay=0.01)}


def _paper(config: ConfigDict) -> None:
    """MixSTE on Human3.6M; root is its pelvis."""
    config.steps, config.eval_every, config.checkpoint_every = 60_000, 5000, 5000
    config.data.source.name = "pose_folder"
    config.data.clip.update({"frames": 243, "height": 1, "width": 1, "fps": 50.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 4, 4, 8
    config.model.joints, config.root, config.losses.joint_error.root = 17, 0, 0
    norm = {"name": "layer", "epsilon": 1e-6}
    layers = {"width": 512, "layers": 8, "heads": 8, "mlp_width": 1024, "norm": norm, "qk_norm": False}
    config.model.transformer = {**layers, "attention": {"bias": BIASES}, "mlp": {"kind": "gelu", "bias": True}}
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.optimizer = {"model": optimizer(learning_rate=4e-5, b2=0.999, weight_decay=0.1, final=0.0)}

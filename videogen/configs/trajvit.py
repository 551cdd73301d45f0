"""TrajViT: a token for every moving thing of a clip instead of every box of pixels, trained against captions.

    --config=trajvit:size=debug|small|paper,recipe=things|tubes

``recipe`` is the tower of clips: tokens of things, or a 3-D-patch vision transformer of the same size to compare with.
Label maps are those of the source where it draws its clips, else a stand-in by k-means: --config.data.source.segments.
The loss is the symmetric contrastive one alone. A one-frame clip is an image (--config.data.clip.frames=1).
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import stream_text
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("trajvit",)


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), recipe=("things", "tubes"))
    size = chosen["size"]
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "retrieval"
    config.data.source.segments = "own"
    config.model = {
        "name": "two_towers",
        "video": {"name": chosen["recipe"]},
        "text": {"name": "transformer", "end": config_dict.placeholder(int)},
        "embed": 64,
        # A temperature of 0.07 at first, which stays between 0.001 and 0.5.
        "scale": {"start": 1 / 0.07, "largest": 1000.0, "smallest": 2.0},
        "views": ("text",),
    }
    config.losses = {"contrastive": {"name": "contrastive", "weight": 1.0, "reads": ("text",)}}
    config.checkpoint.keep_best.metric = "text_to_video_recall_sum"
    {"debug": _debug, "small": _small, "paper": _paper}[size](config, chosen["recipe"] == "things")
    return config


def _tower(config: ConfigDict, things: bool, transformer: dict, widths: tuple, most: int, box: tuple) -> None:
    """The tower of clips, and the things that the source links."""
    config.model.video.transformer = transformer
    if things:
        config.model.video.update({"widths": widths, "latents": 2, "things": most})
        config.data.source.things = most
    else:
        config.model.video.size = box
        config.data.source.segments = config_dict.placeholder(str)


def _debug(config: ConfigDict, things: bool) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 1200, 400, 400
    config.data.clip.update({"frames": 8, "height": 24, "width": 24, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size = 32, 64
    config.ema.decay = 0.99
    layers = {"width": 64, "layers": 2, "heads": 2, "mlp_width": 256}
    _tower(config, things, layers, (32, 64), 4, (2, 8, 8))
    config.model.text.update({"width": 64, "layers": 2, "heads": 2})
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 512, "length": 24})
    muon = {"learning_rate": 4e-3, "adam_share": 0.5, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"towers": optimizer("muon", **muon)}


def _small(config: ConfigDict, things: bool) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
    config.data.clip.update({"frames": 16, "height": 64, "width": 64, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 256, 256, 8
    config.ema.decay = 0.999
    config.model.embed = 256
    layers = {"width": 384, "layers": 6, "heads": 6, "mlp_width": 1536}
    _tower(config, things, layers, (64, 128, 256, 512), 8, (2, 16, 16))
    config.model.text.update({"width": 256, "layers": 6, "heads": 4})
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 1024, "length": 32})
    config.optimizer = {"towers": optimizer(learning_rate=5e-4, warmup=1000, b2=0.98, final=0.02, weight_decay=0.02)}


def _paper(config: ConfigDict, things: bool) -> None:
    """A transformer of ViT-L's size over up to 128 things of 16 frames; text by a transformer of BERT's size."""
    config.steps, config.eval_every, config.checkpoint_every = 100_000, 5000, 5000
    config.data.source.name, config.data.source.segments = "video_folder", "stand_in"
    config.data.clip.update({"frames": 16, "height": 224, "width": 224, "fps": 4.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 256, 64, 16
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "dots"
    config.model.embed = 256
    layers = {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096}
    # Stages as those of ResNet-18, which need sides that divide by 32.
    _tower(config, things, layers, (64, 128, 256, 512), 128, (2, 16, 16))
    config.model.text.update({"width": 768, "layers": 12, "heads": 12})
    config.text = stream_text({"name": "huggingface", "path": "", "vocabulary_size": 30_522, "length": 64})
    config.optimizer = {"towers": optimizer(learning_rate=1e-4, warmup=1000, final=0.0, weight_decay=0.02)}

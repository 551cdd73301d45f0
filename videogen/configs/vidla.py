"""VidLA (Rizve et al., CVPR 2024): two towers, of which that of clips has tokens of several scales of time.

    --config=vidla:size=debug|small|paper

Every layer of CLIP's image encoder gets attention over time at each place before it, which is 0 at first, and attends
over [CLS], 3 levels of 4 tokens and the patches of all frames by a mask. Clips are compared with two texts of each,
``text`` (the caption) and ``subtitle``; the loss is the mean of both. At ``debug`` and ``small`` the source of shapes
gives the second text (--config.data.source.subtitle). At ``paper`` both towers begin as CLIP's B/32:
--config.parts.clip_image.checkpoint=FOLDER --config.parts.clip_text.checkpoint=FOLDER; a folder of videos has one text
of each, so --config.model.views=('text',) --config.losses.contrastive.reads=('text',) are the default there. Clips of
about 13, 30 and 60 seconds are mixed in the published data, which is up to the data here.
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import frozen, stream_text
from videogen.configs.retrieval import CLIP_IMAGE, CLIP_TEXT
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("retrieval",)

IMAGES = {
    "debug": {
        **{"image_size": 24, "patch": 6, "embed": 64},
        "sizes": {"width": 64, "layers": 2, "heads": 2, "hidden": 256, "kind": "gelu", "epsilon": 1e-5},
    },
    "small": {
        **{"image_size": 48, "patch": 8, "embed": 256},
        "sizes": {"width": 256, "layers": 6, "heads": 4, "hidden": 1024, "kind": "gelu", "epsilon": 1e-5},
    },
    "paper": CLIP_IMAGE,
}
"""The image encoder at each size."""

TEXTS = {"debug": (64, 2, 2), "small": (256, 6, 4)}
"""Width, layers and heads of the tower of texts."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    size = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"))["size"]
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "retrieval"
    views = ("text",) if size == "paper" else ("text", "subtitle")
    image = IMAGES[size]
    config.model = {
        "name": "two_towers",
        "video": {"name": "multi_scale", "model": image, "levels": 3, "each": 4, "rate": 2},
        "text": {"name": "transformer"},
        "embed": image["embed"],
        "scale": {"start": 1 / 0.07, "largest": 100.0, "smallest": config_dict.placeholder(float)},
        "views": views,
    }
    config.losses = {"contrastive": {"name": "contrastive", "weight": 1.0, "reads": views}}
    config.checkpoint.keep_best.metric = "text_to_video_recall_sum"
    if size == "paper":
        _paper(config)
        return config
    config.data.source.subtitle = True
    side, (width, layers, heads) = image["image_size"], TEXTS[size]
    config.data.clip.update({"frames": 8, "height": side, "width": side, "fps": 8.0})
    config.model.text = {"name": "transformer", "width": width, "layers": layers, "heads": heads}
    config.model.text.end = config_dict.placeholder(int)
    vocabulary, length = {"debug": (512, 24), "small": (1024, 32)}[size]
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": vocabulary, "length": length})
    if size == "debug":
        config.steps, config.eval_every, config.checkpoint_every = 1200, 400, 400
        config.data.batch_size, config.data.eval_batch_size = 32, 64
        config.ema.decay = 0.99
        muon = {"learning_rate": 4e-3, "adam_share": 0.5, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
        config.optimizer = {"towers": optimizer("muon", **muon)}
    else:
        config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
        config.data.batch_size, config.data.eval_batch_size, config.data.workers = 256, 256, 8
        config.ema.decay = 0.999
        config.optimizer = {"towers": optimizer(learning_rate=5e-4, warmup=1000, b2=0.98, final=0.02)}
    return config


def _paper(config: ConfigDict) -> None:
    """CLIP B/32 on 12 frames; three epochs of 800 million pairs in batches of 4096."""
    config.steps, config.eval_every, config.checkpoint_every = 586_000, 5000, 5000
    config.data.source.name = "video_folder"
    config.data.clip.update({"frames": 12, "height": 224, "width": 224, "fps": 1.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 4096, 64, 16
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "full"
    config.model.scale.start = 100.0
    config.model.text = {"name": "clip", "model": CLIP_TEXT}
    config.parts.clip_image = frozen({"name": "clip_image", **CLIP_IMAGE})
    config.parts.clip_text = frozen({"name": "clip_text", **CLIP_TEXT})
    network, layers = "towers.video.network", "transformer.stack.layers"
    same = ("patches", "class_token", "positions", "first_norm", "projection", "transformer.norm")
    config.start_from.paths = (
        *((f"{network}.{part}", f":clip_image.{part}") for part in same),
        (f"{network}.{layers}.block", f":clip_image.{layers}"),
        ("towers.text.network", ":clip_text"),
    )
    config.text = stream_text({"name": "huggingface", "path": "", "vocabulary_size": 49_408, "length": 77})
    # Falls to 4e-8.
    settings = {"learning_rate": 2e-5, "warmup": 5000, "b2": 0.98, "final": 0.002, "weight_decay": 0.2}
    config.optimizer = {"towers": optimizer(**settings)}

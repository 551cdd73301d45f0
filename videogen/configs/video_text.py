"""What the systems with one transformer over clips and words share; plain data."""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import stream_text
from videogen.configs.networks import convolutional
from videogen.defaults import base, optimizer

WORDS = {"debug": ("bpe", 512, 24), "small": ("bpe", 1024, 32), "paper": ("huggingface", 30_522, 32)}
"""Size -> text tokenizer, its vocabulary (of the published BERT at ``paper``), and tokens of a text."""

MASKED_WORDS = {"name": "cross_entropy", "reads": "words", "weight": 1.0}
MASKED_PLACES = {"name": "cross_entropy", "reads": "codes", "weight": 1.0}
"""Terms of the loss of masked words, and of masked places whose targets are ids."""


def begun(size: str, network: dict, clip: tuple[int, int, int], **model: object) -> ConfigDict:
    """A stage that trains one transformer over clips and words.

    Args:
      size: debug, small or paper.
      network: ``{name: joint | shared, …}``.
      clip: frames, height and width.
      **model: further settings of the model.
    """
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "video_text"
    config.classes = config_dict.placeholder(int)
    config.model = {
        "name": "video_text",
        "network": network,
        "masking": {"video": 0.15, "blocks": 0.5, "words": 0.15, "whole_words": False, "with_words": True},
        "targets": {},
        "matching": "choice",
        "negatives": 3,
        "embed": 0,
        "scale": {"start": 20.0, "largest": 100.0, "smallest": config_dict.placeholder(float)},
    }
    config.model.update(model)
    config.data.clip.update(dict(zip(("frames", "height", "width"), clip, strict=True)))
    config.data.own = ("source", "clip")
    name, vocabulary, length = WORDS[size]
    config.text = stream_text({"name": name, "path": "", "vocabulary_size": vocabulary, "length": length})
    if size == "debug":
        config.steps, config.eval_every, config.checkpoint_every = 1500, 500, 500
        config.data.batch_size, config.data.eval_batch_size = 32, 16
        config.ema.decay = 0.99
        muon = {"learning_rate": 4e-3, "adam_share": 0.5, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
        config.optimizer = {"model": optimizer("muon", **muon)}
    elif size == "small":
        config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
        config.data.batch_size, config.data.eval_batch_size, config.data.workers = 128, 32, 8
        config.ema.decay = 0.999
        config.optimizer = {"model": optimizer(learning_rate=3e-4, warmup=1000, final=0.02, weight_decay=0.01)}
    else:
        config.eval_every = config.checkpoint_every = 5000
        config.data.source.name = "video_folder"
        config.data.clip.fps = 1.0
        config.data.eval_batch_size, config.data.workers = 32, 16
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
    return config


def joint(size: str, encoder: dict, bert: dict) -> dict:
    """A joint transformer behind a video encoder; sizes of a transformer that is trained here are four times as wide
    inside of its MLPs."""
    return {
        "name": "joint",
        "encoder": encoder,
        "bert": bert if size == "paper" else {**bert, "hidden": 4 * bert["width"]},
    }


def image_tokenizer(size: str) -> ConfigDict:
    """The stage of a tokenizer of pictures, the stand-in for the image dVAE that gives ids of masked places."""
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    config.model = image_codes(size)
    config.losses = {"l2": {"name": "l2", "weight": 1.0}}
    side = {"debug": 16, "small": 48, "paper": 128}[size]
    config.data.clip.update({"frames": 1, "height": side, "width": side})
    muon = {"adam_share": 0.7, "warmup": 30, "final": 0.02, "weight_decay": 0.0}
    if size == "debug":
        config.steps, config.eval_every, config.checkpoint_every = 600, 300, 300
        config.data.batch_size = 32
        config.ema.decay = 0.98
        config.optimizer = {"tokenizer": optimizer("muon", learning_rate=3e-3, **muon)}
    elif size == "small":
        config.steps, config.eval_every, config.checkpoint_every = 10_000, 1000, 1000
        config.data.batch_size, config.data.workers = 128, 8
        config.ema.decay = 0.999
        config.optimizer = {"tokenizer": optimizer(learning_rate=3e-4, warmup=500, final=0.02, weight_decay=0.0)}
    else:
        config.steps, config.eval_every, config.checkpoint_every = 200_000, 5000, 5000
        config.data.source.name = "video_folder"
        config.data.batch_size, config.data.workers = 256, 16
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.optimizer = {"tokenizer": optimizer(learning_rate=1e-4, warmup=5000, final=0.02, weight_decay=0.0)}
    return config


def image_codes(size: str) -> ConfigDict:
    """Convolutions over every frame by itself, and one code of each place; 8,192 codes of 8 × 8 pixels at ``paper``."""
    model = convolutional(size, "vq")
    model.time_kernel = 1
    model.temporal_strides = (1,) * len(model.temporal_strides)
    model.quantizer.size = {"debug": 64, "small": 1024, "paper": 8192}[size]
    return model

"""MAGVIT-v2 (Yu et al., ICLR 2024): causal 3-D convolutional tokenizer with lookup-free quantization.

    --config=magvit2:stage=image|tokenizer|generator,size=debug|small|paper,quantizer=lfq|fsq|vq

``image`` trains the network with kernels of one frame on images; ``tokenizer`` begins with its weights, inflated to 3-D
(each 2-D kernel becomes the last slice in time, so that images are coded as before). ``launch/local.py`` runs both; by
hand the second takes --config.start_from.run=DIRECTORY, without which it begins from nothing.

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` is the published
setting (the deeper tokenizer, about 370M parameters, on 17 × 128 × 128); loss weights, batches, steps and the schedule
of the entropy loss are those of the closest public reproduction, since the paper's were not found; nor was the length
of the warm-up. The perceptual loss is off until the user names a file: --config.losses.perceptual.name=lpips
--config.losses.perceptual.path=FILE --config.losses.perceptual.weight=0.1. It stands in the place of the published
one, which compares the logits of a ResNet-50.

``generator`` is the masked transformer of ``magvit`` (the large one, 307M parameters) on these codes, each
embedded and predicted as two factors: 2^18 codes are 2 × 2^9. ``quantizer`` puts another family of about as many codes
into the same network, to compare them.
"""

from ml_collections import ConfigDict

from videogen.configs import magvit
from videogen.configs.common import adversarial, loss_terms
from videogen.configs.networks import convolutional
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("image", "tokenizer", "generator")

START_FROM = {"tokenizer": "image"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

SWEEPS = {
    "tokenizer_learning_rate": [{"optimizer.tokenizer.learning_rate": rate} for rate in (5e-4, 1.5e-3, 5e-3)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), quantizer=("lfq", "fsq", "vq"))
    if chosen["stage"] == "image":
        return image(chosen["size"], chosen["quantizer"])
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"], chosen["quantizer"])
    return generator(chosen["size"], chosen["quantizer"])


def image(size: str, quantizer: str = "lfq") -> ConfigDict:
    """The tokenizer's stage, with 2-D kernels and images in the place of clips."""
    config = tokenizer(size, quantizer)
    config.start_from.inflate = ""
    config.model.time_kernel = 1
    config.model.temporal_strides = (1,) * len(config.model.temporal_strides)
    config.data.clip.frames = 1
    config.data.image_batch_size = 0
    # Public code: ten epochs of nine million images in batches of 256.
    config.steps = {"debug": 300, "small": 10_000, "paper": 350_000}[size]
    if size == "paper":
        config.data.batch_size = 256
    if size == "debug":
        config.eval_every = config.checkpoint_every = 150
    return config


def tokenizer(size: str, quantizer: str = "lfq") -> ConfigDict:
    """The causal tokenizer of videos; it begins with the inflated weights of the stage ``image``."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    config.start_from.inflate = "last"
    clips = {"name": "clip", "channels": 128, "multipliers": (2, 4, 4, 4, 4)}
    # The public reproduction's penalty of 10 has no factor 1/2.
    config.losses = loss_terms(l2=5.0, adversarial=adversarial(clips, r1=20.0, lecam=0.001))
    config.model = convolutional(size, quantizer)
    if size == "debug":
        config.steps = 2100
        config.eval_every = 700
        config.checkpoint_every = 700
        config.data.clip.update({"height": 24, "width": 24})
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
        # Public reproduction: one epoch of 9.3 million clips.
        config.steps = 73_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 17, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 128
        config.data.image_batch_size = 0
        config.data.workers = 16
        config.losses.adversarial.update({"weight": 0.1, "r1_every": 20})
        if quantizer == "lfq":
            # Three times as heavy, falling to its weight in 2000 steps.
            falling = {"start": 3.0, "final": 1.0, "steps": 2000}
            config.losses.entropy = {"name": "quantizer", "loss": "entropy", "weight": falling}
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=1e-4, warmup=5000, b1=0.0, weight_decay=0.0, clip=0.0),
            "discriminator": optimizer(learning_rate=8e-5, warmup=5000, b1=0.0, weight_decay=0.0, clip=0.0),
        }
    return config


def generator(size: str, quantizer: str) -> ConfigDict:
    """MAGVIT's masked transformer on these codes, each split into two."""
    config = magvit.generator(size, model="L")
    config.parts.tokenizer.model = convolutional(size, quantizer)
    config.model.head.factors = 2
    config.data.clip.frames = {"debug": 5, "small": 17, "paper": 17}[size]
    config.sampler.steps = 24
    return config

"""Phenaki (Villegas et al., ICLR 2023): C-ViViT tokenizer and text-conditioned masked transformer.

    --config=phenaki:stage=tokenizer|generator,size=debug|small|paper

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` is the published
setting (sections 2.1, 2.2 and 5). The perceptual loss is off until the user names a file:
--config.losses.perceptual.name=lpips --config.losses.perceptual.path=FILE --config.losses.perceptual.weight=0.1
What differs from the paper: the perceptual loss on video features, of weight 1 (I3D), is left out; a moving average of
the weights, which the paper does not mention, is kept; text goes through T5-XXL v1.1, as the size was not found.
"""

from ml_collections import ConfigDict

from videogen.configs.common import adversarial, loss_terms, t5_part, t5_text
from videogen.configs.generators import begun, from_text
from videogen.configs.networks import cvivit
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "generator")

SWEEPS = {
    "tokenizer_learning_rate": [{"optimizer.tokenizer.learning_rate": rate} for rate in (5e-4, 1.5e-3, 5e-3)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"))
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"])
    return generator(chosen["size"])


def tokenizer(size: str) -> ConfigDict:
    """The C-ViViT tokenizer."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    frames = {"name": "frame", "channel_multiplier": 1.0}
    config.losses = loss_terms(l2=1.0, adversarial=adversarial(frames, r1=10.0))
    config.model = cvivit(size)
    discriminator = optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.5)
    if size == "debug":
        config.steps = 900
        config.eval_every = 450
        config.checkpoint_every = 450
        config.data.clip.update({"height": 24, "width": 24})
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=1.5e-3, warmup=30, final=0.02),
            "discriminator": discriminator,
        }
    elif size == "small":
        config.steps = 20_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.data.batch_size = 32
        config.data.image_batch_size = 8
        config.data.workers = 8
        config.ema.decay = 0.999
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=5e-4, warmup=1000, final=0.02),
            "discriminator": discriminator,
        }
    else:
        config.steps = 1_000_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 11, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 128
        config.data.image_batch_size = 32
        config.data.workers = 16
        config.losses.adversarial.weight = 0.1
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "dots"
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=1e-4, warmup=100_000, horizon=1_000_000, clip=10.0),
            "discriminator": optimizer(learning_rate=1e-4, warmup=100_000, b1=0.5, weight_decay=0.0, clip=10.0),
        }
    return config


def generator(size: str) -> ConfigDict:
    """The masked transformer, from text."""
    config = begun(size, cvivit(size))
    config.model = {"name": "masked", "training_schedule": "linear", "condition_drop": 0.1}
    config.model.head = {"name": "categorical", "bias": True}
    # Layers of a critic that is trained along and decides which codes decoding keeps; 0 leaves it out.
    config.model.critic = {"layers": 0, "weight": 1.0}
    config.sampler = {
        "name": "maskgit",
        "steps": 24,
        "schedule": "cosine",
        "temperature": 1.0,
        "final_temperature": 1.0,
        "choice_temperature": 4.0,
        "top_k": 0,
        "guidance_scale": 7.0,
    }
    if size == "debug":
        from_text(config, size)
        config.data.clip.update({"height": 24, "width": 24})
        config.model.training_schedule = "cosine"
        # What a short run lacks in steps it makes up for with locality: rotary positions and phenaki-pytorch's PEG.
        config.model.transformer.update({"rotary": True, "position_generator": True})
        config.sampler.update({"steps": 24, "guidance_scale": 3.0, "choice_temperature": 1.0})
    elif size == "small":
        from_text(config, size)
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.data.image_batch_size = 16
        config.optimizer = {"generator": optimizer(learning_rate=5e-4, warmup=1000, final=0.02)}
    else:
        config.steps = 1_000_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 11, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 512
        config.data.image_batch_size = 128
        config.data.workers = 16
        # The sheet gives no T5 size; the 4.6B encoder of T5-XXL v1.1 has width 4096.
        config.text = t5_text(length=77)
        config.parts.text_encoder = t5_part()
        config.model.transformer = {"width": 2048, "layers": 24, "heads": 32, "mlp_width": 8192}
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = {"generator": optimizer(learning_rate=1e-4, warmup=10_000, horizon=4_000_000, clip=10.0)}
    return config

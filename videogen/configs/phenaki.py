"""Phenaki (Villegas et al., ICLR 2023): C-ViViT tokenizer and text-conditioned masked transformer.

    --config=phenaki:stage=tokenizer|generator,size=debug|small|paper

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` is the published
setting (sections 2.1, 2.2 and 5). The perceptual loss is off until the user names a file:
--config.losses.perceptual.name=lpips --config.losses.perceptual.path=FILE --config.losses.perceptual.weight=0.1
What differs from the paper: the perceptual loss on video features, of weight 1 (I3D), is left out; a moving average of
the weights, which the paper does not mention, is kept; text goes through T5-XXL v1.1, as the size was not found.
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import adversarial, base, bpe_text, frozen, loss_terms, optimizer
from videogen.configuration import parse_argument

STAGES = ("tokenizer", "generator")

SWEEPS = {
    "tokenizer_learning_rate": [{"optimizer.tokenizer.learning_rate": rate} for rate in (5e-4, 1.5e-3, 5e-3)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"))
    return {"tokenizer": tokenizer, "generator": generator}[chosen["stage"]](chosen["size"])


def tokenizer(size: str) -> ConfigDict:
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    frames = {"name": "frame", "channel_multiplier": 1.0}
    config.losses = loss_terms(l2=1.0, adversarial=adversarial(frames, r1=10.0))
    config.model = cvivit(size)
    discriminator = optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.5)
    if size == "debug":
        config.steps, config.eval_every, config.checkpoint_every = 900, 450, 450
        config.data.clip.update({"height": 24, "width": 24})
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=1.5e-3, warmup=30, final=0.02),
            "discriminator": discriminator,
        }
    elif size == "small":
        config.steps, config.eval_every, config.checkpoint_every = 20_000, 1000, 1000
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.data.batch_size, config.data.image_batch_size, config.data.workers = 32, 8, 8
        config.ema.decay = 0.999
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=5e-4, warmup=1000, final=0.02),
            "discriminator": discriminator,
        }
    else:
        config.steps, config.eval_every, config.checkpoint_every = 1_000_000, 5000, 5000
        config.data.clip = {"frames": 11, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size, config.data.image_batch_size, config.data.workers = 128, 32, 16
        config.losses.adversarial.weight = 0.1
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "dots"
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=1e-4, warmup=100_000, horizon=1_000_000, clip=10.0),
            "discriminator": optimizer(learning_rate=1e-4, warmup=100_000, b1=0.5, weight_decay=0.0, clip=10.0),
        }
    return config


def cvivit(size: str) -> ConfigDict:
    """C-ViViT at each size (paper: section 2.1, about 50M parameters)."""
    quantizer = {"name": "vq", "cosine": True, "codebook_update": "ema", "decay": 0.99, "restart_threshold": 0.01}
    if size == "debug":
        quantizer |= {"size": 96, "width": 16, "decay": 0.95, "restart_threshold": 0.05}
        shape = {"patch": (2, 4, 4), "width": 128, "heads": 4, "mlp_width": 512}
        # Codes that see nothing but their own patch are the easiest to predict: a short generator run needs that.
        depth = {"encoder_layers": (0, 0), "decoder_layers": (3, 2)}
    elif size == "small":
        quantizer |= {"size": 4096, "width": 32}
        shape = {"patch": (2, 8, 8), "width": 384, "heads": 6, "mlp_width": 1536}
        depth = {"encoder_layers": (4, 4), "decoder_layers": (4, 4)}
    else:
        # Codebook loss 1, commitment 0.25 (section 2.1).
        quantizer = {"name": "vq", "cosine": True, "codebook_update": "gradient", "size": 8192, "width": 32}
        shape = {"patch": (2, 8, 8), "width": 512, "heads": 8, "mlp_width": 2048}
        depth = {"encoder_layers": (4, 4), "decoder_layers": (4, 4)}
    return ConfigDict({"name": "cvivit", **shape, **depth, "quantizer": quantizer})


def generator(size: str) -> ConfigDict:
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "generator"
    config.classes = config_dict.placeholder(int)
    # Model and hash are filled in from the checkpoint when the run starts.
    config.parts.tokenizer = frozen(cvivit(size))
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
        "guidance_scale": 6.0,
    }
    if size == "debug":
        config.steps, config.eval_every, config.checkpoint_every = 3200, 1600, 800
        config.data.clip.update({"height": 24, "width": 24})
        config.text = bpe_text(vocabulary_size=512, length=24, width=128, layers=1, heads=4)
        config.model.training_schedule = "cosine"
        config.model.transformer = {"width": 128, "layers": 4, "heads": 4, "mlp_width": 512}
        # What a short run lacks in steps it makes up for with locality: rotary positions and phenaki-pytorch's PEG.
        config.model.transformer.update({"rotary": True, "position_generator": True})
        config.sampler.update({"steps": 24, "guidance_scale": 2.0, "choice_temperature": 1.0})
        config.optimizer = {
            "generator": optimizer(
                "muon", learning_rate=1.2e-2, adam_share=0.2, warmup=50, final=0.02, weight_decay=0.0
            )
        }
    elif size == "small":
        config.steps, config.eval_every, config.checkpoint_every = 50_000, 2500, 2500
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.data.batch_size, config.data.image_batch_size, config.data.workers = 64, 16, 8
        config.text = bpe_text(vocabulary_size=4096, length=64, width=512, layers=4, heads=8)
        config.model.transformer = {"width": 512, "layers": 12, "heads": 8, "mlp_width": 2048}
        config.ema.decay = 0.999
        config.optimizer = {"generator": optimizer(learning_rate=5e-4, warmup=1000, final=0.02)}
    else:
        config.steps, config.eval_every, config.checkpoint_every = 1_000_000, 5000, 5000
        config.data.clip = {"frames": 11, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size, config.data.image_batch_size, config.data.workers = 512, 128, 16
        # The sheet gives no T5 size; the 4.6B encoder of T5-XXL v1.1 has width 4096.
        config.text = {
            "encoder": {"name": "t5", "path": "", "width": 4096, "architecture": {}},
            "tokenizer": {"name": "huggingface", "path": "", "length": 77},
        }
        config.model.transformer = {"width": 2048, "layers": 24, "heads": 32, "mlp_width": 8192}
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = {"generator": optimizer(learning_rate=1e-4, warmup=10_000, horizon=4_000_000, clip=10.0)}
    return config

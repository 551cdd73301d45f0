"""KARL (Duggal et al., 2025): one pass of the encoder decides how many tokens a clip needs for an error.

    --config=karl:stage=tokenizer|generator,size=debug|small|paper,model=small|tiny|base|semi-large

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` has the published
networks on images of 256 × 256, which are clips of one frame; clips at ``debug`` and ``small`` are our extension. Every
step has two passes of the same weights: ``estimate`` draws a number of tokens and finds the error they reach;
``complete`` is asked for that error with all tokens and learns that those behind the drawn number are not needed.
``generator``, which the paper does not have, draws the codes one after another from text.

What differs from the paper: encoder and decoder see and write pixels, where the published ones stand on the latents of
a frozen image tokenizer (MAGE's VQGAN or MAR's KL-VAE), learn its codes in a first stage and tune its decoder in a
second; ``paper`` has the recipe of the second stage alone, 400 epochs of ImageNet-100, from fresh weights. Positions
are sines and not learned. The two passes have discriminators of their own, those of the first one for each range of
numbers of tokens; they learn in every step (published: in 8 of 9), and their weight goes from 0.2 to 0.8 in a straight
line (published: at once, after 100 epochs). Images are not cropped at random, and the moments of AdamW are ours: the
published ones were not found. The perceptual losses, published weight 1, are off until the user names a file:
--config.losses.estimate_perceptual.name=lpips --config.losses.estimate_perceptual.path=FILE
--config.losses.estimate_perceptual.weight=1, and the same of ``complete_perceptual``.
"""

from typing import Any

from ml_collections import ConfigDict

from videogen.configs.common import adversarial, take_clip_of
from videogen.configs.generators import of_a_row
from videogen.configs.networks import one_d
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "generator")

MODELS = {
    "small": {"width": 1024, "layers": 8, "heads": 8, "mlp_width": 4096},
    "tiny": {"width": 512, "layers": 8, "heads": 8, "mlp_width": 2048},
    "base": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
    "semi-large": {"width": 1024, "layers": 16, "heads": 16, "mlp_width": 4096},
}
"""The published encoders, karl_small and so on; the decoders are their equals."""

SWEEPS = {"threshold": [{"model.lengths.threshold": threshold} for threshold in (0.55, 0.75, 0.95)]}
"""Name -> variants, for launch/sweep.py."""

EPOCH = 126_689 // 144
"""Steps of an epoch of ImageNet-100 at the published batch of the second stage, 18 on each of 8 devices."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), model=tuple(MODELS))
    size = chosen["size"]
    if chosen["stage"] == "generator":
        return of_a_row(size, karl(size, chosen["model"]))
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "adaptive"
    config.model = karl(size, chosen["model"])
    queries = config.model.queries
    # Multiples of a sixteenth of all tokens; the published ones are 16 … 368 of 256.
    config.passes = {"step": queries // 16, "easier_at": queries // 8, "replaced": 0.45}
    config.losses = two_passes(queries)
    take_clip_of(config, config.model)
    if size == "debug":
        config.steps = 5000
        config.eval_every = 2500
        config.checkpoint_every = 2500
        discriminator = {"patch": (4, 4, 4), "width": 64, "layers": 2, "heads": 2}
        config.losses.estimate_adversarial.discriminator.of.update(discriminator)
        config.losses.complete_adversarial.discriminator.update(discriminator)
        muon = dict(learning_rate=1e-2, adam_share=0.3, warmup=50, final=0.02, weight_decay=0.0)
        config.optimizer = optimizers(optimizer("muon", **muon), learning_rate=1e-4, weight_decay=0.0, b1=0.5)
    elif size == "small":
        config.steps = 30_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.data.batch_size = 32
        config.data.workers = 8
        config.ema.decay = 0.999
        rate = dict(learning_rate=1e-4, weight_decay=0.05, warmup=1000, final=0.1)
        config.optimizer = optimizers(optimizer(**rate), **rate)
    else:
        config.steps = 400 * EPOCH
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.source.name = "video_folder"
        config.data.batch_size = 144
        config.data.workers = 16
        weight = {"start": 0.2, "final": 0.8, "steps": 100 * EPOCH}
        config.losses = two_passes(queries, weight=weight, start=20 * EPOCH, adaptive=True)
        config.losses.estimate_adversarial.discriminator.of.patch = (1, 16, 16)
        config.losses.complete_adversarial.discriminator.patch = (1, 16, 16)
        config.ema.decay = 0.9999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "dots"
        # 1e-4 for a batch of 256, in proportion to the batch.
        rate = dict(learning_rate=1e-4 * 144 / 256, weight_decay=0.05, warmup=20 * EPOCH, clip=3.0)
        config.optimizer = optimizers(optimizer(**rate), **rate)
    return config


def optimizers(tokenizer: ConfigDict, **discriminators: float) -> dict[str, ConfigDict]:
    """The optimizer of each parameter group."""
    return {
        "tokenizer": tokenizer,
        "discriminator": optimizer(**discriminators),
        "second_discriminator": optimizer(**discriminators),
    }


def two_passes(queries: int, **judged: Any) -> ConfigDict:
    """The losses of both passes, each of weight 1, and the adversarial ones, which are off until they get a weight."""
    transformer = {"name": "transformer", "patch": (4, 8, 8), "width": 384, "layers": 6, "heads": 6}
    by_tokens = {"name": "by_tokens", "buckets": 8, "size": queries // 8, "of": dict(transformer)}
    terms = {}
    for name, group, judge in (
        ("estimate", "discriminator", by_tokens),
        ("complete", "second_discriminator", transformer),
    ):
        terms[f"{name}_l1"] = {"name": "l1", "weight": 1.0, "reads": name}
        terms[f"{name}_halting"] = {"name": "halting", "weight": 1.0, "reads": f"{name}_halting"}
        terms[f"{name}_perceptual"] = {"name": "untrained", "weight": 0.0, "path": "", "reads": name}
        terms[f"{name}_adversarial"] = adversarial(judge, objective="hinge", reads=name, group=group, **judged)
    return ConfigDict(terms)


def karl(size: str, model: str) -> ConfigDict:
    """The tokenizer at each size, told an error and asked which codes it needs."""
    config = one_d(size, MODELS[model])
    config.name = "karl"
    # The first pass of training draws up to 23 sixteenths of the codes.
    config.longest = config.queries // 16 * 23
    config.error = 0.05
    config.lengths = {"name": "halting", "threshold": 0.75, "cut": False}
    return config

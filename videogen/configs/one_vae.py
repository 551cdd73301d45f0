"""OneVAE (2025): a causal VAE that is trained for continuous latents and for codes of them at once.

    --config=one_vae:stage=vae|tokenizer|generator,size=debug|small|paper,model=81616|888|161616,codes=fsq|vq|lfq

``vae`` trains the continuous network; ``tokenizer`` begins with its weights (those of its moving average), puts codes
between its latents, and trains both uses: every clip of a step takes one of the two ways. ``generator``, which is ours,
draws the codes one place after another, the first frame first. ``launch/local.py`` runs all three; by hand the second
takes --config.start_from.run=DIRECTORY, without which it begins from nothing. The trained tokenizer gives codes;
--config.model.quantizer.mode=continuous, or ``tokenizer.in_mode("continuous")``, gives latents. An evaluation measures
both (``psnr``, ``continuous_psnr``).

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour. ``paper`` has the published
networks at 33 × 256 × 256: 8 × 8 × 8, 8 × 16 × 16 or 16 × 16 × 16 pixels to a place of two codes of 64,000; the last
two code the first frame on a grid that is twice as fine. ``codes`` puts other quantizers in the place of FSQ, of about
as many codes.

Published: widths, strides, latents, codes, first frames, learning rate, moving average, clipping, precision and the
weights of pixel, perceptual and adversarial losses. Ours, since they were not found: the proportion of the two ways
(1:1, drawn for each clip), the weight of the KL divergence, batches, steps, moments of AdamW; that codes begin as the
first channels of the latents, rounded; that both stages have the same first frame; one discriminator over space and
time without spectral norm. Norms and up-sampling stand where ``magvit2`` has them. The perceptual loss, published
weight 0.1, is off until the user names a file:
--config.losses.perceptual.name=lpips --config.losses.perceptual.path=FILE --config.losses.perceptual.weight=0.1
"""

from ml_collections import ConfigDict

from videogen.configs.common import adversarial, loss_terms
from videogen.configs.generators import from_text, next_token, of_captions, videos
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("vae", "tokenizer", "generator")

START_FROM = {"tokenizer": "vae"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

MODELS = {
    "888": {"multipliers": (1, 2, 4, 4), "temporal_strides": (2, 2, 2), "first_frame": "plain"},
    "81616": {"multipliers": (1, 2, 4, 4, 4), "temporal_strides": (1, 2, 2, 2), "first_frame": "fine"},
    "161616": {"multipliers": (1, 2, 4, 4, 4), "temporal_strides": (2, 2, 2, 2), "first_frame": "fine"},
}
"""The published networks, by the pixels that a place stands for along time, height and width."""

SWEEPS = {
    "codes": [{":codes": name} for name in ("fsq", "vq", "lfq")],
    "discrete_share": [{"model.quantizer.discrete_share": share} for share in (0.25, 0.5, 1.0)],
}
"""Name -> variants, for launch/sweep.py; a key that begins with a colon is an argument of the config."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(
        argument,
        stage=("tokenizer", "vae", "generator"),
        size=("debug", "small", "paper"),
        model=("81616", "888", "161616"),
        codes=("fsq", "vq", "lfq"),
    )
    size, joint = chosen["size"], chosen["stage"] == "tokenizer"
    if chosen["stage"] == "generator":
        return generator(size, chosen["model"], chosen["codes"])
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    clips = {"name": "clip", "channels": 128, "multipliers": (2, 4, 4, 4, 4)}
    config.losses = loss_terms(l1=1.0, adversarial=adversarial(clips, objective="hinge"))
    config.model = one_vae(size, chosen["model"], chosen["codes"] if joint else "")
    if size == "debug":
        config.steps = 900
        config.eval_every = config.checkpoint_every = 300
        config.data.clip.update({"height": 24, "width": 24})
        config.losses.update({"l1": {"name": "l1", "weight": 0.0}, "l2": {"name": "l2", "weight": 5.0}})
        config.losses.adversarial.discriminator.update({"channels": 16, "multipliers": (2, 4)})
        config.ema.decay = 0.99
        rate = dict(learning_rate=3e-3, adam_share=0.7, warmup=30, final=0.02, weight_decay=0.0)
        config.optimizer = {
            "tokenizer": optimizer("muon", **rate),
            "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.0),
        }
    elif size == "small":
        config.steps = 10_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.data.batch_size = 32
        config.data.workers = 8
        config.losses.adversarial.discriminator.update({"channels": 64, "multipliers": (2, 4, 4, 4)})
        config.ema.decay = 0.999
        config.optimizer = both(learning_rate=3e-4, warmup=500, final=0.02, weight_decay=0.0)
    else:
        config.steps = 200_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 33, "height": 256, "width": 256, "fps": 16.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 32
        config.data.workers = 16
        config.losses.adversarial.update({"weight": 0.1, "start": 20_000})
        config.ema.decay = 0.9999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = both(learning_rate=5e-5, warmup=1000, schedule="constant", weight_decay=0.0, clip=1.0)
    return config


def generator(size: str, model: str, codes: str) -> ConfigDict:
    """Next-token prediction of the codes, of which every place has two."""
    config = next_token(size, one_vae(size, model, codes))
    if size != "paper":
        from_text(config, size, rotary=True)
        config.data.clip = videos(size)
        return config
    of_captions(config)
    config.data.clip = {"frames": 33, "height": 256, "width": 256, "fps": 16.0}
    config.data.batch_size = 128
    config.model.transformer = {"layers": 24, "width": 2048, "heads": 32, "mlp_width": 8192, "rotary": True}
    return config


def both(**rates: float | str) -> dict[str, ConfigDict]:
    """AdamW with these rates for the tokenizer and the discriminator."""
    return {name: optimizer(**rates) for name in ("tokenizer", "discriminator")}


def one_vae(size: str, model: str, codes: str = "") -> ConfigDict:
    """The network at each size, with codes of this kind beside its latents, or without any."""
    if size == "debug":
        levels = {"width": 16, "multipliers": (1, 2, 4), "blocks": 1, "temporal_strides": (1, 2)}
        channels, kl_weight, first_frame = 4, 1e-3, "fine"
    elif size == "small":
        levels = {"width": 48, "multipliers": (1, 2, 4, 4), "blocks": 2, "temporal_strides": (1, 2, 2)}
        channels, kl_weight, first_frame = 32, 1e-4, "fine"
    else:
        levels = {"width": 96, "blocks": 2, **MODELS[model]}
        first_frame = levels.pop("first_frame")
        channels, kl_weight = 256, 1e-6
    levels["spatial_strides"] = (2,) * len(levels["temporal_strides"])
    quantizer = {"name": "two_paths", "width": channels, "kl_weight": kl_weight}
    if codes:
        quantizer |= {"codes": CODES[codes][size], "mode": "discrete", "discrete_share": 0.5, "reach": 2.0}
    shared = {"middle_blocks": 1, "attention": True, "norm_groups": 0, "padding": "zero"}
    return ConfigDict({"name": "one_vae", **levels, **shared, "first_frame": first_frame, "quantizer": quantizer})


def groups(**base: object) -> dict:
    """Two codes at every place, each of half of the channels."""
    return {"name": "product", "groups": 2, "base": base}


LFQ = {"name": "lfq", "diversity": 1.0, "commitment_weight": 0.25}
VQ = {"name": "vq", "cosine": True, "codebook_update": "ema"}
CODES = {
    "fsq": {
        "debug": groups(name="fsq", levels=(8, 8)),
        "small": groups(name="fsq", levels=(8, 8, 8, 5, 5)),
        "paper": groups(name="fsq", levels=(8, 8, 8, 5, 5, 5)),
    },
    "lfq": {
        # A short run cannot afford all codes alike: with an entropy weight of 0.1 colours are lost.
        "debug": groups(**LFQ, bits=6, entropy_weight=0.03),
        "small": groups(**LFQ, bits=14, entropy_weight=0.1),
        "paper": groups(**LFQ, bits=16, entropy_weight=0.1),
    },
    "vq": {
        "debug": groups(**VQ, size=64, width=4, decay=0.95, restart_threshold=0.05),
        "small": groups(**VQ, size=2**14, width=16, restart_threshold=0.01),
        "paper": groups(**VQ, size=2**16, width=16, restart_threshold=0.01),
    },
}
"""Quantizer -> size -> its config: two of about 6, 14 and 16 bits; the paper's is FSQ."""

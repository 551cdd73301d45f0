"""DiCoDe (Li et al., 2024): 16 continuous tokens of every key frame; a diffusion transformer fills in what is between.

    --config=dicode:stage=vae|tokenizer|detokenizer|language|sampled,size=debug|small|paper,model=100M|0.8B|1B|3B,clips=1|2

A clip has a key frame at each end, and neighbouring clips share one: n clips of 16 frames are n + 1 key frames,
16·(n + 1) tokens and 15n + 1 frames. The stages are those of ``divot``: ``tokenizer`` trains the resampler of key
frames and the denoiser that is told the tokens of both ends, by the error of the denoiser's prediction v;
``detokenizer`` the denoiser alone, with 5 % of the examples told the null, which is what the tokenizer makes of the
all-zero video; ``language`` is a causal language model that draws vector after vector (``configs.language.dicode``);
``sampled`` goes on with tokens that a generator has drawn beside their clips. ``launch/local.py`` runs all but that.

What differs from the paper, of whose body only the abstract and one file of code were found: the video diffusion
transformer takes the place of the published U-Net, and its parameter count is ours, so that no number of the paper can
be compared with it. The width of a token, the depth of the resampler, how both ends are told, the training and the
settings of the sampler were not found: they are those of ``divot``. Vectors of the image encoder get a learned place.
"""

from ml_collections import ConfigDict

from videogen.configs import divot, language
from videogen.configs.divot import (
    denoised,
    denoiser_alone,
    denoising,
    language_stage,
    network,
    perceiver,
    sampled,
    seen,
)
from videogen.configuration import parse_argument

STAGES = divot.STAGES

START_FROM, PARTS = divot.START_FROM, divot.PARTS

ENCODER = ("places", "resampler")
"""Paths of what leads to the tokens, frozen once they are there."""

SWEEPS = {"guidance": divot.SWEEPS["guidance"], "width": [{"model.width": width} for width in (8, 16, 32)]}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(
        argument,
        stage=("tokenizer", "vae", "detokenizer", "language", "sampled"),
        size=("debug", "small", "paper"),
        model=("100M", *(name for name in language.MODELS if name not in ("100M", *language.QUERIES))),
        clips=("1", "2"),
    )
    if chosen["stage"] == "vae":
        return divot.vae(chosen["size"])
    if chosen["stage"] == "language":
        return language_stage(language.dicode, chosen["size"], dicode(chosen["size"]), chosen["model"], chosen["clips"])
    config = tokenizer(chosen["size"])
    if chosen["stage"] != "tokenizer":
        denoiser_alone(config, chosen["size"], ENCODER)
    if chosen["stage"] == "sampled":
        sampled(config)
    return config


def tokenizer(size: str) -> ConfigDict:
    """Tokens and denoiser together."""
    config = denoised(size, dicode(size))
    if size == "debug":
        config.steps = 2500
        config.eval_every = 1250
        config.checkpoint_every = 500
    return config


def dicode(size: str) -> ConfigDict:
    """What is trained at each size (paper: clips of 16 frames, 16 tokens of 256 channels for a key frame)."""
    if size == "debug":
        shape = {"clip": (5, 24, 24), "queries": 8, "width": 16, "context_width": 128}
        shape["resampler"] = perceiver(128, 2, 4, query_scale=1.0)
        transformer, patch = network(128, 4, 4), (1, 2, 2)
    elif size == "small":
        shape = {"clip": (17, 64, 64), "queries": 16, "width": 64, "context_width": 384}
        shape["resampler"] = perceiver(384, 4, 6)
        transformer, patch = network(384, 8, 6), (1, 2, 2)
    else:
        shape = {"clip": (16, 256, 256), "queries": 16, "width": 256, "context_width": 1024}
        shape["resampler"] = perceiver(1024, 4, 16)
        transformer, patch = {"width": 1152, "layers": 28, "heads": 16, "mlp_width": 4608}, (1, 2, 2)
    shape["denoiser"] = {"transformer": transformer, "patch": patch, "modulation": "zero"}
    return ConfigDict({"name": "dicode", **shape, "denoising": denoising(size, ("head", "tail")), "vision": seen()})

"""Divot (Ge et al., CVPR 2025): 64 continuous tokens of a clip, learned from a diffusion transformer that is told them.

    --config=divot:stage=vae|tokenizer|detokenizer|language|sampled,size=debug|small|paper,model=mistral|vicuna,clips=1|2

``vae`` is the tokenizer whose latents are denoised. ``tokenizer`` trains what leads from frames to tokens, and the
denoiser that is told them, together, by the error of the denoiser's prediction v and nothing else; no tokens are
dropped. ``detokenizer`` trains the denoiser alone, and 5 % of the examples are told the null, which is what the
tokenizer makes of the all-zero video; then decoding is guided (--config.model.denoising.guidance_scale=1: not at all).
``language`` is the language model over text and these tokens (``configs.language.divot``): it draws clips, all tokens
of one in one pass of learned queries, and says what clips show; ``clips=2`` adds stories. ``sampled`` goes on with the
denoiser on tokens that a generator has drawn beside their clips, a cache that ``videogen.tokenize --from=GENERATOR``
writes. ``launch/local.py`` runs all but ``sampled``.

The image encoder is the frozen part ``vision``: at ``paper`` OpenCLIP's ViT-H/14, whose published folder the user
names, --config.parts.vision.checkpoint=FOLDER; at ``debug`` and ``small`` the classifier stand-in for the shapes source
that comes with videogen.

What differs from the paper: the video diffusion transformer takes the place of the published U-Net, with the same
context of 125 vectors of 1024 channels and the same 16 × 32 × 32 latents. Its parameter count is ours, it starts from
nothing, where the published U-Net was trained before, it is not told the stride of frames, and no number of the paper
can be compared with it. The VAE has the published compression and channels, is trained with the losses of
``magvit2``, and its latents are normalised by statistics of the first 500 steps and not by 0.18215. Vectors of the
image encoder go to 1024 channels by a linear layer that the output of the motion predictor is added to. Rates, steps
and batch of these stages were not found: those here are ours.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from videogen.configs import flextok, language
from videogen.configs.common import at_paper, at_small, frozen, loss_terms, take_clip_of
from videogen.configs.tokenflow import STAND_IN
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("vae", "tokenizer", "detokenizer", "language")

START_FROM = {"detokenizer": "tokenizer"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

PARTS = {"detokenizer": {"vae": "vae"}, "language": {"tokenizer": "detokenizer"}}
"""Stage -> frozen part -> the stage that it comes from, for launch/local.py."""

CLIP_H = {"name": "clip_image", "image_size": 224, "patch": 14, "embed": 1024}
CLIP_H |= {"sizes": {"width": 1280, "layers": 32, "heads": 16, "hidden": 5120, "kind": "gelu", "epsilon": 1e-5}}
"""OpenCLIP's ViT-H/14."""

ENCODER = ("motion", "pool_norm", "spatial", "temporal", "blocks", "resampler")
"""Paths of what leads to the tokens, frozen once they are there."""

SWEEPS = {
    "guidance": [{"model.denoising.guidance_scale": scale} for scale in (1.0, 2.0, 7.5)],
    "eta": [{"model.denoising.solver.eta": eta} for eta in (0.0, 1.0)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(
        argument,
        stage=("tokenizer", "vae", "detokenizer", "language", "sampled"),
        size=("debug", "small", "paper"),
        model=language.QUERIES,
        clips=("1", "2"),
    )
    if chosen["stage"] == "vae":
        return vae(chosen["size"])
    if chosen["stage"] == "language":
        return language_stage(language.divot, chosen["size"], divot(chosen["size"]), chosen["model"], chosen["clips"])
    config = tokenizer(chosen["size"])
    if chosen["stage"] != "tokenizer":
        denoiser_alone(config, chosen["size"], ENCODER)
    if chosen["stage"] == "sampled":
        sampled(config)
    return config


def vae(size: str) -> ConfigDict:
    """The tokenizer with continuous latents (paper: frame by frame, 4 channels of 8 × 8 pixels)."""
    config = flextok.vae(size)
    config.model = autoencoder(size)
    return config


def autoencoder(size: str) -> ConfigDict:
    """The network of the stage ``vae``."""
    model = flextok.autoencoder(size)
    if size == "paper":
        # 1e-6 of the sum over an image's latents beside a sum over its pixels; losses here are means.
        model.quantizer.update({"width": 4, "kl_weight": 1e-6 * (32 * 32 * 4) / (256 * 256 * 3)})
    return model


def tokenizer(size: str) -> ConfigDict:
    """Tokens and denoiser together."""
    config = denoised(size, divot(size))
    if size == "debug":
        config.steps = 2500
        config.eval_every = 1250
        config.checkpoint_every = 500
    return config


def denoised(size: str, model: ConfigDict) -> ConfigDict:
    """The training of a tokenizer by the loss of a denoiser that is told its tokens; used by dicode, too."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "denoised_tokenizer"
    # Model and hash of the VAE are filled in from the checkpoint when the run starts.
    config.parts.vae = frozen(autoencoder(size))
    config.parts.vision = frozen(CLIP_H if size == "paper" else STAND_IN)
    config.model = model
    config.losses = loss_terms(denoising={"name": "l2", "reads": "v", "weight": 1.0})
    take_clip_of(config, config.model)
    if size == "debug":
        config.ema.decay = 0.998
        rates = {"name": "muon", "learning_rate": 1e-2, "adam_share": 0.2, "warmup": 50, "final": 0.02}
    elif size == "small":
        at_small(config)
        rates = {"learning_rate": 3e-4, "warmup": 1000, "final": 0.02}
    else:
        at_paper(config, steps=200_000, batch_size=512, decay=0.9999)
        rates = {"learning_rate": 1e-4, "warmup": 5000, "final": 0.01}
    config.optimizer = {"tokenizer": optimizer(**rates, weight_decay=0.0)}
    return config


def language_stage(make: Callable[..., ConfigDict], size: str, model: ConfigDict, name: str, clips: str) -> ConfigDict:
    """The language stage over the tokens of what is trained; used by dicode, too."""
    parts = {"vae": autoencoder(size), "vision": CLIP_H if size == "paper" else STAND_IN, "tokenizer": model}
    config = make(size, ConfigDict({"name": "denoised", **parts}), name, clips=int(clips))
    take_clip_of(config, model)
    return config


def denoiser_alone(config: ConfigDict, size: str, encoder: tuple[str, ...]) -> None:
    """Goes on with the denoiser: the tokenizer is frozen, and 5 % of the examples are told the null."""
    config.model.denoising.null_share = 0.05
    config.optimizer.tokenizer.freeze = encoder
    if size == "debug":
        config.steps = 1000
        config.eval_every = config.checkpoint_every = 1000
        config.optimizer.tokenizer.learning_rate = 5e-3


def sampled(config: ConfigDict) -> None:
    """Goes on with tokens that a generator has drawn: --config.data.source.path=CACHE --config.start_from.run=RUN."""
    config.steps = max(config.steps // 4, 1)
    config.data.source.name = "tokens"
    config.optimizer.tokenizer.learning_rate = 0.2 * config.optimizer.tokenizer.learning_rate


def divot(size: str) -> ConfigDict:
    """What is trained at each size (paper: 5 frames of 16, 64 tokens of 256 channels, 125 vectors of 1024)."""
    if size == "debug":
        shape = {"clip": (5, 24, 24), "frames": 3, "queries": 16, "width": 16, "pool": (4, 4)}
        shape["motion"] = {"width": 64, "layers": 1, "heads": 2, "mlp_width": 128}
        shape["blocks"] = network(128, 1, 4)
        shape["resampler"] = perceiver(128, 2, 4, query_scale=1.0)
        shape["expander"] = perceiver(128, 1, 4, query_scale=1.0)
        transformer, patch = network(128, 4, 4), (1, 2, 2)
    elif size == "small":
        shape = {"clip": (17, 64, 64), "frames": 5, "queries": 64, "width": 64, "pool": (4, 4)}
        shape["motion"] = {"width": 256, "layers": 2, "heads": 4, "mlp_width": 1024}
        shape["blocks"] = network(384, 2, 6)
        shape["resampler"], shape["expander"] = perceiver(384, 3, 6), perceiver(384, 3, 6)
        transformer, patch = network(384, 8, 6), (1, 2, 2)
    else:
        shape = {"clip": (16, 256, 256), "frames": 5, "queries": 64, "width": 256, "pool": (5, 5)}
        shape["motion"] = {"width": 768, "layers": 6, "heads": 12, "mlp_width": 3072}
        shape["blocks"] = {"width": 1024, "layers": 4, "heads": 8, "mlp_width": 4096}
        shape["resampler"], shape["expander"] = perceiver(1024, 6, 16), perceiver(1024, 6, 16)
        transformer, patch = {"width": 1152, "layers": 28, "heads": 16, "mlp_width": 4608}, (1, 2, 2)
    shape["denoiser"] = {"transformer": transformer, "patch": patch, "modulation": "zero"}
    return ConfigDict({"name": "divot", **shape, "denoising": denoising(size, ("tokens",)), "vision": seen()})


def denoising(size: str, drops: tuple[str, ...]) -> dict:
    """How the denoiser learns and draws; as published at ``paper``."""
    process = {"name": "variance_preserving", "schedule": "scaled_linear", "steps": 1000, "snr_shift": 1.0}
    return {
        "process": {**process, "zero_terminal_snr": True},
        "prediction": "v",
        "time_distribution": {"name": "uniform"},
        # A short run learns most near pure noise, where the tokens alone tell what is there.
        "shift": 4.0 if size == "debug" else 1.0,
        "null_share": 0.0,
        "drops": drops,
        "steps": 20 if size == "debug" else 50,
        "solver": {"name": "ddim", "eta": 0.0 if size == "debug" else 1.0},
        "guidance_scale": {"debug": 1.0, "small": 2.0, "paper": 7.5}[size],
        "guidance": {"name": "rescale", "share": 0.7, "inner": {"name": "classifier_free"}},
    }


def seen() -> dict:
    """What of the image encoder is read."""
    return {"reading": "last", "side": 0}


def network(width: int, layers: int, heads: int) -> dict:
    """A transformer whose MLPs are four times as wide."""
    return {"width": width, "layers": layers, "heads": heads, "mlp_width": 4 * width, "qk_norm": True}


def perceiver(width: int, depth: int, heads: int, query_scale: float = 0.02) -> dict:
    """A resampler whose heads share out its width."""
    sizes = {"width": width, "depth": depth, "heads": heads, "head_width": width // heads}
    return {"name": "perceiver", **sizes, "qk_norm": False, "rotary": "none", "query_scale": query_scale}

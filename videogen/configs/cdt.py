"""CDT (Yang et al., 2025): a continuous tokenizer whose decoder is a conditional causal diffusion model of pixels; and
the same decoder as a de-tokenizer of codes that another tokenizer has learned (Divot, FlexTok).

    --config=cdt:stage=tokenizer|fsq|detokenizer|generator|distill,size=debug|small|paper,decoder=diffusion|l2

``tokenizer`` trains encoder, KL bottleneck and decoder together: diffusion loss, KL and a perceptual loss, no
discriminator. ``fsq`` is MAGVIT-v2's tokenizer with finite scalar quantization, ``detokenizer`` a new decoder for its
codes, which stay as they are. ``generator`` draws the latents of ``tokenizer`` from text by rectified flow: a
generator over them is published to be better, but which one was not found, so it is that of ``videodit``.
``launch/local.py`` runs these four; by hand the last takes any tokenizer with codes or
latents that have a place: --config.parts.tokenizer.checkpoint=RUN_OR_EXPORT, with strides in config.model.pyramid that
multiply to its compression. ``decoder=l2`` is the same network without noise, trained on squared errors alone.
``distill`` teaches a trained de-tokenizer to do in two steps what it does in eight, and needs both:
--config.parts.tokenizer.checkpoint=… and --config.parts.teacher.checkpoint=RUN_OR_EXPORT, which is its start as well.

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` is the network of
the public code (17 × 256 × 256, 16 channels of 4 × 8 × 8 pixels). Weights of losses, noise levels of training,
optimizer and schedule were not published: those here are ours. Beyond ``debug``, whose perceptual loss is the untrained
stand-in, that loss is off until the user names a file: --config.losses.perceptual.name=lpips
--config.losses.perceptual.path=FILE --config.losses.perceptual.weight=1.0
"""

from ml_collections import ConfigDict

from videogen.configs import magvit2, videodit
from videogen.configs.common import adversarial, frozen, loss_terms
from videogen.configs.generators import flow, flow_from_text, videos
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "fsq", "detokenizer", "generator")

PARTS = {"detokenizer": {"tokenizer": "fsq"}}
"""Stage -> frozen part -> the stage that it comes from, where their names differ, for launch/local.py."""

SWEEPS = {
    "perceptual": [{"losses.perceptual.weight": weight} for weight in (0.0, 0.1, 0.3, 1.0)],
    "shift": [{"model.decoder.shift": shift} for shift in (1.0, 4.0, 16.0)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    stages, sizes = (*STAGES, "distill"), ("debug", "small", "paper")
    chosen = parse_argument(argument, stage=stages, size=sizes, decoder=("diffusion", "l2"))
    size, decoder = chosen["size"], chosen["decoder"]
    if chosen["stage"] == "fsq":
        return fsq(size)
    if chosen["stage"] == "tokenizer":
        return tokenizer(size, decoder)
    if chosen["stage"] == "detokenizer":
        return detokenizer(size, decoder)
    if chosen["stage"] == "generator":
        return generator(size, decoder)
    return distill(size, decoder)


def common(size: str, group: str, decoder: str) -> ConfigDict:
    """What both stages with this decoder share; ``group`` is what they train."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    clips = {"name": "clip", "channels": 64, "multipliers": (2, 4, 4)}
    config.losses = loss_terms(l2=1.0, adversarial=adversarial(clips, objective="hinge"))
    if size == "debug":
        config.steps = 1000
        config.eval_every = 500
        config.checkpoint_every = 500
        config.data.clip.update({"height": 24, "width": 24})
        config.losses.perceptual.weight = 0.3 if decoder == "diffusion" else 0.0
        config.losses.adversarial.discriminator.update({"channels": 16, "multipliers": (2, 4)})
        config.ema.decay = 0.99
        adam = {"learning_rate": 2e-3, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    elif size == "small":
        config.steps = 20_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.data.batch_size = 32
        config.data.image_batch_size = 8
        config.data.workers = 8
        config.ema.decay = 0.999
        adam = {"learning_rate": 3e-4, "warmup": 1000, "final": 0.02, "weight_decay": 0.0}
    else:
        config.steps = 500_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 17, "height": 256, "width": 256, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 64
        config.data.image_batch_size = 64
        config.data.workers = 16
        config.ema.decay = 0.9999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        adam = {"learning_rate": 1e-4, "warmup": 5000, "weight_decay": 0.0}
    # A short run: the kernels by Muon, the rest by Adam at 2e-3.
    muon = {"name": "muon", "learning_rate": 5e-3, "adam_share": 0.4} if size == "debug" else {}
    config.optimizer = {
        group: optimizer(**(adam | muon)),
        "discriminator": optimizer(**(adam | {"learning_rate": 1e-4})),
    }
    return config


def tokenizer(size: str, decoder: str) -> ConfigDict:
    """Encoder, KL bottleneck and diffusion decoder, trained together."""
    config = common(size, "tokenizer", decoder)
    config.task = "tokenizer"
    config.model = {"name": "cdt", "pyramid": pyramid(size), "decoder": network(size, decoder)}
    width, kl_weight = {"debug": (4, 1e-4), "small": (8, 1e-5), "paper": (16, 1e-6)}[size]
    config.model.quantizer = {"name": "gaussian", "width": width, "kl_weight": kl_weight}
    return config


def fsq(size: str) -> ConfigDict:
    """MAGVIT-v2's tokenizer with finite scalar quantization, trained from nothing."""
    config = magvit2.tokenizer(size, "fsq")
    config.start_from.inflate = ""
    return config


def detokenizer(size: str, decoder: str) -> ConfigDict:
    """A new decoder for the codes of the stage ``fsq``, or of another frozen tokenizer."""
    config = common(size, "detokenizer", decoder)
    config.task = "detokenizer"
    codes = fsq(size)
    # Model and hash are filled in from the checkpoint when the run starts.
    config.parts.tokenizer = frozen(codes.model)
    config.data.clip = codes.data.clip
    config.model = network(size, decoder) | {"pyramid": pyramid(size)}
    if decoder == "diffusion":
        # Few bits leave much open: one prediction would be the mean of all that fits, several steps choose.
        config.model.update({"steps": 8, "shift": 2.0})
    return config


def generator(size: str, decoder: str) -> ConfigDict:
    """Rectified flow over the latents of the stage ``tokenizer``; at ``paper`` our own transformer of 1.3B."""
    config = flow(size, tokenizer(size, decoder).model)
    if size != "paper":
        flow_from_text(config, size)
        config.data.clip = videos(size)
        return config
    videodit.paper(config, "1.3B")
    config.data.clip = {"frames": 17, "height": 256, "width": 256, "fps": 8.0}
    config.model.patch = (1, 2, 2)
    return config


def distill(size: str, decoder: str) -> ConfigDict:
    """The de-tokenizer taught to decode in two steps (consistency distillation)."""
    config = detokenizer(size, decoder)
    # One loss, and the teacher's noise levels do not matter: the student learns at those it decodes at.
    config.losses.perceptual.weight = 0.0
    config.parts.teacher = frozen()
    config.distillation = {"steps": 8, "solver": {"name": "ddim"}}
    config.model.steps = 2
    group = config.optimizer.detokenizer
    group.learning_rate /= 4
    config.steps = {"debug": 500, "small": 5000, "paper": 20_000}[size]
    config.eval_every = config.checkpoint_every = config.steps // 5
    return config


def pyramid(size: str) -> dict:
    """Levels between pixels and latents (paper: 4 × 8 × 8; debug: 2 × 4 × 4)."""
    if size == "debug":
        # Kernels in space and in time apart: a third of the work.
        levels = {"widths": (16, 32), "spatial_strides": (2, 2), "temporal_strides": (1, 2)}
        return levels | {"kernels": ((1, 3, 3), (3, 1, 1)), "edge_kernel": (1, 3, 3), "upsampling": "subpixel"}
    levels = {"spatial_strides": (1, 2, 2, 2), "temporal_strides": (1, 1, 2, 2)}
    kernels = {"kernels": ((3, 3, 3), (3, 3, 3)), "edge_kernel": (3, 7, 7)}
    if size == "small":
        return levels | kernels | {"widths": (48, 96, 144, 192), "padding": "replicate", "upsampling": "subpixel"}
    return levels | kernels | {"widths": (128, 256, 384, 512), "padding": "zero", "upsampling": "nearest"}


def network(size: str, decoder: str) -> dict:
    """The decoder: a U-Net over the pyramid's levels and those below."""
    widths, context, deeper = {
        "debug": ((16, 32, 48), 8, ()),
        "small": ((32, 64, 96, 128, 160), 16, ()),
        "paper": ((64, 128, 192, 256, 320, 384), 16, (2,)),
    }[size]
    levels = {"widths": widths, "context_width": context, "deeper_strides": deeper}
    if decoder == "l2":
        return {"name": "regression", **levels}
    # A short run learns most where decoding in one step happens, near pure noise.
    shift = 50.0 if size == "debug" else 1.0
    settings = {
        "noise_steps": 8192,
        "time_distribution": {"name": "uniform"},
        "shift": shift,
        "steps": 1,
        "temperature": 0.8,
    }
    return {"name": "diffusion", **levels, **settings, "solver": {"name": "ddim"}}

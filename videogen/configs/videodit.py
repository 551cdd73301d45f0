"""Video diffusion transformer: rectified flow over the continuous latents of a causal tokenizer, from text.

    --config=videodit:stage=tokenizer|generator|distill,size=debug|small|paper,model=1.3B|2B|14B

``debug`` trains on two CPU cores in minutes (the C-ViViT of ``phenaki`` with a Gaussian bottleneck),
``small`` on one accelerator in about an hour. ``paper`` has the published architectures of Wan2.1 (1.3B, 14B) at
81 × 720 × 1280, which are 21 × 90 × 160 latents of 16 channels and 75,600 tokens, and of LTX-Video (2B) at
121 × 704 × 1280, which are 16 × 22 × 40 latents of 128 channels, each a token; their training settings are not public,
so those here are ours. The transformers are the published ones in every part, so that training may begin with their
weights: --config.start_from.run=FOLDER (docs/public_weights.md).

``distill`` teaches the trained generator to draw in four steps without guidance what it draws in many with it:
--config.parts.teacher.checkpoint=RUN_OR_EXPORT, which is its start as well. ``launch/local.py`` runs all three stages.

Per-frame noise levels (diffusion forcing), frames that see only the past, text as tokens of the same sequence:
--config.model.times=frame --config.model.causal=true --config.model.text=joint
"""

from ml_collections import ConfigDict

from videogen.configs import magvit2, phenaki
from videogen.configs.common import frozen, t5_part, t5_text
from videogen.configs.generators import flow, flow_from_text, videos
from videogen.configs.networks import cvivit
from videogen.configuration import parse_argument
from videogen.defaults import optimizer
from videogen.generators.public.ltx import LTX_TEXT, ltx_model, ltx_sampler, ltx_transformer
from videogen.generators.public.wan import WAN_TEXT, wan_transformer

STAGES = ("tokenizer", "generator", "distill")

PARTS = {"distill": {"teacher": "generator"}}
"""Stage -> frozen part -> the stage that it comes from, where their names differ, for launch/local.py."""

MODELS = {
    "1.3B": wan_transformer(1536, 30, 12, 8960),
    "2B": ltx_transformer(2048, 28, 32),
    "14B": wan_transformer(5120, 40, 40, 13_824),
}
"""Transformers of Wan2.1 1.3B, of LTX-Video 2B and of Wan2.1 14B."""

SWEEPS = {
    "text": [{"model.text": text} for text in ("cross", "joint")],
    "modulation": [{"model.modulation": modulation} for modulation in ("zero", "single")],
    "times": [
        {"model.times": times, "model.causal": causal} for times in ("clip", "frame") for causal in (False, True)
    ],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), model=tuple(MODELS))
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"], chosen["model"])
    if chosen["stage"] == "generator":
        return generator(chosen["size"], chosen["model"])
    return distill(chosen["size"], chosen["model"])


def tokenizer(size: str, model: str = "1.3B") -> ConfigDict:
    """The causal tokenizer with a Gaussian bottleneck."""
    config = magvit2.tokenizer(size) if size == "paper" else phenaki.tokenizer(size)
    config.model = continuous(size, model)
    if size == "paper":
        config.start_from.inflate = ""
        config.losses.l2.weight = 1.0
        del config.losses.entropy
        config.data.clip.update({"height": 256, "width": 256, "fps": 16.0})
    return config


def continuous(size: str, model: str = "1.3B") -> ConfigDict:
    """A causal tokenizer with a Gaussian bottleneck.

    At ``paper`` it makes 16 channels of 4 × 8 × 8 pixels, as Wan's VAE, or is that of LTX-Video (2B; 128 channels of
    8 × 32 × 32 pixels).
    """
    if size == "paper" and model == "2B":
        return ConfigDict({"name": "ltx"})
    if size == "paper":
        levels = {"width": 96, "multipliers": (1, 2, 4, 4), "spatial_strides": (2, 2, 2)}
        levels |= {"temporal_strides": (1, 2, 2), "blocks": 2, "norm_groups": 32, "padding": "zero"}
        # 1e-6 of the sum over the latents of a clip; the loss takes means (see quantizers.GaussianQuantizer).
        quantizer = {"name": "gaussian", "width": 16, "kl_weight": 1e-6 * 5 * 32 * 32 * 16}
        return ConfigDict({"name": "convolutional", **levels, "quantizer": quantizer})
    config = cvivit(size)
    config.quantizer = ConfigDict({"name": "gaussian", "width": 16, "kl_weight": 1e-3})
    return config


def generator(size: str, model: str) -> ConfigDict:
    """The rectified-flow transformer over its latents, from text."""
    config = flow(size, continuous(size, model))
    if size == "paper":
        paper(config, model)
    else:
        flow_from_text(config, size)
        config.data.clip = videos(size)
    return config


def distill(size: str, model: str) -> ConfigDict:
    """The generator taught to draw in four steps without guidance (consistency distillation)."""
    config = generator(size, model)
    guided = {key: config.sampler[key] for key in ("guidance_scale", "guidance")}
    # The teacher's steps are of a whole clip: so many to each step of the student as 4 go into them.
    config.parts.teacher = frozen()
    config.distillation = {"steps": 16, "solver": {"name": "unipc"}, **guided}
    config.sampler.update({"steps": 4, "solver": {"name": "euler"}, "guidance_scale": 1.0})
    group = config.optimizer.generator
    if size == "debug":
        config.steps = 1600
        config.eval_every = 800
        config.checkpoint_every = 400
        config.ema.decay = 0.99
        group.learning_rate = 8e-3
    elif size == "small":
        config.steps = 10_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.distillation.steps = 32
        group.update({"learning_rate": 1e-4, "warmup": 200})
    else:
        config.steps = 20_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.distillation.steps = 48
        config.ema.decay = 0.999
        group.update({"learning_rate": 1e-5, "warmup": 200})
    return config


def paper(config: ConfigDict, model: str) -> None:
    """Sets the generator's training at the published sizes."""
    config.steps = 500_000
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.data.own = ("clip",)
    config.data.source.name = "video_folder"
    config.data.batch_size = 128
    config.data.workers = 16
    # Wan's umT5-XXL and the T5-XXL of LTX have the same width.
    config.parts.text_encoder = t5_part()
    if model == "2B":
        of_ltx(config)
    else:
        of_wan(config, model)
    config.ema.decay = 0.9999
    # The sequence is shared by the devices of `context`, which attention trades for heads: they divide 12, 32 and 40,
    # and the width of the grid of tokens, 80 or 40.
    config.parallel.mesh.update({"data": 1, "fsdp": -1, "context": 4})
    config.parallel.remat = "attention"
    config.optimizer = {
        "generator": optimizer(learning_rate=1e-4, warmup=1000, schedule="constant", b2=0.95, weight_decay=0.01)
    }


def of_wan(config: ConfigDict, model: str) -> None:
    """Sets clips, texts, transformer and sampler of Wan."""
    config.data.clip = {"frames": 81, "height": 720, "width": 1280, "fps": 16.0}
    config.text = t5_text(length=WAN_TEXT)
    config.text.tokenizer.cleaned = True
    # Clips without given frames have one noise level, and so one row of modulations in every block.
    config.model.update({"patch": (1, 2, 2), "modulation": "single", "prefix_share": 0.0})
    config.model.noise.shift = 5.0
    config.model.transformer = MODELS[model]
    with config.ignore_type():
        config.model.text = ConfigDict({"name": "cross", "length": WAN_TEXT})
    config.sampler.update({"steps": 50, "solver": {"name": "unipc"}, "guidance_scale": 5.0})
    config.sampler.grid.start = 0.999


def of_ltx(config: ConfigDict) -> None:
    """Sets clips, texts, transformer and sampler of LTX-Video."""
    config.data.clip = {"frames": 121, "height": 704, "width": 1280, "fps": 25.0}
    config.text = t5_text(length=LTX_TEXT)
    with config.ignore_type():
        config.model.noise.shift = "exponent"
    model = ltx_model(MODELS["2B"])
    config.model.update({key: model[key] for key in ("patch", "text", "modulation", "prefix_share", "transformer")})
    config.sampler.update({key: value for key, value in ltx_sampler({}).items() if key != "shift"})

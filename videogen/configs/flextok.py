"""FlexTok (Bachmann et al., ICML 2025): ordered 1-D codes of a VAE's latents, whose decoder is a rectified flow.

    --config=flextok:stage=vae|tokenizer|generator,size=debug|small|paper,model=d12-d12|d18-d18|d18-d28

``vae`` is the Gaussian tokenizer whose latents are coded, ``tokenizer`` codes them: registers beside patches, FSQ, and
a decoder that predicts the velocity of noisy latents from the registers. In training those behind a number that is
drawn for each clip are one learned vector (nested dropout), so any first part of the codes decodes to a plausible clip.
``generator`` draws the codes one after another from text, all of them or the first --config.sampler.tokens=K.
``launch/local.py`` runs all three; by hand the second takes any tokenizer with continuous latents that have a place:
--config.parts.vae.checkpoint=RUN_OR_EXPORT. Decoding takes --config.model.flow.steps steps from the same noise for
every clip, guided by --config.model.flow.guidance_scale (1: not at all).

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` has the published
networks: encoder and decoder of 12, 18 or 28 layers, 64 channels wide for each of these. ``debug`` and ``small`` code
clips, which is our extension; ``paper`` codes images of 256 × 256 as clips of one frame. For comparison:
decoder=deterministic          the decoder of One-D-Piece, as large, with squared errors of pixels and no noise
space=pixels                   velocities of noisy pixels, without a VAE
repa=dinov2                    REPA: the decoder's states behind its second layer become like the vectors of DINOv2,
                               with --config.parts.dino.checkpoint=FOLDER of its published files

What differs from the paper: initial weights and learning rates do not follow muP; norms of the encoder have learned
scales and shifts; times are embedded with wavelengths up to 2π·10⁴; codes are never left as they are nor exchanged in
training. The VAE has the published widths but is trained with the losses of ``magvit2``; its latents are normalised by
the statistics of the first 500 steps. REPA compares at the places of the decoder's patches. Optimizer, batch, steps,
the share of null registers and the weight of REPA were not found: those here are ours. The published time distribution,
FSQ levels, steps and guidance are those of ``paper``.
"""

from ml_collections import ConfigDict

from videogen.configs import magvit2, videodit
from videogen.configs.common import at_paper, at_small, frozen, loss_terms, take_clip_of
from videogen.configs.generators import of_a_row
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("vae", "tokenizer", "generator")

MODELS = {"d12-d12": (12, 12), "d18-d18": (18, 18), "d18-d28": (18, 28)}
"""Layers of encoder and decoder; an attention head has 64 channels, and there are as many heads as layers."""

PIXELS = {
    "debug": {"clip": (4, 24, 24), "patch": (2, 4, 4)},
    "small": {"clip": (16, 64, 64), "patch": (4, 8, 8)},
    "paper": {"clip": (1, 256, 256), "patch": (1, 16, 16)},
}
"""Clips and patches without a VAE, as those of ``one_d_piece``."""

SWEEPS = {
    "lengths": [{"model.lengths.distribution": name} for name in ("power_of_two", "uniform", "uniform_power_of_two")],
    "guidance": [{"model.flow.guidance_scale": scale} for scale in (1.0, 2.0, 7.5)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(
        argument,
        stage=("tokenizer", "vae", "generator"),
        size=("debug", "small", "paper"),
        model=("d18-d28", "d18-d18", "d12-d12"),
        decoder=("flow", "deterministic"),
        space=("latents", "pixels"),
        repa=("off", "dinov2"),
    )
    stage, size = chosen.pop("stage"), chosen.pop("size")
    if stage == "generator":
        del chosen["repa"]
        return generator(size, **chosen)
    return vae(size) if stage == "vae" else tokenizer(size, **chosen)


def vae(size: str) -> ConfigDict:
    """The tokenizer with continuous latents (paper: images, 16 channels of 8 × 8 pixels)."""
    if size != "paper":
        return videodit.tokenizer(size)
    config = magvit2.image(size)
    config.data.clip.update({"height": 256, "width": 256})
    del config.losses.entropy
    config.model = autoencoder(size)
    return config


def autoencoder(size: str) -> ConfigDict:
    """The network of the stage ``vae``."""
    if size != "paper":
        return videodit.continuous(size)
    levels = {"width": 128, "multipliers": (1, 2, 4, 4), "spatial_strides": (2, 2, 2), "temporal_strides": (1, 1, 1)}
    levels |= {"time_kernel": 1, "blocks": 2, "norm_groups": 32, "padding": "zero"}
    # 1e-6 of the sum over an image's latents beside a sum over its pixels; losses here are means.
    quantizer = {"name": "gaussian", "width": 16, "kl_weight": 1e-6 * (32 * 32 * 16) / (256 * 256 * 3)}
    return ConfigDict({"name": "convolutional", **levels, "quantizer": quantizer})


def tokenizer(size: str, model: str, decoder: str, space: str, repa: str) -> ConfigDict:
    """The tokenizer of latents, or of pixels."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "latent_tokenizer" if space == "latents" else "tokenizer"
    if space == "latents":
        # Model and hash are filled in from the checkpoint when the run starts.
        config.parts.vae = frozen(autoencoder(size))
    config.model = flextok(size, model, decoder, space)
    flow = {"name": "l2", "reads": "velocity", "weight": 1.0}
    config.losses = loss_terms(flow=flow) if decoder == "flow" else loss_terms(l2=1.0)
    take_clip_of(config, config.model)
    if size == "debug":
        config.steps = 4500
        config.eval_every = 1500
        config.checkpoint_every = 1500
        config.ema.decay = 0.998
        rates = {"name": "muon", "learning_rate": 1e-2, "adam_share": 0.2, "warmup": 50, "final": 0.02}
    elif size == "small":
        at_small(config)
        rates = {"learning_rate": 3e-4, "warmup": 1000, "final": 0.02}
    else:
        at_paper(config, steps=500_000, batch_size=1024, decay=0.9998)
        rates = {"learning_rate": 1e-4, "warmup": 5000, "final": 0.01}
    groups = ("tokenizer",) if repa == "off" else ("tokenizer", "distillation")
    config.optimizer = {group: optimizer(**rates, weight_decay=0.0) for group in groups}
    if repa != "off":
        config.parts.dino = frozen({"name": "dinov2"})
        settings = {"teacher": "dino", "feature": "early", "objective": "cosine", "hidden": (2048, 2048)}
        config.losses.repa = {"name": "distillation", "weight": 1.0, **settings}
    return config


def generator(size: str, model: str, decoder: str, space: str) -> ConfigDict:
    """Next-token prediction of the codes, decoded from a frozen tokenizer."""
    of = flextok(size, model, decoder, space)
    whole = of if space == "pixels" else {"name": "over_latents", "vae": autoencoder(size), "tokenizer": of}
    config = of_a_row(size, ConfigDict(whole), of)
    # Published for texts; 1.5 for classes.
    config.sampler.guidance_scale = 3.0
    return config


def flextok(size: str, model: str, decoder: str, space: str) -> ConfigDict:
    """The tokenizer at each size (paper: 256 patches, 256 codes of 16 bits)."""
    levels = (8, 5, 5, 5) if size == "debug" else (8, 8, 8, 5, 5, 5)
    if size == "debug":
        shape = {"clip": (5, 24, 24), "patch": (1, 2, 2), "queries": 64}
        networks = [network(width=128, layers=layers, heads=4) for layers in (2, 4)]
    elif size == "small":
        shape = {"clip": (17, 64, 64), "patch": (1, 2, 2), "queries": 256}
        networks = [network(width=384, layers=layers, heads=6) for layers in (6, 8)]
    else:
        shape = {"clip": (1, 256, 256), "patch": (1, 2, 2), "queries": 256}
        networks = [network(width=64 * depth, layers=depth, heads=depth) for depth in MODELS[model]]
    if space == "pixels":
        shape |= PIXELS[size]
    # A short run has no time to tell queries and registers apart that begin as near zero as the published ones.
    shape["query_scale"] = 0.02 if size == "paper" else 1.0
    parts = {"encoder": networks[0], "decoder": networks[1], "quantizer": {"name": "fsq", "levels": levels}}
    parts["lengths"] = {"name": "tail_drop", "distribution": "power_of_two", "minimum": 1}
    if decoder != "flow":
        return ConfigDict({"name": "one_d", **shape, **parts, "dropped": "replaced"})
    parts["flow"] = {
        "null_share": 0.1,
        "time_distribution": {"name": "logit_normal", "mean": 0.0, "deviation": 1.0},
        # A short run learns most near pure noise, where the codes alone tell what is there.
        "shift": 8.0 if size == "debug" else 1.0,
        "steps": 20,
        "solver": {"name": "euler"},
        "guidance_scale": 7.5 if size == "paper" else 1.5,
        "guidance": {"name": "adaptive_projected", "eta": 0.0, "momentum": -0.5, "norm_threshold": 2.5},
    }
    return ConfigDict({"name": "one_d_flow", **shape, **parts})


def network(width: int, layers: int, heads: int) -> dict:
    """A transformer with SwiGLU of two thirds of four times its width."""
    mlp = {"mlp_width": 8 * width // 3, "mlp": {"kind": "swiglu"}}
    return {"width": width, "layers": layers, "heads": heads, "qk_norm": True, **mlp}

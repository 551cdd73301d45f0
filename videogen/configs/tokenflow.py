"""TokenFlow (Qu et al., CVPR 2025): one id stands for what a place means and for how it looks, over scales of a grid.

    --config=tokenflow:stage=tokenizer|generator,size=debug|small|paper,variant=B|B-256|XL

A public encoder, trained along, and causal convolutions give semantic and pixel latents of one grid, two codebooks one
id for both, and every scale codes what the coarser ones left. The semantic half is decoded to vectors that become like
those of the frozen encoder ``config.parts.semantic``, as a copy of which the trained one begins.

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour; there the encoder is the
classifier stand-in for the shapes source that comes with videogen (``python -m videogen.stand_in``), no public one.
Their clips, and the time of the scales, are our extension. ``paper`` has the published networks on images, which are
clips of one frame: B with CLIP ViT-B/16 at 224 pixels (561 tokens), the same at 256 (817), XL with SigLIP-so400m/14 at
384 (2227); the user names the published folder: --config.parts.semantic.checkpoint=FOLDER. Variant L is left out: its
encoder, ViTamin-XL, is not read here. The wider pixel decoder of the second stage:
--config.model.pixel_decoder.width=256 --config.model.pixel_decoder.blocks=4, with --config.start_from.run and
--config.optimizer.tokenizer.freeze for the rest.

``generator`` draws scale after scale, all tokens of one at once, from text; --config.sampler.refine=((100,0.8),(1,1.0))
draws every scale twice more, each time from what was drawn. --config.model.token_drop=0.1 shows it wrong ids in
training and lets it learn what mends them.

What differs from the paper: the generator is no language model that was trained before, as large as Llama-2 7B at
``paper``, and the text comes in by cross-attention; the convolutions are those of MAGVIT-v2 with kernels of one frame,
without attention at the coarsest level; the pixel half is decoded without a layer to 256 channels before them; scales
are dropped for each example (published: for all of a device). The optional k-means start
(--config.model.quantizer.base.kmeans=10) takes the latents of all scales of the first step and leaves the table to its
gradients after that; the published one takes the full scale alone, then moves averages. ``debug`` and ``small`` have
codebooks of moving averages with restarts. The steps, the warm-up and the EMA were not found: those here are ours, and
so is the batch, the published default. Which of CLIP's patches are read was not found either: here the trained
encoder's before the last norm, and the teacher's in the space that pictures and texts share, whose width is the
published one. The adversarial loss is off until it has a weight (published: 0.5 from step 20k), the perceptual one
until the user names a file:
--config.losses.perceptual.name=lpips --config.losses.perceptual.path=FILE --config.losses.perceptual.weight=1
"""

from ml_collections import ConfigDict

from videogen.configs.common import adversarial, frozen, loss_terms, take_clip_of
from videogen.configs.generators import from_text, next_scale, of_captions
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "generator")

STAND_IN = {"name": "shapes_classifier", "classes": 96, "widths": (24, 32, 48, 64), "features": 24, "side": 32}
"""The stand-in that comes with videogen."""

CLIP_B = {"name": "clip_image", "image_size": 224, "patch": 16, "embed": 512}
CLIP_B |= {"sizes": {"width": 768, "layers": 12, "heads": 12, "hidden": 3072, "kind": "quick_gelu", "epsilon": 1e-5}}
SIGLIP = {"name": "siglip_image", "patch": 14, "places": 27 * 27, "image_size": 384}
SIGLIP |= {"sizes": {"width": 1152, "layers": 27, "heads": 16, "hidden": 4304, "kind": "gelu_tanh", "epsilon": 1e-6}}
"""ViT-B/16 of CLIP and so400m/14 of SigLIP."""

VARIANTS = {
    "B": {"encoder": CLIP_B, "image": 224, "scales": (1, 2, 4, 6, 8, 10, 12, 14)},
    "B-256": {"encoder": CLIP_B, "image": 256, "scales": (1, 2, 4, 6, 8, 10, 12, 14, 16)},
    "XL": {"encoder": SIGLIP, "image": 384, "scales": (*range(1, 11), 12, 14, 17, 22, 27)},
}
"""Published encoders, pixels of a side of images, and sides of the scales."""

SWEEPS = {
    "pixel_weight": [{"model.quantizer.base.pixel_weight": weight} for weight in (0.0, 1.0, 4.0)],
    "drop": [{"model.quantizer.drop": drop} for drop in (0.0, 0.1, 0.5)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), variant=tuple(VARIANTS))
    size, variant = chosen["size"], chosen["variant"]
    if chosen["stage"] == "generator":
        return generator(size, variant)
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    config.model = tokenflow(size, variant)
    take_clip_of(config, config.model)
    config.parts.semantic = frozen(config.model.semantic.encoder.to_dict())
    config.start_from.paths = (("tokenizer.semantic.network", ":semantic"),)
    clips = {"name": "clip", "channels": 128, "multipliers": (2, 4, 4, 4)}
    config.losses = loss_terms(
        l2=1.0, adversarial=adversarial(clips, objective="hinge"), distillation=semantics(size, variant)
    )
    if size == "debug":
        config.steps = 2000
        config.eval_every = 500
        config.checkpoint_every = 500
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
        config.data.batch_size = 32
        config.data.workers = 8
        config.losses.adversarial.discriminator.update({"channels": 64})
        config.ema.decay = 0.999
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=3e-4, warmup=1000, final=0.02, weight_decay=0.0),
            "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.0),
        }
    else:
        config.steps = 500_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.source.name = "video_folder"
        config.data.batch_size = 512
        config.data.workers = 16
        config.losses.adversarial.start = 20_000
        config.ema.decay = 0.9999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        rates = {"learning_rate": 1e-4, "b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "warmup": 5000, "final": 1.0}
        config.optimizer = {name: optimizer(**rates) for name in ("tokenizer", "discriminator")}
    return config


def generator(size: str, variant: str) -> ConfigDict:
    """Next-scale prediction of the ids."""
    config = next_scale(size, tokenflow(size, variant))
    if size != "paper":
        from_text(config, size, rotary=True)
        return config
    of_captions(config)
    mlp = {"mlp_width": 11_008, "mlp": {"kind": "swiglu"}}
    config.model.transformer = {"layers": 32, "width": 4096, "heads": 32, **mlp}
    # Published: 25 passes over nine scales, of which the first draws alone.
    config.sampler.update({"top_k": 1200, "top_p": 0.8, "refine": ((100, 0.8), (1, 1.0)), "guidance_scale": 7.5})
    return config


def semantics(size: str, variant: str) -> dict:
    """The term that makes the decoded semantics like those of the frozen encoder; weight 1 as published."""
    reading = {"B": "projected", "B-256": "projected", "XL": "penultimate"}[variant] if size == "paper" else "last"
    side = 256 if size == "paper" and variant == "B-256" else 0
    term = {"name": "distillation", "weight": 1.0 if size == "paper" else 0.1, "teacher": "semantic"}
    return {**term, "feature": "semantic", "objective": "cosine", "reading": reading, "side": side, "projected": False}


def tokenflow(size: str, variant: str = "B") -> ConfigDict:
    """The tokenizer at each size."""
    pixels = {"time_kernel": 3, "padding": "zero"}
    moving = {"codebook_update": "ema", "decay": 0.95, "restart_threshold": 0.05}
    encoder, reading, side, semantic_width = STAND_IN, "last", 0, 64
    if size == "debug":
        clip, scales = (5, 24, 24), ((1, 1, 1), (1, 2, 2), (3, 3, 3), (3, 6, 6))
        pixels |= {"width": 16, "multipliers": (1, 2, 4), "spatial_strides": (2, 2), "temporal_strides": (1, 2)}
        pixels |= {"blocks": 1, "middle_blocks": 0, "norm_groups": 4}
        decoder = {"width": 64, "layers": 1, "heads": 2, "mlp_width": 128}
        codes = {"size": 1024, "widths": (8, 8), **moving}
    elif size == "small":
        clip, scales = (17, 64, 64), ((1, 1, 1), (1, 2, 2), (2, 4, 4), (3, 6, 6), (5, 8, 8))
        pixels |= {"width": 64, "multipliers": (1, 2, 2, 4), "spatial_strides": (2, 2, 2)}
        pixels |= {"temporal_strides": (1, 2, 2), "blocks": 2, "middle_blocks": 2, "norm_groups": 16}
        decoder = {"width": 384, "layers": 3, "heads": 6, "mlp_width": 1536}
        codes = {"size": 4096, "widths": (16, 8), **moving, "decay": 0.99}
    else:
        chosen = VARIANTS[variant]
        encoder, image = chosen["encoder"], chosen["image"]
        clip, scales = (1, image, image), tuple((1, scale, scale) for scale in chosen["scales"])
        pixels |= {"width": 128, "multipliers": (1, 1, 2, 2, 4), "spatial_strides": (2, 2, 2, 2), "time_kernel": 1}
        pixels |= {"temporal_strides": (1, 1, 1, 1), "blocks": 2, "middle_blocks": 2, "norm_groups": 32}
        width = encoder["sizes"]["width"]
        decoder = {"width": width, "layers": 3, "heads": 12, "mlp_width": 4 * width}
        codes = {"size": 32_768, "widths": (32, 8)}
        reading, semantic_width = ("penultimate", 1152) if variant == "XL" else ("last", 512)
        side = 256 if variant == "B-256" else 0
    return ConfigDict(
        {
            "name": "tokenflow",
            "clip": clip,
            "widths": codes["widths"],
            "semantic": {"encoder": encoder, "reading": reading, "side": side},
            "pixels": pixels,
            "decoder": {"qk_norm": False, **decoder},
            "quantizer": {
                "name": "multi_scale",
                "base": {"name": "dual_codebook", "pixel_weight": 1.0, "commitment_weight": 0.25, **codes},
                "scales": scales,
                "drop": 0.1,
            },
            "semantic_width": semantic_width,
            "pixel_decoder": {},
        }
    )

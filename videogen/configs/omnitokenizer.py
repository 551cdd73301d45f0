"""OmniTokenizer (Wang et al., NeurIPS 2024): one transformer tokenizer for images and videos, discrete or continuous.

    --config=omnitokenizer:stage=image|tokenizer|kl|autoregressive|diffusion,size=debug|small|paper,model=650M|227M

Trained progressively: ``image`` on images of one size, ``tokenizer`` on images and videos together, beginning with the
weights of ``image``, and ``kl``, which puts a Gaussian posterior in the place of the codebook and begins with those of
``tokenizer``. ``launch/local.py`` hands each stage the one before; by hand that is --config.start_from.run=DIRECTORY,
without which a stage begins from nothing. Two generators stand on them: ``autoregressive`` draws the codes of
``tokenizer`` one after another, ``diffusion`` the latents of ``kl`` by rectified flow.

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` is the published
setting: 17 × 256 × 256, five resolutions from the second stage on, the layers of the public code (window attention in
half of the encoder's spatial layers; for the windows throughout of the paper's text --config.model.encoder_spatial=wwww
--config.model.decoder_spatial=wwww), its loss weights and the paper's learning rate. The published 82M parameters
count the discriminators (13.8M) and the perceptual network (14.7M) of the training code; about 52M are the tokenizer's.
The perceptual loss is off until the user names a file: --config.losses.perceptual.name=lpips
--config.losses.perceptual.path=FILE --config.losses.perceptual.weight=4.0

What differs from the public code at ``paper``: one discriminator judges images and clips, where the code has one for
each and leaves the images' out after the first stage; its feature matching (weight 4), and the noise and blur on what
it sees, are left out; a batch holds videos and images together instead of in turn. The published diffusion
generators are DiT-XL/2 for images and Latte-XL for videos, with noise of 1,000 steps; here it is the video transformer
of ``videodit`` at their width and depth. The classes of UCF-101 come in by cross-attention.
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs import data_sets
from videogen.configs.common import adversarial, loss_terms, no_text
from videogen.configs.generators import flow, flow_from_text, from_text, next_token, videos
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("image", "tokenizer", "kl", "autoregressive", "diffusion")

START_FROM = {"tokenizer": "image", "kl": "tokenizer"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

PARTS = {"diffusion": {"tokenizer": "kl"}}
"""Stage -> frozen part -> the stage that it comes from, where their names differ, for launch/local.py."""

MODELS = {
    "650M": {"layers": 24, "width": 1536, "heads": 16, "mlp_width": 6144},
    "227M": {"layers": 24, "width": 864, "heads": 16, "mlp_width": 3456},
}
"""The autoregressive generators by their published parameters; the width of the smaller one was not found."""

SWEEPS = {
    "tokenizer_learning_rate": [{"optimizer.tokenizer.learning_rate": rate} for rate in (5e-4, 1.5e-3, 5e-3)],
}
"""Name -> variants, for launch/sweep.py."""

RESOLUTIONS = (128, 192, 256, 320, 384)


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), model=tuple(MODELS))
    stage, size = chosen["stage"], chosen["size"]
    if stage == "autoregressive":
        return autoregressive(size, chosen["model"])
    if stage == "diffusion":
        return diffusion(size)
    if size == "debug":
        config = debug(stage)
    elif size == "small":
        config = small(stage)
    else:
        config = paper(stage)
    config.model = omnitokenizer(stage, size)
    return config


def common(size: str) -> ConfigDict:
    """What all stages share at a size."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    # It judges clips of one frame too, so the image stage's discriminator is the start of the next one's.
    clips = {"name": "clip", "channels": 64, "multipliers": (2, 4, 4, 4, 4)}
    config.losses = loss_terms(l1=4.0, adversarial=adversarial(clips, objective="hinge"))
    return config


def debug(stage: str) -> ConfigDict:
    """A stage on two CPU cores."""
    config = common("debug")
    config.data.clip.update({"height": 24, "width": 24})
    config.losses.adversarial.discriminator.update({"channels": 16, "multipliers": (2, 4)})
    config.losses.l2.weight = 1.0
    config.losses.l1.weight = 0.0
    config.data.clip.frames = 1 if stage == "image" else 5
    config.data.batch_size = 16 if stage == "image" else 8
    config.data.image_batch_size = 0 if stage == "image" else 8
    config.steps = {"image": 200, "tokenizer": 1800, "kl": 300}[stage]
    config.eval_every = config.checkpoint_every = config.steps // 2
    config.optimizer = {
        "tokenizer": optimizer(learning_rate=1.5e-3, warmup=30, final=0.02),
        "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.5),
    }
    return config


def small(stage: str) -> ConfigDict:
    """A stage on one accelerator."""
    config = common("small")
    config.data.clip = {"frames": 1 if stage == "image" else 17, "height": 64, "width": 64, "fps": 8.0}
    config.data.batch_size = 64 if stage == "image" else 32
    config.data.image_batch_size = 0 if stage == "image" else 32
    config.data.workers = 8
    if stage != "image":
        config.data.buckets = ((17, 32, 32, 64, 1), (17, 64, 64, 32, 1), (17, 96, 96, 16, 1))
    config.steps = {"image": 10_000, "tokenizer": 20_000, "kl": 10_000}[stage]
    config.eval_every = config.checkpoint_every = 1000
    config.losses.adversarial.discriminator.multipliers = (2, 4, 4, 4)
    config.ema.decay = 0.999
    config.optimizer = {
        "tokenizer": optimizer(learning_rate=5e-4, warmup=1000, final=0.02),
        "discriminator": optimizer(learning_rate=5e-5, weight_decay=0.0, b1=0.5),
    }
    return config


def paper(stage: str) -> ConfigDict:
    """The published setting; batches are those of the public code's 32 devices, videos and images in each."""
    config = common("paper")
    config.data.clip = {"frames": 1 if stage == "image" else 17, "height": 256, "width": 256, "fps": 8.0}
    config.data.source.name = "video_folder"
    config.data.batch_size = 256 if stage == "image" else 128
    config.data.image_batch_size = 0 if stage == "image" else 256
    config.data.workers = 16
    if stage != "image":
        config.data.buckets = tuple((17, side, side, config.data.batch_size, 1) for side in RESOLUTIONS)
    config.steps = 500_000
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.losses.adversarial.update({"weight": 0.01, "pause_below": 0.001})
    config.ema.decay = 0.999
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "dots"
    # Public code: 1e-3 in the first stage, then 5e-5 throughout. The paper names 1e-3 and nothing for the last stage.
    rate = {"learning_rate": 5e-5, "schedule": "constant"} if stage == "kl" else {"learning_rate": 1e-3}
    adam = {"warmup": 50_000, "weight_decay": 0.0}
    config.optimizer = {
        "tokenizer": optimizer(**rate, **adam),
        "discriminator": optimizer(**(rate | {"learning_rate": rate["learning_rate"] / 10}), **adam),
    }
    return config


def autoregressive(size: str, model: str) -> ConfigDict:
    """Next-token prediction of the codes of the stage ``tokenizer`` (paper: classes of UCF-101)."""
    config = next_token(size, omnitokenizer("tokenizer", size))
    if size != "paper":
        from_text(config, size, rotary=True)
        config.data.clip = videos(size)
        return config
    of_ucf(config)
    config.model.transformer = MODELS[model]
    # Published: 0.5 of (1 + s)·conditional - s·unconditional.
    config.sampler.update({"top_k": 4096, "top_p": 0.9, "guidance_scale": 1.5})
    config.optimizer = {"generator": optimizer(learning_rate=1e-3, warmup=10_000, schedule="constant")}
    return config


def diffusion(size: str) -> ConfigDict:
    """Rectified flow over the latents of the stage ``kl`` (paper: without a class, as Latte on UCF-101)."""
    config = flow(size, omnitokenizer("kl", size))
    if size != "paper":
        flow_from_text(config, size)
        config.data.clip = videos(size)
        return config
    of_ucf(config)
    config.classes = config_dict.placeholder(int)
    config.model.update({"patch": (1, 2, 2), "prefix_share": 0.0})
    config.model.transformer = {"layers": 28, "width": 1152, "heads": 16, "mlp_width": 4608}
    config.sampler.update({"steps": 50, "guidance_scale": 1.0})
    config.ema.decay = 0.9999
    config.optimizer = {"generator": optimizer(learning_rate=1e-4, warmup=1000, schedule="constant", weight_decay=0.0)}
    return config


def of_ucf(config: ConfigDict) -> None:
    """The clips of UCF-101 at the size that the tokenizer was trained on; batch and steps are ours."""
    config.steps = 447_000
    config.eval_every = config.checkpoint_every = 5000
    config.data.source.update(data_sets.source("ucf101"))
    config.data.own = ("source", "clip")
    config.data.clip = {"frames": 17, "height": 128, "width": 128, "fps": 8.0}
    config.data.batch_size = 64
    config.data.workers = 16
    config.classes = data_sets.CLASSES["ucf101"]
    config.text = no_text()
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "full"


def omnitokenizer(stage: str, size: str) -> ConfigDict:
    """The network at each size; the stages differ in the quantizer alone (and, as published, in the positions)."""
    if size == "debug":
        shape = {"patch": (2, 4, 4), "width": 128, "heads": 4, "mlp_width": 512, "window": 3}
        depth = {"encoder_spatial": "w", "encoder_temporal": 1, "decoder_spatial": "tw", "decoder_temporal": 2}
        codes = {"size": 96, "width": 16, "decay": 0.95, "restart_threshold": 0.05}
        kl_weight = 1e-3
    elif size == "small":
        shape = {"patch": (4, 8, 8), "width": 384, "heads": 6, "mlp_width": 1536, "window": 4}
        depth = {"encoder_spatial": "ttww", "encoder_temporal": 4, "decoder_spatial": "tttt", "decoder_temporal": 4}
        codes = {"size": 4096, "width": 8, "restart_threshold": 0.01}
        kl_weight = 1e-3
    else:
        shape = {"patch": (4, 8, 8), "width": 512, "heads": 8, "mlp_width": 2048, "window": 8}
        depth = {"encoder_spatial": "ttww", "encoder_temporal": 4, "decoder_spatial": "tttt", "decoder_temporal": 4}
        codes = {"size": 8192, "width": 8}
        # 1e-6 of the sum over the 5 × 32 × 32 × 8 latents of a clip; the loss takes their mean.
        kl_weight = 1e-6 * 5 * 32 * 32 * 8
    quantizer = {"name": "vq", "cosine": True, "codebook_update": "ema", "decay": 0.99} | codes
    if stage == "kl":
        quantizer = {"name": "gaussian", "width": codes["width"], "kl_weight": kl_weight}
    positions = "bias" if size == "paper" and stage == "image" else "rotary"
    return ConfigDict(
        {"name": "omnitokenizer", **shape, **depth, "spatial_positions": positions, "quantizer": quantizer}
    )

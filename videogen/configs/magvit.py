"""MAGVIT (Yu et al., CVPR 2023): 3D-VQ, a tokenizer of clips of 4·k frames that is not causal, and one masked
transformer for ten tasks, from frame prediction to inpainting (``videogen.conditioning.TASKS``).

    --config=magvit:stage=tokenizer|generator,size=debug|small|paper,model=B|L|H

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` is the published
large model (158M parameters, 16 × 128 × 128). The paper starts from a 2-D VQGAN: train the model with ``time_kernel=1``
and temporal strides of 1 on clips of one frame, and begin with it by --config.start_from.run=DIRECTORY
--config.start_from.inflate=central. The perceptual loss is off until the user names a file:
--config.losses.perceptual.name=lpips --config.losses.perceptual.path=FILE --config.losses.perceptual.weight=0.1
It stands in the place of the published one, which compares the logits of a ResNet-50.

The generator learns the tasks in proportion to ``--config.tasks.NAME=WEIGHT``; 0 leaves one out. ``paper`` is the model
of SSv2-MT10 (174 classes) at the size ``model=``: 87M, 305M and 634M parameters. What differs from the paper: the class
comes in by cross-attention, whose layers those counts leave out; blocks are pre-norm with RMS norms, and the output
layer is not tied to the embedding; the task is a vector added at every place instead of a token, and drawn for each
clip rather than for each step.
"""

from ml_collections import ConfigDict

from videogen.configs.common import adversarial, loss_terms, no_text
from videogen.configs.generators import begun, from_text
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "generator")

MODELS = {
    "B": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
    "L": {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096},
    "H": {"width": 1280, "layers": 32, "heads": 16, "mlp_width": 5120},
}
"""The paper's transformers."""

TASKS = (
    *("frame_prediction", "interpolation"),
    *("outpaint_central", "outpaint_vertical", "outpaint_horizontal", "outpaint_dynamic"),
    *("inpaint_central", "inpaint_dynamic"),
    *("conditional_generation", "conditional_prediction"),
)

SWEEPS = {
    "tokenizer_learning_rate": [{"optimizer.tokenizer.learning_rate": rate} for rate in (5e-4, 1.5e-3, 5e-3)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), model=("L", "B", "H"))
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"])
    return generator(chosen["size"], chosen["model"])


def tokenizer(size: str) -> ConfigDict:
    """The 3D-VQ tokenizer."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    clips = {"name": "clip", "channels": 64, "multipliers": (2, 4, 4, 4, 4)}
    # The published penalty of 10 has no factor 1/2.
    config.losses = loss_terms(l2=1.0, adversarial=adversarial(clips, r1=20.0, lecam=0.001))
    config.model = magvit(size)
    # Clips without a first frame of their own: an image is no clip here.
    config.data.image_batch_size = 0
    if size == "debug":
        config.steps = 2000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.data.clip.update({"frames": 8, "height": 24, "width": 24})
        config.data.batch_size = 4
        # The second half of the run, when there is something to judge: forms come out clearer, at 0.4 dB less.
        config.losses.adversarial.update({"weight": 0.02, "start": 1000, "r1_every": 16})
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
        config.data.clip = {"frames": 16, "height": 64, "width": 64, "fps": 8.0}
        config.data.batch_size = 32
        config.data.workers = 8
        config.losses.adversarial.discriminator.update({"multipliers": (2, 4, 4, 4)})
        config.ema.decay = 0.999
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=3e-4, warmup=1000, final=0.02, weight_decay=0.0),
            "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.0),
        }
    else:
        # 400 epochs of SSv2's 168,913 training videos, one of them warm-up.
        config.steps = 264_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 16, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 256
        config.data.workers = 16
        # Published pixels lie in [0, 1] and ours in [-1, 1]: squared errors are four times as large here, and squared
        # gradients a quarter. The released configs leave LeCam off.
        config.losses.l2.weight = 0.25
        config.losses.adversarial.update({"weight": 0.1, "r1": 80.0, "lecam": 0.0})
        config.losses.adversarial.discriminator.channels = 128
        config.ema.decay = 0.999
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = {
            "tokenizer": optimizer(learning_rate=1e-4, warmup=660, b1=0.0, weight_decay=0.0, clip=0.0),
            "discriminator": optimizer(learning_rate=1e-4, warmup=660, b1=0.0, weight_decay=0.0, clip=0.0),
        }
    return config


def magvit(size: str) -> ConfigDict:
    """3D-VQ at each size (paper: the large one, 4 × 16 × 16 codes of 10 bits)."""
    quantizer = {"name": "vq", "cosine": False}
    if size == "debug":
        # A short run needs a codebook that follows it and restarts what it does not use.
        quantizer |= {"size": 512, "width": 16, "cosine": True, "decay": 0.95, "restart_threshold": 0.05}
        levels = {"width": 16, "multipliers": (1, 2, 4), "spatial_strides": (2, 2), "temporal_strides": (2, 1)}
        depth = {"blocks": 1, "middle_blocks": 1, "norm_groups": 4}
    elif size == "small":
        quantizer |= {"size": 1024, "width": 64, "cosine": True, "restart_threshold": 0.01}
        levels = {"width": 64, "multipliers": (1, 2, 4), "spatial_strides": (2, 2), "temporal_strides": (2, 2)}
        depth = {"blocks": 2, "middle_blocks": 2, "norm_groups": 32}
    else:
        quantizer |= {"size": 1024, "width": 256, "codebook_update": "gradient", "entropy_weight": 0.1}
        levels = {"width": 128, "multipliers": (1, 2, 2, 4), "spatial_strides": (2, 2, 2)}
        levels |= {"temporal_strides": (2, 2, 1)}
        depth = {"blocks": 2, "middle_blocks": 2, "norm_groups": 32}
    return ConfigDict({"name": "magvit", **levels, **depth, "quantizer": quantizer})


def generator(size: str, model: str) -> ConfigDict:
    """The masked transformer of ten tasks."""
    config = begun(size, magvit(size))
    config.tasks = dict.fromkeys(TASKS, 1.0)
    config.model = {
        "name": "masked",
        "training_schedule": "cosine",
        "loss_on": "all",
        "head": {"name": "categorical", "bias": True, "label_smoothing": 1e-4},
        "condition_drop": 0.0,
    }
    # Layers of a critic that is trained along and decides which codes decoding keeps; 0 leaves it out.
    config.model.critic = {"layers": 0, "weight": 1.0}
    config.sampler = {
        "name": "maskgit",
        "steps": 12,
        "schedule": "cosine",
        "temperature": 1.0,
        "final_temperature": 1.0,
        "choice_temperature": 4.5,
        "top_k": 0,
        "guidance_scale": 1.0,
    }
    if size == "debug":
        from_text(config, size)
        config.data.clip.update({"frames": 8, "height": 24, "width": 24})
        # As in phenaki: what a short run lacks in steps it makes up for with locality.
        config.model.transformer.update({"rotary": True, "position_generator": True})
        config.sampler.update({"choice_temperature": 1.0})
    elif size == "small":
        from_text(config, size)
        config.data.clip = {"frames": 16, "height": 64, "width": 64, "fps": 8.0}
        config.optimizer = {"generator": optimizer(learning_rate=5e-4, warmup=1000, b2=0.96, final=0.02)}
    else:
        config.steps = 950_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 16, "height": 128, "width": 128, "fps": 8.0}
        config.data.source.name = "video_folder"
        config.data.batch_size = 256
        config.data.workers = 16
        config.classes = 174
        config.text = no_text()
        config.model.transformer = {**MODELS[model], "dropout": 0.1}
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = {"generator": optimizer(learning_rate=1e-4, warmup=5000, b2=0.96, weight_decay=0.045)}
    return config

"""How the smaller generators of several systems are trained from text, and next-token prediction; plain data."""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import bpe_text, frozen, t5_part, t5_text, take_clip_of
from videogen.defaults import base, optimizer


def begun(size: str, tokenizer: ConfigDict) -> ConfigDict:
    """The keys of a generator over the codes of a tokenizer with this model."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "generator"
    config.classes = config_dict.placeholder(int)
    # Model and hash are filled in from the checkpoint when the run starts.
    config.parts.tokenizer = frozen(tokenizer)
    return config


def trained(config: ConfigDict, size: str, **transformer: bool) -> None:
    """Sets the training at ``debug`` or ``small``; ``transformer`` are further keys of its section."""
    if size == "debug":
        config.steps = 3200
        config.eval_every = 1600
        config.checkpoint_every = 800
        config.model.transformer = {"width": 128, "layers": 4, "heads": 4, "mlp_width": 512, **transformer}
        muon = {"learning_rate": 1.2e-2, "adam_share": 0.2, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
        config.optimizer = {"generator": optimizer("muon", **muon)}
    else:
        config.steps = 50_000
        config.eval_every = 2500
        config.checkpoint_every = 2500
        config.data.batch_size = 64
        config.data.workers = 8
        config.model.transformer = {"width": 512, "layers": 12, "heads": 8, "mlp_width": 2048, **transformer}
        config.ema.decay = 0.999
        config.optimizer = {"generator": optimizer(learning_rate=6e-4, warmup=1000, b2=0.95, final=0.02)}


def from_text(config: ConfigDict, size: str, **transformer: bool) -> None:
    """``trained``, from captions that a small encoder reads, which is trained along."""
    trained(config, size, **transformer)
    if size == "debug":
        config.text = bpe_text(vocabulary_size=512, length=24, width=128, layers=1, heads=4)
    else:
        config.text = bpe_text(vocabulary_size=4096, length=64, width=512, layers=4, heads=8)


def next_token(size: str, tokenizer: ConfigDict) -> ConfigDict:
    """Next-token prediction over the codes of a tokenizer: model and sampler, without a training.

    Used by larp, omnitokenizer, hitvideo, one_vae and ``of_a_row``.
    """
    config = begun(size, tokenizer)
    config.model = {"name": "next_block", "block": (1, 1, 1), "condition_drop": 0.1}
    config.model.head = {"name": "categorical"}
    config.sampler = {
        "name": "blocks",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "guidance_scale": 1.25,
        "guidance_schedule": "constant",
    }
    if size == "debug":
        config.sampler.update({"top_p": 0.9, "guidance_scale": 3.0})
    return config


def of_a_row(size: str, tokenizer: ConfigDict, clip_of: ConfigDict | None = None) -> ConfigDict:
    """Next-token prediction of the row of codes of a 1-D tokenizer, from text; at ``paper`` of ours, about 0.3B.

    Used by one_d_piece, karl and flextok. --config.sampler.tokens=K draws the first K codes alone, which they decode.
    ``clip_of`` is the model whose clips it takes, where that is a part of the tokenizer.
    """
    config = next_token(size, tokenizer)
    take_clip_of(config, clip_of or tokenizer)
    config.sampler.tokens = config_dict.placeholder(int)
    if size != "paper":
        from_text(config, size, qk_norm=size == "debug")
        return config
    of_captions(config)
    config.model.transformer = {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096}
    return config


def of_captions(config: ConfigDict) -> None:
    """Sets a training of ours at ``paper``, from captions that T5-XXL has read."""
    config.steps = 500_000
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.data.source.name = "video_folder"
    config.data.batch_size = 512
    config.data.workers = 16
    config.text = t5_text(length=77)
    config.parts.text_encoder = t5_part()
    config.ema.decay = 0.9999
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "full"
    config.optimizer = {"generator": optimizer(learning_rate=1e-4, warmup=5000, b2=0.95, weight_decay=0.05)}


def next_scale(size: str, tokenizer: ConfigDict) -> ConfigDict:
    """Next-scale prediction over the scales of a tokenizer: model and sampler, without a training.

    Used by tokenflow.
    """
    config = begun(size, tokenizer)
    take_clip_of(config, tokenizer)
    config.model = {"name": "next_scale", "token_drop": 0.0, "condition_drop": 0.1, "head": {"name": "categorical"}}
    config.sampler = {
        "name": "scales",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.9,
        "refine": (),
        "guidance_scale": 3.0,
        "guidance_schedule": "linear",
    }
    return config


def flow(size: str, tokenizer: ConfigDict) -> ConfigDict:
    """Rectified flow over the continuous latents of a tokenizer: model and sampler, without a training.

    Used by videodit, omnitokenizer and cdt.
    """
    config = begun(size, tokenizer)
    config.model = {
        "name": "flow",
        "patch": (1, 1, 1),
        "text": "cross",
        "modulation": "zero",
        "times": "clip",
        "causal": False,
        "window": (),
        "prefix_share": 0.25,
        "noise": {
            "process": {"name": "rectified_flow"},
            "prediction": "velocity",
            "time_distribution": {"name": "logit_normal", "mean": 0.0, "deviation": 1.0},
            "weighting": "",
            "shift": 1.0,
        },
        "condition_drop": 0.1,
    }
    config.sampler = {
        "name": "flow",
        "steps": 24,
        "solver": {"name": "dpm_2m"},
        "grid": {"name": "uniform", "start": 1.0},
        "shift": config_dict.placeholder(float),
        "guidance_scale": 3.0,
        "guidance": {"name": "classifier_free"},
        "lag": 0,
        "extension": "window",
    }
    return config


def flow_from_text(config: ConfigDict, size: str) -> None:
    """Sets the training of a flow at ``debug`` or ``small``."""
    from_text(config, size)
    if size == "debug":
        config.steps = 3600
        config.eval_every = 1200
        config.checkpoint_every = 1200
        config.data.batch_size = 16
        config.ema.decay = 0.998
        config.optimizer.generator.learning_rate = 1e-2
    else:
        config.data.image_batch_size = 16
        config.optimizer = {"generator": optimizer(learning_rate=3e-4, warmup=1000, final=0.02)}


def videos(size: str) -> dict:
    """The clips of the smaller sizes of generators whose tokenizers take any size."""
    frames, side = (5, 24) if size == "debug" else (17, 64)
    return {"frames": frames, "height": side, "width": side, "fps": 8.0}

"""Next Block Prediction (Ren et al., 2025): semi-autoregressive generation, a row of codes at a time.

    --config=nbp:stage=tokenizer|generator,size=debug|small|paper,model=700M|1.2B|3B,block=row|token

The tokenizer is a causal convolutional one with finite scalar quantization (the paper's is MAGVIT-v2's network, about
370M parameters, 64,000 codes); at ``debug`` it is the C-ViViT of ``phenaki`` with more codes. The generator
walks along blocks ``--config.model.block=(time,height,width)``, by default rows of codes; ``block=token`` is next-token
prediction, which ``make quickstart`` trains at ``debug``. ``paper`` is frame prediction on Kinetics-600 (section 4:
five frames given, 12 to come), at the size ``model=``; with a text or a class instead, nothing is given and the first
block is drawn token by token (--config.model.start=tokens --config.model.given=0).

What differs from the paper at ``paper``: the tokenizer is judged by MAGVIT-v2's discriminator instead of a PatchGAN;
how it weighs L1 and L2 was not found, and here it is L2 alone; its Adam has MAGVIT-v2's momentum.
"""

from ml_collections import ConfigDict

from videogen.configs import data_sets, magvit2, phenaki
from videogen.configs.common import no_text
from videogen.configs.generators import begun, from_text
from videogen.configuration import parse_argument
from videogen.defaults import optimizer

STAGES = ("tokenizer", "generator")

MODELS = {
    "700M": {"layers": 24, "width": 1536, "heads": 16, "mlp_width": 6144},
    "1.2B": {"layers": 24, "width": 2048, "heads": 32, "mlp_width": 8192},
    "3B": {"layers": 32, "width": 3072, "heads": 32, "mlp_width": 12_288},
}
"""Table 1 of the paper."""

SWEEPS = {
    "block": [{"model.block": block} for block in ((1, 1, 1), (1, 1, 3), (1, 1, 6), (1, 6, 6), (3, 6, 6))],
}
"""Name -> variants, for launch/sweep.py: the block sizes of the paper's ablation, at the debug size."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    sizes = ("debug", "small", "paper")
    chosen = parse_argument(argument, stage=STAGES, size=sizes, model=tuple(MODELS), block=("row", "token"))
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"])
    config = generator(chosen["size"], chosen["model"])
    if chosen["block"] == "token":
        config.model.block = (1, 1, 1)
        if chosen["size"] == "debug":
            # Every code is learned from in every step: a run needs fewer of them than with masks.
            config.steps = 1500
            config.eval_every = 750
            config.checkpoint_every = 750
            config.sampler.update({"temperature": 0.8, "guidance_scale": 2.0})
    return config


def tokenizer(size: str) -> ConfigDict:
    """The causal tokenizer with finite scalar quantization."""
    if size == "debug":
        config = phenaki.tokenizer(size)
        # Next-token prediction learns codes of context, of which fewer patches need more: 4 dB above those of phenaki.
        config.model.encoder_layers = (1, 1)
        config.model.quantizer.update({"size": 512, "restart_threshold": 0.02})
        config.optimizer.tokenizer = optimizer(
            "muon", learning_rate=1e-2, adam_share=0.2, warmup=30, final=0.02, weight_decay=0.0
        )
        return config
    config = magvit2.tokenizer(size)
    config.model.quantizer = ConfigDict({"name": "fsq", "levels": levels(size)})
    if size == "paper":
        # 100 epochs of Kinetics-600's about 390,000 clips; a hundredth of the steps is warm-up.
        config.data.source.update(data_sets.source("kinetics600"))
        config.steps = 152_000
        config.data.batch_size = 256
        config.model.padding = "replicate"
        config.losses.l2.weight = 1.0
        del config.losses.entropy
        common = {"learning_rate": 1e-4, "warmup": 1520, "schedule": "linear", "b1": 0.0, "weight_decay": 0.0}
        config.optimizer = {name: optimizer(**common, clip=0.0) for name in ("tokenizer", "discriminator")}
    return config


def levels(size: str) -> tuple[int, ...]:
    """Levels of the finite scalar quantizer: 64,000 codes (section 4), 4,096 at the small size."""
    return (8, 8, 8, 5, 5, 5) if size == "paper" else (4, 4, 4, 4, 4, 4)


def generator(size: str, model: str) -> ConfigDict:
    """Next-block prediction of its codes."""
    config = begun(size, tokenizer(size).model)
    config.model = {"name": "next_block", "start": "tokens", "given": 0, "condition_drop": 0.1}
    config.model.head = {"name": "categorical"}
    config.sampler = {
        "name": "blocks",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.9,
        "guidance_scale": 1.0,
        "guidance_schedule": "constant",
    }
    if size == "debug":
        from_text(config, size, rotary=True)
        config.data.clip.update({"height": 24, "width": 24})
        config.model.block = (1, 1, 6)
        config.sampler.update({"guidance_scale": 3.0})
    elif size == "small":
        from_text(config, size)
        config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
        config.model.block = (1, 1, 8)
    else:
        # 77 epochs of Kinetics-600's about 390,000 clips.
        config.steps = 470_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.clip = {"frames": 17, "height": 128, "width": 128, "fps": 25.0}
        config.data.own = ("clip",)
        config.data.source.update(data_sets.source("kinetics600"))
        config.data.batch_size = 64
        config.data.workers = 16
        config.text = no_text()
        config.model.update({"start": "given", "given": 2, "block": (1, 1, 16)})
        # GPT-2's block: layer norm, nothing on queries and keys.
        config.model.transformer = {**MODELS[model], "norm": "layer", "qk_norm": False, "dropout": 0.1}
        config.sampler.update({"top_k": 16_000})
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        rate = 2e-4 if model == "3B" else 5e-4
        config.optimizer = {
            "generator": optimizer(learning_rate=rate, warmup=10_000, b1=0.9, b2=0.95, weight_decay=0.01, clip=1.0)
        }
    return config

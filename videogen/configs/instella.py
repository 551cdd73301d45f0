"""Instella-T2I (AMD, 2025, arXiv 2506.21022): 1-D tokens of bits for pictures of any size, and two generators of bits.

    --config=instella:stage=tokenizer|diffusion|autoregressive,size=debug|small|paper,text=deep|cross

``tokenizer`` is the binary autoencoder: as many tokens for every height and width, each of them a vector of bits, which
decode to any height and width (``model.clip`` where nothing else is asked for). ``diffusion`` denoises the bits of all
tokens at once, ``autoregressive`` draws a token after the other, all bits of it at once. Both see a frozen language
model by deep fusion: layer l of the generator sees the hidden states behind layer l of the language model. Where the
generator has more layers, neighbours share one. ``text=cross`` is a cross-attention to those of the last layer.

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour; both code clips, which is
our extension, and read captions by the small language model that comes with videogen, a stand-in that knows nothing but
the captions of shapes: --config.parts.text_encoder.checkpoint=FOLDER names another one of ``videogen.stand_in``.
``paper`` has the published networks, 1024 × 1024 pictures in 128 tokens of 64 bits. Its language model is one of the
types Llama, Mistral or Qwen2 in its published folder, with as many layers as the generator:
--config.parts.text_encoder.checkpoint=FOLDER

What differs from the paper: two linear layers on either side of the bits that follow each other are one. Learned
positions are added once and not in every block. Hidden states go through one linear layer for all blocks and each
block's own keys and values. MLPs of the generators have two linear layers and not a gate: so sized and counted the
transformers have the published 1.2B and 0.8B parameters. A guidance of s there is 1 + s here. The alignment with a
teacher (REPA), which is optional there, is left out.

Not found, and here our own: the losses of the tokenizer and their weights (squared error; an adversarial term that is
off, as the perceptual one is until the user names a file: --config.losses.perceptual.name=lpips
--config.losses.perceptual.path=FILE --config.losses.perceptual.weight=1.0), the weight of the bits' uncertainty, its
recipe, the range that rows and columns are rescaled to, the kernels of the convolutions that resize, the wavelengths of
the rotary positions, EMA, the batch of the whole job, and b2 of AdamW.
"""

from ml_collections import ConfigDict

from videogen import encoders
from videogen.configs.common import adversarial, at_paper, at_small, frozen, loss_terms, take_clip_of
from videogen.configs.generators import begun, trained
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "diffusion", "autoregressive")

STAND_IN = "shapes_captions"
"""The language model at the sizes below ``paper``."""

LANGUAGE = {"vocabulary_size": 50_304, "width": 2048, "layers": 16, "heads": 16, "hidden": 8192}
LANGUAGE |= {"key_value_heads": 16, "head_width": 128}
"""What ``paper`` is planned with until the user names a folder: about 1B parameters, as deep and wide as published."""

SWEEPS = {
    "samplers": [{"model.noise.process.anew": anew} for anew in (True, False)],
    "text": [{"model.text": text} for text in ("deep", "cross")],
}
"""Name -> variants, for launch/sweep.py: of the stage ``diffusion``."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    sizes, texts = ("debug", "small", "paper"), ("deep", "cross")
    chosen = parse_argument(argument, stage=STAGES, size=sizes, text=texts)
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"])
    return generator(chosen["stage"], chosen["size"], chosen["text"])


def tokenizer(size: str) -> ConfigDict:
    """The binary autoencoder."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    transformer = {"name": "transformer", "patch": (4, 8, 8), "width": 384, "layers": 6, "heads": 6}
    config.losses = loss_terms(l2=1.0, adversarial=adversarial(transformer, objective="hinge", lecam=0.001))
    config.model = autoencoder(size)
    take_clip_of(config, config.model)
    if size == "debug":
        config.steps = 6000
        config.eval_every = 2000
        config.checkpoint_every = 2000
        config.losses.adversarial.discriminator.update({"patch": (4, 4, 4), "width": 64, "layers": 2, "heads": 2})
        rates = {"name": "muon", "learning_rate": 1e-2, "adam_share": 0.3, "warmup": 50, "final": 0.02}
    elif size == "small":
        at_small(config)
        rates = {"learning_rate": 3e-4, "warmup": 1000, "final": 0.02}
    else:
        at_paper(config, steps=500_000, batch_size=256, decay=0.9999, source="image_folder")
        config.losses.adversarial.discriminator.patch = (1, 16, 16)
        rates = {"learning_rate": 1e-4, "warmup": 5000, "final": 0.02}
    config.optimizer = {
        "tokenizer": optimizer(**rates, weight_decay=0.0),
        "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.5),
    }
    return config


def autoencoder(size: str) -> ConfigDict:
    """The binary autoencoder at each size (paper: 64 × 64 patches, then 32 × 32 places, 128 tokens of 64 bits)."""
    quantizer = {"name": "bernoulli", "bits": 64, "temperature": 0.1, "uncertainty_weight": 0.01}
    if size == "debug":
        # Bits that are soon sure learn no more.
        quantizer |= {"bits": 16, "uncertainty_weight": 0.001}
        shape = {"clip": (4, 24, 24), "patch": (2, 4, 4), "queries": 32, "extent": 16.0, "resized_after": (1, 1)}
        # Convolutions of single places: Muon spends most of its time on large kernels.
        shape |= {"rotary_channels": (4, 14, 14), "kernels": (2, 1)}
        networks = [network(width=128, layers=2, heads=4, ratio=2)] * 2
    elif size == "small":
        quantizer |= {"bits": 32}
        shape = {"clip": (16, 64, 64), "patch": (4, 8, 8), "queries": 128, "extent": 8.0, "resized_after": (4, 4)}
        shape |= {"rotary_channels": (8, 28, 28)}
        networks = [network(width=384, layers=6, heads=6), network(width=512, layers=8, heads=8)]
    else:
        shape = {"clip": (1, 1024, 1024), "patch": (1, 16, 16), "queries": 128, "extent": 64.0, "resized_after": (8, 8)}
        shape |= {"rotary_channels": (8, 28, 28)}
        networks = [network(width=768, layers=12, heads=12), network(width=1024, layers=16, heads=16)]
    # A short run has no time to tell queries apart that begin as near zero.
    shape["query_scale"] = 0.02 if size == "paper" else 1.0
    parts = {"encoder": networks[0], "decoder": networks[1], "quantizer": quantizer}
    return ConfigDict({"name": "one_d_any_size", **shape, **parts})


def network(width: int, layers: int, heads: int, ratio: int = 4) -> dict:
    """A transformer of the autoencoder, whose MLPs are ``ratio`` times as wide as its tokens."""
    return {"width": width, "layers": layers, "heads": heads, "mlp_width": ratio * width, "mlp": {"kind": "swiglu"}}


def generator(stage: str, size: str, text: str) -> ConfigDict:
    """A generator of the bits, from text."""
    config = begun(size, autoencoder(size))
    take_clip_of(config, config.parts.tokenizer.model)
    config.model = diffusion() if stage == "diffusion" else autoregressive()
    config.model.update({"text": text, "condition_drop": 0.1})
    config.sampler = sampler(stage)
    if size == "paper":
        config.text = {"encoder": {"name": "decoder"}, "tokenizer": {"name": "huggingface", "path": "", "length": 128}}
        config.parts.text_encoder = frozen({"name": "decoder", **LANGUAGE})
    else:
        folder = encoders.SHIPPED / STAND_IN
        tokens = {"name": "huggingface", "path": "", "length": 24}
        config.text = {"encoder": {"name": STAND_IN}, "tokenizer": tokens}
        config.parts.text_encoder = frozen(encoders.describe(STAND_IN, folder)) | {"checkpoint": str(folder)}
    if size == "paper":
        paper(config, stage)
        return config
    trained(config, size, rotary=True)
    if size == "small":
        rates = {"learning_rate": 3e-4, "warmup": 1000, "final": 0.02, "weight_decay": 0.0}
        config.optimizer = {"generator": optimizer(**rates)}
    return config


def diffusion() -> ConfigDict:
    """A transformer that says which bits are flipped."""
    noise = {
        "process": {"name": "bernoulli", "threshold": True, "anew": True},
        "prediction": "flip",
        "time_distribution": {"name": "logit_normal", "mean": 0.0, "deviation": 1.0},
        "weighting": "",
        "shift": 1.0,
    }
    return ConfigDict({"name": "flow", "patch": (1, 1, 1), "modulation": "zero", "noise": noise})


def autoregressive() -> ConfigDict:
    """A transformer that gives a logit for every bit of the next token."""
    return ConfigDict({"name": "next_block", "block": (1, 1, 1), "start": "block", "head": {"name": "bernoulli"}})


def sampler(stage: str) -> ConfigDict:
    """How bits are drawn."""
    if stage == "diffusion":
        grid, guidance = {"name": "power", "rho": 1.0}, {"name": "classifier_free"}
        common = {"guidance_scale": 3.0, "guidance": guidance, "temperature": 1.0}
        return ConfigDict({"name": "flow", "steps": 30, "grid": grid, **common})
    common = {"guidance_scale": 3.0, "guidance_schedule": "constant", "temperature": 1.0}
    return ConfigDict({"name": "blocks", "top_k": 0, "top_p": 1.0, **common})


def paper(config: ConfigDict, stage: str) -> None:
    """Sets a generator's training at the published sizes: 16 layers of 2048 channels."""
    config.steps = 2_000_000
    config.eval_every = 10_000
    config.checkpoint_every = 10_000
    config.data.source.name = "image_folder"
    config.data.batch_size = 4096
    config.data.workers = 16
    norm = "layer" if stage == "diffusion" else "rms"
    config.model.transformer = {"width": 2048, "layers": 16, "heads": 16, "mlp_width": 8192, "norm": norm}
    config.model.transformer.rotary = False
    config.sampler.guidance_scale = 8.5
    if stage == "diffusion":
        config.sampler.steps = 50
    config.ema.decay = 0.9999
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "dots"
    config.optimizer = {
        "generator": optimizer(learning_rate=1e-4, warmup=1000, schedule="constant", b2=0.999, weight_decay=0.0)
    }

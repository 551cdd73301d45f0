"""One-D-Piece (Miwa et al., 2025): a row of codes in the order of what they are worth, of which any first part decodes.

    --config=one_d_piece:stage=tokenizer|generator,size=debug|small|paper,model=S|B|L,registers=clip|frame

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` has the published
networks and the recipe of the second stage. The tail of the codes is dropped in training after a number of codes that
is drawn for each clip (the paper draws one for all clips of a device). Where --config.model.lengths.minimum is the
number of all codes, none is dropped. ``debug`` and ``small`` code clips, which is our extension; ``paper`` codes images
of 256 × 256 as clips of one frame. ``generator`` draws the codes one after another from text, all of them or the first
--config.sampler.tokens=K; the paper's is a masked transformer.

``registers=frame``, which is ours, has a row of codes for every latent frame, which see that frame and those before it:
videos of any length are coded in chunks. The length rule then counts the codes of a frame.

What differs from the paper: the decoder writes pixels, where the published one predicts the codes of a frozen image
tokenizer in a first stage and tunes that tokenizer's decoder in a second; positions are sines and not learned. The
perceptual loss, published weight 0.1 on ConvNeXt-S, is off until the user names a file:
--config.losses.perceptual.name=lpips --config.losses.perceptual.path=FILE --config.losses.perceptual.weight=0.1
"""

from ml_collections import ConfigDict

from videogen.configs.common import adversarial, at_paper, at_small, loss_terms, take_clip_of
from videogen.configs.generators import of_a_row
from videogen.configs.networks import one_d
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "generator")

MODELS = {
    "S": {"width": 512, "layers": 8, "heads": 8, "mlp_width": 2048},
    "B": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
    "L": {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096},
}
"""The published encoders; the decoders are their equals."""

SWEEPS = {
    "lengths": [{"model.lengths.distribution": name} for name in ("uniform", "power_of_two", "uniform_power_of_two")],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    sizes, models = ("debug", "small", "paper"), ("L", "B", "S")
    chosen = parse_argument(argument, stage=STAGES, size=sizes, model=models, registers=("clip", "frame"))
    size = chosen["size"]
    make = one_d_piece if chosen["registers"] == "clip" else of_frames
    if chosen["stage"] == "generator":
        return of_a_row(size, make(size, chosen["model"]), clip(size, chosen["registers"]))
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    transformer = {"name": "transformer", "patch": (4, 8, 8), "width": 384, "layers": 6, "heads": 6}
    config.losses = loss_terms(l2=1.0, adversarial=adversarial(transformer, objective="hinge", lecam=0.001))
    config.model = make(size, chosen["model"])
    take_clip_of(config, clip(size, chosen["registers"]))
    if size == "debug":
        config.steps = 5000
        config.eval_every = 2500
        config.checkpoint_every = 2500
        config.losses.adversarial.discriminator.update({"patch": (4, 4, 4), "width": 64, "layers": 2, "heads": 2})
        config.optimizer = {
            "tokenizer": optimizer("muon", learning_rate=1e-2, adam_share=0.3, warmup=50, final=0.02, weight_decay=0.0),
            "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.5),
        }
    elif size == "small":
        at_small(config)
        config.optimizer = published(warmup=1000, final=0.1)
    else:
        at_paper(config, steps=500_000, batch_size=512, decay=0.999)
        config.losses.adversarial.update({"weight": 0.01, "start": 20_000})
        config.losses.adversarial.discriminator.patch = (1, 16, 16)
        config.optimizer = published(warmup=5000, final=0.1)
    return config


def published(**schedule: float) -> dict[str, ConfigDict]:
    """AdamW (0.9, 0.99) at 1e-4 with a cosine to 1e-5 for both networks."""
    rates = {"learning_rate": 1e-4, "b1": 0.9, "b2": 0.99, "weight_decay": 1e-4, "schedule": "half_cosine"}
    return {name: optimizer(**rates, **schedule) for name in ("tokenizer", "discriminator")}


def one_d_piece(size: str, model: str) -> ConfigDict:
    """The tokenizer at each size, with the drop of tails."""
    config = one_d(size, MODELS[model])
    config.lengths = {"name": "tail_drop", "distribution": "uniform", "minimum": 1}
    return config


def of_frames(size: str, model: str) -> ConfigDict:
    """The tokenizer with a row of codes for every latent frame, a quarter as many as the other has for a clip."""
    config = one_d_piece(size, model)
    config.name = "one_d_causal"
    config.size = tuple(config.clip[1:])
    del config.clip
    config.queries //= 4
    config.window = 4
    if size == "paper":
        config.patch = (4, 16, 16)
    return config


def clip(size: str, registers: str) -> ConfigDict:
    """Frames, height and width of the clips of training."""
    frames, height, width = one_d(size, {}).clip
    if registers == "frame":
        frames = {"debug": 5, "small": 17, "paper": 17}[size]
    return ConfigDict({"clip": (frames, height, width)})

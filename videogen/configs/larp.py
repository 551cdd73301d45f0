"""LARP (Wang et al., ICLR 2025): holistic query tokenizer trained along with an autoregressive prior.

    --config=larp:stage=tokenizer|generator,size=debug|small|paper,model=LP|L|B

``debug`` trains on two CPU cores in minutes, ``small`` on one accelerator in about an hour, ``paper`` is the published
setting (173M parameters, 16 × 128 × 128 in 1024 codes). Clips have one fixed shape, that of data.clip and model.clip;
the number of codes is free: --config.model.queries=256. The prior is trained in the same run, at 50 times the
tokenizer's learning rate, and left out of exports; --config.losses.prior.weight=0 trains without it, which reconstructs
better and generates worse. The perceptual loss, published weight 1, is off until the user names a file:
--config.losses.perceptual.name=lpips --config.losses.perceptual.path=FILE --config.losses.perceptual.weight=1
The paper's random flips, and its one-sided smoothing's value, which was not found, are not those here (none, and 0.1);
the public code applies the weight of LeCam twice, and here it counts once; gradients are clipped to a norm of 1.

``generator`` predicts the codes one after another in the order of their queries, which the prior has made easy to
predict. Codes have no place in the picture: a video is one clip, it cannot be extended, begin with given frames, or
have pixels to be completed. ``paper`` is the class-conditional one of UCF-101 at the size ``model=``: 632M parameters
(LP); L and B have 326M and 98M with these 8192 codes, the published 343M and 111M are what they have with 16,384. What
differs from the paper: GELU in the place of SwiGLU at as many parameters, and the class comes in by cross-attention,
whose layers those counts leave out.
"""

from ml_collections import ConfigDict

from videogen.configs import data_sets
from videogen.configs.common import adversarial, loss_terms, no_text, take_clip_of
from videogen.configs.generators import from_text, next_token
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "generator")

MODELS = {
    "LP": {"layers": 30, "width": 1280, "heads": 20, "mlp_width": 5376},
    "L": {"layers": 24, "width": 1024, "heads": 16, "mlp_width": 4224},
    "B": {"layers": 12, "width": 768, "heads": 12, "mlp_width": 3072},
}
"""The paper's generators: two layers of GELU half as wide again as the published SwiGLU's three."""

SWEEPS = {
    "prior_weight": [{"losses.prior.weight": weight} for weight in (0.0, 0.01, 0.06)],
    "queries": [{"model.queries": queries} for queries in (32, 64, 128)],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), model=tuple(MODELS))
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"])
    return generator(chosen["size"], chosen["model"])


def tokenizer(size: str) -> ConfigDict:
    """The query tokenizer and its autoregressive prior."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    transformer = {"name": "transformer", "patch": (4, 8, 8), "width": 512, "layers": 12, "heads": 8}
    config.losses = loss_terms(
        l1=1.0,
        # The published smoothing of the labels was not found.
        adversarial=adversarial(transformer, lecam=0.001, label_smoothing=0.1),
        # At the published temperature of 1 the prior is almost undecided among 8192 codes (train/prior_entropy).
        prior={"name": "prior", "weight": 0.06, "width": 384, "layers": 12, "heads": 6, "temperature": 1.0},
    )
    config.model = larp(size)
    take_clip_of(config, config.model)
    if size == "debug":
        config.steps = 5000
        config.eval_every = 2000
        config.checkpoint_every = 2000
        config.losses.l2.weight = 1.0
        config.losses.l1.weight = 0.0
        config.losses.adversarial.discriminator.update({"patch": (4, 4, 4), "width": 64, "layers": 2, "heads": 2})
        # Squared errors of small clips soon are smaller than L1 and LPIPS together: the prior must not outweigh them.
        config.losses.prior.update({"weight": 0.01, "width": 64, "layers": 2, "heads": 2})
        config.optimizer = {
            "tokenizer": optimizer("muon", learning_rate=1e-2, adam_share=0.3, warmup=50, final=0.02, weight_decay=0.0),
            "discriminator": optimizer(learning_rate=1e-4, weight_decay=0.0, b1=0.5),
            "prior": optimizer(learning_rate=2e-3, warmup=50, final=0.02, weight_decay=0.0),
        }
    elif size == "small":
        config.steps = 30_000
        config.eval_every = 1000
        config.checkpoint_every = 1000
        config.data.batch_size = 32
        config.data.workers = 8
        config.losses.adversarial.discriminator.update({"width": 256, "layers": 6, "heads": 4})
        config.losses.prior.update({"width": 192, "layers": 4, "heads": 3})
        config.ema.decay = 0.999
        config.optimizer = published(tokenizer=4e-4, discriminator=1e-4, prior=2e-3, warmup=1000)
    else:
        # 150 epochs of K600 and UCF-101 (about 400,000 clips), 8 of them warm-up.
        config.steps = 470_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.source.name = "video_folder"
        config.data.batch_size = 128
        config.data.workers = 16
        config.losses.adversarial.update({"weight": 0.3, "every": 5})
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "dots"
        config.optimizer = published(tokenizer=1e-4, discriminator=3e-5, prior=5e-3, warmup=25_000)
    return config


def published(warmup: int, **learning_rates: float) -> dict[str, ConfigDict]:
    """Adam (0.5, 0.9) with a cosine to 1 % for every network."""
    common = {"warmup": warmup, "final": 0.01, "b1": 0.5, "b2": 0.9, "weight_decay": 0.0}
    return {name: optimizer(learning_rate=rate, **common) for name, rate in learning_rates.items()}


def larp(size: str) -> ConfigDict:
    """The tokenizer at each size (paper: 1024 patches, 1024 codes of 13 bits)."""
    quantizer = {"name": "stochastic", "size": 8192, "width": 16, "temperature": 0.03}
    if size == "debug":
        quantizer |= {"size": 192}
        # A patch has fewer values than a token, as in the paper (equally many): with more, pixels blur.
        shape = {"clip": (4, 24, 24), "patch": (2, 4, 4), "queries": 96}
        network = {"width": 128, "layers": 2, "heads": 4, "mlp_width": 256}
    elif size == "small":
        shape = {"clip": (16, 64, 64), "patch": (4, 8, 8), "queries": 256}
        network = {"width": 384, "layers": 6, "heads": 6, "mlp_width": 1536}
    else:
        shape = {"clip": (16, 128, 128), "patch": (4, 8, 8), "queries": 1024}
        network = {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072}
    # A short run has no time to tell queries apart that begin as near zero as the published ones.
    scale = 0.02 if size == "paper" else 1.0
    parts = {"encoder": network, "decoder": dict(network), "quantizer": quantizer}
    return ConfigDict({"name": "one_d", **shape, **parts, "query_scale": scale})


def generator(size: str, model: str) -> ConfigDict:
    """Next-token prediction of the queries' codes, from a class."""
    config = next_token(size, larp(size))
    take_clip_of(config, config.parts.tokenizer.model)
    if size != "paper":
        from_text(config, size, qk_norm=size == "debug")
    else:
        # 3000 epochs of UCF-101's 9537 training videos, 4 of them warm-up.
        config.steps = 447_000
        config.eval_every = 5000
        config.checkpoint_every = 5000
        config.data.source.update(data_sets.source("ucf101"))
        # The tokenizer is trained on Kinetics-600, too.
        config.data.own = ("source",)
        config.data.batch_size = 64
        config.data.workers = 16
        config.classes = data_sets.CLASSES["ucf101"]
        config.text = no_text()
        config.model.transformer = {**MODELS[model], "dropout": 0.1, "qk_norm": False}
        config.model.token_drop = 0.1
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "full"
        config.optimizer = {
            "generator": optimizer(
                learning_rate=6e-4, warmup=600, schedule="half_cosine", final=0.01, b2=0.95, weight_decay=0.05
            )
        }
    return config

"""TokenBridge (Wang et al., ICCV 2025): codes by rounding every channel of trained continuous latents, and an
autoregressive generator whose head goes through the channels of a place one after another.

    --config=tokenbridge:stage=tokenizer|quantized|generator,size=debug|small|paper,model=L|H,
        levels=depth|parallel|delay,order=random|raster

``tokenizer`` trains with a Gaussian bottleneck, as for diffusion. ``quantized`` begins with its weights and trains
nothing: its steps measure mean and deviation of every channel of the latents, by which ``per_dimension`` then rounds
them. ``launch/local.py`` runs all three; by hand ``quantized`` takes --config.start_from.run=DIRECTORY, ``generator``
the directory of ``quantized`` by --config.parts.tokenizer.checkpoint. Values per channel are free:
--config.model.quantizer.bins=16 of the stage ``quantized``, and of any tokenizer with a Gaussian bottleneck. The
generator learns the codes of a draw from each clip's posterior, in every step another; a token cache holds the codes of
the mean, so training from one is another recipe.
``levels=parallel`` predicts the channels of a place at once, ``levels=delay`` one place later each.

``debug`` and ``small`` are videos; ``paper`` is the published setting, images of 256 × 256 in 16 × 16 places of 16
channels of 6 bits. ``order=random``, the paper's, is a masked transformer that draws the places in random order;
``order=raster`` draws them one after another, which ``debug`` does unless it is told. What differs from the paper: the
ids of a place come in as a sum of learned vectors instead of the values they stand for; encoder and decoder are one
transformer; the class comes in by cross-attention, whose layers the published counts leave out; the autoencoder is
trained with the losses of ``magvit2``. The order of the channels is that of the published autoencoder; of another one
it is measured from its latents and named by --config.model.head.order.
"""

from ml_collections import ConfigDict

from videogen.configs import data_sets, magvit2, phenaki
from videogen.configs.common import no_text
from videogen.configs.generators import begun, from_text
from videogen.configs.networks import cvivit
from videogen.configuration import parse_argument
from videogen.defaults import optimizer
from videogen.errors import UserError

STAGES = ("tokenizer", "quantized", "generator")

START_FROM = {"quantized": "tokenizer"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

PARTS = {"generator": {"tokenizer": "quantized"}}
"""Stage -> frozen part -> the stage that it comes from, where their names differ, for launch/local.py."""

MODELS = {
    "L": {"layers": 32, "width": 1024, "heads": 16, "mlp_width": 4096},
    "H": {"layers": 40, "width": 1280, "heads": 16, "mlp_width": 5120},
}
"""The paper's transformers, encoder and decoder as one."""

LAYERS = {"L": 4, "H": 6}
"""Those of their heads; each transformer over channels is as wide as the other one."""

CHANNELS = (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5)
"""The channels of the published autoencoder, those of low frequencies first."""

SWEEPS = {
    "bins": [{"model.quantizer.bins": bins} for bins in (4, 8, 16, 64)],
    "head": [{"model.head.layers": layers} for layers in (1, 2, 4)],
}
"""Name -> variants, for launch/sweep.py: of the stage ``quantized``, and of the generator."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(
        argument,
        stage=STAGES,
        size=("debug", "small", "paper"),
        model=tuple(MODELS),
        levels=("depth", "parallel", "delay"),
        order=("", "random", "raster"),
    )
    if chosen["stage"] == "tokenizer":
        return tokenizer(chosen["size"])
    if chosen["stage"] == "quantized":
        return quantized(chosen["size"])
    order = chosen["order"] or ("random" if chosen["size"] == "paper" else "raster")
    if chosen["levels"] == "delay":
        if chosen["order"] == "random":
            raise UserError("levels=delay draws places one after another, and order=random does not: take one of them")
        order = "raster"
    config = generator(chosen["size"], chosen["model"], order)
    if chosen["levels"] != "depth":
        config.model.head = ConfigDict({"name": "categorical"})
        if order == "raster":
            config.model.delay = chosen["levels"] == "delay"
    return config


def tokenizer(size: str) -> ConfigDict:
    """The continuous tokenizer."""
    if size == "paper":
        config = magvit2.image(size)
        config.data.clip.update({"height": 256, "width": 256})
        del config.losses.entropy
    else:
        config = phenaki.tokenizer(size)
    config.model = network(size)
    # 1e-6 of the sum over an image's latents beside a sum over its pixels; losses here are means.
    kl_weight = 1e-6 * (16 * 16 * 16) / (256 * 256 * 3) if size == "paper" else 1e-3
    config.model.quantizer = {"name": "gaussian", "width": channels(size), "kl_weight": kl_weight}
    return config


def network(size: str) -> ConfigDict:
    """The tokenizer but for its quantizer (paper: the autoencoder of latent diffusion, 16 × 16 pixels to a place)."""
    if size != "paper":
        return cvivit(size)
    levels = {"width": 128, "multipliers": (1, 1, 2, 2, 4), "spatial_strides": (2, 2, 2, 2)}
    levels |= {"time_kernel": 1, "temporal_strides": (1, 1, 1, 1), "blocks": 2, "norm_groups": 32, "padding": "zero"}
    return ConfigDict({"name": "convolutional", **levels, "quantizer": {}})


def channels(size: str) -> int:
    """Channels of the latents."""
    return 8 if size == "debug" else 16


def rounded(size: str) -> ConfigDict:
    """The trained tokenizer with ids."""
    model = network(size)
    bins = 16 if size == "debug" else 64
    codes = {"name": "per_dimension", "width": channels(size), "bins": bins, "reach": 5.0, "drawn": True}
    model.quantizer = ConfigDict(codes)
    return model


def quantized(size: str) -> ConfigDict:
    """The trained tokenizer, whose steps only measure the latents' mean and deviation."""
    config = tokenizer(size)
    config.model = rounded(size)
    config.steps = config.eval_every = config.checkpoint_every = 50 if size == "debug" else 100
    config.losses.adversarial.weight = 0.0
    config.ema.decay = 0.0
    # All weights; what is left are the quantizer's statistics.
    parts = ("decoder",) if size == "debug" else ("encoder", "decoder")
    if size != "paper":
        parts += ("patches", "encoder_norm", "to_code", "from_code", "decoder_norm", "pixels")
    config.optimizer.tokenizer.freeze = parts
    return config


def generator(size: str, model: str, order: str) -> ConfigDict:
    """The autoregressive generator of the rounded channels."""
    config = begun(size, rounded(size))
    config.sampler = {"temperature": 1.0, "top_k": 0, "guidance_scale": 1.0, "guidance_schedule": "constant"}
    if order == "raster":
        config.model = {"name": "next_block", "block": (1, 1, 1), "delay": False, "condition_drop": 0.1}
        config.sampler.update({"name": "blocks", "top_p": 1.0})
    else:
        config.model = {"name": "masked", "training_schedule": "mar", "condition_drop": 0.1}
        # As many steps as places, or fewer: 256 are published.
        steps = {"debug": 36, "small": 64, "paper": 256}[size]
        config.sampler.update({"name": "maskgit", "steps": steps, "schedule": "cosine", "final_temperature": 1.0})
        config.sampler.order = "random"
    if size == "debug":
        debug(config, order)
    elif size == "small":
        small(config)
    else:
        paper(config, model, order)
    return config


def debug(config: ConfigDict, order: str) -> None:
    """Sets the generator's training on two CPU cores."""
    from_text(config, "debug", rotary=True)
    config.data.clip.update({"height": 24, "width": 24})
    config.model.head = {"name": "depth", "layers": 1, "heads": 4}
    config.sampler.guidance_scale = 3.0
    if order == "raster":
        config.sampler.top_p = 0.9


def small(config: ConfigDict) -> None:
    """Sets the generator's training on one accelerator."""
    from_text(config, "small")
    config.data.clip = {"frames": 17, "height": 64, "width": 64, "fps": 8.0}
    config.data.batch_size = 32
    config.model.head = {"name": "depth", "layers": 2, "heads": 8}


def paper(config: ConfigDict, model: str, order: str) -> None:
    """Sets the published training of the generator of size ``model``."""
    # 800 epochs of ImageNet, 200 of them warm-up; guidance and temperature of each model are the published ones.
    config.steps = 500_000
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.data.clip = {"frames": 1, "height": 256, "width": 256, "fps": 8.0}
    config.data.source.update(data_sets.source("imagenet"))
    # The tokenizer may be trained on other pictures.
    config.data.own = ("source",)
    config.data.batch_size = 2048
    config.data.workers = 16
    config.classes = data_sets.CLASSES["imagenet"]
    config.text = no_text()
    config.model.transformer = {**MODELS[model], "dropout": 0.1}
    head = {"name": "depth", "layers": LAYERS[model], "heads": 16, "order": CHANNELS}
    config.model.head = head | {"condition": "adaptive", "guidance": "features"}
    scale, temperature = {"L": (3.1, 0.97), "H": (3.45, 0.91)}[model]
    config.sampler.update({"guidance_scale": scale, "guidance_schedule": "linear", "temperature": temperature})
    if order == "random":
        config.sampler.final_temperature = temperature
    config.ema.decay = 0.9999
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "full"
    config.optimizer = {
        "generator": optimizer(
            learning_rate=4e-4, warmup=125_000, schedule="constant", b2=0.95, weight_decay=0.02, clip=1.0
        )
    }

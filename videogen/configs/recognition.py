"""What ids of a tokenizer are good for in recognition: four ways to a classifier of clips, in one run of all stages.

    python launch/local.py --config=recognition:size=debug --workdir=runs/recognition

``ids`` and ``pixels`` are pretrained to tell masked places of clips by themselves, as ids of the stage ``tokenizer`` or
as pixels (BEVT; Wang et al., 2022; VideoMAE; Tong et al., 2022). The stages ``of_…`` learn the classes of clips, for
as many steps each:

    of_ids        pixels in, begins as ``ids``: masked visual tokens as targets
    of_inputs     the vectors of ids in, begins from nothing: ids as inputs
    of_pixels     pixels in, begins as ``pixels``: pixels as targets
    of_nothing    pixels in, begins from nothing

Their protocol is ``recognition``: the share of held-out clips whose likeliest class is theirs; metrics.json of the work
directory has the four rows. On shapes classes are colours, forms and directions together.
"""

from ml_collections import ConfigDict

from videogen.configs.common import frozen
from videogen.configs.video_text import MASKED_PLACES, begun, image_codes, image_tokenizer
from videogen.configuration import parse_argument
from videogen.defaults import optimizer

STAGES = ("tokenizer", "ids", "pixels", "of_ids", "of_inputs", "of_pixels", "of_nothing")

START_FROM = {"of_ids": "ids", "of_pixels": "pixels"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

SIZES = {
    "debug": {"clip": (4, 24, 24), "patch": 6, "inside": (64, 1, 2, 256), "bert": (64, 2, 4)},
    "small": {"clip": (8, 48, 48), "patch": 8, "inside": (384, 4, 6, 1536), "bert": (384, 4, 6)},
    "paper": {"clip": (8, 224, 224), "patch": 16, "inside": (768, 6, 12, 3072), "bert": (768, 6, 12)},
}
"""Clips, patches, layers within frames and layers over the clip: sizes of ViT-B at ``paper``, which are ours."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    stages = ("of_ids", *(stage for stage in STAGES if stage != "of_ids"))
    chosen = parse_argument(argument, stage=stages, size=("debug", "small", "paper"))
    stage, size = chosen["stage"], chosen["size"]
    if stage == "tokenizer":
        return image_tokenizer(size)
    config = _begun(size, reads_ids=stage == "of_inputs")
    config.data.source.directions = True if size != "paper" else None
    if stage in ("ids", "pixels"):
        _pretraining(config, stage, size)
    else:
        _recognition(config, size)
    return config


def _begun(size: str, reads_ids: bool) -> ConfigDict:
    sizes = SIZES[size]
    inside = dict(zip(("width", "layers", "heads", "mlp_width"), sizes["inside"], strict=True))
    encoder = {"name": "patches", "patch": sizes["patch"], "transformer": inside, "temporal": 0}
    bert = dict(zip(("width", "layers", "heads"), sizes["bert"], strict=True))
    network = {"name": "joint", "bert": {**bert, "hidden": 4 * bert["width"]}}
    network["encoder"] = {"name": "tokens", "reading": ""} if reads_ids else encoder
    config = begun(size, network, sizes["clip"])
    # Clips by themselves, in boxes of time and space.
    config.model.masking.update({"video": 0.5, "blocks": 1.0, "with_words": False})
    if reads_ids:
        config.parts.tokenizer = frozen(image_codes(size))
    if size == "paper":
        config.data.batch_size = 256
        config.optimizer = {"model": optimizer(learning_rate=3e-4, warmup=2000, b2=0.95, weight_decay=0.05)}
    return config


def _pretraining(config: ConfigDict, stage: str, size: str) -> None:
    """Masked places, as ids or as pixels."""
    config.steps = {"debug": 800, "small": 20_000, "paper": 200_000}[size]
    if stage == "ids":
        config.model.targets = {"codes": {"name": "codes", "frames": "alone"}}
        config.losses = {"codes": MASKED_PLACES}
        config.parts.tokenizer = frozen(image_codes(size))
    else:
        config.model.targets = {"pixels": {"name": "pixels"}}
        config.losses = {"pixels": {"name": "regression", "reads": "pixels", "weight": 1.0, "objective": "l2"}}


def _recognition(config: ConfigDict, size: str) -> None:
    """The classes of clips."""
    config.steps = {"debug": 800, "small": 10_000, "paper": 50_000}[size]
    # Colours × forms × directions of shapes; of a folder those of Kinetics-400.
    config.classes = 400 if size == "paper" else 96
    config.losses = {"labels": {"name": "cross_entropy", "reads": "labels", "weight": 1.0}}
    config.checkpoint.keep_best.metric = "recognition"
    if size == "paper":
        config.data.source.folder_classes = True

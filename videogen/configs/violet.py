"""VIOLET (Fu et al., 2021): a Video Swin encoder and a transformer over clips and words, masked visual tokens.

    --config=violet:stage=tokenizer|pretraining,size=debug|small|paper

The stage ``tokenizer`` trains a tokenizer of pictures: the published image dVAE has this stand-in. In ``pretraining``
frames are resized so that its grid is that of the Swin encoder, and its ids are what masked places should be told to
be, beside masked words and matching (1 of 4 texts of the batch), all with weight 1. Half of the masks are boxes of time
and space; the others are drawn by the attention that patches get. ``videogen.evaluate --protocol=retrieval`` ranks by
the scores of matching.

At ``paper`` the encoder is Swin-B without a stride in time and the transformer BERT-base, over 4 frames of 224 pixels.
They begin as published: --config.parts.bert.checkpoint=FOLDER --config.parts.video_swin.checkpoint=FILE; patches of one
frame have no published weights and begin as fresh ones. The published batch is 12 on each GPU; the number of GPUs was
not found, and 8 are taken here.
"""

from ml_collections import ConfigDict

from videogen.configs.common import frozen
from videogen.configs.video_text import MASKED_PLACES, MASKED_WORDS, begun, image_codes, image_tokenizer, joint
from videogen.configuration import parse_argument
from videogen.defaults import optimizer

STAGES = ("tokenizer", "pretraining")

SWIN_B = {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": (8, 7, 7)}
BERT_BASE = {"vocabulary_size": 30_522, "length": 512, "width": 768, "layers": 12, "heads": 12, "hidden": 3072}

SIZES = {
    "debug": {
        "clip": (4, 24, 24),
        "swin": {"width": 32, "depths": (2, 2), "heads": (2, 4), "window": (4, 4, 4), "patch": (1, 3, 3)},
        "bert": {"width": 64, "layers": 2, "heads": 4},
    },
    "small": {
        "clip": (4, 48, 48),
        "swin": {"width": 96, "depths": (2, 2), "heads": (3, 6), "window": (4, 6, 6), "patch": (1, 4, 4)},
        "bert": {"width": 384, "layers": 6, "heads": 6},
    },
    "paper": {"clip": (4, 224, 224), "swin": {**SWIN_B, "patch": (1, 4, 4)}, "bert": BERT_BASE},
}


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES[::-1], size=("debug", "small", "paper"))
    size = chosen["size"]
    return image_tokenizer(size) if chosen["stage"] == "tokenizer" else pretraining(size)


def pretraining(size: str) -> ConfigDict:
    """Masked words, masked visual tokens and matching."""
    sizes = SIZES[size]
    network = joint(size, {"name": "video_swin", "model": sizes["swin"]}, sizes["bert"])
    config = begun(size, network, sizes["clip"], targets={"codes": {"name": "codes", "frames": "alone"}})
    config.losses = {
        "words": MASKED_WORDS,
        "codes": MASKED_PLACES,
        "matching": {"name": "matching", "reads": "matching", "weight": 1.0, "temperature": 0.05},
    }
    config.parts.tokenizer = frozen(image_codes(size))
    config.checkpoint.keep_best.metric = "text_to_video_recall_sum"
    if size == "paper":
        config.data.batch_size = 96
        # Five epochs of 5.5 million clips and pictures.
        config.steps = 286_000
        config.optimizer = {"model": optimizer(learning_rate=2e-5, warmup=2000, b2=0.98, weight_decay=1e-3)}
        config.parts.bert = frozen({"name": "bert", **BERT_BASE})
        config.parts.video_swin = frozen({"name": "video_swin", **SWIN_B, "classes": 400})
        swin = ("patch_norm", "stages", "mergings", "norm")
        config.start_from.paths = (
            ("model.network.bert", ":bert"),
            *((f"model.network.encoder.network.{part}", f":video_swin.{part}") for part in swin),
        )
    return config

"""Stand-ins for public networks, at the debug size alone: a classifier of clips and a language model of captions.

    --config=stand_ins:stage=classifier|captions

``python -m videogen.stand_in`` trains one on the shapes source and writes the folder that ``encoders.load`` reads.
The classifier tells colour, form and direction of the moving shape; it sees clips of several lengths and sizes.
"""

from ml_collections import ConfigDict

from videogen.configs.common import bpe_text
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stand-in; ``argument`` is what follows the colon of ``--config``."""
    stage = parse_argument(argument, stage=("classifier", "captions"))["stage"]
    return classifier() if stage == "classifier" else captions()


def classifier() -> ConfigDict:
    """Convolutions over clips of 5 to 16 frames."""
    config = base("float32")
    config.task = "classifier"
    # Few features: how far two sets of real clips seem apart grows with features over clips.
    config.model = {"name": "shapes_classifier", "widths": (24, 32, 48, 64), "features": 24, "side": 32}
    # Colours × forms × directions.
    config.classes = 96
    config.data.source.directions = True
    config.data.clip.update({"frames": 16, "height": 64, "width": 64})
    config.data.buckets = ((5, 24, 24, 16, 2), (9, 32, 32, 16, 1), (16, 64, 64, 16, 1))
    config.steps = config.eval_every = config.checkpoint_every = 1200
    config.log_every = 50
    config.data.batch_size = 16
    config.data.eval_batch_size = 64
    config.optimizer = {
        "model": optimizer("muon", learning_rate=3e-2, adam_share=0.3, warmup=20, final=0.0, weight_decay=0.0)
    }
    return config


def captions() -> ConfigDict:
    """Two layers of the type of Llama over the words of the grammar."""
    config = base("float32")
    config.task = "captions"
    config.model = {"name": "shapes_captions", "width": 64, "layers": 2, "heads": 4, "hidden": 128}
    config.model.update({"key_value_heads": 2, "head_width": 16, "tied": True})
    config.text = bpe_text(vocabulary_size=512, length=24)
    # Clips are not looked at.
    config.data.clip.update({"frames": 1, "height": 16, "width": 16})
    config.steps = config.eval_every = config.checkpoint_every = 500
    config.log_every = 50
    config.data.batch_size = 64
    config.data.eval_batch_size = 128
    config.optimizer = {
        "model": optimizer("muon", learning_rate=1e-2, adam_share=0.3, warmup=20, final=0.0, weight_decay=0.0)
    }
    return config

"""VideoLISA: a video-language model that answers with the masks of what an expression means, in all frames of a clip.

    --config=videolisa:size=debug|small|paper

Of the frames all are seen as one token each, and a few whole. Behind its answer the model writes the marker <TRK> where
there is something to show; the hidden state of the marker is the prompt of a mask decoder of the type of Segment
Anything, the same for every frame. ``debug`` and ``small`` learn expressions about moving shapes, such as "the shape
that turns twice", over an encoder that is trained here. At ``paper`` the language model and the image encoder are read
from folders, and so is SAM's mask decoder, which learns on over the features of the image encoder:
--config.parts.language_model.checkpoint=FOLDER --config.parts.encoder.checkpoint=FOLDER
--config.parts.mask_decoder.checkpoint=FOLDER.
"""

from ml_collections import ConfigDict

from videogen.configs.common import frozen, stream_text, tuned_decoder
from videogen.configs.understanding import QWEN2, SIGLIP
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("segmentation",)

SAM = {"width": 256, "hidden": 2048, "layers": 2, "heads": 8, "downsample": 2, "choices": 3, "depth": 3}
"""The mask decoder of Segment Anything, as ``encoders.SamMaskDecoder`` takes it."""

LORA = {"rank": 8, "alpha": 16, "only": ("query", "value")}
"""Low-rank updates of the language model."""

SEQUENCE = (
    *({"marker": "begin"}, {"marker": "begin_clip"}, {"input": "video"}, {"marker": "end_clip"}),
    *({"input": "question"}, {"marker": "answer"}, {"output": "answer"}, {"marker": "stop"}),
    *({"output": "mark"}, {"marker": "end"}),
)


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    size = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"))["size"]
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "segmentation"
    config.data.source.name = "shapes_expressions"
    config.model = {
        "name": "segmenting",
        "backbone": {"name": "tower"},
        "markers": ("begin", "begin_clip", "end_clip", "answer", "stop", "end"),
        "vision": {
            "encoder": {"name": "patches"},
            "reducers": ({"name": "sparse_dense", "frames": 2 if size == "debug" else 4},),
            "projector": {"layers": 2},
            "together": size != "paper",
        },
        "masks": {"decoder": {"name": "mask_decoder"}},
    }
    config.layouts = {"ask": {"sequence": SEQUENCE, "prefix": False, "share": 1.0}}
    config.losses = {
        "answers": {"name": "answers", "weight": 1.0},
        "pixel_cross_entropy": {"name": "pixel_cross_entropy", "weight": 2.0},
        "dice": {"name": "dice", "weight": 0.5},
    }
    config.sampler = {"name": "language", "temperature": 0.0, "top_k": 0, "top_p": 1.0}
    config.sampler.update({"variance_scale": 1.0, "guidance_scale": 1.0})
    config.checkpoint.keep_best.metric = "j_and_f"
    {"debug": _debug, "small": _small, "paper": _paper}[size](config)
    return config


def _debug(config: ConfigDict) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 1600, 400, 400
    config.data.clip.update({"frames": 8, "height": 24, "width": 24, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size = 16, 32
    layers = {"width": 64, "layers": 1, "heads": 2, "mlp_width": 128}
    config.model.vision.encoder = {"name": "patches", "patch": 4, "transformer": layers, "temporal": 1}
    config.model.backbone.transformer = {"width": 64, "layers": 2, "heads": 2, "mlp_width": 192, "rotary": True}
    config.model.masks.decoder.update({"width": 32, "hidden": 64, "layers": 2, "heads": 2, "choices": 0})
    config.ema.decay = 0.99
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 320, "length": 16})
    muon = {"learning_rate": 1e-2, "adam_share": 0.3, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"language": optimizer("muon", **muon)}


def _small(config: ConfigDict) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
    config.data.clip.update({"frames": 32, "height": 48, "width": 48, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 64, 32, 8
    layers = {"width": 256, "layers": 3, "heads": 4, "mlp_width": 1024}
    config.model.vision.encoder = {"name": "patches", "patch": 4, "transformer": layers, "temporal": 1}
    config.model.backbone.transformer = {"width": 384, "layers": 6, "heads": 6, "mlp_width": 1536, "rotary": True}
    config.model.masks.decoder.update({"width": 128, "hidden": 512, "layers": 2, "heads": 4})
    config.ema.decay = 0.999
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 320, "length": 16})
    config.optimizer = {"language": optimizer(learning_rate=4e-4, warmup=1000, b2=0.95, final=0.02)}


def _paper(config: ConfigDict) -> None:
    """A published language model with low-rank updates, frozen image features, 32 frames of which 4 are whole."""
    config.steps, config.eval_every, config.checkpoint_every = 6000, 1000, 1000
    config.data.clip.update({"frames": 32, "height": 384, "width": 384, "fps": 1.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 128, 16, 16
    tuned_decoder(config, QWEN2, SIGLIP, LORA, length=128, learning_rate=3e-4, warmup=100)
    config.parts.mask_decoder = frozen({"name": "sam_mask_decoder", **SAM})
    config.model.masks.decoder.update(SAM)
    config.start_from.paths = (*config.start_from.paths, ("language.masks.decoder", ":mask_decoder"))

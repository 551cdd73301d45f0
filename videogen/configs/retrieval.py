"""Two towers that find videos by texts and texts by videos, trained by a contrastive loss over the whole batch.

    --config=retrieval:size=debug|small|paper,recipe=plain|centerclip|tempme

At ``debug`` and ``small`` both towers are trained here, on captioned shapes: patches of every frame, layers over the
tokens of the clip with reducers behind some of them, and the mean of what is left; a transformer over the caption. At
``paper`` both are CLIP's B/32 (CLIP4Clip's mean over the [CLS] of 12 frames, from which CenterCLIP and TempMe go on),
read from folders, --config.parts.clip_image.checkpoint=FOLDER --config.parts.clip_text.checkpoint=FOLDER, and trained
along. ``recipe`` is what stands inside of CLIP's image encoder at ``paper``: nothing, the medoids of segments of frames
(CenterCLIP), or merging within and across frames with low-rank updates as all that is trained (TempMe).
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import frozen, stream_text
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer
from videogen.errors import UserError

STAGES = ("retrieval",)

CLIP_B = {
    "image": {"width": 768, "layers": 12, "heads": 12, "hidden": 3072, "kind": "quick_gelu", "epsilon": 1e-5},
    "text": {"width": 512, "layers": 12, "heads": 8, "hidden": 2048, "kind": "quick_gelu", "epsilon": 1e-5},
}
"""Sizes of the transformers of CLIP B."""

RECIPES = {
    "plain": {"name": "none"},
    "centerclip": {"name": "segment_medoids", "behind": 6, "segments": 4, "budget": 49, "by": "vectors"},
    "tempme": {
        **{"name": "progressive_merging", "removed": 2, "layers": 8, "joins": (2, 2, 3)},
        **{"across": 0.3, "inside": 0.1, "proportional": True},
    },
}
"""``model.video.reduction`` at ``paper``."""

LORA = {"rank": 8, "alpha": 8, "only": ("query", "value")}
"""TempMe's low-rank updates: 491,520 parameters in CLIP B/32. Which projections have them is a guess by their count."""

CLIP_IMAGE = {"image_size": 224, "patch": 32, "embed": 512, "sizes": CLIP_B["image"]}
CLIP_TEXT = {"vocabulary_size": 49_408, "length": 77, "embed": 512, "end": 49_407, "sizes": CLIP_B["text"]}
"""CLIP B/32, as ``encoders.ClipImage`` and ``encoders.ClipText`` take it."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), recipe=tuple(RECIPES))
    size = chosen["size"]
    if size != "paper" and chosen["recipe"] != "plain":
        raise UserError("recipes are of CLIP's encoder: add size=paper")
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "retrieval"
    config.model = {
        "name": "two_towers",
        "video": {"name": "frames"},
        "text": {"name": "transformer"},
        "embed": 64,
        "scale": {"start": 1 / 0.07, "largest": 100.0, "smallest": config_dict.placeholder(float)},
        "views": ("text",),
    }
    config.losses = {"contrastive": {"name": "contrastive", "weight": 1.0, "reads": ("text",)}}
    config.checkpoint.keep_best.metric = "text_to_video_recall_sum"
    {"debug": _debug, "small": _small, "paper": _paper}[size](config)
    if size == "paper":
        config.model.video.reduction = RECIPES[chosen["recipe"]]
    if chosen["recipe"] == "tempme":
        _low_rank(config)
    return config


def _debug(config: ConfigDict) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 1200, 400, 400
    config.data.clip.update({"frames": 8, "height": 24, "width": 24, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size = 32, 64
    config.ema.decay = 0.99
    _towers(config, patch=6, video={"width": 64, "layers": 2, "heads": 2, "mlp_width": 256}, text=(64, 2, 2))
    # 8 frames of 16 patches, of which half stay behind the first layer.
    config.model.video.hooks = ({"layer": 0, "name": "bipartite", "removed": 64},)
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 512, "length": 24})
    muon = {"learning_rate": 4e-3, "adam_share": 0.5, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"towers": optimizer("muon", **muon)}


def _small(config: ConfigDict) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
    config.data.clip.update({"frames": 16, "height": 48, "width": 48, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 256, 256, 8
    config.ema.decay = 0.999
    config.model.embed = 256
    _towers(config, patch=8, video={"width": 384, "layers": 6, "heads": 6, "mlp_width": 1536}, text=(256, 6, 4))
    # 16 frames of 36 patches, in 4 segments of 4 frames with 36 medoids each.
    config.model.video.hooks = ({"layer": 1, "name": "medoids", "budget": 36, "segments": 4},)
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 1024, "length": 32})
    config.optimizer = {"towers": optimizer(learning_rate=5e-4, warmup=1000, b2=0.98, final=0.02, weight_decay=0.1)}


def _paper(config: ConfigDict) -> None:
    """CLIP B/32 on 12 frames, trained with a small learning rate, as the retrieval papers fine-tune it."""
    config.steps, config.eval_every, config.checkpoint_every = 7000, 1000, 1000
    config.data.source.name = "video_folder"
    config.data.clip.update({"frames": 12, "height": 224, "width": 224, "fps": 1.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 128, 32, 16
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.model.embed = 512
    # What CLIP itself has reached.
    config.model.scale.start = 100.0
    config.model.video = {"name": "clip", "model": CLIP_IMAGE}
    config.model.text = {"name": "clip", "model": CLIP_TEXT}
    config.parts.clip_image = frozen({"name": "clip_image", **CLIP_IMAGE})
    config.parts.clip_text = frozen({"name": "clip_text", **CLIP_TEXT})
    config.start_from.paths = (("towers.video.network", ":clip_image"), ("towers.text.network", ":clip_text"))
    config.text = stream_text({"name": "huggingface", "path": "", "vocabulary_size": 49_408, "length": 32})
    settings = {"learning_rate": 1e-5, "warmup": 700, "b2": 0.98, "final": 0.0, "weight_decay": 0.2}
    config.optimizer = {"towers": optimizer(**settings)}


def _low_rank(config: ConfigDict) -> None:
    """Low-rank updates and the places of joined frames are trained, and the scale; CLIP itself stays."""
    for tower in ("video", "text"):
        config.model[tower].lora = LORA
    config.optimizer.towers.update({"learning_rate": 6e-4, "freeze": ("video.network", "text.network")})


def _towers(config: ConfigDict, patch: int, video: dict, text: tuple[int, int, int]) -> None:
    """Towers that are trained here: layers within frames first, one less than behind them over the clip."""
    inside = {**video, "layers": max(video["layers"] - 1, 1)}
    config.model.video.update(
        {
            "encoder": {"name": "patches", "patch": patch, "transformer": inside, "temporal": 0},
            "transformer": video,
            "hooks": (),
        }
    )
    config.model.text.update(dict(zip(("width", "layers", "heads"), text, strict=True)))
    config.model.text.end = config_dict.placeholder(int)

"""A video-language model: a vision encoder, a chain of reducers, a projector and a language model that answers.

    --config=understanding:stage=alignment|understanding,size=debug|small|paper,recipe=NAME,decoder=qwen2|vicuna

``recipe`` is what stands between encoder and answer, a name in ``configs.recipes.RECIPES``: chains of reducers and
hooks of the decoder, at ``paper`` with the published settings; ``small`` has none.

The stage ``alignment`` learns to read what the encoder sees: at ``debug`` and ``small`` from few frames and all tokens
of these; at ``paper`` the projector alone learns. ``understanding`` goes on from it with all frames. At ``debug`` and
``small`` several questions are asked about every clip: most of a step is spent on what they have in common.

At ``debug`` the encoder is the classifier stand-in for the shapes source that comes with videogen, which joins four
frames; at ``small`` it is trained here, frame by frame; both learn from questions about clips of shapes. At ``paper`` a
published decoder and a frozen public image encoder are read from folders, and low-rank updates of the decoder are
trained with the projector: --config.parts.language_model.checkpoint=FOLDER --config.parts.encoder.checkpoint=FOLDER.
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import frozen, stream_text, tuned_decoder
from videogen.configs.language import PUBLISHED as DECODERS
from videogen.configs.recipes import RECIPES
from videogen.configs.tokenflow import STAND_IN
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer
from videogen.errors import UserError

STAGES = ("alignment", "understanding")

START_FROM = {"understanding": "alignment"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

QWEN2 = {
    **{"vocabulary_size": 152_064, "width": 3584, "layers": 28, "heads": 28, "hidden": 18_944},
    **{"key_value_heads": 4, "head_width": 128, "epsilon": 1e-6, "rope": {"rope_theta": 1_000_000.0}, "tied": False},
    "bias": ("query", "key", "value"),
}
"""Qwen2 7B, as ``encoders.Decoder`` takes it."""

PUBLISHED = {"qwen2": QWEN2, "vicuna": DECODERS["vicuna"]}

SIGLIP = {
    **{"name": "siglip_image", "patch": 14, "places": 27 * 27, "image_size": 384},
    "sizes": {"width": 1152, "layers": 27, "heads": 16, "hidden": 4304, "kind": "gelu_tanh", "epsilon": 1e-6},
}
"""SigLIP so400m at 384 pixels: 27 × 27 patches."""


KINDS = ("colour", "form", "direction", "count", "order", "moment", "background", "needle", "presence")
"""Of the questions at ``debug``: a frozen encoder that joins four frames cannot read a symbol in each, nor one that was
trained on colours and forms the dots of ``detail``."""
QUESTIONS = 6
"""About each clip, at ``debug`` and ``small``."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    sizes = ("debug", "small", "paper")
    settings = {"stage": STAGES[::-1], "size": sizes, "recipe": tuple(RECIPES), "decoder": tuple(PUBLISHED)}
    chosen = parse_argument(argument, **settings)
    size = chosen["size"]
    if size == "small" and chosen["recipe"] != "all":
        raise UserError("recipes have numbers for two sizes: add size=debug or size=paper")
    # The few frames of alignment have too few tokens for most recipes.
    recipe = RECIPES["all" if chosen["stage"] == "alignment" and size != "paper" else chosen["recipe"]]
    config = _begun(size, recipe.published if size == "paper" else recipe.usual)
    if size == "debug":
        _debug(config)
    elif size == "small":
        _small(config)
    else:
        _paper(config, PUBLISHED[chosen["decoder"]])
    if chosen["stage"] == "alignment":
        _alignment(config, size)
    if hooks := recipe.published_hooks if size == "paper" else recipe.hooks:
        config.model.backbone.hooks = hooks
    return config


def layouts(clips: int = 1, questions: int = 1) -> dict:
    """What a sample of so many clips is: the clips, the question, then the answer until its end; of several questions
    each sees the clips and itself."""
    shown = []
    for clip in range(clips):
        shown += [{"marker": "begin_clip"}, {"input": "video", "clip": clip}, {"marker": "end_clip"}]
    asked = []
    for number in range(questions):
        one = [{"input": "question", "clip": number}, {"marker": "answer"}, {"output": "answer", "clip": number}]
        asked += [{**item, "branch": number + 1} for item in (*one, {"marker": "end"})]
    return {"sequence": ({"marker": "begin"}, *shown, *asked), "prefix": False, "share": 1.0}


def _begun(size: str, reducers: tuple) -> ConfigDict:
    """What all sizes share."""
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "understanding"
    config.classes = config_dict.placeholder(int)
    config.data.source.name = "shapes_questions"
    config.model = {
        "name": "video_language",
        "backbone": {"name": "tower"},
        "markers": ("begin", "begin_clip", "end_clip", "answer", "end"),
        "packed": 1,
        "length": config_dict.placeholder(int),
        "vision": {
            "encoder": {"name": "patches"},
            "reducers": reducers,
            "projector": {"layers": 2},
            "budgets": (),
            "over_budgets": "draw",
            "together": size != "paper",
            "proportional": size != "paper",
            "frames": (),
            "subsets": (),
            "fit": False,
        },
    }
    config.layouts = {"ask": layouts()}
    config.losses = {"answers": {"name": "answers", "weight": 1.0}}
    config.sampler = {"name": "language", "temperature": 0.0, "top_k": 0, "top_p": 1.0}
    config.sampler.update({"variance_scale": 1.0, "guidance_scale": 1.0})
    return config


def _questions(config: ConfigDict, kinds: tuple[str, ...] = KINDS) -> None:
    """Several questions about each clip."""
    config.data.source.kinds, config.data.source.questions_per_clip = kinds, QUESTIONS
    config.layouts = {"ask": layouts(questions=QUESTIONS)}


def _debug(config: ConfigDict) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 600, 200, 200
    _questions(config)
    config.data.clip.update({"frames": 32, "height": 24, "width": 24, "fps": 8.0})
    config.data.batch_size, config.data.eval_batch_size = 16, 32
    # As many frames as the encoder joins; alignment is shown one of them.
    config.data.source.needle = 4
    config.parts.encoder = frozen(STAND_IN)
    config.model.vision.encoder = {"name": "frozen", "reading": "last", "side": 48}
    config.model.backbone.transformer = {"width": 96, "layers": 4, "heads": 4, "mlp_width": 384, "rotary": True}
    config.ema.decay = 0.98
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 512, "length": 16})
    muon = {"learning_rate": 4e-3, "adam_share": 0.2, "warmup": 20, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"language": optimizer("muon", **muon)}


def _alignment(config: ConfigDict, size: str) -> None:
    """Few frames at first; of published models the projector alone."""
    if size == "paper":
        config.steps, config.eval_every, config.checkpoint_every = 5000, 1000, 1000
        config.optimizer.language.learning_rate = 1e-3
        config.optimizer.language.freeze = ("stream",)
        return
    config.data.clip.frames, config.data.source.seconds = 8, 4.0
    if size == "debug":
        config.steps, config.eval_every, config.checkpoint_every = 800, 400, 400
        config.ema.decay = 0.998
        config.optimizer.language.update({"learning_rate": 1.2e-2, "warmup": 50})


def _small(config: ConfigDict) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 30_000, 2000, 2000
    config.data.clip.update({"frames": 32, "height": 48, "width": 48, "fps": 8.0})
    _questions(config, (*KINDS, "detail"))
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 128, 64, 8
    encoder = {"width": 256, "layers": 4, "heads": 4, "mlp_width": 1024}
    config.model.vision.encoder = {"name": "patches", "patch": 8, "transformer": encoder, "temporal": 0}
    config.model.backbone.transformer = {"width": 384, "layers": 8, "heads": 6, "mlp_width": 1536, "rotary": True}
    config.ema.decay = 0.999
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 1024, "length": 32})
    config.optimizer = {"language": optimizer(learning_rate=6e-4, warmup=1000, b2=0.95, final=0.02)}


def _paper(config: ConfigDict, decoder: dict) -> None:
    """A published decoder with low-rank updates, and a frozen public encoder: LLaVA-style instruction tuning."""
    config.steps, config.eval_every, config.checkpoint_every = 10_000, 1000, 1000
    config.data.clip.update({"frames": 32, "height": 384, "width": 384, "fps": 1.0})
    config.data.batch_size, config.data.eval_batch_size, config.data.workers = 128, 16, 16
    lora = {"rank": 128, "alpha": 256}
    tuned_decoder(config, decoder, SIGLIP, lora, length=512, learning_rate=2e-5, warmup=300)

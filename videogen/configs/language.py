"""Language models over text and the continuous tokens of clips, after DiCoDe and Divot (both December 2024).

    --config=language:stage=tokenizer|language,size=debug|small|paper,model=100M|0.8B|1B|3B|mistral|vicuna,clips=1|2

One model draws clips from texts and says what clips show. ``model`` decides what the language model is at ``paper``:

* ``100M``, ``0.8B`` (GPT-2's sizes, trained from nothing), ``1B``, ``3B`` (Llama 3.2, trained on) predict vector after
  vector, as DiCoDe does;
* ``mistral``, ``vicuna`` (7B, frozen but for norms, with low-rank updates of rank 32) predict all vectors of a clip in
  one pass of learned queries, as Divot does.

Published ones are read from a folder: --config.parts.language_model.checkpoint=FOLDER. ``debug`` and ``small`` have
small transformers that are trained here: with ``model=mistral`` or ``vicuna`` with queries, else without.

``clips=2`` adds stories: the texts and clips of two samples of a batch one after another, of which all but the first
text is drawn. The samples of a source have nothing to do with each other, so the second ones are a test of the
machinery, unless the source is ordered.

The tokenizer is a stand-in of ours, a row of 16 (64 at ``paper``) continuous tokens by learned queries; the papers'
tokenizers are systems of their own, whose language stages call ``dicode`` and ``divot`` of this file. What differs from
the papers: queries, keys and values share one low-rank update, without dropout; ids that are added to a published
vocabulary are trained; AdamW's epsilon is 1e-8. DiCoDe's training is not published, nor its variance and guidance
scales: those here are ours, and the texts of captions, which it does not train on, are learned as well.
"""

from ml_collections import ConfigDict, config_dict

from videogen.configs.common import frozen, loss_terms, stream_text, take_clip_of
from videogen.configs.networks import one_d
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("tokenizer", "language")

TOWERS = {
    "100M": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
    "0.8B": {"width": 1280, "layers": 36, "heads": 20, "mlp_width": 5120},
}
"""GPT-2 small and large."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

PUBLISHED = {
    "1B": {
        **{"vocabulary_size": 128_256, "width": 2048, "layers": 16, "heads": 32, "hidden": 8192},
        **{"key_value_heads": 8, "head_width": 64, "epsilon": 1e-5, "rope": LLAMA3, "tied": True},
    },
    "3B": {
        **{"vocabulary_size": 128_256, "width": 3072, "layers": 28, "heads": 24, "hidden": 8192},
        **{"key_value_heads": 8, "head_width": 128, "epsilon": 1e-5, "rope": LLAMA3, "tied": True},
    },
    "mistral": {
        **{"vocabulary_size": 32_000, "width": 4096, "layers": 32, "heads": 32, "hidden": 14_336},
        **{"key_value_heads": 8, "head_width": 128, "epsilon": 1e-5, "rope": {"rope_theta": 10_000.0}, "tied": False},
    },
    "vicuna": {
        **{"vocabulary_size": 32_000, "width": 4096, "layers": 32, "heads": 32, "hidden": 11_008},
        **{"key_value_heads": 32, "head_width": 128, "epsilon": 1e-5, "rope": {"rope_theta": 10_000.0}, "tied": False},
    },
}
"""Llama 3.2 1B and 3B, Mistral 7B v0.1 and Vicuna 7B, as ``encoders.Decoder`` takes them."""

QUERIES = ("mistral", "vicuna")
"""Models that draw all tokens of a clip at once, as Divot does."""

MODELS = (*TOWERS, *PUBLISHED)

SWEEPS = {
    "head": [
        {"model.floats.video": {"name": "gaussian_mixture", "components": 16, "guidance": "vectors", "layers": 2}},
        {"model.floats.video": {"name": "gaussian", "layers": 2}},
        {"model.floats.video": {"name": "gaussian", "variance": "one", "layers": 2}},
    ],
}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    sizes = ("debug", "small", "paper")
    chosen = parse_argument(argument, stage=STAGES, size=sizes, model=MODELS, clips=("1", "2"))
    size = chosen["size"]
    if chosen["stage"] == "tokenizer":
        return tokenizer(size)
    make = divot if chosen["model"] in QUERIES else dicode
    config = make(size, continuous(size), chosen["model"], clips=int(chosen["clips"]))
    take_clip_of(config, continuous(size))
    return config


def continuous(size: str) -> ConfigDict:
    """The stand-in tokenizer: a row of continuous tokens for a clip."""
    config = one_d(size, {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072})
    if size == "paper":
        config.update({"clip": (16, 256, 256), "patch": (4, 16, 16)})
    config.queries = {"debug": 16, "small": 64, "paper": 64}[size]
    width = {"debug": 16, "small": 32, "paper": 256}[size]
    config.quantizer = ConfigDict({"name": "gaussian", "width": width, "kl_weight": 1e-3})
    return config


def tokenizer(size: str) -> ConfigDict:
    """Its training, without a discriminator."""
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "tokenizer"
    config.model = continuous(size)
    take_clip_of(config, config.model)
    config.losses = loss_terms(l2=1.0)
    steps = {"debug": 4000, "small": 30_000, "paper": 500_000}[size]
    config.steps, config.eval_every, config.checkpoint_every = steps, steps // 2, steps // 4
    if size == "debug":
        muon = {"learning_rate": 1e-2, "adam_share": 0.3, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
        config.optimizer = {"tokenizer": optimizer("muon", **muon)}
        return config
    config.data.batch_size = 32 if size == "small" else 512
    config.data.workers = 8 if size == "small" else 16
    config.ema.decay = 0.999
    config.optimizer = {"tokenizer": optimizer(warmup=1000 if size == "small" else 5000, final=0.1)}
    if size == "paper":
        config.data.source.name = "video_folder"
        config.parallel.mesh.update({"data": 1, "fsdp": -1})
        config.parallel.remat = "dots"
    return config


def dicode(
    size: str, tokenizer: ConfigDict, model: str = "100M", *, clips: int = 1, segment: str = "video"
) -> ConfigDict:
    """The language stage of DiCoDe: vector after vector, right behind the text.

    Args:
      size: ``debug``, ``small`` or ``paper``.
      tokenizer: the model of the frozen tokenizer, whose tokens are one segment of floats.
      model: at ``paper`` a name in ``TOWERS``, or ``1B`` or ``3B``.
      clips: of the longest story; 1: none.
      segment: the name of the tokenizer's segment.
    """
    config = _begun(size, tokenizer, segment, queries=False, clips=clips)
    config.layouts.draw["sequence"] = ({"marker": "begin"}, {"input": "text"}, {"output": segment})
    if size == "paper":
        if model in TOWERS:
            norms = {"norm": "layer", "qk_norm": False, "attention": {"bias": ("query", "key", "value", "out")}}
            section = {**TOWERS[model], **norms, "mlp": {"kind": "gelu_tanh", "bias": True}}
            config.model.backbone = {"name": "tower", "transformer": section}
            _text_of(config, 50_257)
        else:
            _published(config, model, rank=0)
        config.data.batch_size = 256
        config.sampler.update({"variance_scale": 0.1, "guidance_scale": 1.0})
        config.optimizer.language.update({"b2": 0.95, "warmup": 1000, "final": 0.0})
    return config


def divot(
    size: str, tokenizer: ConfigDict, model: str = "mistral", *, clips: int = 1, segment: str = "video"
) -> ConfigDict:
    """The language stages of Divot: all vectors of a clip in one pass of queries; arguments as for ``dicode``.

    ``model`` is ``mistral`` or ``vicuna``. Instruction tuning (stage 4) is the same stage with other layouts and data.
    """
    config = _begun(size, tokenizer, segment, queries=True, clips=clips)
    if size == "paper":
        _published(config, model, rank=32)
        config.data.batch_size = 1600
        config.sampler.update({"temperature": 0.7, "top_p": 0.5, "variance_scale": 0.1})
        config.optimizer.language.update({"b2": 0.98, "warmup": 500, "final": 0.05})
    return config


def layouts(segment: str, queries: bool, clips: int = 1) -> dict:
    """Clips from texts, texts of clips and, of several clips, stories."""
    begin, end, clip = {"marker": "begin"}, {"marker": "end"}, {"marker": "begin_clip"}
    drawn = {"output": segment, "queries": queries}
    made = {
        "draw": {"sequence": (begin, {"input": "text"}, clip, drawn), "prefix": False, "share": 0.5},
        "caption": {
            "sequence": (begin, clip, {"input": segment}, {"marker": "end_clip"}, {"output": "text"}, end),
            "prefix": False,
            "share": 0.5,
        },
    }
    if clips > 1:
        items = [begin]
        for number in range(clips):
            said = {"output": "text", "clip": number} if number else {"input": "text"}
            items += [said, clip, {**drawn, "clip": number}]
        made["story"] = {"sequence": tuple(items), "prefix": False, "share": 0.5}
    return made


def _begun(size: str, tokenizer: ConfigDict, segment: str, *, queries: bool, clips: int) -> ConfigDict:
    """A stage with all but what is special at ``paper``."""
    config = base("float32" if size == "debug" else "bfloat16")
    config.task = "language"
    config.classes = config_dict.placeholder(int)
    config.parts.tokenizer = frozen(tokenizer)
    head = {"name": "gaussian_mixture", "components": 4 if size == "debug" else 16}
    head |= {"guidance": "vectors", "layers": 1 if size == "debug" else 2}
    config.model = {
        "name": "stream",
        "backbone": {"name": "tower"},
        "floats": {segment: head},
        "markers": ("begin", "begin_clip", "end_clip", "end"),
        "condition_drop": 0.1,
        "packed": 1,
        "length": config_dict.placeholder(int),
        "balance": False,
        "words_weight": 1.0,
        "floats_weight": 1.0,
    }
    config.layouts = layouts(segment, queries, clips)
    config.sampler = {"name": "language", "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    config.sampler.update({"variance_scale": 1.0, "guidance_scale": 1.0})
    if size == "debug":
        _debug(config)
    elif size == "small":
        _small(config)
    else:
        _paper(config)
    return config


def _debug(config: ConfigDict) -> None:
    """Two CPU cores."""
    config.steps, config.eval_every, config.checkpoint_every = 3200, 1600, 800
    config.model.backbone.transformer = {"width": 128, "layers": 4, "heads": 4, "mlp_width": 512, "rotary": True}
    config.sampler.update({"temperature": 0.5, "variance_scale": 0.5, "guidance_scale": 1.5})
    config.data.batch_size = 16
    config.ema.decay = 0.998
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 512, "length": 24})
    muon = {"learning_rate": 1.2e-2, "adam_share": 0.2, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    config.optimizer = {"language": optimizer("muon", **muon)}


def _small(config: ConfigDict) -> None:
    """One accelerator."""
    config.steps, config.eval_every, config.checkpoint_every = 50_000, 2500, 2500
    config.model.backbone.transformer = {"width": 512, "layers": 12, "heads": 8, "mlp_width": 2048, "rotary": True}
    config.sampler.update({"temperature": 0.7, "variance_scale": 0.3, "guidance_scale": 1.5})
    config.data.batch_size, config.data.workers = 64, 8
    config.ema.decay = 0.999
    config.text = stream_text({"name": "bpe", "path": "", "vocabulary_size": 4096, "length": 64})
    config.optimizer = {"language": optimizer(learning_rate=6e-4, warmup=1000, b2=0.95, final=0.02)}


def _paper(config: ConfigDict) -> None:
    """What both papers' stages share."""
    config.steps, config.eval_every, config.checkpoint_every = 100_000, 5000, 5000
    config.data.source.name = "video_folder"
    config.data.workers = 16
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "full"
    _text_of(config, 32_000)
    config.optimizer = {"language": optimizer(learning_rate=1e-4, weight_decay=0.05)}


def _text_of(config: ConfigDict, vocabulary_size: int) -> None:
    """The text tokenizer of a published model, whose folder the user names."""
    config.text = stream_text({"name": "huggingface", "path": "", "vocabulary_size": vocabulary_size, "length": 77})


def _published(config: ConfigDict, model: str, rank: int) -> None:
    """A published language model, as the start of what is trained; with a ``rank`` it is frozen but for norms."""
    sizes = PUBLISHED[model]
    # Model and hash are filled in from the folder when the run starts.
    config.parts.language_model = frozen({"name": "decoder", **sizes})
    config.model.backbone = {"name": "decoder", "model": sizes}
    if rank:
        config.model.backbone.lora = {"rank": rank, "alpha": rank}
    _text_of(config, sizes["vocabulary_size"])
    config.start_from.paths = (("language.backbone.decoder", ":language_model"),)
    if rank:
        layers = "backbone.decoder.transformer.stack.layers"
        own = ("backbone.decoder.embedding", "backbone.decoder.head", f"{layers}.attention", f"{layers}.mlp")
        config.optimizer.language.freeze = own

"""Config sections every system shares; plain data."""

from ml_collections import ConfigDict, config_dict


def base(dtype: str) -> ConfigDict:
    """The keys every stage has."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 1
    config.log_every = 10
    config.eval_every = 1000
    config.checkpoint_every = 1000
    # The last ones are kept and, where a metric of the evaluation is named, the best one too.
    config.checkpoint = {"keep": 2, "keep_best": {"metric": "", "mode": "max"}}
    # A loop without progress for so long is stopped, with its stacks in the log. Compiling is part of it.
    config.stall_seconds = 1800.0
    config.accumulate = 1
    # Frozen networks by name: {"checkpoint": run or export, "model": config, "hash": of the weights}; see ``frozen``.
    config.parts = {}
    # A run directory or export whose weights a new run begins with, where names and shapes agree; empty: fresh ones.
    # "last" (causal) or "central" also inflates 2-D kernels to 3-D ones, into that slice of time.
    # Parts of their own origin: ((path in the new run, "RUN" or "RUN:path in it"), …).
    config.start_from = {"run": "", "inflate": "", "paths": config_dict.placeholder(tuple)}
    config.ema = {"decay": 0.0}
    config.parallel = {
        "mesh": {"replica": 1, "data": -1, "fsdp": 1, "tensor": 1, "context": 1},
        "remat": "none",
        # Weights of frozen modules: "sharded" over fsdp like trained ones, or "whole" on every device.
        "frozen": "sharded",
        "dtype": dtype,
    }
    config.data = data_section()
    return config


def data_section() -> dict:
    """The keys of ``data``."""
    return {
        # Settings of single sources; those left empty take the source's own default.
        "source": {
            "name": "shapes",
            "path": "",
            "holdout": config_dict.placeholder(float),
            "length": config_dict.placeholder(int),
            "second_shape": config_dict.placeholder(float),
            "without": config_dict.placeholder(str),
            "turn": config_dict.placeholder(float),
            "directions": config_dict.placeholder(bool),
            "subtitle": config_dict.placeholder(bool),
            "words": config_dict.placeholder(int),
            "maps": config_dict.placeholder(bool),
            "segments": config_dict.placeholder(str),
            "things": config_dict.placeholder(int),
            "audio": config_dict.placeholder(bool),
            "audio_rate": config_dict.placeholder(int),
            "pixel_budget": config_dict.placeholder(int),
            "whole": config_dict.placeholder(bool),
            "times": config_dict.placeholder(bool),
            "pictures": config_dict.placeholder(bool),
            "uncaptioned": config_dict.placeholder(bool),
            # Of questions in a folder, and about shapes.
            "questions": config_dict.placeholder(str),
            "eval_questions": config_dict.placeholder(str),
            "questions_per_clip": config_dict.placeholder(int),
            "kinds": config_dict.placeholder(tuple),
            "distractors": config_dict.placeholder(int),
            "seconds": config_dict.placeholder(float),
            "needle": config_dict.placeholder(int),
            "depth": config_dict.placeholder(float),
            # Of a mixture: ({"name": …, "weight": …, …}, …).
            "parts": config_dict.placeholder(tuple),
            # Of a TFDS directory.
            "fps": config_dict.placeholder(float),
            "field": config_dict.placeholder(str),
            # Of folders: where classes come from. The splits are those of a TFDS directory, too.
            "folder_classes": config_dict.placeholder(bool),
            "class_list": config_dict.placeholder(str),
            "train_split": config_dict.placeholder(str),
            "eval_split": config_dict.placeholder(str),
        },
        "clip": {"frames": 5, "height": 32, "width": 32, "fps": 8.0},
        # A generator takes source and clip of its tokenizer where the command gives no others, but for these sections.
        "own": (),
        # Found by a run: frames per second of its samples, whether the clips that it evaluates are kept from training,
        # and what a token cache was made from.
        "frame_rate": config_dict.placeholder(float),
        "held_out": config_dict.placeholder(bool),
        "made_from": {},
        "batch_size": 8,
        # ((frames, height, width, batch_size, share of the steps), …); without any, all batches are of the clip above.
        "buckets": (),
        # ((first step, (share of each bucket, …)), …): other shares from that step on.
        "phases": config_dict.placeholder(tuple),
        "image_batch_size": 0,
        # Where the images beside the videos come from; without a name they are frames of the videos.
        "image_source": {
            "name": config_dict.placeholder(str),
            "path": config_dict.placeholder(str),
            "holdout": config_dict.placeholder(float),
            "folder_classes": config_dict.placeholder(bool),
            "without": config_dict.placeholder(str),
        },
        "eval_batch_size": 16,
        "workers": 0,
    }


def at_small(config: ConfigDict) -> None:
    """Sets the length of a tokenizer's training at ``small``, on shapes."""
    config.steps = 30_000
    config.eval_every = config.checkpoint_every = 1000
    config.data.batch_size = 32
    config.data.workers = 8
    config.ema.decay = 0.999


def at_paper(config: ConfigDict, steps: int, batch_size: int, decay: float, source: str = "video_folder") -> None:
    """Sets the length of a tokenizer's training at ``paper``, on a folder, its weights sharded over all devices.

    Args:
      config: of the stage.
      steps: of the whole training.
      batch_size: clips of a step.
      decay: of the moving average of the weights.
      source: ``video_folder`` or ``image_folder``.
    """
    config.steps = steps
    config.eval_every = config.checkpoint_every = 5000
    config.data.source.name = source
    config.data.batch_size = batch_size
    config.data.workers = 16
    config.ema.decay = decay
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "dots"


def frozen(model: dict | ConfigDict | None = None) -> dict:
    """A part of ``config.parts``. The run that the user names says what it is; until then it is of this ``model``."""
    return {"checkpoint": "", "model": model or {}, "hash": ""}


def take_clip_of(config: ConfigDict, model: ConfigDict) -> None:
    """Gives the data the one shape of clips that a tokenizer takes; of images, a batch has none beside them."""
    config.data.clip.update(dict(zip(("frames", "height", "width"), model.clip, strict=True)))


def loss_terms(l2: float = 0.0, l1: float = 0.0, **terms: dict) -> dict:
    """The section ``losses``: terms of ``videogen.losses.TERMS`` by name. A weight of 0 leaves a term out.

    The perceptual one is off until the user names a file with the weights of its network.
    """
    return {
        "l2": {"name": "l2", "weight": l2},
        "l1": {"name": "l1", "weight": l1},
        "perceptual": {"name": "untrained", "weight": 0.0, "path": ""},
        **terms,
    }


def adversarial(discriminator: dict, **settings) -> dict:
    """A term with a discriminator, off until it gets a weight; see ``videogen.losses.Adversarial``."""
    return {
        "name": "adversarial",
        "objective": "nonsaturating",
        "weight": 0.0,
        "start": 0,
        "adaptive": False,
        "every": 1,
        "pause_below": 0.0,
        "r1": 0.0,
        "r1_every": 1,
        "lecam": 0.0,
        "label_smoothing": 0.0,
        "discriminator": discriminator,
        **settings,
    }


def optimizer(name: str = "adamw", **values) -> ConfigDict:
    """One parameter group's optimizer; see ``videogen.training.optimizers``."""
    defaults = {
        "learning_rate": 1e-4,
        "warmup": 0,
        "schedule": "half_cosine",
        "final": 0.0,
        "horizon": config_dict.placeholder(int),
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 1e-4,
        "clip": 1.0,
        "adam_share": 1.0,
        # Parameters that stay as they are, by their path from the group's module: ("encoder", "quantizer"). Low-rank
        # updates (LoRA) below such a path are trained.
        "freeze": (),
    }
    return ConfigDict({"name": name, **defaults, **values})


def bpe_text(vocabulary_size: int, length: int, **encoder) -> ConfigDict:
    """A small trainable text encoder over BPE tokens learned from the captions."""
    return ConfigDict(
        {
            "encoder": {"name": "transformer", **encoder},
            "tokenizer": {"name": "bpe", "path": "", "vocabulary_size": vocabulary_size, "length": length},
        }
    )


def t5_text(length: int) -> ConfigDict:
    """The frozen encoder of T5-XXL over so many of its tokens; the stage has the part ``t5_part``."""
    return ConfigDict(
        {
            "encoder": {"name": "t5"},
            "tokenizer": {"name": "huggingface", "path": "", "length": length},
        }
    )


def t5_part() -> dict:
    """The part ``text_encoder``, whose published folder the user names; until then it is planned with this width."""
    return frozen({"name": "t5", "width": 4096})


def no_text() -> ConfigDict:
    """A generator that is told a class, or nothing."""
    return ConfigDict({"encoder": {"name": "none"}, "tokenizer": {"name": "bytes", "path": "", "length": 1}})


def stream_text(tokenizer: dict) -> ConfigDict:
    """Texts whose ids stand in a stream, or that a tower reads: there is no encoder of conditions."""
    return ConfigDict({"encoder": {"name": "stream"}, "tokenizer": tokenizer})


def tuned_decoder(config: ConfigDict, decoder: dict, encoder: dict, lora: dict, length: int, **settings) -> None:
    """A published decoder with low-rank updates over a frozen image encoder, on an accelerator's mesh.

    The user names the folders of both. Of the decoder only the updates are trained.

    Args:
      config: of a video-language model; written to.
      decoder: the sizes of ``encoders.Decoder``.
      encoder: the network of the image encoder.
      lora: the low-rank updates.
      length: ids of a text.
      **settings: of the optimizer, such as ``learning_rate`` and ``warmup``.
    """
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "full"
    config.parts.language_model = frozen({"name": "decoder", **decoder})
    config.parts.encoder = frozen(encoder)
    config.model.vision.encoder = {"name": "frozen", "reading": "last", "side": 0}
    config.model.backbone = {"name": "decoder", "model": decoder, "lora": lora}
    config.start_from.paths = (("language.stream.backbone.decoder", ":language_model"),)
    layers = "transformer.stack.layers"
    own = ["embedding", "head", "transformer.norm"]
    own += [f"{layers}.{name}" for name in ("attention", "mlp", "attention_norm", "mlp_norm")]
    config.text = stream_text(
        {"name": "huggingface", "path": "", "vocabulary_size": decoder["vocabulary_size"], "length": length}
    )
    config.optimizer = {"language": optimizer(**{"b2": 0.95, "final": 0.0, "weight_decay": 0.0, **settings})}
    config.optimizer.language.freeze = tuple(f"stream.backbone.decoder.{name}" for name in own)

"""Config sections every system shares; plain data."""

from ml_collections import ConfigDict

from videogen.defaults import optimizer


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

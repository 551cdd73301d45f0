"""Stand-ins for public networks: small ones that ``videogen.stand_in`` trains on the shapes source in minutes.

They take the place of what a small machine does not have, a classifier of videos and a language model, so that all that
uses one can be run and tested. Their numbers are compared with those of the same stand-in alone; the files are a
``model.safetensors`` with the layouts of this code, and a ``config.json`` with ``network``, the settings, and ``made``,
where the weights come from.
"""

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from safetensors.numpy import save_file

from videogen.data.text import PAD, load_text_tokenizer
from videogen.encoders.convolutions import Convolve
from videogen.encoders.decoders import Decoder
from videogen.encoders.loading import Published, Table, plain
from videogen.encoders.preprocessing import HALF_STATISTICS, Preprocessing
from videogen.encoders.vit import Seen
from videogen.errors import UserError
from videogen.nn import LayerNorm, Linear
from videogen.shapes import Video

SHIPPED = Path(__file__).parent / "stand_in_weights"
"""Folders of the stand-ins that come with this package, by their name in ``ENCODERS``."""

TEXT = "text_tokenizer"


SIZES = ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
STRIDES = ((1, 2, 2), (2, 1, 1), (2, 2, 2), (1, 2, 2))
"""Of the convolutions of the classifier: forms need a fine grid, of which there is one frame at first."""


def folder_of(name: str, folder: str | Path) -> str | Path:
    """The folder of a published network: the one that is named, or else that of the stand-in which comes with this
    package; empty where there is none."""
    shipped = SHIPPED / name
    return folder or (shipped if name and shipped.is_dir() else "")


class StandIn(Published):
    """Base of networks whose file has our own names and layouts."""

    PREFIXES = ("",)
    SKIPPED = ()

    @classmethod
    def settings(cls, config):
        network = plain(config["network"])
        inspect.signature(cls.__init__).bind(None, **network, rngs=None)  # says what is missing or unknown
        return network

    def names(self) -> Table:
        paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(self))]
        # What ends in /w is not turned when it is read.
        return {path: f"{path}/w" for path in paths}

    def save(self, directory: str | Path, settings: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Writes the folder that ``load`` reads, weights in float16.

        Args:
          directory: is made where it is missing.
          settings: the arguments of the constructor.
          made: where the weights come from: command, commit, seed, results.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        flat = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(self))}
        table = self.names()
        save_file({table[path]: np.asarray(x, np.float16) for path, x in flat.items()}, directory / "model.safetensors")
        config = {"network": dict(settings), "made": dict(made)}
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class ShapesClassifier(StandIn, Seen):
    """Tells what a clip shows: ``clips -> [batch, width]`` features, from which ``logits`` reads the classes.

    Four convolutions, each followed by a norm of every place, and what they find at most or on average over all places:
    a clip may have any number of frames. Frames are resized to a square of ``side`` pixels. ``grid`` gives what the
    last convolution finds: a vector for 8 × 8 pixels of that square and up to four frames.

    Args:
      classes: how many there are.
      widths: channels of each convolution.
      features: how many.
      side: of the frames that the network sees, in pixels.
    """

    HEAD = ("embed", "head")

    def __init__(
        self,
        *,
        classes: int,
        widths: tuple[int, int, int, int] = (24, 32, 48, 64),
        features: int = 24,
        side: int = 32,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.preprocessing = Preprocessing((side, side), None, "linear", **HALF_STATISTICS)
        self.classes, self.width = classes, features
        inputs, convolutions, norms = 3, [], []
        for outputs, size, stride in zip(widths, SIZES, STRIDES, strict=True):
            padding = tuple(n // 2 for n in size)
            settings = dict(stride=stride, padding=padding, bias=False, dtype=dtype, rngs=rngs)
            convolutions.append(Convolve(inputs, outputs, size, **settings))
            norms.append(LayerNorm(outputs, rngs=rngs))
            inputs = outputs
        self.convolutions, self.norms = nnx.List(convolutions), nnx.List(norms)
        common = dict(axes=("embed", None), dtype=dtype, rngs=rngs)
        self.found_width = inputs
        self.embed, self.head = Linear(inputs, features, **common), Linear(features, classes, **common)

    def __call__(self, clips: Video) -> Float[Array, "batch width"]:
        """Features: a linear map of what the last convolution finds, at most (half of its channels) or on average.

        Args:
          clips: in [-1, 1] (or ``uint8``), of any size and number of frames.

        Raises:
          UserError: no clips, or values outside the range.
        """
        if clips.ndim != 5:
            raise UserError(f"this classifier takes clips [batch, time, height, width, 3], got {list(clips.shape)}")
        x = self._found(self.preprocessing(clips))
        most, mean = jnp.split(x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1]), 2, axis=-1)
        # Picked by its place: the gradient of a maximum looks for equal numbers, and where the compiler computes these
        # twice in different ways it finds none and divides by 0.
        place = jax.lax.stop_gradient(most).argmax(axis=1, keepdims=True)
        pooled = jnp.concatenate([jnp.take_along_axis(most, place, axis=1)[:, 0], mean.mean(axis=1)], axis=-1)
        return self.embed(pooled).astype(jnp.float32)

    def _found(self, x: Video) -> Float[Array, "batch t h w embed"]:
        """What the last convolution finds in preprocessed clips."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = jax.nn.gelu(norm(convolution(x)))
        return x

    def _channels(self, reading):
        return self.found_width

    def grid(self, clips, side=0, reading="last"):
        self.grid_width(reading)  # UserError for a reading that it does not have
        own = self.preprocessing
        return self._found(dataclasses.replace(own, size=(side, side))(clips) if side else own(clips))

    def logits(self, features: Float[Array, "batch width"]) -> Float[Array, "batch classes"]:
        """Of the classes."""
        return self.head(features).astype(jnp.float32)


class ShapesCaptions(StandIn, Decoder):
    """A language model of captions, with the text tokenizer it was trained with in its folder.

    A caption is preceded and ended by the id of padding. The settings are those of ``Decoder``.

    Attributes:
      text: the text tokenizer; ``None`` for random weights.
    """

    text: Any = None

    def read_beside(self, directory: str | Path) -> None:
        self.text = load_text_tokenizer(Path(directory) / TEXT)

    def log_likelihood(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch"]:
        """Of each caption and its end, in nats.

        Args:
          ids, mask: as a text tokenizer gives them; the end of a caption that fills the length is not asked for.
        """
        before = jnp.concatenate([jnp.full_like(ids[:, :1], PAD), ids[:, :-1]], axis=1)
        known = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask[:, :-1]], axis=1)
        scores = jax.nn.log_softmax(self(before, known).astype(jnp.float32))
        said = jnp.take_along_axis(scores, jnp.where(mask, ids, PAD)[..., None], axis=-1)[..., 0]
        # Each token of the caption, and behind the last one its end.
        return jnp.where(known, said, 0).sum(1)

    def score(self, captions: Sequence[str]) -> Float[np.ndarray, "captions"]:
        """Log-likelihood of texts, in nats.

        Raises:
          UserError: the weights are random, so that there is no text tokenizer.
        """
        if self.text is None:
            raise UserError("this language model has no text tokenizer: load it from a folder of videogen.stand_in")
        return np.asarray(self.log_likelihood(*map(jnp.asarray, self.text.encode(captions))))

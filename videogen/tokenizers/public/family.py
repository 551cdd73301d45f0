"""What the published files of one kind of tokenizer are read with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from videogen.encoders.files import Weights
from videogen.encoders.loading import Layouts, Table
from videogen.errors import UserError
from videogen.tokenizers.base import Tokenizer


class Description(NamedTuple):
    """A published tokenizer, before its weights are read.

    Attributes:
      model: its config ``{name, …}``, as ``config.model`` has it.
      normaliser: the config of the normaliser of its latents; ``None``: it gives codes, or raw latents because no
        statistics of it are known.
      statistics: means and deviations by channel, or by latent frame and channel, for the normaliser ``mean``, or
        the names of the tensors that hold them; ``None``: the normaliser has its numbers in its config.
      skipped: patterns of tensors that are left unread, because they do not belong to the tokenizer.
      prefix: what stands before the names of all tensors of the tokenizer.
      names: our parameters -> names of tensors, where the file has others than ``Family.names`` says.
    """

    model: dict[str, Any]
    normaliser: dict[str, Any] | None
    statistics: Sequence[Any] | None = None
    skipped: Sequence[str] = ()
    prefix: str = ""
    names: Callable[[Any], Table] | None = None


class Statistics(NamedTuple):
    """Means and deviations of latents, as the config of a class is to say them.

    Attributes:
      kind: the class, for messages.
      mean: of every channel, of each latent frame or in one row of all.
      deviation: the same; normalised latents are ``(raw - mean) / deviation``.
    """

    kind: str
    mean: Float[np.ndarray, "frames channels"]
    deviation: Float[np.ndarray, "frames channels"]

    def by_channel(self) -> tuple[list[float], list[float]]:
        """Lists of a number for each channel.

        Raises:
          UserError: latent frames have statistics of their own.
        """
        if len(self.mean) > 1:
            raise UserError(f"an {self.kind} has one mean and deviation of a channel, and here latent frames differ")
        return _numbers(self.mean[0]), _numbers(self.deviation[0])

    def scale(self) -> float:
        """What raw latents are multiplied by, to 12 digits.

        Raises:
          UserError: latents are shifted, or channels differ.
        """
        if self.mean.any() or (self.deviation != self.deviation.flat[0]).any():
            raise UserError(f"the latents of an {self.kind} have one scale and no mean, and here channels differ")
        return float(f"{1 / float(self.deviation.flat[0]):.12g}")

    def check_none(self) -> None:
        """Raises ``UserError`` where latents are not raw."""
        if self.mean.any() or (self.deviation != 1).any():
            raise UserError(f"the latents of an {self.kind} are raw, and here they are normalised")


def _numbers(values: Float[np.ndarray, "channels"]) -> list[float]:
    """The shortest numbers that are these in float32."""
    return [float(str(value)) for value in values.astype(np.float32)]


class Writing(NamedTuple):
    """How a tokenizer is written as a folder of diffusers.

    Attributes:
      kind: the class of tokenizers that are written so.
      config: all settings of one and the statistics of its latents -> ``config.json``. What reads it back to another
        network is refused by who asks for it.
      layouts: axes of tensors (``encoders.loading.tensors_of``).
      zeros: patterns of the biases of keys, which networks here leave out.
      unsaid: settings that ``config.json`` does not say, because they are not of the network's weights and sizes.
    """

    kind: type[Tokenizer]
    config: Callable[[Mapping[str, Any], Statistics], dict[str, Any]]
    layouts: Layouts
    zeros: Sequence[str] = ()
    unsaid: Sequence[str] = ()


class Family(NamedTuple):
    """One kind of published tokenizer.

    Attributes:
      name: what users call it.
      licence: of the published weights, as its makers say.
      classes: ``_class_name`` of its ``config.json`` in folders of diffusers.
      of_config: what such a ``config.json`` describes.
      of_weights: what an original file of weights describes; ``None`` where it is of another family.
      names: our parameters -> names of tensors, for the model that was built.
      files: what an original folder of several files has; each entry is the names of files that are read together.
      writing: how one is written as a folder of diffusers; ``None``: it is not.
    """

    name: str
    licence: str
    classes: Sequence[str]
    of_config: Callable[[Mapping[str, Any]], Description]
    of_weights: Callable[[Weights], Description | None]
    names: Callable[[Any], Table]
    files: Sequence[Sequence[str]] = ()
    writing: Writing | None = None

"""What the published files of one kind of tokenizer are read with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from videogen.encoders.files import Weights
from videogen.encoders.loading import Table
from videogen.errors import UserError


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
    """

    name: str
    licence: str
    classes: Sequence[str]
    of_config: Callable[[Mapping[str, Any]], Description]
    of_weights: Callable[[Weights], Description | None]
    names: Callable[[Any], Table]
    files: Sequence[Sequence[str]] = ()


def refuse(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ``UserError`` where the config of a family has another value than those that were published.

    Args:
      config: what ``config.json`` says; what it leaves out is taken to be as published.
      fixed: settings that no published one has otherwise, and that networks here do not have.
    """
    for name, value in fixed.items():
        if config.get(name, value) != value:
            kind = config["_class_name"]
            raise UserError(f"an {kind} with {name} = {config[name]} is not one that was published; it cannot be read")

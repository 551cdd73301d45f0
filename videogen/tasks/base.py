"""The contract between the training loop and what it optimises."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from videogen import encoders, tokenizers
from videogen.errors import UserError, near_matches
from videogen.nn import MicroBatch
from videogen.parallel import on_host
from videogen.shapes import Video

Modules = Mapping[str, nnx.Module]
"""Module by name: one per parameter group, and the frozen ones."""

Batch = Mapping[str, Any]
PUBLISHED = "published"
"""What a part is that comes from no run (``Task.parts``)."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Outcome(NamedTuple):
    """What a loss function hands back beside the loss.

    Attributes:
      metrics: scalars to log, means over the examples at hand; the step logs their mean over its micro-batches.
      outputs: what later parameter groups find in the batch of the same examples.
      sums: what the group's update needs, added up over the micro-batches of a step.
      rows: what it needs, arrays with a leading axis that those of the next micro-batch are laid behind.
    """

    metrics: dict[str, Float[Array, ""]]
    outputs: dict[str, Any] = {}
    sums: dict[str, Any] = {}
    rows: dict[str, Any] = {}


LossFunction = Callable[[Modules, Batch, jax.Array, Array, MicroBatch], tuple[Float[Array, ""], Outcome]]
"""(modules, videos or images, random key, step, which examples these are) -> (scalar to minimise, outcome).

The loss is a mean over examples, or passes the means that it is another function of through ``MicroBatch.mean``; random
numbers of examples come from ``MicroBatch.keys``. The modules stay as they are.
"""

UpdateFunction = Callable[[Modules, dict[str, Any], dict[str, Any], jax.Array, Array], dict[str, Float[Array, ""]]]
"""(modules, sums, rows, random key, step) -> further metrics; moves what moves with the data of a step, once, by all
its videos and images."""

ActiveFunction = Callable[[Mapping[str, Array], Array], Bool[Array, ""] | None]
"""(the metrics of the step, step) -> whether the group moves in this step, parameters and moments; ``None``: always."""


Arrays = Mapping[str, np.ndarray]

Keep = Callable[[str, Callable[[], Arrays]], Arrays]
"""(name of a batch among those of an evaluation, what computes its arrays) -> the arrays, kept from an earlier start
where it was finished then (``runs.finished``)."""


def compute_now(name: str, compute: Callable[[], Arrays]) -> Arrays:
    """The ``Keep`` that keeps nothing."""
    return compute()


class Picture(NamedTuple):
    """Clips to look at: those of a row, all of equal shape, stand side by side; ``columns`` says what they are."""

    name: str
    rows: list[tuple[UInt8[np.ndarray, "time height width 3"], ...]]
    captions: list[str]
    columns: tuple[str, ...] = ("original", "reconstruction")


class Task:
    """Networks + losses + metrics + pictures of one stage; the loop knows tasks only through this."""

    config: Any
    """The config of the stage."""

    losses: Mapping[str, LossFunction]
    """Parameter group -> its loss, in the order they are updated."""

    updates: Mapping[str, UpdateFunction] = {}
    """Parameter group -> what moves its codebooks and averages after the optimizers; most groups have none."""

    active: Mapping[str, ActiveFunction] = {}
    """Parameter group -> whether it moves in a step; a group that is not named always does."""

    parts: Mapping[str, str] = {}
    """Frozen networks by their name in ``config.parts`` -> what each is of the run it comes from: its ``tokenizer``, or
    what the run has ``trained``; ``PUBLISHED`` for a network that is read from the files it was published in."""

    averages: Mapping[str, str] = {}
    """Name among the modules of a loss -> the parameter group whose moving average it is (``ema.decay``), without
    gradient. An evaluation has it in the place of the group itself."""

    texts: Any = None
    """The text tokenizer of the run once there is one, for tasks that write texts."""

    draws: bool = False
    """Whether it makes new videos; others make given ones again."""

    writes: bool = False
    """Whether what it draws with writes texts of clips, too (``captions``)."""

    answers: bool = False
    """Whether it answers questions about clips (``answering``)."""

    watches: bool = False
    """Whether it watches streams, frame by frame (``watching``)."""

    retrieves: bool = False
    """Whether it finds clips by texts and texts by clips (``ranked``)."""

    recognises: bool = False
    """Whether it tells the classes of clips (``recognised``)."""

    exported: Sequence[str]
    """Parameter groups that an export holds; the others serve training only."""

    training_only: Sequence[str] = ()
    """Frozen modules that an export leaves out."""

    bucket_tokens: Sequence[int]
    """Places in the token grid of one video of each of ``data.read_buckets``; known after ``init``."""

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """One module per parameter group, with fresh parameters."""
        raise NotImplementedError

    @classmethod
    def complete(cls, config: Any, origins: Mapping[str, Any]) -> None:
        """Writes into a config what is read from other files, so that the run directory needs nothing else.

        Args:
          config: the stage config, whose ``parts`` are complete.
          origins: the configs of the runs that its parts come from, by part; without those that are not there any more.
        """

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        """``parts``, and those that a config asks for."""
        return cls.parts

    def frozen(self, load: Callable[[str, str], nnx.Module] | None) -> dict[str, nnx.Module]:
        """Modules that are used but not trained: ``parts``, and what further networks a task brings.

        With ``load`` (a run or export, what of it -> module) their weights come from where the config says; without it
        the modules only give the structure (the call is traced), and the weights come from the run directory.
        """
        parts, sections = self.parts_of(self.config), self.config.parts
        if load is None:
            return {name: self.structure_of_part(name) for name in parts}
        modules = {}
        for name, what in parts.items():
            where = sections[name].checkpoint
            modules[name] = self.published(name, where) if what == PUBLISHED else load(where, what)
        return modules

    def published(self, name: str, folder: str) -> nnx.Module:
        """A part that is ``PUBLISHED``, from its folder; by default a network of ``encoders``, named by its model."""
        kind = self.config.parts[name].model.name
        return encoders.load(kind, encoders.folder_of(kind, folder), dtype=dtype_of(self.config))

    def structure_of_part(self, name: str) -> nnx.Module:
        """A frozen part as its ``model`` describes it, with any weights."""
        model = self.config.parts[name].model
        return tokenizers.build(model, dtype=dtype_of(self.config), remat="none", rngs=nnx.Rngs(0))

    def assembled(self, modules: Modules) -> nnx.Module | None:
        """The tokenizer of this stage, ready to use; ``None`` where the stage trains no part of one."""
        return None

    @property
    def assembled_model(self) -> Any:
        """The config that builds what ``assembled`` gives."""
        return self.config.model

    def drawing(self, modules: Modules, sampler: Any = None, size: tuple[int, int] | None = None) -> Any:
        """What draws videos with the modules, by the config's sampler or another one, of the size of training or of
        another height and width; ``None`` where nothing does."""
        return None

    def answering(self, modules: Modules, budget: int | None = None) -> Any:
        """What answers questions about clips with the modules, at another budget of tokens of a clip than the config's;
        ``None`` where nothing does."""
        return None

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        """The name of the protocol that says how good a stage is; ``None`` where nothing can be measured."""
        return "reconstruction"

    def prepare(self, frozen: Modules, parts: Sequence[Batch]) -> Sequence[Batch]:
        """The videos and the images of a batch with what frozen modules make of both in one pass; no gradient."""
        return parts

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """Metrics over held-out batches, on the mesh that the modules lie on.

        Args:
          modules: trained and frozen ones.
          batches: every clip once.
          seed: decides every draw.
          keep: what is found of a batch passes through it.
        """
        raise NotImplementedError

    def concerns(self, values: Mapping[str, float]) -> list[str] | None:
        """What the values of an evaluation say against the checkpoint, in words, where its losses would not; ``None``
        of tasks that know no such thing."""
        return None

    def warnings(self, metrics: Mapping[str, float], step: int) -> dict[str, str]:
        """What the metrics of a logged step say against a run, in words by a name: each name is logged once."""
        return {}

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Clips that show how good the modules are; none by default."""
        return []


def dtype_of(config: Any) -> jnp.dtype:
    """The compute dtype ``config.parallel.dtype``."""
    name = config.parallel.dtype
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}{near_matches(name, DTYPES)}")
    return DTYPES[name]


def to_video(pixels: UInt8[Array, "batch time height width 3"]) -> Video:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(video: Video) -> UInt8[np.ndarray, "batch time height width 3"]:
    """[-1, 1] -> uint8, clamped and rounded, on the host."""
    return on_host(jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5)).astype(np.uint8)


def videos_and_images(batch: Batch) -> list[Batch]:
    """The videos of a batch and, where there are any, its images (one-frame videos)."""
    videos = {name: array for name, array in batch.items() if name != "image"}
    return [videos, batch["image"]] if "image" in batch else [videos]


def weighted_mean(values: list[Array], weights: list[int]) -> Array:
    """Mean of per-part scalars, weighted by the examples in each part."""
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

"""What tasks over streams share: texts, tables and rows of samples, a published language model."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import language
from videogen.data import read_buckets
from videogen.encoders import Decoder
from videogen.errors import UserError
from videogen.language import Ids, Kinds, Table, TokenStream, Vocabulary
from videogen.language.layouts import most_clips, named_segments
from videogen.nn import MicroBatch
from videogen.ranges import Count
from videogen.tasks.base import PUBLISHED, Batch, Task, dtype_of

TEXT, LANGUAGE_MODEL = "text", "language_model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What every model over streams has in its section ``config.model``.

    Attributes:
      backbone: ``{name: tower | decoder, …}`` (``language.backbones``).
      markers: the words that layouts may name, ids behind all others.
      packed: samples of a row, one after another without padding between them.
      length: slots of a row, of which samples that do not fit are left out; by default all fit.
    """

    backbone: Mapping[str, Any]
    markers: Sequence[str] = ("begin", "begin_clip", "end_clip", "end")
    packed: Count = 1
    length: Count | None = None


class StreamTask(Task):
    """Base of the tasks over streams. Group: ``language``. Frozen, where the backbone is a published one:
    ``language_model``.

    A segment of text ``NAME`` is read from ``NAME_ids`` and ``NAME_mask`` of a batch; all texts share the ids of one
    tokenizer, the range ``text`` of the vocabulary.

    Attributes:
      TEXTS: segments of text that layouts may name.
      model: the settings.
      kinds: what the segments of a stream are.
      vocabulary: of the ids of a stream.
      layouts: the tasks by name.
      clips: of a sample, one after another in a batch.
    """

    TEXTS: Sequence[str] = (TEXT,)
    exported = ("language",)
    given_frames = 0

    model: RowSettings
    kinds: dict[str, Any]
    vocabulary: Vocabulary

    def _lay_out(self, kinds: Kinds, codes: Mapping[str, Sequence[int]] = {}) -> None:
        """Reads the layouts of a config whose streams have these segments; ``codes`` are the vocabularies of ids that
        are no text."""
        config = self.config
        self.kinds = dict(kinds)
        # The text's ids first, which a published model knows.
        size = config.text.tokenizer.vocabulary_size
        self.vocabulary = Vocabulary.of(**{TEXT: size}, **codes, markers=tuple(self.model.markers))
        self.layouts = language.read_layouts(config.layouts, self.kinds)
        self.clips = most_clips(list(self.layouts.values()))
        language.build_sampler(config.sampler)

    def text_kinds(self, *always: str) -> dict[str, Ids]:
        """The segments of text that the layouts name, and others."""
        named = named_segments(self.config.layouts) | set(always)
        length = self.config.text.tokenizer.length
        return {name: Ids(TEXT, length, text=True) for name in self.TEXTS if name in named}

    def check_rows(self, clips: int) -> None:
        """Refuses batches that do not divide into rows of samples that are ``clips`` examples each."""
        each = clips * self.model.packed
        sizes = [bucket.batch_size for bucket in read_buckets(self.config.data)]
        if image := self.config.data.image_batch_size:
            sizes.append(image)
        for size in sizes:
            if size % (each * self.config.accumulate):
                raise UserError(f"a batch of {size} does not divide into rows of {each} clips (model.packed × clips)")
        if each > 1 and self.config.accumulate > 1:
            raise UserError("rows of several clips go with accumulate=1: micro-batches would make other rows")

    # Frozen parts -----------------------------------------------------------------------------------------------------

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        published = {LANGUAGE_MODEL: PUBLISHED} if LANGUAGE_MODEL in config.parts else {}
        return {**super().parts_of(config), **published}

    def structure_of_part(self, name: str) -> nnx.Module:
        if name != LANGUAGE_MODEL:
            return super().structure_of_part(name)
        model = self.config.parts[name].model
        return Decoder.described({key: model[key] for key in model if key != "name"}, dtype=dtype_of(self.config))

    def published(self, name: str, folder: str) -> nnx.Module:
        if name != LANGUAGE_MODEL:
            return super().published(name, folder)
        return Decoder.load(folder, dtype=dtype_of(self.config))

    @classmethod
    def complete(cls, config: Any, origins: Mapping[str, Any]) -> None:
        super().complete(config, origins)
        if LANGUAGE_MODEL not in config.parts:
            return
        part = config.parts[LANGUAGE_MODEL]
        with config.unlocked(), config.ignore_type():
            config.model.backbone.model = {key: part.model[key] for key in part.model if key != "name"}
            config.text.tokenizer.vocabulary_size = part.model.vocabulary_size
        if part.checkpoint and not config.text.tokenizer.path:
            config.text.tokenizer.path = str(Path(part.checkpoint))

    # Rows -------------------------------------------------------------------------------------------------------------

    def table_of(self, kinds: Kinds, names: Sequence[str] = ()) -> Table:
        """The table of all layouts, or of some, where segments are these."""
        return language.compile_layouts([self.layouts[name] for name in names or self.layouts], kinds, self.vocabulary)

    def said(self, batch: Batch, names: Sequence[str], samples: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """The ids of the texts of a batch by segment, those of all clips of a sample one after another, and which of
        them are no padding."""
        for name in names:
            length_of(batch, name)
        found = [{n: jnp.asarray(batch[f"{n}_{kind}"]).reshape(samples, -1) for n in names} for kind in ("ids", "mask")]
        return found[0], found[1]

    def rows(
        self,
        kinds: Kinds,
        choice: Int[Array, "samples"],
        ids: Mapping[str, Int[Array, "samples slots"]],
        exists: Mapping[str, Bool[Array, "samples slots"]],
        values: Mapping[str, Float[Array, "samples tokens channels"]],
        names: Sequence[str] = (),
        packed: int | None = None,
    ) -> tuple[TokenStream, dict[str, Float[Array, "rows tokens channels"]]]:
        """The rows of samples and their floats; samples are dealt to rows by their lengths.

        Args:
          kinds: of the segments.
          choice: the layout of each sample.
          ids: by segment, of all clips of a sample one after another.
          exists: which of the ids and floats are no padding, by segment; those of others all are.
          values: floats by segment.
          names: of the layouts that ``choice`` means; by default all.
          packed: samples of a row; by default as in training.
        """
        table, samples = self.table_of(kinds, names), len(choice)
        packed = packed or self.model.packed
        if packed > 1:
            order = language.dealt(language.existing(table, choice, kinds, exists).sum(1), packed)
            choice, exists, ids, values = jax.tree.map(lambda x: x[order], (choice, exists, ids, values))
        values = {name: own.reshape(samples // packed, -1, own.shape[-1]) for name, own in values.items()}
        length = self.model.length if packed == self.model.packed else None
        stream, _ = language.build_stream(
            table, choice, kinds, self.vocabulary, ids, exists, packed=packed, length=length
        )
        return stream, values


def length_of(batch: Batch, text: str) -> int:
    """How many texts of a name a batch has; raises ``UserError`` where it has none."""
    if f"{text}_ids" not in batch:
        raise UserError(f"a layout names the text {text!r}, and the samples of the data have none of that name")
    return len(batch[f"{text}_ids"])


def at_least_one(count: Float[Array, ""], micro: MicroBatch) -> Float[Array, ""]:
    """What a sum over these examples is divided by for the mean over the whole batch: the mean count of its parts."""
    return jnp.maximum(micro.mean(count), 1 / micro.count)

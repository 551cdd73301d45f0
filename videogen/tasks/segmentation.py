"""Training a video-language model that answers with masks of what an expression means (VideoLISA)."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import encoders
from videogen.data.inputs import kinds_in
from videogen.errors import UserError
from videogen.language import Ids, TokenStream
from videogen.language.vision import View, VisionSettings
from videogen.losses.masks import pixel_cross_entropy, soft_dice
from videogen.metrics.masks import similarity_and_boundary
from videogen.nn import MicroBatch
from videogen.nn.micro_batches import Mean, mean_where
from videogen.parallel import inside, on_host, padded, spread
from videogen.perception.segmenting import MaskHead, SegmentingModel, at_marker
from videogen.ranges import Weight
from videogen.tasks.answering import ANSWER, Answerer
from videogen.tasks.answers import Answers, Weighted
from videogen.tasks.base import PUBLISHED, Batch, Keep, Modules, Picture, compute_now, dtype_of
from videogen.tasks.seeing import Clips
from videogen.tasks.understanding import QUESTION, UnderstandingTask, VideoLanguageSettings

MARK, TRACK = "mark", "track"
"""The segment of the marker, and the range of the vocabulary that is its one id."""

MASK_DECODER = "mask_decoder"
"""The published mask decoder that the one of the head begins as, among ``config.parts``."""

SHOWN = 4
"""Clips of a picture."""


@dataclasses.dataclass(frozen=True)
class PixelCrossEntropy(Weighted):
    """Binary cross-entropy of the pixels of masks, the mean over the frames of clips that have a marker, in nats."""

    weight: Weight = 2.0

    def value(self, logits: Array, wanted: Array, exists: Bool[Array, "batch"], mean: Mean) -> Float[Array, ""]:
        """0 where no clip has a marker."""
        return mean_where(pixel_cross_entropy(logits, wanted), exists, mean)


@dataclasses.dataclass(frozen=True)
class Dice(Weighted):
    """Soft Dice of masks, the mean over the frames of clips that have a marker."""

    weight: Weight = 0.5

    def value(self, logits: Array, wanted: Array, exists: Bool[Array, "batch"], mean: Mean) -> Float[Array, ""]:
        """0 where no clip has a marker."""
        return mean_where(soft_dice(logits, wanted), exists, mean)


MASK_LOSSES = {"pixel_cross_entropy": PixelCrossEntropy, "dice": Dice}
"""Public name -> class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationSettings(VideoLanguageSettings):
    """The section ``config.model`` of a model that answers with masks, beside that of a video-language model.

    Attributes:
      masks: ``{decoder, encoder}`` of the head of masks (``perception.segmenting.MaskHead``).
    """

    masks: Mapping[str, Any]


class SegmentationTask(UnderstandingTask):
    """Group ``language``, frozen parts as of ``UnderstandingTask``.

    Batches have further ``masks [batch, frames, height, width]`` of what the question means, and ``marked [batch]``,
    whether there is such a thing. The layout has an output ``mark`` behind the answer: one id of its own, ``<TRK>``,
    which the model writes where there is something to show. Its hidden state is the prompt of all frames' masks.
    """

    TEXTS = (QUESTION, ANSWER, MARK)
    SETTINGS = {"segmenting": SegmentationSettings}
    LOSSES = {"answers": Answers, **MASK_LOSSES}
    CODES = {TRACK: ("trk",)}

    def __init__(self, config: Any):
        super().__init__(config)
        if MARK not in self.kinds:
            raise UserError("the layouts need the output 'mark' behind the answer, and a marker that ends it")
        if self.model.packed > 1:
            raise UserError("masks are of one sample of a row: set model.packed=1")
        if set(self.model.masks) - {"decoder", "encoder"} or "decoder" not in self.model.masks:
            raise UserError(f"model.masks has decoder and encoder, got {', '.join(map(str, self.model.masks))}")
        assert self.vocabulary[TRACK].size == 1

    def text_kinds(self, *always: str) -> dict[str, Ids]:
        found = super().text_kinds(*always)
        return {**found, **({MARK: Ids(TRACK, 1, text=True)} if MARK in found else {})}

    def _network(self, settings: SegmentationSettings, section: VisionSettings, rngs: nnx.Rngs) -> SegmentingModel:
        model = super()._network(settings, section, rngs)
        made = dict(remat=self.config.parallel.remat, dtype=dtype_of(self.config), rngs=rngs)
        head = MaskHead(self.clip, self.width, model.vision.encoder.channels, **settings.masks, **made)
        return SegmentingModel(model.vision, model.stream, head)

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        published = {MASK_DECODER: PUBLISHED} if MASK_DECODER in config.parts else {}
        return {**super().parts_of(config), **published}

    @property
    def training_only(self) -> Sequence[str]:
        """What the mask decoder began as is no part of an export."""
        return (*super().training_only, MASK_DECODER)

    def structure_of_part(self, name: str) -> nnx.Module:
        if name != MASK_DECODER:
            return super().structure_of_part(name)
        return encoders.described(self.config.parts[name].model.to_dict(), dtype=dtype_of(self.config))

    @classmethod
    def complete(cls, config: Any, origins: Mapping[str, Any]) -> None:
        super().complete(config, origins)
        if MASK_DECODER in config.parts:
            model = config.parts[MASK_DECODER].model
            with config.unlocked(), config.ignore_type():
                config.model.masks.decoder = {**{key: model[key] for key in model}, "name": MASK_DECODER}

    # Training ---------------------------------------------------------------------------------------------------------

    def loss(self, modules, batch, key, step, micro=None):
        for name in ("masks", "marked"):
            if name not in batch:
                raise UserError(
                    f"the samples of the data have no {name!r}: data.source.name is shapes_expressions here"
                )
        marked = jnp.asarray(batch["marked"])[:, None]
        return super().loss(modules, {**batch, **marks(marked)}, key, step, micro)

    def measured(
        self,
        modules: Modules,
        batch: Batch,
        clips: Clips | None,
        view: View,
        micro: MicroBatch,
        keys: Array | None = None,
        dropout: Array | None = None,
    ) -> dict[str, Float[Array, ""]]:
        """The losses of words and masks at a view, and the metrics."""
        model, stream, x, logits, there, said = self.masks_of(modules, batch, clips, view, keys, dropout)
        scores, hits = self.scores_of(model, stream, x, {})
        loss, found = self.of_words(stream, scores, hits, said, micro)
        wanted = jnp.asarray(batch["masks"]).astype(bool)
        for label in ("pixel_cross_entropy", "dice"):
            if label in self.terms:
                found[label] = self.terms[label].value(logits, wanted, there, micro.mean)
                loss += self.terms[label].weight * found[label]
        return {"loss": loss, **found}

    def masks_of(
        self,
        modules: Modules,
        batch: Batch,
        clips: Clips | None,
        view: View,
        keys: Array | None = None,
        dropout: Array | None = None,
    ) -> tuple[SegmentingModel, TokenStream, Array, Array, Bool[Array, "batch"], dict[str, Array]]:
        """The model, the rows of a batch and their features, logits of masks of all frames, which samples have a
        marker, and what the reducers did. A sample of several clips has masks of the last one."""
        model = modules["language"]
        if clips is None:
            raise UserError("masks are of clips, and the layout shows none")
        stream, read, call, said = self.read_rows(model, batch, clips, view, keys, dropout)
        x = model.stream.features(stream, read, **call)
        state, there = at_marker(stream, x, [*self.kinds].index(MARK))
        each = len(clips.seconds) // len(state)
        logits = model.segmented(clips.inputs[each - 1 :: each], clips.seconds[each - 1 :: each], state)
        return model, stream, x, logits, there, said

    # What is looked at ------------------------------------------------------------------------------------------------

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return None

    def answering(self, modules: Modules, budget: int | None = None) -> "Segmenter":
        return Segmenter(self, modules, budget)

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """What ``UnderstandingTask`` finds; ``j``, ``f`` and their mean ``j_and_f`` over all expressions, those without
        anything to show included, with ``/KIND`` of one kind; ``marked``: where a marker is written rightly."""
        batches = [{**batch, **marks(np.asarray(batch["marked"])[:, None])} for batch in batches]
        found, segmenter = super().evaluate(modules, batches, seed, keep), self.answering(modules)
        parts = [keep(f"masks_{i}", functools.partial(segmenter.compared_masks, b)) for i, b in enumerate(batches)]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for kind in ["", *sorted({str(kind) for kind in whole.get("kind", ())})]:
            own = whole["kind"] == kind if kind else np.ones(len(whole["j"]), bool)
            suffix, means = f"/{kind}" if kind else "", {name: whole[name][own].mean() for name in ("j", "f")}
            found[f"j_and_f{suffix}"] = (means["j"] + means["f"]) / 2
            found |= {} if kind else means
        return {name: float(value) for name, value in (found | {"marked": whole["right"].mean()}).items()}

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Clips, what is meant in them, and what the model shows."""
        few = {name: np.asarray(array)[:SHOWN] for name, array in batch.items()}
        found = self.answering(modules).segments({**few, **marks(few["marked"][:, None])})["masks"]
        video, rows = few["video"], []
        for clip, *masks in zip(video, few["masks"].astype(bool), found, strict=True):
            rows.append((clip, *(np.where(mask[..., None], clip, clip // 4).astype(np.uint8) for mask in masks)))
        return [Picture("masks", rows, [""] * len(rows), ("clip", "meant", "shown"))]


def marks(marked: Bool[Array, "batch 1"]) -> dict[str, Any]:
    """The segment of the marker, where there is one."""
    return {f"{MARK}_ids": 0 * marked.astype("int32"), f"{MARK}_mask": marked.astype(bool)}


class Segmenter(Answerer):
    """A trained model that answers with masks."""

    def shown(self, states: Any, batch: Batch) -> dict[str, Array]:
        """Answers and masks of the clips of a batch: what is written first, then the hidden state of its marker.

        ``ids``, ``exists`` are of the answers; ``marked [batch]`` says where a marker is written; ``masks`` are empty
        elsewhere.
        """
        seen, drawn = self.see(states, batch), {}
        decoding, state, step, _ = self.read(states, seen, batch)
        for number in range(step, len(decoding.steps)):
            state, new = decoding.advance(state, number, {})
            drawn |= new
        answer, mark = drawn[ANSWER, 0], drawn[MARK, 0]
        written = {f"{ANSWER}_ids": answer.values, f"{ANSWER}_mask": answer.exists, **marks(mark.exists)}
        live = self.live(states)
        clips = self.task.reader.clips(live, batch)
        logits, there = self.task.masks_of(live, {**batch, **written}, clips, self.view)[3:5]
        masks = (logits > 0) & there[:, None, None, None]
        return {"ids": answer.values, "exists": answer.exists, "marked": there, "masks": masks}

    @functools.cached_property
    def _shown(self) -> Any:
        return jax.jit(self.shown)

    def segments(self, batch: Batch) -> dict[str, np.ndarray]:
        """Compiled ``shown``, on the mesh; the results on the host."""
        read = {name: array for name, array in batch.items() if name not in ("kind", "masks", "marked")}
        size = len(batch[f"{QUESTION}_ids"])
        with inside(self.mesh):
            found = self._shown(self.states, spread(padded(read, self.mesh), self.mesh))
        return jax.tree.map(lambda x: on_host(x)[:size], found)

    def compared_masks(self, batch: Batch) -> dict[str, np.ndarray]:
        """Of every sample of a batch J and F, and whether a marker is written where it should be and only there."""
        found, wanted = self.segments(batch), np.asarray(batch["masks"]).astype(bool)
        pairs = [similarity_and_boundary(a, b) for a, b in zip(found["masks"], wanted, strict=True)]
        j, f = (np.array(values) for values in zip(*pairs, strict=True))
        kinds = {"kind": np.array(kinds_in(batch))} if "kind" in batch else {}
        return {"j": j, "f": f, "right": found["marked"] == np.asarray(batch["marked"]), **kinds}

"""Training a video-language model on questions about clips and their answers."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen import building, encoders
from videogen.errors import UserError
from videogen.language import Floats, Ids, StreamModel, TokenStream
from videogen.language.backbones import width_of
from videogen.language.model import GIVEN
from videogen.language.slots import Filled
from videogen.language.spans import Notes, RowShape, Spans
from videogen.language.video_language import VideoLanguage, repeated
from videogen.language.vision import Seen, Shape, View, Vision, VisionSettings
from videogen.language.vision_encoders import ENCODER, TOKENIZER, part_of
from videogen.nn import MicroBatch, named_key
from videogen.shapes import VideoShape
from videogen.tasks.answering import Answerer
from videogen.tasks.answers import ANSWER_LOSSES, Scores, answered, build_answer_losses, first_questions, instead
from videogen.tasks.base import PUBLISHED, Batch, Keep, Modules, Outcome, compute_now, dtype_of
from videogen.tasks.rows_of_answers import ANSWER, VIDEO, answers_of, check_hooks, check_lengths, layouts_by_clips
from videogen.tasks.seeing import Clips, reader_of
from videogen.tasks.streams import RowSettings, StreamTask, at_least_one, length_of

SIZES = "sizes"
"""Beside the vectors of a clip, how many tokens each counts for."""

WEIGHTS = "weights"
"""Of a batch, where a prompt program has found them: how much each place in time helps, ``[batch, time]``."""

QUESTION, WRONG, REFERENCE = "question", "wrong", "reference"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoLanguageSettings(RowSettings):
    """The section ``config.model`` of a video-language model, beside ``RowSettings``.

    Attributes:
      vision: what it sees of a clip (``language.vision.VisionSettings``).
    """

    vision: Mapping[str, Any]


class UnderstandingTask(StreamTask):
    """Group ``language``, and frozen ``language_model``, as of ``StreamTask``. Frozen, where the vision reads it, a
    ``tokenizer`` or a published ``encoder``; for the loss ``preference`` the ``reference``, a trained run.

    Batches have ``video [batch, (clips,) frames, height, width, 3]`` or the tokens of a cache, and texts ``NAME_ids``,
    ``NAME_mask [batch, length]``; perhaps ``times [batch, (clips,) frames]``, the seconds of the frames, and
    ``video_mask [batch, clips]``, which clips there are, the first ones. ``config.layouts`` has a layout for each
    number of clips that a sample may have. The losses are of answers and of the markers behind them; a sample without
    an answer has none. Where layouts have several questions, a branch each, texts are ``[batch, questions, length]``;
    with reducers that look at the question a sample has the first alone.
    """

    TEXTS = (QUESTION, ANSWER)
    answers = True
    training_only = (REFERENCE,)
    SETTINGS: Mapping[str, type[VideoLanguageSettings]] = {"video_language": VideoLanguageSettings}
    """The section ``config.model`` by its name."""
    LOSSES: Mapping[str, Any] = ANSWER_LOSSES
    """Losses by name."""
    CODES: Mapping[str, Sequence[str]] = {}
    """Ranges of the vocabulary beside text and markers."""

    def __init__(self, config: Any):
        self.config = config
        self.losses, self.updates = {"language": self.loss}, {"language": self._update}
        self.model = building.build(self.SETTINGS, config.model.to_dict(), "model")
        self.section = VisionSettings.read(self.model.vision)
        self.terms = build_answer_losses(config.get("losses"), self.LOSSES)
        clip = config.data.clip
        self.clip, part = VideoShape(clip.frames, clip.height, clip.width), part_of(self.section.encoder)
        read = None if part is None else nnx.eval_shape(lambda: self.structure_of_part(part))
        self.reader = reader_of(self.section.encoder, self.clip, clip.fps, read)
        self.width = width_of(self.model.backbone)
        self._look(self.section)
        if self.section.fit:
            self._fit()
        self.layout_of, self.asked = layouts_by_clips(self.layouts), answers_of(self.layouts)
        self.check_rows(1)
        check_lengths(self)
        self.bucket_tokens = [self.shapes[self.view].tokens]
        if len(config.data.buckets) or config.data.image_batch_size:
            raise UserError("a video-language model takes clips of one shape: leave data.buckets and images out")
        check_hooks(self)
        if "preference" in self.terms and self.model.packed > 1:
            raise UserError("preference compares two answers of a sample, row by row: set model.packed=1")

    def kinds_of(self, shape: Shape) -> dict[str, Ids | Floats]:
        """What the segments of a stream are where clips have this shape behind the reducers."""
        each = shape.per_frame or shape.tokens
        return {**self.text_kinds(), VIDEO: Floats(shape.tokens // each, each, self.width, self.section.together)}

    def _look(self, section: VisionSettings) -> None:
        """What follows from what is seen: the shapes of clips behind the reducers, and layouts of these."""
        self.section, self.view = section, section.evaluated
        vision = nnx.eval_shape(lambda: self._vision(section, nnx.Rngs(0)))
        self.shapes, self.channels = dict(vision.shapes), vision.encoder.channels
        self._lay_out(self.kinds_of(self.shapes[self.view]), self.CODES)
        self.guided = vision.ask is not None
        if self.guided:
            self.layouts = {name: layout.first_branch for name, layout in self.layouts.items()}

    def _fit(self) -> None:
        """Lowers the budgets of the last reducer to what a row has room for beside the longest texts."""
        if self.model.length is None:
            raise UserError("vision.fit lowers budgets to what fits into model.length: set it")
        room, tokens = [], self.shapes[self.view].tokens
        for name, layout in self.layouts.items():
            if clips := layout.count(VIDEO):
                slots = int(self.table_of(self.kinds, [name]).lengths[0])
                room.append((self.model.length - slots) // clips + tokens)
        most, budgets = min(room, default=tokens), self.section.budgets or (tokens,)
        if max(budgets) <= most:
            return
        if most < 1:
            raise UserError(f"model.length={self.model.length} has no room for a clip beside the texts; raise it")
        logging.warning("model.length=%d has room for %d of %d tokens of a clip", self.model.length, most, max(budgets))
        self._look(dataclasses.replace(self.section, budgets=tuple(min(budget, most) for budget in budgets)))

    # Modules ----------------------------------------------------------------------------------------------------------

    def _vision(self, section: VisionSettings, rngs: nnx.Rngs) -> Vision:
        made = dict(remat=self.config.parallel.remat, dtype=dtype_of(self.config), rngs=rngs)
        return Vision(section, self.clip, self.width, features=self.reader.features, **made)

    def _longest(self) -> int:
        """Slots of the longest sample."""
        return max(self.table_of(self.kinds_of(shape)).slots for shape in self.shapes.values())

    def _network(self, settings: Any, section: VisionSettings, rngs: nnx.Rngs) -> VideoLanguage:
        stream = StreamModel(
            self.vocabulary,
            self.kinds,
            backbone=settings.backbone,
            floats={VIDEO: {"name": GIVEN}},
            length=self._longest(),
            remat=self.config.parallel.remat,
            dtype=dtype_of(self.config),
            rngs=rngs,
        )
        return VideoLanguage(self._vision(section, rngs), stream)

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"language": self._network(self.model, self.section, rngs)}

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        found = dict(super().parts_of(config))
        vision = config.model.get("vision")
        building.check_value("model.vision", Mapping, vision)
        part = part_of(vision.get("encoder"))
        found |= {TOKENIZER: "tokenizer"} if part == TOKENIZER else {ENCODER: PUBLISHED} if part == ENCODER else {}
        return found | ({REFERENCE: "trained"} if cls.compares(config) else {})

    @classmethod
    def compares(cls, config: Any) -> bool:
        """Whether a loss compares answers with those of the part ``reference``."""
        return "preference" in build_answer_losses(config.get("losses"), cls.LOSSES)

    def structure_of_part(self, name: str) -> nnx.Module:
        model = self.config.parts[name].model
        if name == ENCODER:
            return encoders.described(model.to_dict(), dtype=dtype_of(self.config))
        if name == REFERENCE:
            settings = building.build(self.SETTINGS, model.to_dict(), "model")
            return self._network(settings, VisionSettings.read(settings.vision), nnx.Rngs(0))
        return super().structure_of_part(name)

    # Training ---------------------------------------------------------------------------------------------------------

    @property
    def text_names(self) -> list[str]:
        """The segments of text of a stream."""
        return [name for name in self.TEXTS if name in self.kinds]

    def layout_named(self, clips: int) -> str:
        """The layout of samples with so many clips.

        Raises:
          UserError: there is none.
        """
        if clips not in self.layout_of:
            known = ", ".join(map(str, sorted(self.layout_of)))
            raise UserError(f"no layout shows {clips} clips, only {known}; add one to config.layouts")
        return self.layout_of[clips]

    def choice(self, samples: int, clips: Clips | None) -> Int[Array, "samples"]:
        """The number of the layout of each sample, by how many clips it has."""
        most, names = 0 if clips is None else len(clips.inputs) // samples, list(self.layouts)
        if clips is None or clips.exists is None:
            return jnp.full(samples, names.index(self.layout_named(most)))
        numbers = [names.index(self.layout_named(count)) for count in range(most + 1)]
        return jnp.array(numbers)[clips.exists.sum(1)]

    def read_clips(
        self, model: VideoLanguage, batch: Batch, seen: Seen, view: View, samples: int
    ) -> tuple[Filled, dict[str, Array]]:
        """What the backbone reads of the clips of samples, ``[samples, clips, tokens, …]``, and what reducers did."""
        clips, question = len(seen.seconds) // samples, None
        if model.vision.ask is not None:
            question = model.question(*(jnp.asarray(batch[f"{QUESTION}_{kind}"]) for kind in ("ids", "mask")))
            question = repeated(dataclasses.replace(question, weights=batch.get(WEIGHTS)), clips)
        filled, said = model.vectors(seen, question, view)
        return jax.tree.map(lambda x: x.reshape(samples, clips, *x.shape[1:]), filled), dict(said)

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the losses, of what is drawn to be seen in this batch."""
        micro = micro or MicroBatch()
        size = length_of(batch, self.text_names[0])
        clips = self.reader.clips(modules, batch, micro.keys(named_key(key, "tokens"), size))
        keys = None if clips is None else micro.keys(named_key(key, "vision"), len(clips.inputs))
        dropout, used = (
            micro.keys(named_key(key, "dropout"), size),
            [n for n in ("language", REFERENCE) if n in modules],
        )
        graphs, states = {}, {}
        for name in used:
            graphs[name], states[name] = nnx.split(modules[name])

        def at(views: Sequence[View]) -> Any:
            def run(states: Any) -> tuple[dict[str, Array], list[Array]]:
                live = {name: nnx.merge(graphs[name], states[name]) for name in used}
                own = MicroBatch(micro.number, micro.count, micro.known)
                found = [self.measured(live, batch, clips, view, own, keys, dropout) for view in views]
                return jax.tree.map(lambda *values: sum(values) / len(values), *found), own.means

            return run

        groups = self.section.trained
        drawn = jax.random.randint(named_key(key, "view"), (), 0, len(groups))
        run = [at(views) for views in groups]
        metrics, means = run[0](states) if len(run) == 1 else jax.lax.switch(drawn, run, states)
        micro.means += means
        sums = {} if clips is None else modules["language"].vision.encoder.sums(clips.inputs)
        return metrics["loss"], Outcome(metrics, sums={"vision": sums} if sums else {})

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
        """The loss at a view, and the metrics."""
        model = modules["language"]
        stream, scores, hits, said = self.scored(model, batch, clips, view, keys, dropout)
        loss, found = self.of_words(stream, scores, hits, said, micro)
        if "preference" in self.terms:
            term = self.terms["preference"]
            fixed, other = modules[REFERENCE], instead(batch, ANSWER, WRONG)
            wrong = self.scored(model, other, clips, view, keys, dropout)[1]
            of_fixed = [self.scored(fixed, own, clips, view, keys)[1].log_probability for own in (batch, other)]
            pairs = zip((scores.log_probability, wrong.log_probability), of_fixed, strict=True)
            preference, said = term.value(*pairs)
            found |= said
            loss += term.weight * preference
        return {"loss": loss, **found}

    def of_words(
        self, stream: TokenStream, scores: Scores, hits: Array, said: Mapping[str, Array], micro: MicroBatch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss ``answers``, and the metrics of the words."""
        counted = scores.counted
        share = at_least_one(counted.sum() * 1.0, micro)
        words = jnp.where(counted, scores.values, 0.0).sum() / share
        found = {"words": words, "accuracy": jnp.where(counted, hits, 0.0).sum() / share}
        samples = len(counted) * self.model.packed
        found |= {"targets": counted.sum() / samples, "padding": stream.padding()}
        if self.model.length:
            rows = jnp.arange(len(counted))[:, None]
            there = jnp.zeros((len(counted), self.model.packed), bool).at[rows, stream.sample].max(stream.exists)
            found["left_out"] = 1 - there.mean()
        found |= {f"visual_{name}": said[name] for name in ("kept", "asked") if name in said}
        return self.terms["answers"].weight * words if "answers" in self.terms else jnp.zeros(()), found

    def scored(
        self,
        model: VideoLanguage,
        batch: Batch,
        clips: Clips | None,
        view: View,
        keys: Array | None = None,
        dropout: Array | None = None,
        packed: int | None = None,
    ) -> tuple[TokenStream, "Scores", Float[Array, "rows slots"], dict[str, Array]]:
        """The rows of a batch, the negative log-likelihoods of their answers, where the likeliest id is right, and what
        the reducers did."""
        stream, read, call, said = self.read_rows(model, batch, clips, view, keys, dropout, packed)
        scores, hits = self.scores_of(model, stream, model.stream.features(stream, read, **call), read, packed)
        return stream, scores, hits, said

    def scores_of(
        self, model: VideoLanguage, stream: TokenStream, x: Array, read: Mapping[str, Array], packed: int | None = None
    ) -> tuple["Scores", Float[Array, "rows slots"]]:
        """The negative log-likelihoods of the answers of rows with these features, and where the likeliest id is
        right."""
        each = model.stream.losses_of(stream, x, read)
        nll, counted = each["words"]
        number = [*self.kinds].index(ANSWER)
        return Scores(nll, counted & answered(stream, number, packed or self.model.packed)), each["accuracy"][0]

    def read_rows(
        self,
        model: VideoLanguage,
        batch: Batch,
        clips: Clips | None,
        view: View,
        keys: Array | None = None,
        dropout: Array | None = None,
        packed: int | None = None,
    ) -> tuple[TokenStream, dict[str, Array], dict[str, Any], dict[str, Array]]:
        """The rows of a batch, the floats that stand in them, further arguments of the stream model, and what the
        reducers did."""
        packed, batch = packed or self.model.packed, first_questions(batch, self.text_names) if self.guided else batch
        kinds = self.kinds_of(self.shapes.get(view) or model.vision.shape_of(view))
        ids, exists = self.said(batch, self.text_names, length_of(batch, self.text_names[0]))
        given = ids[ANSWER].shape[1] // kinds[ANSWER].length
        if given != self.asked:
            raise UserError(
                f"layouts have {self.asked} answers and the samples of the data {given}: set "
                "data.source.questions_per_clip to the same number"
            )
        samples, read, said, seen = len(ids[self.text_names[0]]), {}, {}, None
        if clips is not None:
            seen = model.vision.see(clips.inputs, clips.seconds, exists=clips.frames, keys=keys, view=view)
            filled, said = self.read_clips(model, batch, seen, view, samples)
            there = filled.exists if clips.exists is None else filled.exists & clips.exists[..., None]
            exists = {**exists, VIDEO: there.reshape(samples, -1)}
            read = {VIDEO: filled.values.reshape(samples, -1, self.width)}
            read |= {} if filled.sizes is None else {SIZES: filled.sizes.reshape(samples, -1, 1)}
        stream, read = self.rows(kinds, self.choice(samples, clips), ids, exists, read, packed=packed)
        call = {} if dropout is None else {"key": dropout[: len(stream.ids)]}
        if clips is not None:
            shape, number = RowShape.of(self.table_of(kinds), kinds, VIDEO, packed), [*kinds].index(VIDEO)
            sizes = read.pop(SIZES)[..., 0] if SIZES in read else None
            spans = Spans.of(stream, number, shape, packed, sizes)
            call |= {} if sizes is None else {"key_bias": jnp.log(jnp.maximum(spans.size, 1.0))}
            call["notes"] = Notes(spans, model.beside(seen, samples, clips.exists))
        return stream, read, call, said

    def _update(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Array]:
        """Moves the statistics of what a frozen part gives."""
        if sums:
            modules["language"].vision.encoder.update(sums["vision"])
        return {}

    # What is looked at ------------------------------------------------------------------------------------------------

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return "answers"

    def answering(self, modules: Modules, budget: int | None = None) -> Answerer:
        return Answerer(self, modules, budget)

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """What ``Answerer.measured`` finds in held-out samples, and what answers cost."""
        answerer = self.answering(modules)
        parts = [keep(f"answers_{i}", functools.partial(answerer.measured, b)) for i, b in enumerate(batches)]
        return {**answerer.summary(parts), **answerer.costs()}

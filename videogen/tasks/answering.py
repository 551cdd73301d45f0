"""Answers of a video-language model: written, or chosen among options by their likelihood."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import language
from videogen.data.inputs import kinds_in
from videogen.language import Decoding, Filled
from videogen.language.costs import mean_over_layers, prompt_flops
from videogen.language.slots import State
from videogen.language.spans import RowShape
from videogen.language.tables import compile_layouts
from videogen.language.vision import Seen, Shape, View
from videogen.nn import ExtraKeys
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.tasks.base import Batch, Modules

VIDEO, QUESTION, ANSWER, OPTIONS = "video", "question", "answer", "options"


class Begun(NamedTuple):
    """Prompts that were read.

    Attributes:
      state: of their rows.
      beside: what the rows see beside their slots.
    """

    state: State
    beside: dict[int, ExtraKeys]


class Answerer:
    """A trained video-language model with its frozen parts, ready to be asked; it computes on the mesh of its modules.

    Args:
      task: the ``UnderstandingTask`` the modules belong to.
      modules: its modules, trained and frozen.
      budget: tokens of a clip behind the last reducer; ``None``: as the config says.
    """

    def __init__(self, task: Any, modules: Modules, budget: int | None = None):
        self.task = task
        self.view = task.view if budget is None else View(budget)
        self.sampler = language.build_sampler(task.config.sampler)
        self._graphs, self.states = {}, {}
        for name, module in modules.items():
            self._graphs[name], self.states[name] = nnx.split(module)
        self.mesh = mesh_of(self.states)
        # Of a budget that training has not seen this is found here.
        self.shape: Shape = task.shapes.get(self.view) or modules["language"].vision.shape_of(self.view)
        self.kinds = task.kinds_of(self.shape)

    def live(self, states: Any) -> dict[str, nnx.Module]:
        """The modules with these arrays."""
        return {name: nnx.merge(graph, states[name]) for name, graph in self._graphs.items()}

    @property
    def centres(self) -> tuple[float, ...]:
        """The middle of each place in time of the encoder, in frames."""
        return nnx.merge(self._graphs["language"], self.states["language"]).vision.encoder.centres

    # Traced -----------------------------------------------------------------------------------------------------------

    def see(self, states: Any, batch: Batch) -> Seen | None:
        """What of the clips of a batch does not depend on a question."""
        live = self.live(states)
        clips = self.task.reader.clips(live, batch)
        if clips is None:
            return None
        return live["language"].vision.see(clips.inputs, clips.seconds, exists=clips.frames, view=self.view)

    def decoding(self, states: Any, clips: int, samples: int, room: int = 0, beside: Any = None) -> Decoding:
        """How answers about so many clips are drawn; ``room`` is for options, ``beside`` as ``Decoding`` takes it."""
        layout = self.task.layouts[self.task.layout_named(clips)].first_branch
        keys = jax.random.split(jax.random.key(0), samples)
        return Decoding(
            self.live(states)["language"].stream, layout, keys, self.sampler, self.kinds, room, beside or {}
        )

    def read(
        self, states: Any, seen: Seen | None, batch: Batch, room: int = 0
    ) -> tuple[Decoding, State, int, dict[str, Array]]:
        """How the answer is drawn, the rows before it, the step that draws it, and what the reducers did.

        Args:
          states: of the modules.
          seen: of ``see``; ``None``: no clips are shown.
          batch: with the question.
          room: slots for options.
        """
        model, samples, said, given, clips = self.live(states)["language"], questions_in(batch), {}, {}, 0
        if QUESTION in self.kinds:
            given[QUESTION, 0] = Filled(*(jnp.asarray(batch[f"{QUESTION}_{kind}"]) for kind in ("ids", "mask")))
        if seen is not None:
            read, said = self.task.read_clips(model, batch, seen, self.view, samples)
            clips = read.values.shape[1]
            given |= {(VIDEO, clip): jax.tree.map(lambda x, i=clip: x[:, i], read) for clip in range(clips)}
        beside = {} if seen is None else model.beside(seen, samples)
        decoding = self.decoding(states, clips, samples, room, beside)
        return decoding, *decoding.read(given), said

    def begun(
        self, states: Any, seen: Seen | None, batch: Batch, room: int = 0
    ) -> tuple["Begun", Array, dict[str, Array]]:
        """The rows before the answer, its first id, and what the reducers did."""
        decoding, state, step, said = self.read(states, seen, batch, room)
        return Begun(state, decoding.beside), decoding.first_word(state, step), said

    def gone_on(self, states: Any, begun: "Begun", clips: int) -> tuple[Array, Array]:
        """The ids of an answer about so many clips from rows that were ``begun``, and which there are."""
        state = begun.state
        decoding = self.decoding(states, clips, len(state.position), beside=begun.beside)
        drawn = decoding.advance(state, decoding.first_drawn, {})[1][ANSWER, 0]
        return drawn.values, drawn.exists

    def compared(self, states: Any, begun: "Begun", batch: Batch, clips: int) -> Float[Array, "batch options"]:
        """How likely each option is behind rows that were ``begun`` with room for all, in nats; those that are not
        there have minus infinity."""
        ids, exists = (jnp.asarray(batch[f"{OPTIONS}_{kind}"]) for kind in ("ids", "mask"))
        decoding = self.decoding(states, clips, len(ids), beside=begun.beside)
        found = decoding.likelihoods(begun.state, decoding.first_drawn, ids, exists)
        return jnp.where(exists.any(-1), found, -jnp.inf)

    def replies(self, states: Any, batch: Batch) -> dict[str, Array]:
        """What is said of the clips of a batch, from one reading of every prompt.

        ``scores [batch, options]``: ``compared`` of the options, where there are any; ``nats [batch]``: of the true
        answer, where it is there; ``ids`` and ``exists [batch, length]``: of the answer that is written.
        """
        texts = [{kind: batch[f"{OPTIONS}_{kind}"] for kind in ("ids", "mask")}] if f"{OPTIONS}_ids" in batch else []
        if f"{ANSWER}_ids" in batch:
            texts.append({kind: batch[f"{ANSWER}_{kind}"][:, None] for kind in ("ids", "mask")})
        both = {f"{OPTIONS}_{kind}": jnp.concatenate([own[kind] for own in texts], 1) for kind in (texts and texts[0])}
        room = math.prod(both[f"{OPTIONS}_ids"].shape[1:]) if both else 0
        seen, samples = self.see(states, batch), questions_in(batch)
        clips = 0 if seen is None else len(seen.seconds) // samples
        begun, _, _ = self.begun(states, seen, batch, room)
        found = dict(zip(("ids", "exists"), self.gone_on(states, begun, clips), strict=True))
        if both:
            scores = self.compared(states, begun, both, clips)
            if f"{ANSWER}_ids" in batch:
                scores, found["nats"] = scores[:, :-1], -scores[:, -1]
            found["scores"] = scores
        return found

    # Compiled ---------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _replies(self) -> Any:
        return jax.jit(self.replies)

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        """Compiled ``replies``, on the mesh; the results on the host."""
        size = questions_in(batch)
        with inside(self.mesh):
            found = self._replies(self.states, spread(padded(dict(batch), self.mesh), self.mesh))
        return jax.tree.map(lambda x: on_host(x)[:size], found)

    def measured(self, batch: Batch) -> dict[str, np.ndarray]:
        """What is found of each sample of a batch.

        ``nats`` and ``targets`` are of the answer's ids and the marker behind them; ``open`` says whether the written
        answer, ``said``, is the right one, letter by letter, ``right`` whether the likeliest option is, and ``options``
        how many there are (0: none, the question is open).
        """
        kinds = {"kind": np.array(kinds_in(batch))} if "kind" in batch else {}
        batch, found = {name: array for name, array in batch.items() if name != "kind"}, []
        for rows, part in by_clips(batch):
            found.append({"row": rows, **self._measured(part)})
        whole = {name: np.concatenate([own[name] for own in found]) for name in found[0]}
        order = np.argsort(whole.pop("row"))
        return {name: array[order] for name, array in whole.items()} | kinds

    def _measured(self, batch: Batch) -> dict[str, np.ndarray]:
        said, there = self.run(batch), np.asarray(batch[f"{ANSWER}_mask"])
        answered = there.any(1)
        found = {"nats": np.where(answered, said["nats"], 0.0), "targets": np.where(answered, there.sum(1) + 1, 0)}
        if self.task.texts is not None:
            written, true = self._texts(said["ids"], said["exists"]), self._texts(batch[f"{ANSWER}_ids"], there)
            found |= {"open": np.array(written) == np.array(true), "said": np.array(written)}
        if f"{OPTIONS}_ids" in batch:
            scores = said["scores"]
            # One of several that are equally likely is no choice.
            alone = (scores == scores.max(1, keepdims=True)).sum(1) == 1
            found["options"] = np.isfinite(scores).sum(1)
            found["right"] = alone & (scores.argmax(1) == np.asarray(batch["answer_index"]))
        return found

    def answers(self, batch: Batch) -> list[str]:
        """The answers that are written."""
        said = self.run(batch)
        return self._texts(said["ids"], said["exists"])

    def _texts(self, ids: np.ndarray, exists: np.ndarray) -> list[str]:
        return [self.task.texts.decode(row[there]) for row, there in zip(np.asarray(ids), exists, strict=True)]

    def costs(self) -> dict[str, float]:
        """Tokens of a clip that enter the decoder, their mean over its layers, and what it costs to read the longest
        prompt of one clip."""
        model = nnx.merge(self._graphs["language"], self.states["language"]).stream
        shape = RowShape(1, self.shape.tokens, 0, self.shape.per_frame)
        seen, behind = model.backbone.seen_by_layers(shape), model.backbone.behind_layers(shape)
        found = {"visual_tokens": self.shape.tokens, "visual_tokens_in_layers": mean_over_layers(seen)}
        if 1 in self.task.layout_of:
            layout = self.task.layouts[self.task.layout_named(1)]
            prompt = dataclasses.replace(layout, items=layout.items[: layout.given])
            others = compile_layouts([prompt], self.kinds, model.vocabulary).slots - self.shape.tokens
            logits = self.task.width * model.vocabulary.size
            flops = prompt_flops(model.backbone.sizes, seen, behind, others=others, logits=logits)
            found["prompt_gflops"] = flops / 1e9
        return {name: float(value) for name, value in found.items()}

    @staticmethod
    def summary(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """Means over the samples of all parts.

        ``loss`` is in nats per id. ``chosen`` is the share of questions with options whose likeliest option is right,
        ``chance`` that of guessing, ``written`` the share of written answers that are right; with ``/KIND`` those of
        one kind.
        """
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        targets = np.maximum(whole["targets"].sum(), 1)
        found = {"loss": whole["nats"].sum() / targets, "targets": whole["targets"].mean()}
        kinds = whole.get("kind", np.full(len(whole["nats"]), ""))
        closed = whole["options"] > 0 if "options" in whole else np.zeros(len(kinds), bool)
        if closed.any():
            found["chance"] = (1 / whole["options"][closed]).mean()
        for kind in ["", *sorted({str(kind) for kind in kinds if str(kind)})]:
            own = (kinds == kind) if kind else np.ones(len(kinds), bool)
            suffix = f"/{kind}" if kind else ""
            if (own & closed).any():
                found[f"chosen{suffix}"] = whole["right"][own & closed].mean()
            if "open" in whole:
                found[f"written{suffix}"] = whole["open"][own].mean()
        return {name: float(value) for name, value in found.items()}


def questions_in(batch: Batch) -> int:
    """Samples of a batch."""
    return len(batch[f"{QUESTION}_ids"])


def by_clips(batch: Batch) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The places of samples that have equally many clips, and the arrays of these samples."""
    size, of_clips = questions_in(batch), (VIDEO, "times", "frame_mask")
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    mask = arrays.pop("video_mask", None)
    counts = np.full(size, -1) if mask is None else mask.sum(1)
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        part = {name: array[rows] for name, array in arrays.items() if count or name not in of_clips}
        yield (
            rows,
            {name: array[:, :count] if count > 0 and name in of_clips else array for name, array in part.items()},
        )

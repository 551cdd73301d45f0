"""Training a video-language model that watches streams: when it speaks, and what it says (VideoLLM-online, O11)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import building, losses
from videogen.data.streams_source import TURNS
from videogen.errors import UserError
from videogen.language import Floats, Vocabulary
from videogen.language.backbones import build_backbone, width_of
from videogen.language.spans import Notes
from videogen.language.video_language import VideoLanguage
from videogen.language.vision import VisionSettings
from videogen.language.vision_encoders import part_of
from videogen.language.watching import MARKERS, MASK, Rows, StreamShape, Turns, build_rows
from videogen.metrics.streams import judged
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.ranges import Share
from videogen.shapes import VideoShape
from videogen.tasks.base import Batch, Keep, Modules, Outcome, compute_now
from videogen.tasks.seeing import Clips, reader_of
from videogen.tasks.streams import TEXT
from videogen.tasks.understanding import VIDEO, UnderstandingTask
from videogen.tasks.watcher import RULES, Watcher

STREAM, SILENT = "stream", "silent"
"""The pass of ``losses.Streaming``, and where its targets are silence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchingSettings:
    """The section ``config.model``.

    Attributes:
      backbone: ``{name: tower | decoder, …}`` (``language.backbones``); of its hooks ``depth`` (VideoLLM-MoD).
      vision: what it sees of a frame (``language.vision.VisionSettings``); no reducer of it looks at a question.
    """

    backbone: Mapping[str, Any]
    vision: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """The section ``config.session``: what a session does unless it is told otherwise.

    Attributes:
      threshold: the model is silent while the probability of silence is at least this.
      evict: which frames go where the memory is full (``tasks.watcher.RULES``).
      keep: the share of the frames that stays then, rounded down, at least one.
    """

    threshold: Share = 0.8
    evict: str = "oldest"
    keep: Share = 0.5

    def __post_init__(self):
        building.check_fields(self)
        building.look_up(RULES, {"name": self.evict}, "rule of eviction")


class WatchingTask(UnderstandingTask):
    """Group ``language``, and frozen parts as of ``UnderstandingTask``.

    Batches have ``video [batch, frames, height, width, 3]``, perhaps ``times``, and turns: ``turn_frame [batch,
    turns]``, ``turn_kind`` and texts ``asked_I``, ``said_I`` (``data.streams_source``). The vision sees every frame
    alone; rows are those of ``language.watching``. The loss is the term ``streaming`` of ``config.losses``.
    """

    TEXTS = ()
    answers = False
    watches = True

    def __init__(self, config: Any):
        self.config = config
        self.losses, self.updates = {"language": self.loss}, {"language": self._update}
        self.model = building.build({"watching": WatchingSettings}, config.model.to_dict(), "model")
        self.session = building.build({"session": SessionSettings}, {"name": "session", **config.session}, "section")
        self.section, clip = VisionSettings.read(self.model.vision), config.data.clip
        if not clip.fps:
            raise UserError("a stream has a rate: set data.clip.fps")
        self.clip, part = VideoShape(1, clip.height, clip.width), part_of(self.section.encoder)
        read = None if part is None else nnx.eval_shape(lambda: self.structure_of_part(part))
        self.reader = reader_of(self.section.encoder, self.clip, clip.fps, read)
        self.width, self.view = width_of(self.model.backbone), self.section.evaluated
        vision = nnx.eval_shape(lambda: self._vision(self.section, nnx.Rngs(0)))
        self._check_vision(vision)
        self.shapes = dict(vision.shapes)
        each = self.shapes[self.view].tokens
        self.stream = StreamShape(clip.frames, each, TURNS, config.text.tokenizer.length)
        self.kinds = {VIDEO: Floats(1, each, self.width)}
        self.vocabulary = Vocabulary.of(**{TEXT: config.text.tokenizer.vocabulary_size}, markers=MARKERS)
        self.bucket_tokens = [self.stream.frames * each]
        if len(config.data.buckets) or config.data.image_batch_size:
            raise UserError("a model of streams takes streams of one shape: leave data.buckets and images out")
        self.terms = losses.build(config.losses, losses.Setting(self.clip, each, 0, config.steps))
        self._check_hooks()

    def _check_vision(self, vision: Any) -> None:
        if vision.ask is not None:
            raise UserError("a stream keeps tokens that no question chose: leave reducers out that look at a question")
        if self.section.trained != [[self.view]]:
            raise UserError("a stream sees all frames alike: leave model.vision's budgets, frames and subsets out")

    def _check_hooks(self) -> None:
        """Refuses hooks of the backbone that a stream cannot have."""
        backbone = nnx.eval_shape(lambda: build_backbone(self.model.backbone, length=1, rngs=nnx.Rngs(0)))
        shape = self.stream.spans
        backbone.seen_by_layers(shape)
        shorter = any(hook.behind(shape.each) < shape.each for hook in backbone.transformer.hooks.values())
        if backbone.looks_beside or shorter:
            raise UserError("hooks that merge or look up tokens need the whole clip; of a stream take depth alone")

    @classmethod
    def compares(cls, config: Any) -> bool:
        return False

    def _longest(self) -> int:
        return self.stream.main + self.stream.turn + 1

    # Training ---------------------------------------------------------------------------------------------------------

    def turns(self, batch: Batch) -> Turns:
        """The turns of the samples of a batch."""
        if "turn_frame" not in batch or "asked_0_ids" not in batch:
            raise UserError("the samples of the data have no turns: take data.source.name=shapes_streams")

        def of(name: str, kind: str) -> Array:
            return jnp.stack([jnp.asarray(batch[f"{name}_{i}_{kind}"]) for i in range(TURNS)], axis=1)

        texts = [of(name, kind) for name in ("asked", "said") for kind in ("ids", "mask")]
        return Turns(jnp.asarray(batch["turn_frame"]), *texts)

    def frames(self, modules: Modules, batch: Batch) -> Clips:
        """The frames of all streams of a batch, one after another, each a clip of its own."""
        video = jnp.asarray(batch["video"])
        size, count = video.shape[:2]
        if "times" in batch:
            times = jnp.asarray(batch["times"])
        else:
            times = jnp.broadcast_to(jnp.arange(count) / self.config.data.clip.fps, (size, count))
        # Times count from the first frame of a stream.
        return self.reader.clips(modules, {"video": video[:, :, None], "times": (times - times[:, :1])[:, :, None]})

    def logits(
        self, model: VideoLanguage, clips: Clips, rows: Rows, key: Array | None = None
    ) -> Float[Array, "batch predictions ids"]:
        """Of the slots that ``asks``, float32."""
        seen = model.vision.see(clips.inputs, clips.seconds, view=self.view)
        tokens = model.vision.attend(seen, None, self.view)[0].filled()
        vectors = model.vision.placed(tokens, jnp.broadcast_to(clips.seconds, tokens.mask.shape))
        batch, place = len(rows.ids), jnp.maximum(rows.visual, 0)
        here = jnp.asarray(rows.visual >= 0)
        x = model.stream.words.embed(model.stream.backbone, rows.ids)
        x = jnp.where(here[:, None], vectors.reshape(batch, -1, self.width)[:, place].astype(x.dtype), x)
        exists = jnp.where(here, tokens.mask.reshape(batch, -1)[:, place], rows.exists)
        notes = Notes(rows.spans(self.stream))
        features = model.stream.backbone(x, exists, MASK, rows.tags, key=key, notes=notes)
        found = jnp.take_along_axis(features, rows.asks[..., None], axis=1)
        return model.stream.words.logits(model.stream.backbone, found)

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the terms."""
        micro = micro or MicroBatch()
        rows, clips = build_rows(self.turns(batch), self.stream, self.vocabulary), self.frames(modules, batch)
        dropout = micro.keys(named_key(key, "dropout"), len(rows.ids))
        logits = self.logits(modules["language"], clips, rows, dropout)
        found = losses.Pass(logits, rows.target, rows.silent | rows.speaks)
        outputs = losses.Outputs({STREAM: found}, features={SILENT: rows.silent})
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro)
        sums = modules["language"].vision.encoder.sums(clips.inputs)
        return loss, Outcome(metrics, sums={"vision": sums} if sums else {})

    # What is looked at ------------------------------------------------------------------------------------------------

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return "streams"

    def watching(self, modules: Modules, **settings: Any) -> Watcher:
        """What watches a stream frame by frame; settings as of ``Watcher``."""
        return Watcher(self, modules, **settings)

    def predictor(self, modules: Modules) -> Any:
        """What maps a batch to arrays of its predictions: ``silence``, the probability of silence; ``right``, whether
        the target is the likeliest id; ``nats`` of it; and ``silent`` and ``speaks`` of ``Rows``."""
        graphs, states = {}, {}
        for name, module in modules.items():
            graphs[name], states[name] = nnx.split(module)
        mesh, separator = mesh_of(states), self.vocabulary.word("separator")

        @jax.jit
        def run(states: Any, batch: Any) -> dict[str, Array]:
            live = {name: nnx.merge(graphs[name], states[name]) for name in graphs}
            rows = build_rows(self.turns(batch), self.stream, self.vocabulary)
            scores = jax.nn.log_softmax(self.logits(live["language"], self.frames(live, batch), rows))
            nats = -jnp.take_along_axis(scores, rows.target[..., None], axis=-1)[..., 0]
            found = {"silence": jnp.exp(scores[..., separator]), "nats": nats}
            return {**found, "right": scores.argmax(-1) == rows.target, "silent": rows.silent, "speaks": rows.speaks}

        def predict(batch: Batch) -> dict[str, np.ndarray]:
            size = len(batch["video"])
            with inside(mesh):
                found = run(states, spread(padded(dict(batch), mesh), mesh))
            return jax.tree.map(lambda x: on_host(x)[:size], found)

        return predict

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """How well turns of held-out streams are taken (``metrics.streams.judged``)."""
        predict, parts = self.predictor(modules), []
        for i, batch in enumerate(batches):
            kept = {name: np.asarray(batch[name]) for name in ("turn_frame", "turn_kind")}
            parts.append(keep(f"turns_{i}", lambda batch=batch: predict(batch)) | kept)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return judged(whole, self.stream.frames, self.config.data.clip.fps, self.session.threshold)

"""Training two towers on clips and their texts: retrieval of the one by the other."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import building, encoders, losses
from videogen.data.segments import LINKS, SEGMENTS
from videogen.errors import UserError
from videogen.language.towers import TEXT_TOWERS, VIDEO_TOWERS, TwoTowers
from videogen.language.vision_encoders import ENCODER, TOKENIZER, part_of
from videogen.losses.contrastive import SAME_TEXT, SCALE
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, on_host, spread
from videogen.ranges import Count
from videogen.shapes import VideoShape
from videogen.tasks.base import PUBLISHED, Batch, Keep, Modules, Outcome, Task, compute_now, dtype_of
from videogen.tasks.ranking import Ranking, Said, programs
from videogen.tasks.seeing import reader_of
from videogen.tasks.streams import length_of

CLIP_PARTS = {"clip_image": "video", "clip_text": "text"}
"""Published networks that a tower called ``clip`` is described by and begins as -> the section of that tower."""

REMEDIES = dict.fromkeys((SEGMENTS, LINKS), "data.source.segments=own, or stand_in")
"""What a tower may read beside clips -> the setting that adds it to the samples."""

PATCHES = {"name": "patches"}
"""The section of an encoder that reads pixels, for towers that have none of their own."""

EARLY = 100
"""Logged steps before this one, or within the warm-up, give no warning: every loss begins near chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowersSettings:
    """The section ``config.model`` of two towers.

    Attributes:
      video: ``{name: frames | clip, …}`` (``language.towers``).
      text: ``{name: transformer | clip, …}``.
      embed: width of the space of clips and texts.
      scale: ``{start, largest, smallest}`` of the logit scale (``losses.LogitScale``).
      views: texts of a sample that a clip is compared with; each is a pass of that name for the loss.
    """

    video: Mapping[str, Any]
    text: Mapping[str, Any]
    embed: Count
    scale: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    views: Sequence[str] = ("text",)


class RetrievalTask(Task):
    """Group ``towers``. Frozen, where a tower reads it, a ``tokenizer`` or a published ``encoder``; where a tower is
    CLIP's, ``clip_image`` or ``clip_text``, which it begins as (``start_from.paths``).

    Batches have ``video [batch, frames, height, width, 3]`` or the tokens of a cache, and ``NAME_ids``, ``NAME_mask
    [batch, length]`` of every view ``NAME``. Texts that are equal letter by letter describe each other's clips.
    """

    retrieves = True
    exported = ("towers",)

    def __init__(self, config: Any):
        self.config = config
        self.losses, self.updates = {"towers": self.loss}, {"towers": self._update}
        self.model = building.build({"two_towers": TwoTowersSettings}, config.model.to_dict(), "model")
        if not self.model.views:
            raise UserError("two towers compare clips with at least one text: model.views=('text',)")
        if len(config.data.buckets) or config.data.image_batch_size:
            raise UserError("two towers take clips of one shape: leave data.buckets and images out")
        clip = config.data.clip
        self.clip, encoder = VideoShape(clip.frames, clip.height, clip.width), self.model.video.get("encoder", PATCHES)
        part = part_of(encoder)
        read = None if part is None else nnx.eval_shape(lambda: self.structure_of_part(part))
        self.reader = reader_of(encoder, self.clip, clip.fps, read)
        towers = nnx.eval_shape(lambda: self.init(nnx.Rngs(0)))["towers"]
        self.bucket_tokens, self.needs = [towers.video.tokens], towers.video.needs
        self.terms = losses.build(config.losses, losses.Setting(self.clip, towers.video.tokens, 0, config.steps))

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        common = dict(embed=self.model.embed, dtype=dtype_of(self.config), rngs=rngs)
        shown = dict(clip=self.clip, features=self.reader.features, remat=self.config.parallel.remat)
        said = self.config.text.tokenizer
        read = dict(vocabulary_size=said.vocabulary_size, length=said.length)
        video = building.build(VIDEO_TOWERS, self.model.video, "tower of clips", **shown, **common)
        text = building.build(TEXT_TOWERS, self.model.text, "tower of texts", **read, **common)
        scale = building.build({"scale": losses.LogitScale}, {"name": "scale", **self.model.scale}, "scale", rngs=rngs)
        return {"towers": TwoTowers(video, text, scale)}

    # Frozen parts -----------------------------------------------------------------------------------------------------

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        part = part_of(config.model.video.get("encoder", PATCHES))
        found = {TOKENIZER: "tokenizer"} if part == TOKENIZER else {ENCODER: PUBLISHED} if part == ENCODER else {}
        clip = {
            name: PUBLISHED
            for name, tower in CLIP_PARTS.items()
            if config.model[tower].name == "clip" or name in config.parts
        }
        return {**super().parts_of(config), **found, **clip}

    @property
    def training_only(self) -> Sequence[str]:
        """What a tower began as is no part of an export."""
        return tuple(CLIP_PARTS)

    def structure_of_part(self, name: str) -> nnx.Module:
        if name == TOKENIZER:
            return super().structure_of_part(name)
        return encoders.described(self.config.parts[name].model.to_dict(), dtype=dtype_of(self.config))

    @classmethod
    def complete(cls, config: Any, origins: Mapping[str, Any]) -> None:
        super().complete(config, origins)
        for name, tower in CLIP_PARTS.items():
            if name in cls.parts_of(config):
                model = config.parts[name].model
                with config.unlocked(), config.ignore_type():
                    config.model[tower].model = {key: model[key] for key in model if key != "name"}

    def beside(self, batch: Batch) -> dict[str, Array]:
        """What the tower of clips reads of a batch beside the clips; raises ``UserError`` where it is not there."""
        for name in self.needs:
            if name not in batch:
                raise UserError(
                    f"the tower of clips reads {name!r}, which the samples do not have: set {REMEDIES[name]}"
                )
        return {name: batch[name] for name in self.needs}

    # Training ---------------------------------------------------------------------------------------------------------

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the terms, of the whole batch also where micro-batches are at hand."""
        micro, towers = micro or MicroBatch(), modules["towers"]
        size = length_of(batch, self.model.views[0])
        clips = self.reader.clips(modules, batch, micro.keys(named_key(key, "tokens"), size))
        dropout = micro.keys(named_key(key, "dropout"), size)
        found = towers.of_clips(clips.inputs, clips.seconds, clips.frames, dropout, self.beside(batch))
        passes, same = {}, {}
        for name in self.model.views:
            length_of(batch, name)
            ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"]
            passes[name] = losses.Pass(found, towers.of_texts(ids, mask))
            same[name] = jnp.where(mask, ids, -1)
        outputs = losses.Outputs(passes, features={SCALE: towers.scale(), SAME_TEXT: same})
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro)
        sums = towers.video.sums(clips.inputs)
        return loss, Outcome(metrics, sums={"video": sums} if sums else {})

    def _update(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Array]:
        """Brings the scale back into its range, and moves the statistics of what a frozen part gives."""
        modules["towers"].scale.clamp()
        if sums:
            modules["towers"].video.update(sums["video"])
        return {}

    def warnings(self, metrics: Mapping[str, float], step: int) -> dict[str, str]:
        """One line for each term whose loss after the warm-up is that of a network that has learned nothing."""
        if step <= max(self.config.optimizer.towers.warmup, EARLY):
            return {}
        found = {label: term.warning(metrics) for label, term in self.terms.items()}
        return {label: line for label, line in found.items() if line}

    # What is looked at ------------------------------------------------------------------------------------------------

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return "retrieval"

    def embedder(self, modules: Modules) -> Any:
        """What maps a batch of clips and their texts (the first view) to unit vectors ``clips`` and ``texts``."""
        graphs, states = {}, {}
        for name, module in modules.items():
            graphs[name], states[name] = nnx.split(module)
        view, mesh = self.model.views[0], mesh_of(states)

        @jax.jit
        def embed(states: Any, batch: Any) -> dict[str, Array]:
            live = {part: nnx.merge(graphs[part], states[part]) for part in graphs}
            clips, towers = self.reader.clips(live, batch), live["towers"]
            texts = towers.of_texts(batch[f"{view}_ids"], batch[f"{view}_mask"])
            found = towers.of_clips(clips.inputs, clips.seconds, clips.frames, beside=self.beside(batch))
            return {"clips": found, "texts": texts}

        def run(batch: Batch) -> dict[str, np.ndarray]:
            length_of(batch, view)
            with inside(mesh):
                return jax.tree.map(on_host, embed(states, spread(dict(batch), mesh)))

        return run

    def embedded(
        self, modules: Modules, batches: Iterable[Batch], keep: Keep = compute_now
    ) -> tuple[Float[np.ndarray, "clips embed"], Float[np.ndarray, "clips embed"], np.ndarray]:
        """Unit vectors of all clips and of their texts, and which text is that of which clip ``[texts, clips]``."""
        embed, batches = self.embedder(modules), list(batches)
        parts = [keep(f"embeddings_{i}", functools.partial(embed, batch)) for i, batch in enumerate(batches)]
        clips, texts = (np.concatenate([part[name] for part in parts]) for name in ("clips", "texts"))
        return clips, texts, Said.of(batches, self.model.views[0]).right(len(clips))

    def ranked(
        self, modules: Modules, batches: Iterable[Batch], keep: Keep = compute_now, said: Said | None = None
    ) -> Ranking:
        """The cosines of all texts with all clips; ``said`` are other texts than the one of each clip."""
        batches = list(batches)
        clips, texts, right = self.embedded(modules, batches, keep)
        if said is not None:
            run = programs(modules)(self._texts_of)
            parts = said.parts(len(batches[0][f"{self.model.views[0]}_ids"]))
            found = [keep(f"texts_{i}", functools.partial(run, part))["texts"] for i, part in enumerate(parts)]
            texts, right = np.concatenate(found)[: len(said.ids)], said.right(len(clips))
        return Ranking(texts @ clips.T, right, float(modules["towers"].scale()))

    @staticmethod
    def _texts_of(modules: Modules, said: Batch) -> dict[str, Array]:
        return {"texts": modules["towers"].of_texts(said["text_ids"], said["text_mask"])}

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """Recall over the held-out clips, ``text_to_video_NAME`` and ``video_to_text_NAME``
        (``metrics.retrieval.Places.measured``); a caption that several clips have is right for each of them."""
        return self.ranked(modules, batches, keep).measured()

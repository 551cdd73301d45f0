"""Training one transformer over clips and words: masked words, masked places of clips, matching, classes of clips."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building, encoders, losses
from videogen.errors import UserError, near_matches
from videogen.language.fused import FUSED, FusedNetwork
from videogen.language.fused_heads import VideoText
from videogen.language.vision_encoders import ENCODER, TOKENIZER, part_of
from videogen.losses.contrastive import SAME_TEXT, SCALE
from videogen.losses.masked_modelling import block_or_attended_mask, disguised, without_masked, word_mask
from videogen.nn import MicroBatch, named_key
from videogen.shapes import VideoShape
from videogen.tasks.base import PUBLISHED, Batch, Keep, Modules, Outcome, Task, compute_now, dtype_of, to_video
from videogen.tasks.fused_settings import (
    BEGINNINGS,
    CONTRASTIVE,
    LABELS,
    MATCHING,
    PASSES,
    WORDS,
    Masking,
    VideoTextSettings,
    digests,
    encoder_of,
    reads_of,
    targets_of,
)
from videogen.tasks.ranking import Ranking, Said, first_rows, programs
from videogen.tasks.seeing import Clips, reader_of
from videogen.tasks.streams import length_of
from videogen.tasks.visual_targets import TARGETS, TEACHER, Target


class VideoTextTask(Task):
    """Group ``model``. Frozen: a ``tokenizer`` or an ``encoder`` that the network reads; a ``tokenizer`` whose ids, or
    a ``teacher`` whose features, masked places should be told; published networks that it begins as.

    Batches have ``video [batch, frames, height, width, 3]``, ``text_ids`` and ``text_mask [batch, length]``, and for
    the pass ``labels`` also ``label [batch]``. A pass is computed where a term of ``config.losses`` reads it:

    * ``words``: masked words, of an input whose masked places are hidden, too, where there are visual targets;
    * those of ``model.targets``: masked places, of the same input;
    * ``matching``: clips with their own and with other texts of the batch, nothing hidden;
    * ``contrastive``: clips and texts by themselves; ``labels``: the classes of clips.
    """

    exported = ("model",)

    def __init__(self, config: Any):
        self.config = config
        self.losses, self.updates = {"model": self.loss}, {"model": self._update}
        self.model = building.build({"video_text": VideoTextSettings}, config.model.to_dict(), "model")
        self.masking = building.build({"masking": Masking}, {"name": "masking", **self.model.masking}, "section")
        if len(config.data.buckets) or config.data.image_batch_size:
            raise UserError("a model of clips and words takes clips of one shape: leave data.buckets and images out")
        clip = config.data.clip
        self.clip, encoder = VideoShape(clip.frames, clip.height, clip.width), encoder_of(config)
        part = part_of(encoder)
        read = None if part is None else nnx.eval_shape(lambda: self.structure_of_part(part))
        self.reader = reader_of(encoder, self.clip, clip.fps, read)
        network = nnx.eval_shape(lambda: self._network(nnx.Rngs(0)))
        self.grid = network.grid
        self.bucket_tokens = [int(np.prod(self.grid))]
        setting = losses.Setting(self.clip, self.bucket_tokens[0], 0, config.steps)
        self.terms = losses.build(config.losses, setting)
        self.wanted = self._read_passes()
        self.retrieves, self.recognises = MATCHING in self.wanted, LABELS in self.wanted
        self.targets = {name: self._target(name) for name in self.model.targets if name in self.wanted}
        if WORDS in self.wanted and not self.masking.with_words:
            raise UserError("masked words are told with words: set model.masking.with_words=True")
        attended = self.targets and self.masking.blocks < 1
        if attended and not network.probes:
            raise UserError("this network tells no attention to mask by: set model.masking.blocks=1.0")
        self.attended = bool(attended)

    def _read_passes(self) -> set[str]:
        """The passes that terms read; refuses those that the model cannot give."""
        found = set()
        for term in self.terms.values():
            found |= set(getattr(term, "passes", (term.reads,)))
        for name in sorted(found - {*PASSES, *self.model.targets}):
            known = near_matches(name, {*PASSES, *self.model.targets})
            raise UserError(f"a term reads the pass {name!r}, which this model does not give{known}")
        if CONTRASTIVE in found and not self.model.embed:
            raise UserError("a contrastive loss compares vectors of a width: set model.embed, e.g. to 256")
        if LABELS in found and not self.config.get("classes"):
            raise UserError("the pass 'labels' needs the number of classes: set config.classes")
        if MATCHING in found and self.config.accumulate > 1:
            raise UserError("matching compares texts of a whole batch: it goes with accumulate=1")
        return found

    def _target(self, name: str) -> Target:
        section = self.model.targets[name]
        kind = building.look_up(TARGETS, section, "visual target")
        part = None if kind.part is None else nnx.eval_shape(lambda: self.structure_of_part(kind.part))
        return building.build(TARGETS, section, "visual target", grid=self.grid, clip=self.clip, part=part)

    def _network(self, rngs: nnx.Rngs) -> nnx.Module:
        said, parallel = self.config.text.tokenizer, self.config.parallel
        made_for = dict(clip=self.clip, vocabulary_size=said.vocabulary_size, length=said.length)
        common = dict(features=self.reader.features, remat=parallel.remat, dtype=dtype_of(self.config), rngs=rngs)
        return building.build(FUSED, self.model.network, "network", **made_for, **common)

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        network, wanted, scale = self._network(rngs), self.wanted, None
        if CONTRASTIVE in wanted:
            scale = building.build(
                {"scale": losses.LogitScale}, {"name": "scale", **self.model.scale}, "scale", rngs=rngs
            )
        model = VideoText(
            network,
            visual={name: target.outputs for name, target in self.targets.items()},
            words=WORDS in wanted,
            scores=(1 if self.model.matching == "choice" else 2) if MATCHING in wanted else 0,
            classes=self.config.classes if LABELS in wanted else 0,
            embed=self.model.embed if CONTRASTIVE in wanted else 0,
            scale=scale,
            dtype=dtype_of(self.config),
            rngs=rngs,
        )
        return {"model": model}

    # Frozen parts -----------------------------------------------------------------------------------------------------

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        encoder = encoder_of(config)
        named = {building.look_up(TARGETS, s, "visual target").part for s in targets_of(config).values()}
        named |= {part_of(encoder)}
        kinds = {TOKENIZER: "tokenizer", ENCODER: PUBLISHED, TEACHER: PUBLISHED}
        found = {name: kinds[name] for name in sorted(named - {None})}
        return {**super().parts_of(config), **found, **{n: PUBLISHED for n in BEGINNINGS if n in config.parts}}

    @property
    def training_only(self) -> tuple[str, ...]:
        """What gives targets, and what the model began as, is no part of an export."""
        read = part_of(encoder_of(self.config))
        return tuple(name for name in self.parts_of(self.config) if name != read)

    def structure_of_part(self, name: str) -> nnx.Module:
        if name == TOKENIZER:
            return super().structure_of_part(name)
        return encoders.described(self.config.parts[name].model.to_dict(), dtype=dtype_of(self.config))

    @classmethod
    def complete(cls, config: Any, origins: Mapping[str, Any]) -> None:
        super().complete(config, origins)
        if "bert" in config.parts:
            model = config.parts.bert.model
            with config.unlocked(), config.ignore_type():
                config.model.network.bert = {key: model[key] for key in model if key != "name"}

    # Training ---------------------------------------------------------------------------------------------------------

    def word_numbers(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Int[Array, "batch length"]:
        """The number of the word of every piece, -1 of padding and markers; pieces one by one but for
        ``whole_words``."""
        if self.texts is None:
            starts, spoken = jnp.ones(ids.shape, bool), mask
        else:
            starts, spoken = jnp.asarray(self.texts.begins)[ids], mask & ~jnp.asarray(self.texts.markers)[ids]
        starts = starts if self.masking.whole_words else jnp.ones_like(starts)
        places = jnp.cumsum(spoken, axis=1)
        begun = jnp.cumsum(spoken & (starts | (places == 1)), axis=1)
        return jnp.where(spoken, begun - 1, -1)

    def masked_inputs(
        self, net: FusedNetwork, clips: Clips, seen: Array | None, batch: Batch, key: jax.Array, micro: MicroBatch
    ) -> dict[str, Array]:
        """What is hidden of clips and texts and what is shown instead: ``places [batch, tokens]``, where there are
        visual targets, ``words [batch, length]``, ``inputs`` and ``ids``; ``seen`` is nothing hidden, where known."""
        size, ids, mask = len(clips.inputs), batch["text_ids"], batch["text_mask"]
        found = {"ids": ids, "inputs": clips.inputs}
        if WORDS in self.wanted:
            keys = micro.keys(named_key(key, "words"), size)
            found["words"] = word_mask(keys, self.word_numbers(ids, mask), self.masking.words)
            keys, known = micro.keys(named_key(key, "disguise"), size), self.config.text.tokenizer.vocabulary_size
            found["ids"] = disguised(keys, ids, found["words"], net.vocabulary_size, known)
        if self.targets:
            mass = jnp.ones((size, self.bucket_tokens[0]))
            if self.attended:
                seen = net.see(clips.inputs, clips.seconds) if seen is None else seen
                mass = jax.lax.stop_gradient(net.fuse(seen, ids, mask, probed=True).mass)
            keys = micro.keys(named_key(key, "places"), size)
            settings = self.masking.video, self.masking.blocks
            found["places"] = block_or_attended_mask(keys, mass, self.grid, *settings)
            found["inputs"] = without_masked(clips.inputs, found["places"], self.grid)
        return found

    def forward(self, modules: Modules, batch: Batch, key: jax.Array, micro: MicroBatch) -> losses.Outputs:
        """What the terms read; ``features["masked"]`` says what was hidden."""
        model, net = modules["model"], modules["model"].network
        size, mask = length_of(batch, "text"), batch["text_mask"]
        clips = self.reader.clips(modules, batch, micro.keys(named_key(key, "tokens"), size))
        passes, features = {}, {"inputs": clips.inputs}
        seen = net.see(clips.inputs, clips.seconds) if self.wanted - {WORDS, *self.targets} else None
        if self.targets or WORDS in self.wanted:
            masked = self.masked_inputs(net, clips, seen, batch, key, micro)
            hidden = seen if seen is not None and not self.targets else net.see(masked["inputs"], clips.seconds)
            fused = net.fuse(hidden, masked["ids"], mask if self.masking.with_words else jnp.zeros_like(mask))
            features["masked"] = {name: masked[name] for name in ("places", "words") if name in masked}
            if WORDS in self.wanted:
                passes[WORDS] = losses.Pass(model.logits_of_words(fused), batch["text_ids"], masked["words"])
            keys = micro.keys(named_key(key, "targets"), size)
            for name, target in self.targets.items():
                told = target(modules, to_video(batch["video"]), keys)
                exists = masked["places"].reshape(-1, *self.grid)
                passes[name] = losses.Pass(model.visual[name](fused.patches), told, exists)
        if MATCHING in self.wanted:
            passes[MATCHING] = self._matching(model, seen, batch, micro.keys(named_key(key, MATCHING), size))
        if CONTRASTIVE in self.wanted:
            passes[CONTRASTIVE] = losses.Pass(model.of_clips(seen), model.of_texts(batch["text_ids"], mask))
            features |= {SCALE: model.scale(), SAME_TEXT: {CONTRASTIVE: jnp.where(mask, batch["text_ids"], -1)}}
        if LABELS in self.wanted:
            if "label" not in batch:
                raise UserError("the clips have no labels: recognition needs a source with classes")
            passes[LABELS] = losses.Pass(model.logits_of_labels(seen), batch["label"])
        return losses.Outputs(passes, features=features)

    def _matching(self, model: VideoText, seen: Array, batch: Batch, keys: Array) -> losses.Pass:
        """Clips with their own texts and with others: 1 of several, or yes and no for one of both."""
        ids, mask = batch["text_ids"], batch["text_mask"]
        said, binary = losses.numbered(jnp.where(mask, ids, -1)), self.model.matching == "binary"
        shown = losses.numbered(digests(batch["video"])) if "video" in batch else jnp.arange(len(ids))
        others, there = losses.negatives(keys, shown, said, 1 if binary else self.model.negatives)
        own = jnp.arange(len(ids))
        if binary:
            coins = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
            matches = coins | ~there[:, 0]
            chosen = jnp.where(matches, own, others[:, 0])
            return losses.Pass(model.matched(seen, ids[chosen], mask[chosen]), matches.astype(jnp.int32))
        scores = [model.match(seen, ids[own], mask[own])]
        scores += [model.match(seen, ids[other], mask[other]) for other in others.T]
        exists = jnp.concatenate([jnp.ones((len(ids), 1), bool), there], axis=1)
        return losses.Pass(jnp.stack(scores, axis=1), jnp.zeros(len(ids), jnp.int32), exists)

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the terms."""
        micro = micro or MicroBatch()
        outputs = self.forward(modules, batch, key, micro)
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro)
        sums = modules["model"].network.sums(outputs.features["inputs"])
        return loss, Outcome(metrics, sums={"video": sums} if sums else {})

    def _update(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Array]:
        """Brings a logit scale back into its range, and moves the statistics of what a frozen part gives."""
        if modules["model"].scale is not None:
            modules["model"].scale.clamp()
        if sums:
            modules["model"].network.update(sums["video"])
        return {}

    # What is looked at ------------------------------------------------------------------------------------------------

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        read = reads_of(config.losses)
        return "retrieval" if MATCHING in read else "recognition" if LABELS in read else None

    def ranked(
        self, modules: Modules, batches: Iterable[Batch], keep: Keep = compute_now, said: Said | None = None
    ) -> Ranking:
        """The score of every pair of a text and a clip, each of which is a pass of the network; ``said`` are other
        texts than the one of each clip."""
        batches = list(batches)
        said, size = said or Said.of(batches, "text"), len(batches[0]["text_ids"])
        padded, counts = [first_rows(batch, size) for batch in batches], [len(batch["text_ids"]) for batch in batches]

        def score(live: Modules, shown: Batch, said: Batch) -> dict[str, Array]:
            clips, model = self.reader.clips(live, shown), live["model"]
            seen = model.network.see(clips.inputs, clips.seconds)

            def of_text(text: tuple[Array, Array]) -> Array:
                ids, mask = (jnp.broadcast_to(x, (len(seen), *x.shape)) for x in text)
                return model.match(seen, ids, mask)

            return {"scores": jax.lax.map(of_text, (said["text_ids"], said["text_mask"]))}

        run, rows = programs(modules)(score), []
        for i, texts in enumerate(said.parts(size)):
            row = [
                keep(f"scores_{i}_{j}", functools.partial(run, shown, texts))["scores"][:, :count]
                for j, (shown, count) in enumerate(zip(padded, counts, strict=True))
            ]
            rows.append(np.concatenate(row, axis=1))
        scores = np.concatenate(rows)[: len(said.ids)]
        temperatures = [getattr(term, "temperature", 1.0) for term in self.terms.values() if term.reads == MATCHING]
        return Ranking(scores, said.right(sum(counts)), 1 / temperatures[0])

    def recognised(
        self, modules: Modules, batches: Iterable[Batch], keep: Keep = compute_now
    ) -> Float[np.ndarray, "clips classes"]:
        """The logits of the classes of all clips."""

        def score(live: Modules, batch: Batch) -> dict[str, Array]:
            clips, model = self.reader.clips(live, batch), live["model"]
            return {"logits": model.logits_of_labels(model.network.see(clips.inputs, clips.seconds))}

        run = programs(modules)(score)
        found = [keep(f"logits_{i}", functools.partial(run, dict(batch))) for i, batch in enumerate(batches)]
        return np.concatenate([own["logits"] for own in found])

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """The terms over the held-out clips, with masks of the seed; recall by the scores of matching, where these are
        trained, both ways, and ``recognition``, the share of clips whose likeliest class is theirs."""
        batches = list(batches)

        def measure(live: Modules, batch: Batch, data: Array) -> dict[str, Array]:
            key = jax.random.wrap_key_data(data)
            outputs, micro = self.forward(live, batch, key, MicroBatch()), MicroBatch()
            return losses.combine(self.terms, live, outputs, key, jnp.zeros((), jnp.int32), micro)[1]

        run, found = programs(modules)(measure), []
        for i, batch in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(seed), i)
            data = np.asarray(jax.random.key_data(key))
            found.append(keep(f"terms_{i}", functools.partial(run, dict(batch), data)))
        weights = [len(batch["text_ids"]) for batch in batches]
        values = {name: float(np.average([own[name] for own in found], weights=weights)) for name in found[0]}
        if self.retrieves:
            values |= self.ranked(modules, batches, keep).measured()
        if self.recognises:
            logits, labels = self.recognised(modules, batches, keep), [np.asarray(batch["label"]) for batch in batches]
            values["recognition"] = float(np.mean(logits.argmax(1) == np.concatenate(labels)))
        return values

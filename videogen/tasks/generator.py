"""Training a generator of codes on top of a frozen tokenizer, or on its token cache."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen import data, generators
from videogen.conditioning import (
    FROZEN_TEXT,
    NULL_LABEL,
    TASKS,
    TEXT_ENCODERS,
    USES_CONDITIONING,
    Conditioning,
    Given,
    TaskTables,
    TextEncoder,
    task_index,
)
from videogen.data import read_buckets
from videogen.data.inputs import sample_clip
from videogen.errors import UserError, near_matches
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, spread
from videogen.shapes import TokenGrid, Video, VideoShape
from videogen.tasks.base import (
    PUBLISHED,
    Batch,
    Keep,
    Modules,
    Outcome,
    Picture,
    Task,
    compute_now,
    dtype_of,
    to_video,
)
from videogen.tasks.generation import VideoGenerator
from videogen.tasks.rows import centres_of, check_one_size, in_row, relabel_of, row_of, tokens_of
from videogen.tasks.showing import completions, samples
from videogen.tasks.texts import encode_jointly
from videogen.tokens import Layout, Tokens

TEXT_ENCODER = "text_encoder"
"""The part that is a frozen encoder of texts."""


class TextToCodes(nnx.Module):
    """A generator and the text encoder trained with it (``None`` when text comes frozen or not at all)."""

    def __init__(self, generator: nnx.Module, text_encoder: nnx.Module | None):
        self.generator = generator
        self.text_encoder = text_encoder


class GeneratorTask(Task):
    """Group: ``generator`` (with its text encoder). Frozen: ``tokenizer`` and, of ``FROZEN_TEXT``, ``text_encoder``.

    ``config.text.encoder`` is the text encoder (``name = "none"``: no text; T5 and language models are the part
    ``text_encoder``), ``config.classes`` the number of labels or ``None``.
    ``config.tasks`` are weights of ``conditioning.TASKS``: each clip is then completed from the pixels that a task
    drawn for it gives (MAGVIT); without them clips are drawn from text and label alone. Images have no task.
    """

    draws = True
    parts = {"tokenizer": "tokenizer"}

    def __init__(self, config: Any):
        self.config = config
        self.losses = {"generator": self.generator_loss}
        self.updates = {"generator": self._update_statistics}
        self.kind = generators.class_of(config.model)
        self.exported = ("generator",)
        self.text = config.text.encoder.name
        known = [*TEXT_ENCODERS, "none"]
        if self.text not in known:
            raise UserError(f"unknown text encoder {self.text!r}{near_matches(self.text, known)}")
        part = config.parts.get(TEXT_ENCODER, {}).get("model", {}).get("name", self.text)
        if self.text in FROZEN_TEXT and part != self.text:
            raise UserError(
                f"config.text.encoder.name is {self.text!r}, and the part {TEXT_ENCODER} is a {part!r}: set "
                f"config.parts.{TEXT_ENCODER}.model.name and its checkpoint, too"
            )
        # Only its arithmetic is used here; the weights are a frozen module.
        self.tokenizer = nnx.eval_shape(lambda: self.structure_of_part("tokenizer"))
        clip = config.data.clip
        self.layout = self.tokenizer.layout(VideoShape(clip.frames, clip.height, clip.width))
        if len(self.layout.segments) > 1:
            check_one_size(config.data)
        self.drawn = self._drawn()
        self.grid = TokenGrid(1, 1, self.drawn.tokens) if len(self.drawn.segments) > 1 else self.drawn.only.grid
        self.tasks = self._read_tasks()
        self.buckets = [self._bucket_grid(bucket.shape) for bucket in read_buckets(config.data)]
        self.bucket_tokens = [grid.tokens for grid in self.buckets]
        # What it takes is asked of it; its weights are a module of the run.
        self.generator = nnx.eval_shape(lambda: self.init(nnx.Rngs(0)))["generator"].generator
        for grid in self._learned():
            self.generator.check_grid(grid)
        if self.generator.ends and not self.tokenizer.drops:
            raise UserError(
                "this tokenizer decodes whole clips of tokens only, so no sequence may end before: leave "
                "model.head.special out"
            )
        self._check_clock()
        self.check_sampler(generators.build_sampler(config.sampler))

    def _check_clock(self) -> None:
        """Refuses positions in seconds that count other cells of pixels than those of the generator's tokens."""
        if (clock := self.generator.clock) is None:
            return
        made = self.tokenizer.compression
        sides = zip((made.time, made.height, made.width), self.generator.patch, strict=True)
        if (cell := tuple(side * patch for side, patch in sides)) != clock.cell:
            raise UserError(
                f"model.transformer.rotary.cell is {clock.cell}, and tokens of this generator are of {cell} frames, "
                "rows and columns of pixels"
            )

    def _rates(self, size: int) -> Float[np.ndarray, "size"] | None:
        """Frames per second of so many clips, for positions in seconds.

        Raises:
          UserError: nothing says it.
        """
        if self.generator.clock is None:
            return None
        if not (rate := sample_clip(self.config).fps):
            raise UserError(
                "this generator has positions in seconds, and nothing says the frame rate of the clips: set "
                "config.data.clip.fps above 0, or take a token cache that says it"
            )
        return np.full(size, rate, np.float32)

    def _drawn(self) -> Layout:
        """The tokens as the generator has them: those of several segments in one row, unless it draws scales."""
        if self.kind.draws_scales and not self.tokenizer.scales:
            raise UserError("this tokenizer has no scales to draw; take model.name = next_block or masked")
        single = len(self.layout.segments) == 1
        return self.layout if single or self.kind.draws_scales else row_of(self.layout)

    def _read_tasks(self) -> Float[np.ndarray, "tasks"] | None:
        """The share of each of ``TASKS``, ``None`` without any."""
        weights = self.config.get("tasks") or {}
        shares = np.zeros(len(TASKS))
        for name in weights:
            shares[task_index(name)] = weights[name]
        if not shares.any():
            return None
        if shares.min() < 0:
            raise UserError("weights of tasks must not be negative")
        if not self.kind.completes:
            raise UserError(f"a {self.config.model.name!r} generator takes no given pixels; leave tasks empty")
        if not self.tokenizer.on_grid:
            raise UserError("the codes of this tokenizer have no place in the picture; leave tasks empty")
        if data.class_of(self.config.data.source).field != "video":
            raise UserError("tasks need pixels, which a token cache does not hold; train from the videos")
        return shares / shares.sum()

    def _bucket_grid(self, shape: VideoShape) -> TokenGrid:
        if len(self.layout.segments) > 1:
            return self.grid
        grid = self.tokenizer.grid(shape)
        if grid.shape[1:] != self.grid.shape[1:] or grid.time > self.grid.time:
            raise UserError(
                f"a bucket of {grid.shape} codes does not fit a generator for {self.grid.shape}; a generator's buckets "
                "have the height and width of data.clip, and at most its frames"
            )
        return grid

    def _learned(self) -> list[TokenGrid]:
        """The grids of all clips and images in training."""
        return [self.grid, *self.buckets, *([self.grid.with_time(1)] if self.config.data.image_batch_size else [])]

    def check_sampler(self, sampler: Any) -> None:
        """Refuses a sampler that cannot draw from this generator, with a ``UserError``."""
        generators.check_sampler(self.generator, sampler)
        if sampler.queued and not self.tokenizer.streams:
            raise UserError("a queue of frames needs a tokenizer that decodes in chunks; use extension=window")

    def drawn_by(self, sampler: Any) -> Layout:
        """What a sampler draws: all tokens, or the first ones of a row.

        Raises:
          UserError: the tokenizer does not decode the first tokens alone, or there are not so many.
        """
        if (count := sampler.tokens) is None:
            return self.drawn
        if not self.tokenizer.drops or self.drawn != self.layout or self.tokenizer.sides != ("query",):
            raise UserError("sampler.tokens is for tokenizers that decode the first tokens of a row: leave it out")
        if count > self.drawn.tokens:
            raise UserError(f"sampler.tokens={count}: a clip has {self.drawn.tokens} tokens")
        return Layout.of(**{name: segment.with_length("query", count) for name, segment in self.drawn.segments})

    @property
    def given_frames(self) -> int:
        """How many frames every clip begins with that are given; 0 for most generators."""
        known = self.generator.given_frames
        return self.tokenizer.compression.frames(known) if known else 0

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        dtype = dtype_of(self.config)
        context_width, encoder = None, None
        if self.text == "transformer":
            settings = {k: v for k, v in self.config.text.encoder.items() if k != "name"}
            vocabulary_size, length = self.config.text.tokenizer.vocabulary_size, self.config.text.tokenizer.length
            encoder = TextEncoder(vocabulary_size, length, **settings, dtype=dtype, rngs=rngs)
            context_width = encoder.width
        elif self.text in FROZEN_TEXT:
            described = self.config.parts.text_encoder.model
            context_width = described.get("width") or described.embed
        elif self.config.classes and not self.kind.label_as_vector:
            context_width = self.config.model.transformer.width
        if self.kind.draws_scales:
            values = dict(layout=self.drawn, features=self.tokenizer.quantizer.width)
        else:
            segment = self.drawn.only
            values = dict(vocabulary=segment.vocabulary, channels=segment.channels, grid=self.grid.shape)
        generator = generators.build(
            self.config.model,
            **values,
            context_width=context_width,
            classes=self.config.classes,
            **({} if self.tasks is None else {"tasks": len(TASKS)}),
            remat=self.config.parallel.remat,
            dtype=dtype,
            rngs=rngs,
        )
        if self.drawn != self.layout:
            clip = self.config.data.clip
            generator.centres = centres_of(self.tokenizer, VideoShape(clip.frames, clip.height, clip.width))
        if self.tokenizer.normalised:
            generator.statistics = generators.NormalisedLatents()
        return {"generator": TextToCodes(generator, encoder)}

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        frozen = {TEXT_ENCODER: PUBLISHED} if config.text.encoder.name in FROZEN_TEXT else {}
        return {**super().parts_of(config), **frozen}

    def structure_of_part(self, name: str) -> nnx.Module:
        if name != TEXT_ENCODER:
            return super().structure_of_part(name)
        model = self.config.parts[name].model
        settings = {key: model[key] for key in model if key != "name"}
        return FROZEN_TEXT[self.text].described(settings, dtype=dtype_of(self.config))

    def published(self, name: str, folder: str) -> nnx.Module:
        return FROZEN_TEXT[self.text].load(folder, dtype=dtype_of(self.config))

    @classmethod
    def complete(cls, config: Any, origins: Mapping[str, Any]) -> None:
        super().complete(config, origins)
        if TEXT_ENCODER in cls.parts_of(config):
            folder = config.parts[TEXT_ENCODER].checkpoint
            if folder and not config.text.tokenizer.path:
                config.text.tokenizer.path = str(Path(folder) / FROZEN_TEXT[config.text.encoder.name].text_folder)

    def prepare(self, frozen: Modules, parts: Sequence[Batch]) -> Sequence[Batch]:
        """Adds to each part what a frozen text encoder makes of the captions, in one pass: its sharded weights are
        gathered once."""
        encoder = frozen.get(TEXT_ENCODER)
        if encoder is None:
            return parts
        return [{**part, "text": text} for part, text in zip(parts, encode_jointly(encoder, parts), strict=True)]

    def conditioning(self, modules: Modules, batch: Batch) -> Conditioning:
        """Encodes the text and label parts of a batch, whose text may be encoded already (``prepare``)."""
        text = batch.get("text")
        if text is None and self.text != "none":
            (text,) = encode_jointly(modules.get(TEXT_ENCODER) or modules["generator"].text_encoder, [batch])
        if self.config.classes and "label" not in batch:
            raise UserError("the clips have no labels: name their classes in the source, or leave config.classes empty")
        said = Conditioning(text, batch["label"] if self.config.classes else None)
        rates = self._rates(1 if said.text is None and said.label is None else said.batch_size)
        return said if rates is None else dataclasses.replace(said, rate=jnp.asarray(rates))

    def tokens(self, modules: Modules, batch: Batch, keys: jax.Array | None = None) -> Tokens:
        """Tokens of a batch: from the token cache, or by the frozen tokenizer, which may draw by ``keys``."""
        return tokens_of(batch, modules.get("tokenizer"), self.layout, keys)

    def detokenize(self, modules: Modules, tokens: Tokens, said: Batch | None = None) -> Video:
        """What ``tokens`` gave, or a generator has drawn, as pixels.

        ``said`` holds what a decoder is told beside the tokens (``Tokenizer.needs``), uint8, as far as it is known.
        """
        if tokens.layout == self.drawn != self.layout:
            tokens = Tokens.from_flat(tokens.flat, self.layout)
        elif tokens.layout != self.layout and "time" not in self.tokenizer.sides:
            tokens = tokens.only.followed_by_none(self.layout)
        told = {name: to_video(said[name]) for name in self.tokenizer.needs if said and name in said}
        return modules["tokenizer"].detokenize(tokens, **told)

    def shown(self, modules: Modules) -> dict[str, Any]:
        """What the generator asks the tokenizer for: sums of scales."""
        return {"partial": modules["tokenizer"].partial} if self.kind.draws_scales else {}

    def unprompted(self, count: int) -> dict[str, np.ndarray]:
        """The text and label parts of a batch of which nothing is said."""
        batch = {}
        if self.text != "none":
            shape = (count, self.config.text.tokenizer.length)
            batch |= {"text_ids": np.zeros(shape, np.int32), "text_mask": np.zeros(shape, bool)}
        if self.config.classes:
            batch["label"] = np.full(count, NULL_LABEL, np.int32)
        return batch

    def given(self, modules: Modules, video: Video, task: Int[Array, "batch"]) -> tuple[Given, Video]:
        """What the generator is shown of clips when each has the task with this place in ``TASKS``; and filled clips.

        The codes are those of the filled clips, which only given pixels decide.
        """
        tables = TaskTables(VideoShape(*video.shape[1:4]), self.tokenizer.compression)
        filled = tables.fill(video, task)
        tokens = jax.lax.stop_gradient(modules["tokenizer"].tokenize(filled))
        return Given(tokens.only.values, tables.region(task), task), filled

    @staticmethod
    def conditioning_of_tasks(conditioning: Conditioning, task: Int[Array, "batch"]) -> Conditioning:
        """The conditioning, absent for examples whose task does not use text and label."""
        return conditioning.drop(~jnp.asarray(USES_CONDITIONING)[task])

    def generator_loss(
        self,
        modules: Modules,
        batch: Batch,
        key: jax.Array,
        step: Array,
        micro: MicroBatch | None = None,
        *,
        train: bool = True,
    ) -> tuple[Float[Array, ""], Outcome]:
        """The generator's loss."""
        micro, conditioning = micro or MicroBatch(), self.conditioning(modules, batch)
        keys = micro.keys(named_key(key, "tokens"), len(jax.tree.leaves(batch)[0])) if train else None
        tokens, shown = jax.lax.stop_gradient(self.tokens(modules, batch, keys)), self.shown(modules)
        if self.drawn != self.layout:
            relabel = relabel_of(modules["tokenizer"], batch) if train and self.tokenizer.residual else None
            tokens, shown = in_row(tokens, self.drawn, modules["generator"].generator, relabel, key, micro)
        elif self.kind.draws_scales:
            shown["relabel"] = relabel_of(modules["tokenizer"], batch)
        # Images have no task.
        if self.tasks is not None and batch["video"].shape[1] > 1:
            task = micro.draw(self._draw_tasks, named_key(key, "task"), tokens.only.values.shape[:1])
            conditioning = self.conditioning_of_tasks(conditioning, task)
            shown = {"given": self.given(modules, to_video(batch["video"]), task)[0]}
        loss, metrics = modules["generator"].generator.loss(
            tokens, conditioning, key, train=train, micro=micro, **shown
        )
        statistics = modules["generator"].generator.statistics
        return loss, Outcome(metrics, sums={} if statistics is None else statistics.sums(tokens.only.values))

    def _update_statistics(
        self, modules: Modules, sums: dict[str, Array], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Array]:
        """Moves the statistics of latents by all videos and images of the step; a student has those of its teacher."""
        if sums:
            modules["generator"].generator.statistics.update(sums)
        return {}

    def _draw_tasks(self, key: jax.Array, shape: Sequence[int]) -> Int[Array, "*shape"]:
        return jax.random.choice(key, len(TASKS), shape, p=jnp.asarray(self.tasks))

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        if config.get("tasks"):
            return "tasks"
        if data.class_of(config.data.source).signed and "text" in config:
            return "signs"
        conditioned = config.get("classes") or config.text.encoder.name != "none"
        return "prompt_fidelity" if conditioned and data.class_of(config.data.source).judged else None

    def drawing(self, modules: Modules, sampler: Any = None, size: Any = None) -> VideoGenerator:
        return VideoGenerator(self, modules, sampler, size)

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """Loss and accuracy on held-out batches, without condition dropping; the same masks every time.

        It computes on the mesh that the modules lie on. No batch is filled up: a loss is a mean over its examples.
        """
        graphs, states = {}, {}
        for name, module in modules.items():
            graphs[name], states[name] = nnx.split(module)

        @jax.jit
        def score(states: Any, batch: Any, key: jax.Array) -> dict[str, Array]:
            live = {name: nnx.merge(graphs[name], states[name]) for name in graphs}
            return self.generator_loss(live, batch, key, jnp.zeros((), jnp.int32), train=False)[1].metrics

        scores, clips, mesh = [], [], mesh_of(states)

        def measure(i: int, batch: Batch) -> dict[str, np.ndarray]:
            with inside(mesh):
                found = score(states, spread(batch, mesh), jax.random.fold_in(jax.random.key(seed), i))
            return jax.tree.map(np.asarray, found)

        for i, batch in enumerate(batches):
            scores.append(keep(f"losses_{i}", functools.partial(measure, i, batch)))
            clips.append(len(jax.tree.leaves(batch)[0]))
        return {name: float(np.average([s[name] for s in scores], weights=clips)) for name in scores[0]}

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """One clip for each of the first clips, of its caption, label and given frames, beside that clip.

        With tasks one clip for each of those: the clip, what is given of it, and how that was completed.
        """
        drawn = samples if self.tasks is None else completions
        return [drawn(self, modules, batch, seed)]

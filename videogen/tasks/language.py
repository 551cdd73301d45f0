"""Training a language model over streams of text and tokens: clips from texts, texts of clips, stories of both."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import building, data
from videogen.data import read_buckets
from videogen.errors import UserError
from videogen.language import Floats, Ids, StreamLayout, StreamModel, Table, TokenStream
from videogen.language.layouts import Part
from videogen.language.shares import Shares
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, spread
from videogen.ranges import Share, Weight
from videogen.shapes import VideoShape
from videogen.tasks.base import Batch, Keep, Modules, Outcome, Picture, compute_now, dtype_of
from videogen.tasks.rows import tokens_of
from videogen.tasks.stream_generation import StreamGenerator, captioned, drawn_beside
from videogen.tasks.streams import TEXT, RowSettings, StreamTask, at_least_one
from videogen.tokens import Layout, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings(RowSettings):
    """The section ``config.model`` of a language model over streams, beside ``RowSettings``.

    Attributes:
      floats: the head of every segment of floats: ``{segment: {name: gaussian_mixture | gaussian, …}}``.
      condition_drop: share of the samples without texts, for guidance.
      balance: every sample's floats weigh the same, however many there are (DiCoDe, section 4).
      words_weight: of the mean over ids, in nats.
      floats_weight: of the mean over numbers, in nats.
    """

    floats: Mapping[str, Any]
    condition_drop: Share = 0.0
    balance: bool = False
    words_weight: Weight = 1.0
    floats_weight: Weight = 1.0


class LanguageTask(StreamTask):
    """Group and frozen parts as of ``StreamTask``, and frozen the ``tokenizer``.

    ``config.layouts = {name: {sequence, prefix, share}}`` are the tasks; each sample has one of them, drawn by the
    shares (numbers, or ``((first step, share), …)``). A layout of several clips is a story: the clips that follow each
    other in a batch are one sample of it. ``config.model`` has the settings of ``StreamSettings``.
    """

    TEXTS = (TEXT, "question", "answer")
    draws = True
    parts = {"tokenizer": "tokenizer"}

    def __init__(self, config: Any):
        self.config = config
        self.losses, self.updates = {"language": self.loss}, {"language": self._update}
        self.model = building.build({"stream": StreamSettings}, config.model.to_dict(), "model")
        if self.model.backbone.get("hooks"):
            raise UserError("hooks reduce the clips of video-language models: leave model.backbone.hooks out here")
        self.tokenizer = nnx.eval_shape(lambda: self.structure_of_part("tokenizer"))
        clip = config.data.clip
        self.layout = self.tokenizer.layout(VideoShape(clip.frames, clip.height, clip.width))
        codes = {name: segment.vocabulary for name, segment in self.layout.segments if segment.vocabulary}
        self._lay_out(self.kinds_of(self.layout), codes)
        self.shares = Shares([config.layouts[name].get("share", 1.0) for name in self.layouts])
        self.check_rows(self.clips)
        grids = [self.tokenizer.layout(bucket.shape) for bucket in read_buckets(config.data)]
        self.bucket_tokens = [grid.tokens for grid in grids]

    def kinds_of(self, layout: Layout) -> dict[str, Ids | Floats]:
        """What the segments of a stream are where clips have this layout."""
        kinds: dict[str, Ids | Floats] = dict(self.text_kinds(TEXT))
        for name, segment in layout.segments:
            kinds[name] = Ids.of(name, segment) if segment.vocabulary else Floats.of(segment)
        return kinds

    def table(self, layout: Layout, names: Sequence[str] = ()) -> Table:
        """The table of all layouts, or of some, for clips whose tokens have a layout."""
        return self.table_of(self.kinds_of(layout), names)

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        drawn = [item for layout in self.layouts.values() for item in layout.items if isinstance(item, Part)]
        longest = self.table(self.layout).slots
        model = StreamModel(
            self.vocabulary,
            self.kinds,
            backbone=self.model.backbone,
            floats=self.model.floats,
            length=longest,
            queries=tuple({item.segment for item in drawn if item.queries}),
            normalised=self.layout.names if self.tokenizer.normalised else (),
            words=any(layout.outputs(self.kinds, Ids) for layout in self.layouts.values()),
            remat=self.config.parallel.remat,
            dtype=dtype_of(self.config),
            rngs=rngs,
        )
        return {"language": model}

    # Training ---------------------------------------------------------------------------------------------------------

    def tokens(self, modules: Modules, batch: Batch, keys: jax.Array | None = None) -> Tokens:
        """Tokens of a batch: from the token cache, or by the frozen tokenizer, which may draw by ``keys``."""
        return tokens_of(batch, modules.get("tokenizer"), self.layout, keys)

    def stream(
        self,
        modules: Modules,
        batch: Batch,
        tokens: Tokens,
        choice: Int[Array, "samples"],
        silent: Bool[Array, "samples"],
        names: Sequence[str] = (),
        packed: int | None = None,
    ) -> tuple[TokenStream, dict[str, Float[Array, "rows tokens channels"]]]:
        """The rows of a batch and their normalised floats; samples are dealt to rows by their lengths.

        Args:
          modules: the model, whose statistics normalise.
          batch: with ``text_ids`` and ``text_mask``.
          tokens: of its clips.
          choice: the layout of each sample.
          silent: samples without texts.
          names: of the layouts that ``choice`` means; by default all.
          packed: samples of a row; by default as in training.
        """
        kinds, samples = self.kinds_of(tokens.layout), len(choice)
        ids, exists = self.said(batch, [name for name in self.TEXTS if name in kinds], samples)
        exists, values = {name: mask & ~silent[:, None] for name, mask in exists.items()}, {}
        for name, segment in tokens.items():
            kind = kinds[name]
            if isinstance(kind, Ids):
                ids[name] = kind.flat(segment.values).reshape(samples, -1)
            else:
                own = modules["language"].floats[name].statistics.normalise(kind.flat(segment))
                values[name] = own.reshape(samples, -1, kind.channels)
        return self.rows(kinds, choice, ids, exists, values, names, packed)

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the means over ids and over numbers, in nats; negative where densities are high."""
        micro = micro or MicroBatch()
        size = len(batch["text_ids"])
        keys = micro.keys(named_key(key, "tokens"), size)
        tokens = jax.lax.stop_gradient(self.tokens(modules, batch, keys))
        samples = size // self.clips
        choice = micro.draw(functools.partial(self.shares.draw, step), named_key(key, "layout"), (samples,))
        silent = micro.draw(jax.random.uniform, named_key(key, "silent"), (samples,)) < self.model.condition_drop
        stream, values = self.stream(modules, batch, tokens, choice, silent)
        dropout = micro.keys(named_key(key, "dropout"), len(stream.ids))
        loss, metrics = self.summed(modules["language"], stream, values, micro, dropout)
        floats = modules["language"].floats
        sums = {name: floats[name].statistics.sums(tokens[name].values) for name in values}
        return loss, Outcome(metrics, sums={name: own for name, own in sums.items() if own})

    def summed(
        self,
        model: StreamModel,
        stream: TokenStream,
        values: Mapping[str, Array],
        micro: MicroBatch,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of rows, and metrics: means over ids (``words``, ``accuracy``), over numbers, the padding."""
        total, metrics = 0.0, {}
        for name, (nll, counted) in model.losses(stream, values, key).items():
            own, count = jnp.where(counted, nll, 0.0).sum(), counted.sum() * 1.0
            if name in values:
                channels = values[name].shape[-1]
                own, count = own / channels, count
                if self.model.balance:
                    own, count = self._by_sample(nll / channels, counted)
            mean = own / at_least_one(count, micro)
            metrics[name] = mean
            weight = {"accuracy": 0.0, "words": self.model.words_weight}.get(name, self.model.floats_weight)
            total += weight * mean
        return total, {"loss": total, "padding": stream.padding(), **metrics}

    def _by_sample(
        self, nll: Float[Array, "rows tokens"], counted: Bool[Array, "rows tokens"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The sum over samples of their means, and how many have any."""
        shape = (len(nll) * self.model.packed, -1)
        nll, counted = nll.reshape(shape), counted.reshape(shape)
        each = jnp.where(counted, nll, 0.0).sum(1) / jnp.maximum(counted.sum(1), 1)
        return each.sum(), counted.any(1).sum() * 1.0

    def _update(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Array]:
        """Moves the statistics of floats by all clips and images of the step."""
        for name, own in sums.items():
            modules["language"].floats[name].statistics.update(own)
        return {}

    # What is looked at ------------------------------------------------------------------------------------------------

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return "prompt_fidelity" if data.class_of(config.data.source).judged else None

    def drawing(self, modules: Modules, sampler: Any = None, size: tuple[int, int] | None = None) -> StreamGenerator:
        clip = self.config.data.clip
        if size is not None and tuple(size) != (clip.height, clip.width):
            raise UserError(f"this model draws clips of {clip.height}x{clip.width} alone, the size of its training")
        return StreamGenerator(self, modules, sampler)

    @property
    def writes(self) -> bool:
        """Whether a layout has the text as an output."""
        return self.layout_for(TEXT) is not None

    def layout_for(self, segment: str) -> tuple[str, StreamLayout] | None:
        """The layout of fewest clips that draws a segment: ``text`` or one of the tokenizer's; ``None``: no such."""
        found = [
            (layout.clips, len(layout.items), name)
            for name, layout in self.layouts.items()
            if any(isinstance(item, Part) and item.output and item.segment == segment for item in layout.items)
        ]
        return (min(found)[-1], self.layouts[min(found)[-1]]) if found else None

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """What every layout gives on held-out clips.

        ``LAYOUT_words`` is in nats per id, ``LAYOUT_SEGMENT`` in nats per number at variance scale 1, which may be
        negative; ``captions_right`` is the share of drawn captions that are those of their clips, letter by letter.
        """
        graphs, states = {}, {}
        for name, module in modules.items():
            graphs[name], states[name] = nnx.split(module)

        @functools.partial(jax.jit, static_argnames="name")
        def score(states: Any, batch: Any, name: str) -> dict[str, Array]:
            live = {part: nnx.merge(graphs[part], states[part]) for part in graphs}
            samples = len(batch["text_ids"]) // self.clips
            nothing = jnp.zeros(samples, jnp.int32)
            stream, values = self.stream(live, batch, self.tokens(live, batch), nothing, nothing > 0, (name,), packed=1)
            return self.summed(live["language"], stream, values, MicroBatch())[1]

        scores, clips, mesh = [], [], mesh_of(states)
        generator = self.drawing(modules) if self.writes and self.texts is not None else None

        def measure(batch: Batch) -> dict[str, np.ndarray]:
            found = {}
            with inside(mesh):
                for name in self.layouts:
                    own = score(states, spread(batch, mesh), name)
                    found |= {f"{name}_{kind}": np.asarray(own[kind]) for kind in self._measured(name)}
            if generator is not None and "video" in batch:
                said = generator.captions(np.asarray(batch["video"]), seed)
                found["captions_right"] = np.mean(
                    [text == true for text, true in zip(said, self._read(batch), strict=True)]
                )
            return found

        for i, batch in enumerate(batches):
            whole = self._whole_samples(batch)
            scores.append(keep(f"losses_{i}", functools.partial(measure, whole)))
            clips.append(len(whole["text_ids"]))
        means = {name: float(np.average([s[name] for s in scores], weights=clips)) for name in scores[0]}
        return {"loss": float(np.mean([means[f"{name}_loss"] for name in self.layouts])), **means}

    def _measured(self, name: str) -> list[str]:
        """The metrics of a layout: the loss and those of what it draws."""
        items = self.layouts[name].items
        drawn = {item.segment for item in items if isinstance(item, Part) and item.output}
        ids = any(isinstance(self.kinds[segment], Ids) for segment in drawn)
        floats = sorted(segment for segment in drawn if isinstance(self.kinds[segment], Floats))
        return ["loss", *(["words", "accuracy"] if ids else []), *floats]

    def _read(self, batch: Batch) -> list[str]:
        """The captions of a batch, as far as its text tokenizer reads them."""
        pairs = zip(np.asarray(batch["text_ids"]), np.asarray(batch["text_mask"]), strict=True)
        return [self.texts.decode(ids[mask]) for ids, mask in pairs]

    def _whole_samples(self, batch: Batch) -> dict[str, np.ndarray]:
        """The arrays of a batch whose clips are whole samples: the last ones are left out, or the first repeated."""
        size = len(batch["text_ids"])
        rows = np.arange(max(size // self.clips, 1) * self.clips) % size
        return {name: np.asarray(array)[rows] for name, array in batch.items()}

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """One clip for each of the first captions beside the clip; and the first clips with what the model says."""
        pictures = []
        if self.layout_for(self.layout.names[0]) is not None:
            pictures.append(drawn_beside(self, modules, batch, seed))
        if self.writes and self.texts is not None and "video" in batch:
            pictures.append(captioned(self, modules, batch, seed))
        return pictures

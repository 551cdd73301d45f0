"""Drawing what a layout leaves open over cached keys, and how likely texts are there: compiled, static shapes."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.language.layouts import Floats, Ids, Kinds, Marker, Part, StreamLayout
from videogen.language.model import StreamModel
from videogen.language.sampling import LanguageSampler
from videogen.language.slots import Filled, Given, Slots, State
from videogen.language.spans import Notes, RowShape, Spans
from videogen.language.stream import APART, BRANCH, MASK, TAGS
from videogen.language.tables import PREFIX_BLOCK, block_of, compile_layouts, drawable
from videogen.nn import ExtraKeys
from videogen.nn.masks import INDEX


class Decoding:
    """How a layout is drawn: ``begin``, then ``advance`` for each step of it, in order.

    A step is a run of items that are given, which is read in one pass, or one part that is drawn: ids one by one,
    floats one by one, or all floats of a clip in one pass of its queries. With guidance every row has a twin without
    texts, given or drawn; both go on with the same floats (DiCoDe, section 6).

    Args:
      model: the language model.
      layout: of the rows.
      keys: one of each row.
      sampler: how to draw.
      kinds: of the segments, where given floats have another number of tokens than the model's.
      room: slots more than those of the layout, for ``likelihoods``.
      beside: keys and values by layer that rows see beside their slots (``Backbone.beside``).
    """

    def __init__(
        self,
        model: StreamModel,
        layout: StreamLayout,
        keys: Array,
        sampler: LanguageSampler,
        kinds: Kinds | None = None,
        room: int = 0,
        beside: Mapping[int, ExtraKeys] = MappingProxyType({}),
    ):
        self.model, self.layout, self.keys, self.sampler = model, layout, keys, sampler
        self.kinds, self.vocabulary = dict(model.kinds if kinds is None else kinds), model.vocabulary
        layout.check(self.kinds)
        if layout != layout.first_branch:
            raise UserError("rows are drawn of one branch: give layout.first_branch")
        self.guided = not (isinstance(sampler.guidance_scale, int | float) and sampler.guidance_scale == 1)
        self.batch, self.rows = len(keys), len(keys) * (1 + self.guided)
        self.length = compile_layouts([layout], self.kinds, self.vocabulary).slots + 1 + room
        self.tags = (*TAGS, BRANCH) if room else TAGS
        self.steps, self.beside = self._steps(), dict(beside)

    def _steps(self) -> list[tuple[int, ...]]:
        """The numbers of the items of every step."""
        steps, run = [], []
        for number, item in enumerate(self.layout.items):
            drawn = isinstance(item, Part) and item.output
            ends = self.layout.learned(self.kinds, number) and isinstance(item, Marker)
            if drawn:
                steps += [tuple(run)] * bool(run) + [(number,)]
                run = []
            elif not ends:  # A marker that ends a text is drawn with it.
                run.append(number)
        return steps + [tuple(run)] * bool(run)

    def begin(self) -> State:
        """Rows without a slot."""
        clips = [item for item in self.layout.items[: self.layout.given] if self._is_clip(item)]
        each = self.kinds[clips[0].segment].length if clips else 0
        shape = RowShape(len(clips), each, 0, self._per_frame(clips[0])) if clips else None
        caches = self.model.begin(self.rows, self.length, self.tags, shape)
        features = jnp.zeros((self.rows, self.model.backbone.width), self.model.dtype)
        return State(caches, features, jnp.zeros(self.rows, jnp.int32))

    def advance(self, state: State, step: int, given: Given) -> tuple[State, dict[tuple[str, int], Filled]]:
        """The rows one step on, and what was drawn.

        Args:
          state: of ``begin`` or of the step before.
          step: a number of ``steps``.
          given: at least what the items of this step are filled with.

        Raises:
          UserError: something is missing.
        """
        numbers = self.steps[step]
        item = self.layout.items[numbers[0]]
        if isinstance(item, Part) and item.output:
            state, drawn = self._draw(state, numbers[0], item)
            return state, {(item.segment, item.clip): drawn}
        return self._read(state, numbers, given), {}

    def sample(self, given: Given) -> dict[tuple[str, int], Filled]:
        """All that the layout leaves open, by segment and clip."""
        state, drawn = self.begin(), {}
        last = max(i for i, numbers in enumerate(self.steps) if self._draws(numbers))
        for step in range(last + 1):
            state, new = self.advance(state, step, given)
            drawn |= new
        return drawn

    def read(self, given: Given) -> tuple[State, int]:
        """The rows up to the first part that is drawn, and the number of the step that draws it."""
        state = self.begin()
        for step in range(self.first_drawn):
            state, _ = self.advance(state, step, given)
        return state, self.first_drawn

    @property
    def first_drawn(self) -> int:
        """The number of the first step that draws."""
        return next(i for i, numbers in enumerate(self.steps) if self._draws(numbers))

    def first_word(self, state: State, step: int) -> Int[Array, "batch"]:
        """The id of the stream that a text of this step begins with, or the marker that ends it."""
        number = self.steps[step][0]
        allowed = jnp.asarray(drawable(self.layout, number, self.kinds, self.vocabulary))
        return self._word(state, _folded(_folded(self.keys, number), 0), allowed)

    def likelihoods(
        self,
        state: State,
        step: int,
        texts: Int[Array, "batch options length"],
        exists: Bool[Array, "batch options length"],
    ) -> Float[Array, "batch options"]:
        """The logarithm of the probability of several texts in one place, with the marker that ends them, in nats.

        All are read in one pass behind the rows; none sees another.

        Args:
          state: before the step.
          step: of the part that is a text.
          texts: local ids, at the front.
          exists: which there are.
        """
        number = self.steps[step][0]
        item, ending = self.layout.items[number], self.layout.terminator(number)
        assert isinstance(item, Part) and ending is not None
        batch, options, length = texts.shape
        ids = texts + self.vocabulary[self.kinds[item.segment].range].start
        place = jnp.broadcast_to(jnp.arange(length), ids.shape)
        tags = {INDEX: state.position[:, None, None] + place, "block": 0 * place, "query": 0 * place}
        tags[BRANCH] = jnp.broadcast_to(1 + jnp.arange(options)[:, None], ids.shape)
        tags = {name: tag.reshape(batch, -1) for name, tag in tags.items()}
        x = self.model.words.embed(self.model.backbone, ids.reshape(batch, -1))
        mask = MASK & APART
        notes = Notes(beside=self.beside)
        features, _ = self.model.go_on(x, exists.reshape(batch, -1), tags, mask, state.caches, notes)
        first = jnp.broadcast_to(state.features[:, None, None], (batch, options, 1, x.shape[-1]))
        before = jnp.concatenate([first, features.reshape(batch, options, length, -1).astype(first.dtype)], axis=2)
        count = exists.sum(-1, keepdims=True)
        targets = jnp.pad(ids, ((0, 0), (0, 0), (0, 1)))
        targets = jnp.where(jnp.arange(length + 1) == count, self.vocabulary.word(ending.word), targets)
        flat = before.reshape(batch, options * (length + 1), -1)
        nll, _ = self.model.words.nll(self.model.backbone, flat, targets.reshape(batch, -1))
        nll = nll.reshape(targets.shape)
        return -jnp.where(jnp.arange(length + 1) <= count, nll, 0.0).sum(-1)

    def _draws(self, numbers: Sequence[int]) -> bool:
        item = self.layout.items[numbers[0]]
        return isinstance(item, Part) and item.output

    def _is_clip(self, item: Marker | Part) -> bool:
        return isinstance(item, Part) and not item.output and isinstance(self.kinds[item.segment], Floats)

    def _per_frame(self, item: Part) -> int:
        """Tokens of a frame; 0 where they are no whole frames."""
        kind = self.kinds[item.segment]
        return kind.per_frame if kind.frames > 1 else 0

    # What is given ---------------------------------------------------------------------------------------------------

    def _read(self, state: State, numbers: Sequence[int], given: Given) -> State:
        """Appends items that are known, in one pass."""
        parts = [self._slots(self.layout.items[number], given) for number in numbers]
        slots = Slots.joined(parts)
        prefix = self.layout.prefix and numbers[-1] < self.layout.given
        return self._append(state, slots, PREFIX_BLOCK if prefix else 0, self._spans(numbers, slots))

    def _spans(self, numbers: Sequence[int], slots: Slots) -> Spans | None:
        """Where the clips of a prompt stand."""
        clips = [self.layout.items[number] for number in numbers if self._is_clip(self.layout.items[number])]
        if not clips:
            return None
        each = self.kinds[clips[0].segment].length
        others = slots.exists.shape[1] - len(clips) * each
        shape = RowShape(len(clips), each, others, self._per_frame(clips[0]))
        return Spans.of_prompt(slots.clip, slots.exists, shape, slots.sizes)

    def _slots(self, item: Marker | Part, given: Given) -> Slots:
        """What an item puts into the rows."""
        if isinstance(item, Marker):
            ids = jnp.full((self.rows, 1), self.vocabulary.word(item.word), jnp.int32)
            return Slots(self.model.words.embed(self.model.backbone, ids), jnp.ones(ids.shape, bool))
        if (item.segment, item.clip) not in given:
            raise UserError(f"the layout asks for {item.segment!r} of clip {item.clip}, which is not given")
        values, exists, sizes = given[item.segment, item.clip]
        kind = self.kinds[item.segment]
        if isinstance(kind, Floats):
            slots = self._floats(item.segment, values, jnp.arange(kind.length), exists)
            further = slots.exists & (jnp.cumsum(slots.exists, axis=1) == 1) if kind.together else None
            sizes = None if sizes is None else jnp.tile(sizes, (1 + self.guided, 1))
            return slots._replace(clip=item.clip, further=further, sizes=sizes)
        exists = jnp.ones(values.shape, bool) if exists is None else exists
        starts = np.repeat(self.vocabulary[kind.range].starts, kind.places).astype(np.int32)
        return self._ids(values + starts, exists, kind)

    def _ids(self, ids: Int[Array, "batch slots"], exists: Bool[Array, "batch slots"], kind: Ids) -> Slots:
        """Ids of the stream; the twins of the rows have no text."""
        x = self.model.words.embed(self.model.backbone, ids)
        twins = [exists & (not kind.text)] * self.guided
        return Slots(jnp.tile(x, (1 + self.guided, 1, 1)), jnp.concatenate([exists, *twins]))

    def _floats(
        self,
        name: str,
        values: Float[Array, "batch tokens channels"],
        token: Array,
        exists: Bool[Array, "batch tokens"] | None = None,
    ) -> Slots:
        x = self.model.floats[name].embed(values, jnp.broadcast_to(token, values.shape[:2]))
        exists = jnp.ones(x.shape[:2], bool) if exists is None else exists
        return Slots(jnp.tile(x, (1 + self.guided, 1, 1)), jnp.tile(exists, (1 + self.guided, 1)))

    def _tags(self, state: State, exists: Bool[Array, "rows slots"], block: int, query: int) -> dict[str, Array]:
        """Of slots, of which those that ``exist`` have a position of their own."""
        count = jnp.cumsum(exists, axis=1, dtype=jnp.int32)
        tags = {INDEX: state.position[:, None] + count - 1, "block": jnp.full(exists.shape, block, jnp.int32)}
        return tags | {"query": jnp.full(exists.shape, query, jnp.int32), BRANCH: jnp.zeros(exists.shape, jnp.int32)}

    def _append(self, state: State, slots: Slots, block: int = 0, spans: Spans | None = None) -> State:
        """The rows with more slots; those that do not exist leave no trace."""
        further = slots.exists if slots.further is None else slots.further
        tags, notes = self._tags(state, further, block, 0), Notes(spans, self.beside)
        bias = None if slots.sizes is None else jnp.log(jnp.maximum(slots.sizes, 1.0))
        features, caches = self.model.go_on(slots.x, slots.exists, tags, MASK, state.caches, notes, bias)
        place = jnp.arange(slots.exists.shape[1])
        last = jnp.max(jnp.where(slots.exists, place, -1), axis=1)
        found = jnp.take_along_axis(features, jnp.maximum(last, 0)[:, None, None], axis=1)[:, 0]
        features = jnp.where((last >= 0)[:, None], found, state.features)
        position = state.position + further.sum(1, dtype=jnp.int32)
        return State(caches, features.astype(state.features.dtype), position)

    # What is drawn ---------------------------------------------------------------------------------------------------

    def _draw(self, state: State, number: int, item: Part) -> tuple[State, Filled]:
        kind, keys = self.kinds[item.segment], _folded(self.keys, number)
        if isinstance(kind, Ids):
            return (
                self._draw_text(state, number, kind, keys) if kind.text else self._draw_ids(state, number, kind, keys)
            )
        if item.queries:
            return self._draw_block(state, number, item.segment, keys)
        return self._draw_floats(state, item.segment, keys)

    def _draw_ids(self, state: State, number: int, kind: Ids, keys: Array) -> tuple[State, Filled]:
        """Ids of a fixed number, one after another."""
        levels = [drawable(self.layout, number, self.kinds, self.vocabulary, i) for i in range(kind.levels)]
        allowed = jnp.asarray(np.repeat(levels, kind.places, axis=0))

        def one(state: State, each: tuple[Array, Array]) -> tuple[State, Array]:
            place, mask = each
            ids = self._word(state, _folded(keys, place), mask)
            return self._append(state, self._ids(ids[:, None], jnp.ones((self.batch, 1), bool), kind)), ids

        state, ids = jax.lax.scan(one, state, (jnp.arange(kind.length), allowed))
        starts = np.repeat(self.vocabulary[kind.range].starts, kind.places).astype(np.int32)
        return state, Filled(ids.T - starts)

    def _draw_text(self, state: State, number: int, kind: Ids, keys: Array) -> tuple[State, Filled]:
        """Ids until the marker that ends the text; where it is not drawn before it stands behind the last one."""
        ending = self.vocabulary.word(self.layout.items[number + 1].word)
        allowed = jnp.asarray(drawable(self.layout, number, self.kinds, self.vocabulary))

        def one(carry: tuple[State, Array], place: Array) -> tuple[tuple[State, Array], tuple[Array, Array]]:
            state, ended = carry
            ids = jnp.where(place == kind.length, ending, self._word(state, _folded(keys, place), allowed))
            last = (ids == ending) & ~ended
            slots = self._ids(ids[:, None], ~ended[:, None], kind)
            if self.guided:
                # The twin has the marker, and nothing of the text.
                exists = jnp.concatenate([slots.exists[: self.batch], last[:, None]])
                slots = Slots(slots.x, exists)
            return (self._append(state, slots), ended | last), (ids, ~ended & ~last)

        begun = state, jnp.zeros(self.batch, bool)
        (state, _), (ids, exists) = jax.lax.scan(one, begun, jnp.arange(kind.length + 1))
        ids, exists = ids[:-1].T, exists[:-1].T
        start = self.vocabulary[kind.range].start
        return state, Filled(jnp.where(exists, ids - start, 0), exists)

    def _word(self, state: State, keys: Array, allowed: Array) -> Int[Array, "batch"]:
        features = state.features[: self.batch]
        return self.model.words.draw(self.model.backbone, features, keys, self.sampler.of_ids, allowed)

    def _draw_floats(self, state: State, name: str, keys: Array) -> tuple[State, Filled]:
        """Vectors one after another, each from the one before."""
        kind = self.kinds[name]

        def one(state: State, token: Array) -> tuple[State, Array]:
            drawn = self._vectors(name, state.features[:, None], _folded(keys, token))
            return self._append(state, self._floats(name, drawn, token[None])), drawn[:, 0]

        state, drawn = jax.lax.scan(one, state, jnp.arange(kind.length))
        return state, Filled(jnp.swapaxes(drawn, 0, 1))

    def _draw_block(self, state: State, number: int, name: str, keys: Array) -> tuple[State, Filled]:
        """All vectors of a clip from one pass of its queries, which leave no trace; then the vectors are read."""
        kind = self.kinds[name]
        token = jnp.arange(kind.length)
        asked = self.model.floats[name].asked(jnp.broadcast_to(token, (self.rows, kind.length)))
        exists = jnp.ones(asked.shape[:2], bool)
        tags = self._tags(state, exists, block_of(number), 1)
        features, _ = self.model.go_on(asked, exists, tags, MASK, state.caches)
        drawn = self._vectors(name, features, keys)
        state = dataclasses.replace(state, position=state.position + kind.length)
        if self.layout.seen_later(number):
            state = self._append(state, self._floats(name, drawn, token))
        return state, Filled(drawn)

    def _vectors(self, name: str, features: Float[Array, "rows tokens width"], keys: Array) -> Array:
        """One draw of each token; rows and their twins have one between them."""
        null = None
        if self.guided:
            features, null = jnp.split(features, 2)
        return self.model.floats[name].head.draw(features, null, keys, self.sampler.of_floats)[0]


def _folded(keys: Array, number: Any) -> Array:
    """The keys of a step, one of each row."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

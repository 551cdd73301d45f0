"""Watching a stream frame by frame with memory of fixed size: compiled steps over arrays that never grow."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from videogen.errors import UserError
from videogen.language.slots import State
from videogen.language.spans import Notes, RowShape, Spans
from videogen.language.video_language import VideoLanguage
from videogen.language.watching import FRAME, MARKERS, MASK, TURN
from videogen.nn.masks import INDEX
from videogen.parallel import inside, mesh_of
from videogen.reducers.memory import Bank
from videogen.reducers.tokens import TokenSet, unit
from videogen.tasks.base import Modules

ALIKE = 0.5
"""The cosine with the token a frame before above which a token is dropped, for the share that is (TimeChat-Online)."""


def oldest(features: Float[Array, "frames width"], dropped: Float[Array, "frames"], keep: int) -> Int[Array, "keep"]:
    """The newest frames stay."""
    return jnp.arange(len(features) - keep, len(features))


def alike(features: Float[Array, "frames width"], dropped: Float[Array, "frames"], keep: int) -> Int[Array, "keep"]:
    """Of the two neighbours that are most alike the earlier one goes, one pair after another (VideoScan)."""
    count = len(features)
    frames = TokenSet(
        features[None], position=jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32)[:, None], (count, 3))
    )
    return Bank(keep).reduce(frames)[0].filled().position[0, :, 0].astype(jnp.int32)


def still(features: Float[Array, "frames width"], dropped: Float[Array, "frames"], keep: int) -> Int[Array, "keep"]:
    """Frames of which most tokens were dropped go first, of equal ones the older; the newest stays
    (TimeChat-Online)."""
    age = jnp.arange(len(features))[::-1]
    order = jnp.lexsort((age, jnp.where(age == 0, -1.0, dropped)))
    return jnp.sort(order[:keep])


RULES: dict[str, Callable[..., Array]] = {"oldest": oldest, "alike": alike, "still": still}
"""Name -> which frames of a full memory stay: (their mean features, shares of their tokens that were dropped, how many
stay) -> their numbers, rising."""

FORGETS = {
    "oldest": "the oldest frames are forgotten",
    "alike": "of neighbours that are most alike the earlier frame is forgotten",
    "still": "frames that hardly differed from the one before are forgotten, the older ones first",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What is kept of a stream; nothing in it depends on a question, or on what was said.

    Attributes:
      state: of the row that the frames in memory are.
      x, mask, position, size: their tokens, as the reducers left them.
      features: the mean of the encoder's vectors of each frame.
      dropped: the share of its tokens that hardly differ from the frame before it.
      before: the encoder's vectors of the last frame.
      count: frames in memory.
      seen: whether there was any frame.
    """

    state: State
    x: Float[Array, "frames each channels"]
    mask: Bool[Array, "frames each"]
    position: Float[Array, "frames each 3"]
    size: Float[Array, "frames each"]
    features: Float[Array, "frames channels"]
    dropped: Float[Array, "frames"]
    before: Float[Array, "places channels"]
    count: Int[Array, ""]
    seen: Bool[Array, ""]

    def tokens(self, index: Int[Array, "some"]) -> TokenSet:
        """Of some frames."""
        return TokenSet(self.x[index], self.mask[index], self.position[index], self.size[index])


class Glance(NamedTuple):
    """What is found at a new frame.

    Attributes:
      silence: the probability of silence behind it.
      dropped: the share of its tokens that hardly differ from the frame before.
      features: the mean of the encoder's vectors.
    """

    silence: Float[Array, ""]
    dropped: Float[Array, ""]
    features: Float[Array, "channels"]


class Watcher:
    """A trained model of streams, ready to watch one stream; it computes on the mesh of its modules.

    The row of the frames in memory is cached. Where there is no room for another frame some frames go, by a rule, and
    the others are read again from position 0 on, as if they were all there had been: so positions and times stay in the
    range of training, whatever is asked, and memory has one size.

    Args:
      task: the ``WatchingTask`` the modules belong to.
      modules: its modules.
      frames: in memory at most; ``None``: as many as a stream of training has, which is the most that there can be.
      evict, keep: as of ``SessionSettings``; ``None``: as the config says.
    """

    def __init__(
        self,
        task: Any,
        modules: Modules,
        frames: int | None = None,
        evict: str | None = None,
        keep: float | None = None,
    ):
        trained = task.stream.frames
        frames = trained if frames is None else frames
        if not 2 <= frames <= trained:
            raise UserError(
                f"the memory holds 2 to {trained} frames, as many as streams of training have, not {frames}"
            )
        evict = task.session.evict if evict is None else evict
        if evict not in RULES:
            raise UserError(f"unknown rule of eviction {evict!r}; take one of {', '.join(RULES)}")
        keep = task.session.keep if keep is None else keep
        self.task, self.rule, self.evict = task, RULES[evict], evict
        self.frames, self.kept = frames, min(max(int(keep * frames), 1), frames - 1)
        self.each, self.group = task.stream.each, task.stream.group
        self.words = {word: task.vocabulary.word(word) for word in MARKERS}
        self._graphs, self.states = {}, {}
        for name, module in modules.items():
            self._graphs[name], self.states[name] = nnx.split(module)
        self.mesh = mesh_of(self.states)
        self.programs = {
            "begin": jax.jit(self._begin),
            "push": jax.jit(self._push, donate_argnums=1),
            "choose": jax.jit(lambda memory: self.rule(memory.features, memory.dropped, self.kept)),
            "forget": jax.jit(self._forget),
            "asked": jax.jit(self._asked),
            "say": jax.jit(self._say),
        }

    @property
    def context(self) -> int:
        """Slots of the row of a full memory."""
        return self.frames * self.group

    def run(self, name: str, *arguments: Any) -> Any:
        """A compiled step: ``push``, ``choose``, ``forget``, ``asked`` or ``say``, on the mesh."""
        with inside(self.mesh):
            if name == "choose":
                return self.programs[name](*arguments)
            return self.programs[name](self.states, *arguments)

    def begin(self) -> Memory:
        """The memory of a stream of which nothing was seen, where later ones are, so that no step has two programs."""
        memory = self.run("begin")
        if self.mesh is not None:
            return jax.device_put(memory, NamedSharding(self.mesh, PartitionSpec()))
        (device,) = jax.tree.leaves(self.states)[0].devices()
        return jax.device_put(memory, device)

    def live(self, states: Any) -> VideoLanguage:
        """The model with these arrays."""
        return nnx.merge(self._graphs["language"], states["language"])

    # Traced -----------------------------------------------------------------------------------------------------------

    def _begin(self, states: Any) -> Memory:
        """The memory of a stream of which nothing was seen."""
        model = self.live(states)
        seen, tokens = jax.eval_shape(lambda: self._see(states, jnp.zeros((1, *self._sides), jnp.uint8)))
        none = jax.tree.map(lambda x: jnp.zeros((self.frames, *x.shape[1:]), x.dtype), tokens)
        grid = seen.original.x
        state = self._row(model)
        zero, channels = jnp.zeros((), jnp.int32), grid.shape[-1]
        features, dropped = jnp.zeros((self.frames, channels)), jnp.zeros(self.frames)
        before = jnp.zeros(grid.shape[1:], grid.dtype)
        kept = none.x, none.mask, none.position, none.size
        return Memory(state, *kept, features, dropped, before, zero, zero > 0)

    @property
    def _sides(self) -> tuple[int, int, int]:
        return self.task.clip.height, self.task.clip.width, 3

    def _row(self, model: VideoLanguage) -> State:
        """An empty row."""
        length = self.context + self.task.stream.turn + 1
        # Hooks leave the caches of their layers fewer slots of each frame.
        shape = RowShape(self.frames, self.each, 0, self.each)
        caches = model.stream.begin(1, length, (TURN, FRAME), shape)
        features = jnp.zeros((1, model.stream.backbone.width), model.stream.dtype)
        return State(caches, features, jnp.zeros(1, jnp.int32))

    def _see(self, states: Any, pixels: UInt8[Array, "1 height width 3"]) -> tuple[Any, TokenSet]:
        """A frame behind the encoder, and its tokens behind the reducers."""
        live = {name: nnx.merge(self._graphs[name], states[name]) for name in self._graphs}
        batch = {"video": pixels[:, None], "times": jnp.zeros((1, 1))}
        clips, vision = self.task.reader.clips(live, batch), live["language"].vision
        seen = vision.see(clips.inputs, clips.seconds, view=self.task.view)
        return seen, vision.attend(seen, None, self.task.view)[0].filled()

    def _push(
        self, states: Any, memory: Memory, pixels: UInt8[Array, "height width 3"], second: Float[Array, ""]
    ) -> tuple[Memory, Glance]:
        """The memory with one more frame, for which there is room, and what is found there."""
        model, (seen, tokens) = self.live(states), self._see(states, pixels[None])
        state = self._read(model, memory.state, tokens, second[None], memory.count)
        now = seen.original.x[0]
        same = (unit(now) * unit(memory.before)).sum(-1) > ALIKE
        dropped, features = jnp.where(memory.seen, same.mean(), 0.0), now.astype(jnp.float32).mean(0)
        own = {"x": tokens.x[0], "mask": tokens.mask[0], "position": tokens.position[0], "size": tokens.size[0]}
        own |= {"features": features, "dropped": dropped}
        kept = {name: getattr(memory, name).at[memory.count].set(value) for name, value in own.items()}
        memory = Memory(state, **kept, before=now, count=memory.count + 1, seen=jnp.ones((), bool))
        return memory, Glance(self._silence(model, state), dropped, features)

    def _forget(self, states: Any, memory: Memory, index: Int[Array, "kept"], seconds: Float[Array, "kept"]) -> Memory:
        """The memory with these frames alone, read again with new times."""
        model, tokens = self.live(states), memory.tokens(index)
        state = self._read(model, self._row(model), tokens, seconds, jnp.zeros((), jnp.int32))
        names = ("x", "mask", "position", "size", "features", "dropped")
        kept = {name: getattr(memory, name) for name in names}
        kept = {name: jnp.zeros_like(old).at[: len(index)].set(old[index]) for name, old in kept.items()}
        count = jnp.asarray(len(index), jnp.int32)
        return Memory(state, **kept, before=memory.before, count=count, seen=memory.seen)

    def _read(
        self,
        model: VideoLanguage,
        state: State,
        tokens: TokenSet,
        seconds: Float[Array, "frames"],
        first: Int[Array, ""],
    ) -> State:
        """The row with more frames, of which the first has this number."""
        count = len(tokens.x)
        vectors = model.vision.placed(tokens, jnp.broadcast_to(seconds[:, None], tokens.mask.shape))
        number = first + jnp.arange(count)
        marker = jnp.where(number == 0, self.words["begin"], self.words["separator"])
        x = model.stream.words.embed(model.stream.backbone, marker[:, None])
        x = jnp.concatenate([x, vectors.astype(x.dtype)], axis=1).reshape(1, count * self.group, -1)
        exists = jnp.pad(tokens.mask, ((0, 0), (1, 0)), constant_values=True).reshape(1, -1)
        index = (first * self.group + jnp.arange(count * self.group))[None]
        frame = jnp.repeat(number, self.group)[None]
        token = np.tile(np.arange(-1, self.each), count)[None]
        clip = np.where(token >= 0, np.repeat(np.arange(count), self.group)[None], -1)
        shape = RowShape(count, self.each, count, self.each)
        places = [jnp.asarray(values, jnp.int32) for values in (clip, np.maximum(token, 0))]
        spans = Spans(*places, jnp.ones(clip.shape), jnp.zeros((1, 1), jnp.int32), None, shape)
        state = self._appended(model, state, x, exists, index, 0, frame, Notes(spans))
        return dataclasses.replace(state, position=jnp.reshape((first + count) * self.group, 1).astype(jnp.int32))

    def _appended(
        self,
        model: VideoLanguage,
        state: State,
        x: Float[Array, "1 slots width"],
        exists: Bool[Array, "1 slots"],
        index: Int[Array, "1 slots"],
        turn: int,
        frame: Array,
        notes: Notes,
    ) -> State:
        """The row with more slots; its features are those of the last one that exists."""
        tags = {INDEX: index, TURN: jnp.full(index.shape, turn), FRAME: jnp.broadcast_to(frame, index.shape)}
        features, caches = model.stream.go_on(x, exists, tags, MASK, state.caches, notes)
        last = jnp.max(jnp.where(exists, jnp.arange(exists.shape[1]), -1), axis=1)
        found = jnp.take_along_axis(features, jnp.maximum(last, 0)[:, None, None], axis=1)[:, 0]
        features = jnp.where((last >= 0)[:, None], found.astype(state.features.dtype), state.features)
        return State(caches, features, jnp.maximum(state.position, jnp.max(jnp.where(exists, index + 1, 0), axis=1)))

    def _silence(self, model: VideoLanguage, state: State) -> Float[Array, ""]:
        """The probability of silence behind a row."""
        logits = model.stream.words.logits(model.stream.backbone, state.features[:, None])
        return jax.nn.softmax(logits, axis=-1)[0, 0, self.words["separator"]]

    def _asked(
        self, states: Any, memory: Memory, ids: Int[Array, "words"], mask: Bool[Array, "words"]
    ) -> tuple[State, Float[Array, ""]]:
        """The row of the memory with a question behind it, and the probability of silence there."""
        model = self.live(states)
        words = ids + self.task.vocabulary["text"].start
        row = jnp.concatenate([jnp.array([self.words["question"]]), words, jnp.array([self.words["end"]])])
        x = model.stream.words.embed(model.stream.backbone, row[None])
        exists = jnp.pad(mask, (1, 1), constant_values=True)[None]
        index = memory.state.position[:, None] + jnp.cumsum(exists, axis=1) - 1
        state = self._appended(model, memory.state, x, exists, index, 1, memory.count - 1, Notes())
        return state, self._silence(model, state)

    def _say(
        self, states: Any, state: State, count: Int[Array, ""]
    ) -> tuple[Int[Array, "words"], Bool[Array, "words"]]:
        """The likeliest words behind a row, one after another, and which there are; ``count``: frames in memory."""
        model, words = self.live(states), self.task.stream.words
        backbone, frame = model.stream.backbone, count - 1
        allowed = self.task.vocabulary.mask("text")
        allowed[self.words["end"]] = True

        def appended(state: State, word: Int[Array, ""], exists: Bool[Array, ""]) -> State:
            x = model.stream.words.embed(backbone, word[None, None])
            return self._appended(model, state, x, exists[None, None], state.position[:, None], 1, frame, Notes())

        def one(carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], tuple[Array, Array]]:
            state, going = carry
            logits = model.stream.words.logits(backbone, state.features[:, None])[0, 0]
            word = jnp.where(jnp.asarray(allowed), logits, -jnp.inf).argmax().astype(jnp.int32)
            going &= word != self.words["end"]
            return (appended(state, word, going), going), (word, going)

        begun = appended(state, jnp.asarray(self.words["answer"], jnp.int32), jnp.ones((), bool))
        _, (ids, there) = jax.lax.scan(one, (begun, jnp.ones((), bool)), length=words)
        return jnp.where(there, ids - self.task.vocabulary["text"].start, 0), there

"""What a video-language model sees of a clip: an encoder, a chain of reducers, a projector, positions in seconds."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building, reducers
from videogen.errors import UserError
from videogen.heads.inputs import FloatEmbedding
from videogen.language.vision_encoders import Features, VisionEncoder, build_encoder, in_seconds
from videogen.nn import Linear
from videogen.nn.resizing import resize_area
from videogen.ranges import Count, OneOf
from videogen.reducers import Chain, Report, TokenSet
from videogen.reducers.base import report
from videogen.reducers.selection import noise
from videogen.reducers.tokens import best, mean_of_originals, of_grid, take, unit
from videogen.shapes import VideoShape

FREE, GUIDED = ("key", "frames", "change", "joint"), ("question", "text", "text_mask", "score", "weights")
"""What reducers may need that a clip says alone, and with a question."""

DIFFERENCE = "difference"
"""What pixels say: how much each token differs from the one a frame before."""

SHORTEST, LONGEST, WAVES = 0.25, 1024.0, 16
"""Seconds of the shortest and of the longest wave of positions in time, and their number."""

SPATIAL_WAVES = 6
"""Waves of positions in a frame: of 2 sides, of 1, of a half, …."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """The section ``config.model.vision`` of a video-language model.

    Attributes:
      encoder: ``{name: patches | tokens | frozen, …}`` (``language.vision_encoders``).
      reducers: ``({name, …}, …)``, one behind the other (``videogen.reducers``).
      projector: ``{layers: 1 | 2}`` from the encoder's channels to the width of the backbone.
      budgets: of the last reducer, in tokens of a clip; empty: that of its own settings. Evaluation takes the first.
      over_budgets: ``draw`` one for each batch, or the ``mean`` of the losses at all of them (Matryoshka).
      together: the tokens of a clip have one position in a row, so that what follows has the same however many there
        are; else they are counted.
      proportional: in the attention a token counts as often as it stands for others, those that were left out
        included: all tokens of a clip together count as all that it has (after ToMe).
      frames: in training so many random frames of a clip, one of these numbers drawn for each batch; empty: all.
      fit: where a row of ``model.length`` has no room for a clip beside the longest texts, the budgets are lowered to
        what it has room for; else such a config is refused.
      subsets: in training so many random tokens of those that the chain gives, one drawn likewise; empty: all.
    """

    encoder: Mapping[str, Any]
    reducers: Sequence[Mapping[str, Any]] = ()
    projector: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"layers": 2})
    budgets: Sequence[Count] = ()
    over_budgets: Annotated[str, OneOf("draw", "mean")] = "draw"
    together: bool = False
    proportional: bool = False
    frames: Sequence[Count] = ()
    subsets: Sequence[Count] = ()
    fit: bool = False

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> Self:
        """The settings of a section; raises ``UserError`` for one that is none."""
        return building.build({"vision": cls}, {"name": "vision", **section}, "section")

    @property
    def evaluated(self) -> "View":
        """What is seen but in training."""
        return View(self.budgets[0] if self.budgets else None)

    @property
    def trained(self) -> list[list["View"]]:
        """What is seen in training: one list is drawn for each batch, and the losses of its views are averaged."""
        budgets, frames, subsets = (tuple(own) or (None,) for own in (self.budgets, self.frames, self.subsets))
        drawn = [*itertools.product(frames, subsets)]
        if self.over_budgets == "mean":
            return [[View(budget, *own) for budget in budgets] for own in drawn]
        return [[View(budget, *own)] for own in drawn for budget in budgets]


class View(NamedTuple):
    """How much of a clip is seen; static.

    Attributes:
      budget: of the last reducer; ``None``: that of its settings.
      frames: random ones; ``None``: all.
      subset: random tokens behind the chain; ``None``: all.
    """

    budget: int | None = None
    frames: int | None = None
    subset: int | None = None


class Shape(NamedTuple):
    """The tokens of a clip behind all reducers.

    Attributes:
      tokens: how many.
      channels: of each.
      per_frame: of each frame; 0 where they are no whole frames.
    """

    tokens: int
    channels: int
    per_frame: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """A clip behind the encoder and the reducers that ask no question: what may be kept for further questions.

    Attributes:
      tokens: as these reducers left them.
      original: those of the encoder, on their grid.
      seconds: of the places in time of that grid.
      aux: what the clip says of the original tokens and frames.
      asked: tokens that were asked for.
    """

    tokens: TokenSet
    original: TokenSet
    seconds: Float[Array, "batch time"]
    aux: dict[str, Array]
    asked: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Question:
    """Questions as vectors of the backbone.

    Attributes:
      vectors: of the words.
      exists: no padding.
      weights: how much each place in time has to do with it, where a prompt program has found that; ``None``: the
        cosine of its frame and the question.
    """

    vectors: Float[Array, "batch words width"]
    exists: Bool[Array, "batch words"]
    weights: Float[Array, "batch time"] | None = None


class Vision(nnx.Module):
    """From clips to vectors of a backbone.

    Args:
      section: its settings.
      clip: the shape of the clips.
      width: of the backbone.
      features: what the frozen part gives that the encoder reads; ``None``: it reads none.
      remat: what the backward pass keeps.

    Raises:
      UserError: a reducer needs what is not there, or cannot have its budget.
    """

    def __init__(
        self,
        section: VisionSettings,
        clip: VideoShape,
        width: int,
        *,
        features: Features | None = None,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.proportional = section.proportional
        self.encoder: VisionEncoder = build_encoder(section.encoder, clip, features, remat=remat, **common)
        channels = self.encoder.channels
        self.sections = tuple(tuple(sorted(own.items())) for own in map(dict, section.reducers))
        given = (*FREE, *GUIDED, *((DIFFERENCE,) if self.encoder.pixels else ()))
        shared = dict(inputs=channels, question_width=channels, places=math.prod(self.encoder.sides), remat=remat)
        self.chain = reducers.build_chain(section.reducers, given, **shared, **common)
        self.free = self.chain.first_that_needs(GUIDED)
        asks = self.free < len(section.reducers)
        self.ask = Linear(width, channels, axes=("embed", None), bias=False, **common) if asks else None
        self.word_width = width
        layers = section.projector.get("layers", 2)
        if layers not in (1, 2) or set(section.projector) - {"layers"}:
            raise UserError(f"a projector has 1 or 2 layers, got {dict(section.projector)}")
        views = {section.evaluated, *(view for group in section.trained for view in group)}
        self.shapes = tuple((view, self.shape_of(view)) for view in sorted(views, key=str))
        self.projector = FloatEmbedding(self.shapes[0][1].channels, width, layers=layers, **common)
        self.places = Linear(2 * WAVES + 4 * SPATIAL_WAVES + 1, width, axes=(None, "embed"), **common)

    def see(
        self,
        inputs: Array,
        seconds: Float[Array, "batch frames"],
        *,
        exists: Bool[Array, "batch frames"] | None = None,
        keys: Array | None = None,
        view: View = View(),
    ) -> Seen:
        """A clip behind the encoder and the first reducers.

        Args:
          inputs: pixels in [-1, 1], or what the encoder's frozen part gives, with a place in time for each of its
            ``centres``.
          seconds: the times of the frames.
          exists: which frames there are; ``None``: all.
          keys: one of each clip, for what is random; ``None``: the same for all.
          view: how much of the clip is seen.
        """
        keys = jax.vmap(lambda _: jax.random.key(0))(jnp.arange(len(inputs))) if keys is None else keys
        times = in_seconds(seconds, self.encoder.centres)
        there = None if exists is None else exists[:, np.rint(np.array(self.encoder.centres)).astype(int)]
        if view.frames is not None and view.frames < inputs.shape[1]:
            inputs, times, there = self._some_frames(inputs, times, there, keys, view.frames)
        grid = self.encoder(inputs, times, there).astype(jnp.float32)
        original = of_grid(grid, there)
        aux = self.of_clip(grid, inputs, keys)
        tokens, said = self._chain(view).reduce(original, aux, part=slice(self.free))
        return Seen(tokens, original, times, aux, said["asked"])

    def attend(self, seen: Seen, question: Question | None = None, view: View = View()) -> tuple[TokenSet, Report]:
        """The tokens behind all reducers, and what was done.

        Args:
          seen: of ``see``, with the same view.
          question: of each clip; reducers that look at none leave it alone.
          view: how much of the clip is seen.
        """
        found, asked, aux = seen.tokens, seen.asked, seen.aux
        if self.ask is not None:
            aux = aux | self._of_question(seen, question)
            part = slice(self.free, None)
            found, said = self._chain(view).reduce(found, aux, original=seen.original, part=part)
            asked = said["asked"]
        if view.subset is not None and view.subset < found.shape[1]:
            asked, scores = jnp.asarray(float(view.subset)), noise(_another(aux["key"]), *found.shape)
            found = take(found, *best(scores, found.filled().mask, view.subset))
        return found, report(seen.original, found, asked)

    def vectors(self, seen: Seen, tokens: TokenSet) -> Float[Array, "batch tokens width"]:
        """Tokens as the backbone takes them, with their places: seconds, and rows and columns as shares of the frame.

        The place of a token that stands for several is the mean of theirs.
        """
        return self.placed(tokens, self._seconds(seen, tokens.filled()))

    def placed(self, tokens: TokenSet, seconds: Float[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
        """``vectors`` of tokens whose times are known."""
        given = tokens.filled()
        x = self.projector(jnp.where(given.mask[..., None], given.x, 0).astype(self.projector.linear.dtype))
        _, height, width = self.encoder.sides
        shares = (given.position[..., 1:] + 0.5) / np.array([height, width], np.float32)
        return x + self.places(waves(seconds, shares, given.size)).astype(x.dtype)

    def sizes(self, seen: Seen, tokens: TokenSet) -> Float[Array, "batch tokens"] | None:
        """How many tokens each counts for in the attention; ``None``: one."""
        if not self.proportional:
            return None
        given = tokens.filled()
        exist = seen.original.filled().mask.mean(1, keepdims=True) * float(np.prod(self.encoder.sides))
        return given.size * exist / jnp.maximum(given.size.sum(1, keepdims=True), 1e-12)

    def shape_of(self, view: View) -> "Shape":
        """What a clip is behind all reducers."""

        def run() -> TokenSet:
            seen, question = self._blank(view)
            tokens, said = self._chain(view).reduce(seen.original, seen.aux, part=slice(self.free))
            return self.attend(dataclasses.replace(seen, tokens=tokens, asked=said["asked"]), question, view)[0]

        found = jax.eval_shape(run)
        each = 0 if found.grid is None else found.grid[1] * found.grid[2]
        return Shape(found.x.shape[1], found.x.shape[2], each)

    def _chain(self, view: View) -> Chain:
        """The reducers, the last one with the budget of the view."""
        if view.budget is None:
            return self.chain
        if not self.sections:
            raise UserError("all tokens are seen, so none can have a budget; give model.vision.reducers")
        others = Chain([*self.chain.reducers[:-1]], self.chain.needs)

        def before() -> TokenSet:
            seen, question = self._blank(view)
            aux = seen.aux if self.ask is None else seen.aux | self._of_question(seen, question)
            return others.reduce(seen.original, aux)[0]

        found = jax.eval_shape(before)
        section = reducers.budgeted(dict(self.sections[-1]), view.budget, found.x.shape[1], found.grid)
        return Chain([*others.reducers, reducers.build(section, inputs=found.x.shape[2])], self.chain.needs)

    def _blank(self, view: View) -> tuple[Seen, Question]:
        """A black clip behind the encoder and an empty question, for their shapes."""
        sides = (view.frames or self.encoder.sides[0], *self.encoder.sides[1:])
        grid = jnp.zeros((1, *sides, self.encoder.channels))
        inputs = jnp.zeros((1, *sides, 3)) if self.encoder.pixels else grid
        aux = self.of_clip(grid, inputs, jax.random.split(jax.random.key(0), 1))
        seen = Seen(of_grid(grid), of_grid(grid), jnp.zeros((1, sides[0])), aux, jnp.zeros(()))
        return seen, Question(jnp.zeros((1, 1, self.word_width)), jnp.ones((1, 1), bool))

    @staticmethod
    def _some_frames(inputs: Array, times: Array, there: Array | None, keys: Array, count: int) -> tuple:
        """Random places in time, in their order."""
        exists = jnp.ones(times.shape, bool) if there is None else there
        index, found = best(noise(_another(keys), *times.shape), exists, count)
        inputs = jnp.take_along_axis(inputs, index.reshape(*index.shape, *(1,) * (inputs.ndim - 2)), axis=1)
        times = jnp.take_along_axis(times, index, axis=1)
        return inputs, times, None if there is None else found

    def of_clip(self, grid: Float[Array, "batch time height width channels"], inputs: Array, keys: Array) -> dict:
        """What the reducers need of a clip alone."""
        needs, batch = self.chain.needs, len(grid)
        asks = {"score", "weights"} & set(needs)
        found: dict[str, Array] = {"key": keys}
        frames = grid.mean((2, 3))
        if "frames" in needs or "weights" in asks:
            found["frames"] = frames
        if "joint" in needs or "score" in asks:
            found["joint"] = grid.reshape(batch, -1, grid.shape[-1])
        if "change" in needs:
            alike = (unit(frames[:, 1:]) * unit(frames[:, :-1])).sum(-1)
            found["change"] = jnp.pad(1 - alike, ((0, 0), (1, 0)))
        if DIFFERENCE in needs:
            moved = jnp.abs(inputs[:, 1:] - inputs[:, :-1]).mean(-1, keepdims=True).astype(jnp.float32) / 2
            moved = resize_area(moved, (moved.shape[1], *grid.shape[2:4]))
            found[DIFFERENCE] = jnp.pad(moved, ((0, 0), (1, 0), *((0, 0),) * 3), constant_values=1.0).reshape(batch, -1)
        return found

    def _of_question(self, seen: Seen, question: Question | None) -> dict[str, Array]:
        """What they need of the question: its words in the space of the tokens, and how much tokens and frames have to
        do with their mean."""
        if question is None:
            raise UserError("the reducers look at the question, and none is given")
        text = self.ask(question.vectors).astype(jnp.float32)
        there = question.exists[..., None]
        mean = jnp.where(there, text, 0).sum(1) / jnp.maximum(there.sum(1), 1)
        found = {"question": mean, "text": text, "text_mask": question.exists}
        if "score" in self.chain.needs:
            found["score"] = (unit(seen.aux["joint"]) * unit(mean)[:, None]).sum(-1)
        if "weights" in self.chain.needs and question.weights is not None:
            found["weights"] = question.weights
        elif "weights" in self.chain.needs:
            found["weights"] = (1 + (unit(seen.aux["frames"]) * unit(mean)[:, None]).sum(-1)) / 2
        return found

    @staticmethod
    def _seconds(seen: Seen, given: TokenSet) -> Float[Array, "batch tokens"]:
        """Of tokens: the mean of those of the originals each stands for; where that is not known that of its place."""
        time = seen.seconds.shape[1]
        each = seen.original.shape[1] // time
        there = jax.vmap(lambda s: jnp.zeros(given.shape[1] + 1, bool).at[s].set(True))(given.source)[:, :-1]
        at = jnp.clip(given.position[..., 0], 0, time - 1)
        below = jnp.floor(at).astype(jnp.int32)
        near = [jnp.take_along_axis(seen.seconds, jnp.minimum(below + i, time - 1), axis=1) for i in (0, 1)]
        between = near[0] + (at - below) * (near[1] - near[0])
        return jnp.where(there, mean_of_originals(jnp.repeat(seen.seconds, each, axis=1), given), between)


def waves(
    seconds: Float[Array, "batch tokens"], shares: Float[Array, "batch tokens 2"], size: Float[Array, "batch tokens"]
) -> Float[Array, "batch tokens features"]:
    """Sines and cosines of times and places, float32, and the logarithm of how many tokens each stands for."""
    of_time = 2 * np.pi / np.geomspace(SHORTEST, LONGEST, WAVES)
    of_place = np.pi * 2.0 ** np.arange(SPATIAL_WAVES)
    angles = [seconds[..., None] * of_time.astype(np.float32)]
    angles += [shares[..., axis, None] * of_place.astype(np.float32) for axis in (0, 1)]
    angles = jnp.concatenate(angles, axis=-1).astype(jnp.float32)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), jnp.log(jnp.maximum(size, 1.0))[..., None]], axis=-1)


def _another(keys: Array) -> Array:
    """Keys of another random stream."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)

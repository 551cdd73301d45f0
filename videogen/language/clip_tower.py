"""CLIP's image encoder over the frames of clips, and fewer tokens inside of it: CenterCLIP and TempMe."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.encoders import ClipImage
from videogen.errors import UserError
from videogen.nn import Hook, Transformer
from videogen.nn.tower import NOTES, Call
from videogen.ranges import Count, Natural, OneOf, Share
from videogen.reducers.clusters import Medoids
from videogen.reducers.merging import BipartiteMerging, merged_counts
from videogen.reducers.tokens import TokenSet


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Units:
    """What hooks know of the units that attention sees: one or several frames of a clip.

    Attributes:
      size: how many tokens each stands for.
      positions: learned vectors of the places of joined units, of all joins one after another.
      first: the first tokens of a unit are the [CLS] of its frames, so many.
    """

    size: Float[Array, "units tokens"]
    positions: Float[Array, "places width"] | None = None
    first: int = dataclasses.field(default=1, metadata={"static": True})


class Merging(Hook):
    """Between attention and MLP of a layer the likest patches of every unit become their means, compared by the mean
    over heads of their keys (ToMe; Bolya et al., 2023).

    Args:
      removed: tokens that go; 0: the ``share``.
      share: of the tokens of a unit that goes.
    """

    place = "between"

    def __init__(self, removed: int, share: float = 0.0):
        self.removed, self.share = removed, share

    def probe(self, x: Array, call: Call) -> Int[Array, "units 1"]:
        return jnp.zeros((len(x), 1), jnp.int32)

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        metric = aux.key[:, : x.shape[1]].astype(jnp.float32).mean(2)
        return _merged(x, call, self.removed or int(self.share * x.shape[1]), metric)


class Joining(Hook):
    """Before a layer ``join`` units that follow each other become one, each with a learned vector of its place, and
    the likest patches of these merge, compared by their vectors.

    Args:
      join: so many.
      share: of the joined tokens that goes.
      place_of_first: of the first unit among the learned vectors.
    """

    place = "before"

    def __init__(self, join: int, share: float, place_of_first: int):
        self.join, self.share, self.begin = join, share, place_of_first

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        units: Units = call[NOTES]
        x = x.reshape(-1, self.join, *x.shape[1:])
        x = x + units.positions[self.begin : self.begin + self.join, None].astype(x.dtype)
        size = units.size.reshape(*x.shape[:-1])[..., None]

        def flat(values: Array) -> Array:
            """The [CLS] of all units first."""
            parts = (values[:, :, : units.first], values[:, :, units.first :])
            return jnp.concatenate([part.reshape(len(part), -1, part.shape[-1]) for part in parts], axis=1)

        x, size = flat(x), flat(size)[..., 0]
        changed = {**call, NOTES: dataclasses.replace(units, size=size, first=units.first * self.join)}
        return _merged(x, changed, int(self.share * x.shape[1]) if self.join > 1 else 0, None)


class Segments(Hook):
    """Behind a layer the patches of the frames of a segment give way to their medoids, and the [CLS] to their mean.

    Args:
      frames: of a clip.
      segments: of a clip.
      medoids: what chooses of the patches of a segment.
    """

    place = "after"

    def __init__(self, frames: int, segments: int, medoids: Medoids):
        self.frames, self.medoids = frames // segments, medoids

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        x = x.reshape(-1, self.frames, *x.shape[1:])
        patches = x[:, :, 1:].reshape(len(x), -1, x.shape[-1])
        kept = self.medoids.reduce(TokenSet(patches))[0].x
        x = jnp.concatenate([x[:, :, 0].mean(1, keepdims=True), kept.astype(x.dtype)], axis=1)
        return x, {**call, NOTES: dataclasses.replace(call[NOTES], size=jnp.ones(x.shape[:2]))}


def _merged(x: Array, call: Call, removed: int, metric: Array | None) -> tuple[Array, Call]:
    """Tokens of units after a round of merging that leaves their [CLS] alone."""
    units: Units = call[NOTES]
    tokens = TokenSet(x, size=units.size)
    if removed:
        aux = {} if metric is None else {"metric": metric}
        tokens = BipartiteMerging(removed, protected=units.first).reduce(tokens, aux)[0]
    changed = {**call, NOTES: dataclasses.replace(units, size=tokens.size)}
    if "key_bias" in call:
        changed["key_bias"] = jnp.log(jnp.maximum(tokens.size, 1.0))
    return tokens.x.astype(x.dtype), changed


class Plain:
    """Every frame on its own."""

    places = 0
    proportional = False

    def hooks(self, depth: int, frames: int, tokens: int) -> dict[int, Sequence[Hook]]:
        """Hooks by layer.

        Args:
          depth: layers.
          frames: of a clip.
          tokens: of a frame, its [CLS] among them.
        """
        return {}


class SegmentMedoids(Plain):
    """Medoids of the patches of segments of frames (CenterCLIP; Zhao et al., 2022, section 3).

    Args:
      behind: layers before the choice; 6 of 12.
      segments: of a clip.
      budget: medoids of a segment.
      by: ``vectors`` (k-medoids) or ``spectrum`` (spectral clustering).
    """

    def __init__(
        self,
        *,
        behind: Count = 6,
        segments: Count = 4,
        budget: Count = 49,
        by: Annotated[str, OneOf("vectors", "spectrum")] = "vectors",
    ):
        self.behind, self.segments, self.medoids = behind, segments, dict(budget=budget, by=by)

    def hooks(self, depth, frames, tokens):
        if frames % self.segments:
            raise UserError(f"{frames} frames do not divide into {self.segments} segments; change reduction.segments")
        return {self.behind - 1: [Segments(frames, self.segments, Medoids(**self.medoids))]}


class ProgressiveMerging(Plain):
    """Merging within frames, then across joined frames (TempMe; Shen et al., 2025).

    Args:
      removed: tokens of a frame that go in each of the layers of frames; 2 of patches of 32, 10 of those of 16.
      layers: of frames; 8 of 12.
      joins: units that become one in each of the layers behind these; their product is the number of frames.
      across: share of the joined tokens that goes before the attention.
      inside: share that goes behind the attention, also in the layers behind.
      proportional: the logarithm of how many tokens each stands for is added to its scores (ToMe, section 3).
    """

    def __init__(
        self,
        *,
        removed: Natural = 2,
        layers: Natural = 8,
        joins: Sequence[Count] = (2, 2, 3),
        across: Share = 0.3,
        inside: Share = 0.1,
        proportional: bool = True,
    ):
        self.removed, self.layers, self.joins, self.proportional = removed, layers, tuple(joins), proportional
        self.across, self.inside, self.places = across, inside, sum(joins)

    def hooks(self, depth, frames, tokens):
        if (rest := depth - self.layers - len(self.joins)) < 0:
            raise UserError(f"{self.layers} layers of frames and {len(self.joins)} joins are more than {depth} layers")
        sizes = dict(removed=self.removed, layers=self.layers, joins=self.joins, rest=rest)
        # Refuses what cannot be.
        merged_counts(tokens, frames, **sizes, across=self.across, inside=self.inside)
        found: dict[int, Sequence[Hook]] = {}
        if self.removed:
            found = {layer: [Merging(self.removed)] for layer in range(self.layers)}
        starts = [sum(self.joins[:i]) for i in range(len(self.joins))]
        for layer, (join, start) in enumerate(zip(self.joins, starts, strict=True), self.layers):
            found[layer] = [Joining(join, self.across, start), Merging(0, self.inside)]
        return found | {layer: [Merging(0, self.inside)] for layer in range(depth - rest, depth)}


REDUCTIONS = {"none": Plain, "segment_medoids": SegmentMedoids, "progressive_merging": ProgressiveMerging}
"""Public name -> class."""


def hooked(network: ClipImage, reduction: Plain, frames: int) -> None:
    """Puts the hooks of a reduction into the network; its parameters keep their paths.

    Raises:
      UserError: the reduction does not go with the frames or the layers.
    """
    old, tokens = network.transformer, network.positions.table.shape[0]
    hooks: Mapping[int, Sequence[Hook]] = reduction.hooks(old.stack.depth, frames, tokens)
    network.transformer = Transformer(old.stack, old.norm, hooks=hooks)


def tokens_of(
    network: ClipImage,
    pixels: Float[Array, "batch frames height width 3"],
    reduction: Plain,
    positions: Float[Array, "places width"] | None = None,
) -> tuple[Float[Array, "units tokens width"], Units]:
    """The tokens of all units behind the last layer, those of a clip one after another.

    Args:
      network: ``hooked``.
      pixels: preprocessed.
      reduction: that of its hooks.
      positions: of joined units, where it has ``places``.
    """
    x = network.embedded(pixels.reshape(-1, *pixels.shape[2:]))
    units = Units(jnp.ones(x.shape[:2]), positions)
    call: dict[str, Any] = {NOTES: units}
    if reduction.proportional:
        call["key_bias"] = jnp.zeros(x.shape[:2])
    x, call, _ = network.transformer.trunk(x, **call)
    return x, call[NOTES]


def of_frames(
    network: ClipImage, video: Float[Array, "batch frames height width 3"], reduction: Plain, positions: Any = None
) -> Float[Array, "batch some embed"]:
    """The embeddings of the [CLS] of clips in [-1, 1]: of every frame, or of every segment; arguments as
    ``tokens_of`` takes them."""
    flat = network.preprocessing(video.reshape(-1, *video.shape[2:]))
    pixels = flat.reshape(*video.shape[:2], *flat.shape[1:])
    x, units = tokens_of(network, pixels, reduction, positions)
    x = network.projection(network.transformer.finish(x[:, : units.first]))
    return x.reshape(len(video), -1, x.shape[-1])


def outputs_of(reduction: Plain, network: ClipImage, frames: int) -> int:
    """Tokens of a clip behind the last layer."""
    side = math.isqrt(network.positions.table.shape[0] - 1) * network.patches.size[1]

    def run() -> Array:
        width = network.patches.linear.outputs
        positions = jnp.zeros((reduction.places, width)) if reduction.places else None
        return tokens_of(network, jnp.zeros((1, frames, side, side, 3)), reduction, positions)[0]

    found = jax.eval_shape(run)
    return found.shape[0] * found.shape[1]

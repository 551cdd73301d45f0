"""Next-scale prediction: all tokens of a scale at once, from the sum of the scales before it.

Tian et al., 2024 (VAR), and TokenFlow (arXiv 2412.03069, section 3.3), whose tokenizer has two codebooks under one id.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import heads
from videogen.conditioning import Conditioning, NullableContext
from videogen.errors import UserError
from videogen.generators.disturbance import Relabel, disturbed
from videogen.generators.sampling import Sampler, Schedule
from videogen.generators.stepping import Generator
from videogen.heads import HeadSampler
from videogen.nn import (
    First,
    LearnedPositions,
    Linear,
    MicroBatch,
    NotLater,
    Stream,
    angles_at,
    named_key,
    parameter,
    read_transformer,
    truncated_normal,
)
from videogen.ranges import Finite, Natural, Number, Positive, Share
from videogen.schedules import decay
from videogen.shapes import TokenGrid
from videogen.tokens import GRID, Layout, Segment, SegmentLayout, Tokens

Partial = Callable[..., Float[Array, "batch *sides features"]]
"""``Tokenizer.partial``: what the scales before one sum up to, at its sides."""

Cut = tuple[Natural, Annotated[float, Number(float, 0, 1, above=True)]]


@dataclasses.dataclass(frozen=True)
class ScaleSampler(Sampler):
    """How to draw the ids of a scale.

    Attributes:
      temperature: softmax temperature; near-greedy is a small one such as 0.01.
      top_k: draw among the k most likely codes; 0 means all.
      top_p: draw among the fewest codes that hold this share of the probability; 1 means all.
      refine: ``(top_k, top_p)`` of each further pass over a scale, which reads what the pass before has drawn
        (TokenFlow, section 3.3: ``((100, 0.8), (1, 1.0))`` after a first pass with 1200 and 0.8).
      guidance_scale: s in ``unconditional + s·(conditional - unconditional)``; 1 is none, the conditional alone.
      guidance_schedule: how the scale rises from 1 over the scales, a name in ``schedules.DECAYS`` read backwards;
        TokenFlow's is ``linear``.
    """

    temperature: Positive = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Number(float, 0, 1, above=True)] = 1.0
    refine: tuple[Cut, ...] = ()
    guidance_scale: Finite = 1.0
    guidance_schedule: Schedule = "constant"

    def check(self, model: nnx.Module) -> None:
        """Refuses a cut that the model's head cannot make, with a ``UserError``."""
        for of_head in self.passes(0.0):
            model.head.check(of_head)

    def passes(self, progress: float) -> list[HeadSampler]:
        """How the head draws in each pass over the scale at ``progress`` in [0, 1] of all."""
        guidance = 1 + (self.guidance_scale - 1) * decay(self.guidance_schedule, 1 - progress)
        cuts = ((self.top_k, self.top_p), *self.refine)
        return [HeadSampler(self.temperature, top_k, top_p, guidance) for top_k, top_p in cuts]


class NextScaleTransformer(Generator):
    """Transformer over the scales of a residual tokenizer, from coarse to fine.

    At the places of a scale stands the sum of all scales before it, resized to that scale; at those of the first stand
    learned vectors. A scale sees itself and those before it, so its tokens are drawn at once.

    Args:
      layout: of the tokens: one segment for each scale, all of one vocabulary.
      features: channels of the sums that the tokenizer makes (``Tokenizer.partial``).
      transformer: ``{width, layers, heads, mlp_width, …}`` (``nn.TransformerSection``).
      head: ``{name, …}`` of ``videogen.heads`` over ids.
      context_width: width of the conditioning features; ``None`` builds an unconditional model.
      classes: number of class labels; ``None`` means a model without labels.
      token_drop: share of the ids of a scale that training replaces by random ones before it makes the sums of the
        later scales, whose ids it finds again: they then say what is left to add.
      condition_drop: share of examples trained with the null conditioning (for guidance).
    """

    def __init__(
        self,
        layout: Layout,
        features: int,
        transformer: Mapping[str, Any],
        *,
        head: Mapping[str, Any] = MappingProxyType({"name": "categorical"}),
        context_width: int | None = None,
        classes: int | None = None,
        token_drop: Share = 0.0,
        condition_drop: Share = 0.1,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        section = read_transformer(transformer)
        if section.position_generator:
            raise UserError("a position generator looks at its neighbours: scales cannot be drawn one after another")
        self.layout, width = layout, section.width
        self.token_drop, self.dropout, self.condition_drop = token_drop, section.dropout, condition_drop
        self.rotary, self.head_width = section.rotary, section.head_width
        common = dict(remat=remat, dtype=dtype, rngs=rngs)
        (_, first), *_ = layout.segments
        self.head = heads.build(head, vocabulary=first.vocabulary, channels=None, width=width, hidden=False, **common)
        # Sums stand at its places and never ids.
        self.head.inputs = None
        self.start_vectors = parameter(rngs, (first.tokens, width), (None, "embed"), truncated_normal(0.02))
        self.embed = Linear(features, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(layout.tokens, width, rngs=rngs)
        self.context = NullableContext(context_width, classes=classes, rngs=rngs) if context_width else None
        self.stack = section.stack(context_width=context_width, **common)
        self.norm = section.last_norm(rngs=rngs)

    sampler = ScaleSampler
    steppers = MappingProxyType({})
    draws_scales = True
    given_frames = 0
    completes = denoises = label_as_vector = ends = False
    statistics = None

    def prefixes(self, frames: int) -> range:
        """No frames may be given: every scale is of the whole clip."""
        return range(0, 1)

    def check_grid(self, grid: TokenGrid) -> None:
        """Takes the one size of training."""

    # The network -----------------------------------------------------------------------------------------------------

    def places(self, start: int, count: int) -> tuple[Float[Array, "places width"], Float[np.ndarray, "places angles"]]:
        """Learned and rotary positions of ``count`` places from ``start`` on."""
        angles = angles_at(centres(self.layout), self.head_width)[start : start + count] if self.rotary else None
        return self.positions(self.layout.tokens)[start : start + count], angles

    def inputs(self, name: str, sums: Float[Array, "batch *sides features"] | None, batch: int) -> Array:
        """What stands at the places of a scale, ``[batch, places, width]``; the first scale has no ``sums``."""
        if sums is None:
            start = self.start_vectors.get_value().astype(self.embed.dtype)
            return jnp.broadcast_to(start, (batch, *start.shape))
        return self.embed(sums.reshape(batch, self.layout[name].tokens, -1))

    def features(
        self,
        sums: Mapping[str, Float[Array, "batch *sides features"] | None],
        conditioning: Conditioning,
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "batch places width"]:
        """Features of the places of the scales whose ``sums`` are given, from the first on."""
        batch = next((len(of_scale) for of_scale in sums.values() if of_scale is not None), None)
        batch = conditioning.batch_size if batch is None else batch
        x = jnp.concatenate([self.inputs(name, of_scale, batch) for name, of_scale in sums.items()], axis=1)
        scale = np.repeat(np.arange(len(sums)), [self.layout[name].tokens for name in sums])
        learned, angles = self.places(0, x.shape[1])
        context = context_mask = None
        if self.context is not None:
            context, context_mask = self.context(conditioning)
        said = dict(context=context, context_mask=context_mask)
        x = x + learned.astype(x.dtype)
        return self.norm(self.stack(x, mask=NotLater("order"), tags={"order": scale}, rotary=angles, **said, key=key))

    # Training --------------------------------------------------------------------------------------------------------

    def loss(
        self,
        tokens: Tokens,
        conditioning: Conditioning,
        key: jax.Array,
        *,
        train: bool = True,
        micro: MicroBatch | None = None,
        partial: Partial,
        relabel: Relabel | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean loss of the head over the tokens of all scales, and metrics: ``loss`` and those of the head.

        Args:
          tokens: of the clips.
          conditioning: one entry per example.
          key: decides what is drawn.
          train: whether this is training.
          micro: which examples of the batch these are; ``None`` means all.
          partial: of the tokenizer.
          relabel: of the tokenizer, for these clips; where ids are replaced (``token_drop``).
        """
        micro, batch = micro or MicroBatch(), len(tokens.flat)
        if train:
            conditioning = conditioning.drop_share(self.condition_drop, named_key(key, "drop"), micro)
        shown = tokens
        if train and self.token_drop > 0:
            shown, tokens = disturbed(tokens, relabel, self.token_drop, self.head, key, micro)
        sums = {name: partial(shown, name) if i else None for i, name in enumerate(tokens.names)}
        dropout_keys = micro.keys(named_key(key, "dropout"), batch) if train and self.dropout else None
        features = self.features(sums, conditioning, key=dropout_keys)
        counted, head_keys = jnp.ones(features.shape[:2], bool), micro.keys(named_key(key, "head"), batch)
        total, count, measured = self.head.loss(features, tokens.flat, counted, head_keys, train=train)
        metrics = {"loss": total / count} | {name: value / number for name, (value, number) in measured.items()}
        return metrics["loss"], metrics

    # Sampling --------------------------------------------------------------------------------------------------------

    def sample(
        self,
        layout: Layout,
        conditioning: Conditioning,
        keys: jax.Array,
        sampler: ScaleSampler,
        prefix: Tokens | None = None,
        *,
        partial: Partial,
    ) -> Tokens:
        """Draws scale after scale, over cached keys and values of the scales before.

        A further pass over a scale (``ScaleSampler.refine``) reads the sum with the tokens that the pass before has
        drawn there; later scales see the keys of the first pass, as in training. The first scale has no sum, so its
        further passes read what its first one did.

        Args:
          layout: that of training.
          conditioning: one entry per example.
          keys: ``[batch]`` random keys, one per example.
          sampler: how to draw.
          prefix: ``None``.
          partial: of the tokenizer.
        """
        if layout != self.layout or prefix is not None:
            raise UserError("scales are of the whole clip: it has the size of training, and no given first frames")
        batch, guided = len(keys), sampler.guidance_scale != 1 and self.context is not None
        context = context_mask = None
        if self.context is not None:
            context, context_mask = self.context(conditioning.with_null() if guided else conditioning)
        layers, copies, start = self.stack.unstacked(), 1 + guided, 0
        caches = tuple(c for layer in layers for c in layer.begin(batch * copies, layout.tokens, context))
        drawn, last = {}, max(1, len(layout.segments) - 1)
        for i, (name, segment) in enumerate(layout.segments):
            before, learned_angles = caches, self.places(start, segment.tokens)
            seen = First(start + segment.tokens)
            for number, of_head in enumerate(sampler.passes(i / last)):
                sums = partial(Tokens.of(**drawn), name, through=number > 0) if i else None
                x = jnp.tile(self.inputs(name, sums, batch) + learned_angles[0], (copies, 1, 1))
                stream = Stream(before)
                for layer in layers:
                    x = layer(x, mask=seen, rotary=learned_angles[1], context_mask=context_mask, stream=stream)
                caches = stream.cache if number == 0 else caches
                features, null = jnp.split(self.norm(x), 2) if guided else (self.norm(x), None)
                place = i * len(sampler.passes(0.0)) + number
                own = jax.vmap(lambda key, p=place: jax.random.fold_in(key, p))(keys)
                values, _ = self.head.draw(features, null, own, of_head)
                drawn[name] = Segment(values.reshape(batch, *segment.shape, -1), segment)
            start += segment.tokens
        return Tokens.of(**drawn)


def centres(layout: Layout) -> Float[np.ndarray, "places axes"]:
    """Time, row and column of the centre of every token, in steps of the finest scale: those over one place agree."""
    finest = [max(segment.length(side) for _, segment in layout.segments) for side in GRID]

    def of(segment: SegmentLayout) -> Float[np.ndarray, "places axes"]:
        lengths = [segment.length(side) for side in GRID]
        along = [(np.arange(n) + 0.5) * whole / n - 0.5 for n, whole in zip(lengths, finest, strict=True)]
        return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, len(GRID))

    return np.concatenate([of(segment) for _, segment in layout.segments]).astype(np.float32)

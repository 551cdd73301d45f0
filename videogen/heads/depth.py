"""A distribution over the ids of a place, level after level."""

from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.heads import digits
from videogen.heads.base import Features, Mask, Sums, Values
from videogen.heads.categorical import CrossEntropyHead, LevelLogits
from videogen.heads.inputs import IdEmbedding
from videogen.heads.sampling import HeadSampler, draw_ids, guide
from videogen.nn import MODULATIONS, Causal, block_stack, build_norm, draw, modulate, parameter, truncated_normal
from videogen.ranges import Count, Natural, OneOf, Share


class Depth(CrossEntropyHead):
    """A small causal transformer over the levels of one place: each level knows the ones before it.

    For residual codes (RQ-Transformer; Lee et al., 2022) and for the channels of per-dimension codes (TokenBridge,
    section 3.3). The temperature divides the logits of every level.

    Args:
      vocabulary: ids of each level.
      width: of features and inputs, and of this transformer.
      layers, heads: its size.
      condition: how the features reach it: as its first ``input``, or by ``adaptive`` norms of every block and of the
        last one, each level with a vector of its own added (TokenBridge).
      guidance: what is guided: the ``logits`` of every level, or the ``features`` before it (TokenBridge).
      order: the levels in the order in which they are drawn; empty: their own. TokenBridge draws channels of low
        frequencies first. Values stay in their own order everywhere else.
      factors: each level is split into so many digits of equal size, which are levels of their own here.
      label_smoothing: share of the targets that is spread evenly over all ids in training.
      join: how the vectors of levels and factors become one input: ``sum`` or ``concatenation``.
      hidden: whether ids may be hidden: a learned vector then stands in their place.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    cuts = True

    def __init__(
        self,
        vocabulary: Sequence[int],
        width: int,
        *,
        layers: Natural = 2,
        heads: Count,
        condition: Annotated[str, OneOf("input", "adaptive")] = "input",
        guidance: Annotated[str, OneOf("logits", "features")] = "logits",
        order: Sequence[Natural] = (),
        factors: Count = 1,
        label_smoothing: Share = 0.0,
        join: str = "sum",
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        if order and sorted(order) != list(range(len(vocabulary))):
            raise UserError(f"order must name each of the {len(vocabulary)} levels once, got {tuple(order)}")
        self.order = tuple(order)
        # Everything inside is in the order of drawing.
        bases = digits.factor(self._ordered(np.asarray(vocabulary)).tolist(), factors)
        super().__init__(vocabulary, bases, width, join=join, hidden=hidden, **common)
        self.label_smoothing, self.guides_features = label_smoothing, guidance == "features"
        self.embedding = IdEmbedding(bases, width, **common)
        self.positions = parameter(rngs, (len(self.sizes), width), (None, "embed"), truncated_normal(0.02))
        sections = dict(attention={"heads": heads}, mlp={"hidden": 4 * width})
        adaptive = condition == "adaptive"
        modulation = {"modulation": "zero"} if adaptive else {}
        self.stack = block_stack(width, layers, **sections, **modulation, remat=remat, **common)
        self.norm = build_norm("rms", width, affine=not adaptive, rngs=rngs)
        self.last_modulation = MODULATIONS["zero"](width, 2, rngs=rngs) if adaptive else None
        self.logits_of = LevelLogits(self.sizes, width, **common)

    def logits(
        self, features: Features, known: Int[Array, "batch *places known"]
    ) -> list[Float[Array, "batch *places vocabulary"]]:
        """Float32 logits of digits 0 … known, the last included where there is one, given the digits before each."""
        places, width = features.shape[:-1], features.shape[-1]
        before = self.embedding.vectors(known[..., : len(self.sizes) - 1]).astype(features.dtype)
        own = self.positions.get_value()[: before.shape[-2] + 1].astype(features.dtype)
        first = features[..., None, :]
        if self.last_modulation is None:
            x = (jnp.concatenate([first, before], axis=-2) + own).reshape(-1, len(own), width)
            x = self.norm(self.stack(x, mask=Causal()))
        else:
            x = (jnp.pad(before, [(0, 0)] * len(places) + [(1, 0), (0, 0)]) + own).reshape(-1, len(own), width)
            said = dict(condition=(first + own).reshape(x.shape), group_of=np.arange(len(own)))
            x = self.stack(x, mask=Causal(), **said)
            x = modulate(self.norm(x), *jnp.moveaxis(self.last_modulation(said["condition"]), 2, 0))
        x = x.reshape(*places, -1, width)
        return [self.logits_of.levels(x[..., digit, :])[digit] for digit in range(x.shape[-2])]

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Int[Array, "batch *places levels"], Float[Array, "batch *places"]]:
        if self.guides_features and null_features is not None:
            features, null_features = guide(features, null_features, sampler.guidance_scale), None
        places = features.shape[:-1]
        uniform = draw(jax.random.uniform, keys, (*places, len(self.sizes)))
        both = features if null_features is None else jnp.concatenate([features, null_features])
        ids, total = jnp.zeros((*places, 0), jnp.int32), 0.0
        for digit in range(len(self.sizes)):
            known = ids if null_features is None else jnp.concatenate([ids, ids])
            logits, null = self.logits(both, known)[digit], None
            if null_features is not None:
                logits, null = jnp.split(logits, 2)
            drawn, log_probability = draw_ids(uniform[..., digit], logits, null, sampler)
            ids, total = jnp.concatenate([ids, drawn[..., None]], axis=-1), total + log_probability
        return self._restored(digits.merge(ids, self.bases)), total

    def embed(self, values: Values, hidden: Bool[Array, "batch *places one_or_levels"] | None = None) -> Features:
        levels = hidden is not None and hidden.shape[-1] == self.levels
        return super().embed(self._ordered(values), self._ordered(hidden) if levels else hidden)

    def loss(
        self,
        features: Features,
        targets: Values,
        mask: Mask,
        key: jax.Array | None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        masks = [m if m is None or m.ndim < targets.ndim else self._ordered(m) for m in (mask, measured)]
        return super().loss(features, self._ordered(targets), masks[0], key, train=train, measured=masks[1])

    def _ordered(self, values: Array) -> Array:
        """Levels in the order in which they are drawn."""
        return values[..., np.array(self.order)] if self.order else values

    def _restored(self, values: Array) -> Array:
        return values[..., np.argsort(self.order)] if self.order else values

"""Drawing codes from logits: temperature, top-k, top-p, guidance; reproducible for each example alone."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.building import check_fields
from videogen.ranges import Finite, Natural, Number, OneOf, Positive
from videogen.schedules import DECAYS, decay

Schedule = Annotated[str, OneOf(*DECAYS)]
"""A name in ``schedules.DECAYS``."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What the samplers share: their settings are checked when they are built."""

    def __post_init__(self):
        check_fields(self)

    def check(self, model: nnx.Module) -> None:
        """Raises ``UserError`` for a generator of its kind that it cannot draw from."""


@dataclasses.dataclass(frozen=True)
class BlockSampler(Sampler):
    """How to draw the codes of a block.

    Attributes:
      temperature: softmax temperature; near-greedy is a small one such as 0.01.
      top_k: draw among the k most likely codes; 0 means all.
      top_p: draw among the fewest codes that hold this share of the probability; 1 means all.
      guidance_scale: lambda in ``(1 + lambda)·conditional - lambda·unconditional``; 0 is conditional only.
      guidance_schedule: how lambda rises along the clip, a name in ``schedules.DECAYS`` read backwards.
    """

    temperature: Positive = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Number(float, 0, 1, above=True)] = 1.0
    guidance_scale: Finite = 0.0
    guidance_schedule: Schedule = "constant"

    def guidance(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """Lambda at ``progress`` in [0, 1] of the clip."""
        return self.guidance_scale * decay(self.guidance_schedule, 1 - progress)


def guide(
    logits: Float[Array, "both ... vocabulary"], scale: Float[Array, ""] | float
) -> Float[Array, "batch ... vocabulary"]:
    """Classifier-free guidance of logits whose second half is unconditional."""
    given, null = jnp.split(logits, 2)
    return (1 + scale) * given - scale * null


def sample_categorical(
    uniform: Float[Array, "..."], logits: Float[Array, "... vocabulary"], top_k: int = 0, top_p: float = 1.0
) -> Int[Array, "..."]:
    """Draws ids by inverting the cumulative distribution: one uniform number per draw.

    The distribution is that over ids in their order, or from the most likely down where it is cut.

    Args:
      uniform: in [0, 1).
      logits: already divided by the temperature.
      top_k: only the k most likely; 0 means all.
      top_p: only the fewest that hold this share of the probability.
    """
    size = logits.shape[-1]
    cut = top_p < 1 or 0 < top_k < size
    if cut:
        # Sorted once and drawn from in that order: comparing the logits with the last one that is kept would drop it
        # where the compiler rounds the two differently.
        logits, ids = jax.lax.top_k(logits, min(top_k, size) or size)
    probability = jax.nn.softmax(logits)
    if top_p < 1:
        # The most likely code always stays, and every one that is needed to reach the share.
        probability = jnp.where(jnp.cumsum(probability, axis=-1) - probability < top_p, probability, 0.0)
    cumulative = jnp.cumsum(probability, axis=-1)
    # Scaling by the last entry absorbs rounding; the draw stays below it, so the id exists and has p > 0.
    threshold = uniform[..., None] * cumulative[..., -1:]
    place = jnp.sum(cumulative <= threshold, axis=-1).clip(0, cumulative.shape[-1] - 1).astype(jnp.int32)
    return jnp.take_along_axis(ids, place[..., None], axis=-1)[..., 0].astype(jnp.int32) if cut else place

"""Drawing from the distributions of heads: temperature, top-k, top-p, guidance; one random key per example."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class HeadSampler:
    """How a head draws.

    Attributes:
      temperature: 1 draws from the distribution as it is; every head says what it does with another one. 0 is for heads
        that take the likeliest value then (``Head.greedy``).
      top_k: draw among the k most likely ids; 0 means all.
      top_p: draw among the fewest ids that hold this share of the probability; 1 means all.
      guidance_scale: s in ``unconditional + s·(conditional - unconditional)``; 1 is none, the conditional alone.
      steps: of a head that draws by a solver; ``None`` takes the head's own number.
    """

    temperature: Float[Array, ""] | float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: Float[Array, ""] | float = 1.0
    steps: int | None = None

    @property
    def cold(self) -> bool:
        """Whether the temperature is 0 in every step: nothing is drawn."""
        return isinstance(self.temperature, int | float) and self.temperature == 0


def guide(
    conditional: Float[Array, "..."], unconditional: Float[Array, "..."], scale: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """Classifier-free guidance of logits or predictions: ``unconditional + scale·(conditional - unconditional)``.

    Ho and Salimans, 2022, whose w is ``scale - 1``. It is computed as a weighted sum, so that 1 changes no bit.
    """
    return scale * conditional + (1 - scale) * unconditional


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


def draw_ids(
    uniform: Float[Array, "..."],
    logits: Float[Array, "... vocabulary"],
    null_logits: Float[Array, "... vocabulary"] | None,
    sampler: HeadSampler,
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Ids of one level, and their log-probabilities under the guided logits at the temperature, before any cut.

    Args:
      uniform: in [0, 1), one number for each id.
      logits: conditional.
      null_logits: unconditional; ``None`` draws without guidance.
      sampler: how to draw; its temperature divides the logits.
    """
    if null_logits is not None:
        logits = guide(logits, null_logits, sampler.guidance_scale)
    logits = logits / sampler.temperature
    ids = sample_categorical(uniform, logits, sampler.top_k, sampler.top_p)
    return ids, jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]

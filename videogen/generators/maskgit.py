"""MaskGIT decoding: predict every masked code, keep the most confident, repeat (Chang et al., 2022)."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.generators.sampling import Sampler, Schedule, sample_categorical
from videogen.ranges import Count, Finite, Natural, Positive, Weight
from videogen.schedules import decay


@dataclasses.dataclass(frozen=True)
class MaskGITSampler(Sampler):
    """How to decode masked codes.

    Attributes:
      steps: number of forward passes K (12 to 48 in Phenaki).
      schedule: share of codes still masked after step k, a name in ``schedules.DECAYS``.
      temperature: softmax temperature of the sampled codes; annealed linearly, it reaches ``final_temperature`` in the
        last step. Near-greedy is a small one such as 0.01.
      choice_temperature: scale of the Gumbel noise on the confidence, τ·(1 - (k + 1)/K) in step k, so that the last has
        none; where a critic scores the codes, of that on its logits.
      top_k: sample among the k most likely codes; 0 means all.
      guidance_scale: lambda in ``(1 + lambda)·conditional - lambda·unconditional``; 0 is conditional only.
    """

    steps: Count = 12
    schedule: Schedule = "cosine"
    temperature: Positive = 1.0
    final_temperature: Positive = 1.0
    choice_temperature: Weight = 4.0
    top_k: Natural = 0
    guidance_scale: Finite = 0.0


def masked_after(
    step: Int[Array, ""], sampler: MaskGITSampler, unknown: Int[Array, "batch"], masked: Int[Array, "batch"]
) -> Int[Array, "batch"]:
    """How many of the ``unknown`` codes stay masked after ``step`` (0-based), when ``masked`` are before it.

    The schedule, bent so that every step reveals at least one code and leaves one for each later step while
    there are enough: the count falls strictly and is 0 at the end.
    """
    count = jnp.floor(decay(sampler.schedule, (step + 1) / sampler.steps) * unknown).astype(jnp.int32)
    count = jnp.minimum(jnp.maximum(count, sampler.steps - 1 - step), masked - 1)
    return jnp.where(step + 1 >= sampler.steps, 0, jnp.maximum(count, 0))


def decode(
    logits_of: Callable[
        [Int[Array, "batch tokens levels"], Bool[Array, "batch tokens"]], Float[Array, "batch tokens vocabularies"]
    ],
    start: Int[Array, "batch tokens levels"],
    unknown: Bool[Array, "batch tokens"],
    vocabulary: Sequence[int],
    keys: jax.Array,
    sampler: MaskGITSampler,
    score: Callable[[Int[Array, "batch tokens levels"]], Float[Array, "batch tokens"]] | None = None,
) -> Int[Array, "batch tokens levels"]:
    """Draws the codes of every unknown place in ``sampler.steps`` passes; known ones never change.

    The levels of a place are drawn independently and become known together; its confidence is the sum of their
    log-probabilities. Where ``score`` is the confidence it is asked about all places anew in every pass, and a place
    that became known may be drawn again.

    Args:
      logits_of: the (guided) denoiser, (ids, which places are still unknown) -> logits of all levels side by side.
      start: known codes, and what unknown places show: ``[MASK]``, or the code of a condition (MAGVIT).
      unknown: the places to draw.
      vocabulary: codes of each level.
      keys: one random key per example.
      sampler: how to decode.
      score: (ids, none of them masked) -> how far each place is to be kept; a critic's logits (``TokenCritic``).
    """
    open_at_first = unknown
    at_first = unknown.sum(-1)
    ends = np.cumsum(vocabulary)[:-1]

    def step(k: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        ids, unknown = state
        left = 1 - (k + 1) / sampler.steps
        temperature = sampler.final_temperature + left * (sampler.temperature - sampler.final_temperature)
        draw_keys, noise_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k)), out_axes=1)(keys)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, ids.shape[1:]))(draw_keys)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, ids.shape[1:2]))(noise_keys)
        drawn, confidence = [], 0.0
        for level, logits in enumerate(jnp.split(logits_of(ids, unknown) / temperature, ends, axis=-1)):
            drawn.append(sample_categorical(uniform[..., level], logits, sampler.top_k))
            confidence += jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[-1][..., None], -1)[..., 0]
        ids = jnp.where(unknown[..., None], jnp.stack(drawn, axis=-1), ids)
        candidates = unknown
        if score is not None:
            confidence, candidates = score(ids), open_at_first
        confidence = confidence + sampler.choice_temperature * left * noise
        confidence = jnp.where(candidates, confidence, jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        again = candidates & (rank < masked_after(k, sampler, at_first, unknown.sum(-1))[:, None])
        return jnp.where(again[..., None], start, ids), again

    return jax.lax.fori_loop(0, sampler.steps, step, (start, unknown))[0]

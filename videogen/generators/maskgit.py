"""MaskGIT decoding: predict every masked code, keep the most confident, repeat (Chang et al., 2022)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.errors import UserError
from videogen.generators.sampling import sample_categorical
from videogen.schedules import decay


@dataclasses.dataclass(frozen=True)
class MaskGITSampler:
    """How to decode masked codes.

    Attributes:
      steps: number of forward passes K (12 to 48 in Phenaki).
      schedule: share of codes still masked after step k, a name in ``schedules.DECAYS``.
      temperature: softmax temperature of the sampled codes; annealed linearly to ``final_temperature``.
      choice_temperature: scale of the Gumbel noise on the confidence, annealed linearly to 0.
      top_k: sample among the k most likely codes; 0 means all.
      guidance_scale: lambda in ``(1 + lambda)·conditional - lambda·unconditional``; 0 is conditional only.
    """

    steps: int = 12
    schedule: str = "cosine"
    temperature: float = 1.0
    final_temperature: float = 1.0
    choice_temperature: float = 4.0
    top_k: int = 0
    guidance_scale: float = 0.0

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"a sampler needs at least 1 step, got {self.steps}")
        if min(self.temperature, self.final_temperature) <= 0:
            raise UserError("sampling temperatures must be positive; use a small one such as 0.01 for near-greedy")


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
    logits_of: Callable[[Int[Array, "batch tokens"]], Float[Array, "batch tokens vocabulary"]],
    ids: Int[Array, "batch tokens"],
    mask_id: int,
    keys: jax.Array,
    sampler: MaskGITSampler,
) -> Int[Array, "batch tokens"]:
    """Fills every ``mask_id`` of ``ids`` in ``sampler.steps`` passes; other ids never change.

    Args:
      logits_of: the (guided) denoiser, ids -> logits.
      ids: start, known codes and ``mask_id``.
      mask_id: the id of ``[MASK]``.
      keys: one random key per example.
      sampler: how to decode.
    """
    unknown = jnp.sum(ids == mask_id, axis=-1)

    def step(k: Int[Array, ""], ids: Int[Array, "batch tokens"]) -> Int[Array, "batch tokens"]:
        left = 1 - k / sampler.steps
        temperature = sampler.final_temperature + left * (sampler.temperature - sampler.final_temperature)
        draw_keys, noise_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k)), out_axes=1)(keys)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, ids.shape[1:]))(draw_keys)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, ids.shape[1:]))(noise_keys)
        logits = logits_of(ids) / temperature
        drawn = sample_categorical(uniform, logits, sampler.top_k)
        confidence = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], -1)[..., 0]
        confidence = confidence + sampler.choice_temperature * left * noise
        masked = ids == mask_id
        confidence = jnp.where(masked, confidence, jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        keep_masked = masked_after(k, sampler, unknown, masked.sum(-1))
        remask = masked & (rank < keep_masked[:, None])
        return jnp.where(remask, mask_id, jnp.where(masked, drawn, ids))

    return jax.lax.fori_loop(0, sampler.steps, step, ids)

"""MaskGIT decoding: predict every masked place, keep the most confident, repeat (Chang et al., 2022)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from videogen.conditioning import Given
from videogen.generators.sampling import Sampler, Schedule
from videogen.generators.stepping import Stepper
from videogen.heads import HeadSampler
from videogen.ranges import Count, Finite, Natural, OneOf, Positive, Weight
from videogen.schedules import decay
from videogen.tokens import Tokens

Values = Shaped[Array, "batch tokens levels"]
"""Codes or normalised latents of every place."""


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
      guidance_scale: s in ``unconditional + s·(conditional - unconditional)``; 1 is none, the conditional alone.
      guidance_schedule: how the scale rises from 1 over the steps, a name in ``schedules.DECAYS`` read backwards; it is
        reached in the last one.
      head_steps: of a head that draws by a solver; ``None`` takes the head's own number.
      order: which places become known first: those of high ``confidence``, or ``random`` ones (MAR, TokenBridge).
    """

    steps: Count = 12
    schedule: Schedule = "cosine"
    temperature: Positive = 1.0
    final_temperature: Positive = 1.0
    choice_temperature: Weight = 4.0
    top_k: Natural = 0
    guidance_scale: Finite = 1.0
    guidance_schedule: Schedule = "constant"
    head_steps: Count | None = None
    order: Annotated[str, OneOf("confidence", "random")] = "confidence"

    def check(self, model: nnx.Module) -> None:
        """Refuses a cut that the model's head cannot make, with a ``UserError``."""
        model.head.check(self.of_head(0))

    def of_head(self, step: Int[Array, ""] | int) -> HeadSampler:
        """How the head draws in a pass, counted from 0."""
        done = (step + 1) / self.steps
        temperature = self.final_temperature + (1 - done) * (self.temperature - self.final_temperature)
        guidance = 1 + (self.guidance_scale - 1) * decay(self.guidance_schedule, 1 - done)
        return HeadSampler(temperature, self.top_k, guidance_scale=guidance, steps=self.head_steps)


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
    draw: Callable[[Values, Bool[Array, "batch tokens"], jax.Array, HeadSampler], tuple[Values, Array | None]],
    start: Values,
    unknown: Bool[Array, "batch tokens"],
    keys: jax.Array,
    sampler: MaskGITSampler,
    score: Callable[[Values], Float[Array, "batch tokens"]] | None = None,
) -> Values:
    """Draws the values of every unknown place in ``sampler.steps`` passes; known ones never change.

    All of a place is drawn at once; its confidence is the log-probability of what was drawn, and where a head knows
    none, places become known in random order (MAR). Where ``score`` is the confidence it is asked about all places anew
    in every pass, and a place that became known may be drawn again.

    Args:
      draw: (values, which places are unknown, a key of each example, how the head draws in this pass) -> (values,
        log-probabilities) of all places, as ``Head.draw`` gives them.
      start: known values, and what unknown places show: the value of a condition (MAGVIT), or anything.
      unknown: the places to draw.
      keys: one random key per example.
      sampler: how to decode.
      score: (values, all of them known) -> how far each place is to be kept; a critic's logits (``TokenCritic``).
    """
    open_at_first = unknown
    at_first = unknown.sum(-1)

    def step(k: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        values, unknown = state
        left = 1 - (k + 1) / sampler.steps
        draw_keys, noise_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k)), out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, values.shape[1:2]))(noise_keys)
        drawn, confidence = draw(values, unknown, draw_keys, sampler.of_head(k))
        values = jnp.where(unknown[..., None], drawn, values)
        candidates = unknown
        if sampler.order == "random":
            confidence = None
        elif score is not None:
            confidence, candidates = score(values), open_at_first
        confidence = noise if confidence is None else confidence + sampler.choice_temperature * left * noise
        confidence = jnp.where(candidates, confidence, jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        again = candidates & (rank < masked_after(k, sampler, at_first, unknown.sum(-1))[:, None])
        return jnp.where(again[..., None], start, values), again

    return jax.lax.fori_loop(0, sampler.steps, step, (start, unknown))[0]


class MaskedWindow(Stepper):
    """The one step of a ``MaskedTransformer``: all of a window, from a latent frame on, of each example its own.

    Its memory are the known values, and what is shown of given pixels (MAGVIT section 3.3): their codes stand at the
    places they touch until these are drawn.
    """

    @property
    def frames(self) -> int:
        return self.layout.only.grid.time - self.known

    def begin(self, prefix: Tokens | None, given: Given | None = None) -> tuple[Values, Given | None]:
        dtype = jnp.int32 if self.model.head.discrete else jnp.float32
        values = jnp.zeros((self.keys.shape[0], self.layout.tokens, self.model.head.levels), dtype)
        if prefix is not None:
            values = values.at[:, : prefix.layout.tokens].set(self.model.values(prefix.only.values))
        return values, given

    def advance(
        self, memory: tuple[Values, Given | None], at: Int[Array, "*batch"]
    ) -> tuple[tuple[Values, Given | None], Tokens]:
        model, grid, (values, given) = self.model, self.layout.only.grid, memory
        frame = jnp.arange(grid.tokens) // grid.tokens_per_frame
        unknown = jnp.broadcast_to(frame >= at[..., None], values.shape[:2])
        blank = model.corrupt(jnp.zeros_like(values), jnp.ones_like(unknown), given)
        score = None if model.critic is None else lambda values: model.critic(values, self.conditioning)
        start = jnp.where(unknown[..., None], blank, values)
        values = decode(self._drawing(given), start, unknown, self.keys, self.sampler, score)
        return (values, given), model.tokens(values, self.layout)

    def _drawing(self, given: Given | None) -> Callable[..., tuple[Values, Array | None]]:
        """``decode``'s ``draw`` by the network, guided as the sampler says."""
        model, sampler = self.model, self.sampler
        guided = sampler.guidance_scale != 1 and model.context is not None
        conditioning = self.conditioning.with_null() if guided else self.conditioning

        def draw(values: Array, unknown: Array, keys: jax.Array, how: HeadSampler) -> tuple[Array, Array | None]:
            shown, null = (values, unknown, given), None
            if guided:
                shown = jax.tree.map(lambda x: jnp.concatenate([x, x]), shown)
            features = model.features(shown[0], conditioning, corrupted=shown[1], given=shown[2])
            features = features.reshape(len(features), values.shape[1], -1)
            if guided:
                features, null = jnp.split(features, 2)
            return model.head.draw(features, null, keys, how)

        return draw

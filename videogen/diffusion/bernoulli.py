"""Noise on bits: each is flipped with probability t / 2, so that nothing is known of it at t = 1."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videogen.diffusion.processes import Noisy, Process, broadcast_right
from videogen.nn import draw
from videogen.ranges import OneOf

Bits = Int[Array, "batch ..."]


@dataclasses.dataclass(frozen=True)
class Bernoulli(Process):
    """x_t ~ Bernoulli((1 - t)·x + t / 2) for every bit by itself (Instella-T2I, arXiv 2506.21022).

    The network gives a logit for each bit. Guidance is of the logits.

    Attributes:
      prediction: what the logits are of: ``flip``, that the bit is not as in the data, or ``x0``, that it is 1 there.
      threshold: a step to t = 0 takes the likelier bit (Instella-T2I) and draws none.
      anew: a step draws x_later of the bits that the network finds likely, whatever x_t is (the first of
        Instella-T2I's two samplers), and not of the posterior given x_t (its second).
    """

    prediction: Annotated[str, OneOf("flip", "x0")] = "flip"
    threshold: bool = False
    anew: bool = False

    def corrupt(self, clean: Bits, t: Float[Array, "*times"], keys: Array) -> Noisy:
        flipped = draw(jax.random.uniform, keys, clean.shape) < 0.5 * broadcast_right(t, clean)
        return Noisy(jnp.where(flipped, 1 - clean, clean), flipped)

    def loss(
        self, output: Float[Array, "batch ..."], clean: Bits, noisy: Noisy, t: Float[Array, "*times"]
    ) -> Float[Array, "batch ..."]:
        """Binary cross-entropy in nats; that of the flips is that of the bits of the data."""
        true = noisy.noise if self.prediction == "flip" else clean == 1
        entropy = jax.nn.softplus(jnp.where(true, -output, output).astype(jnp.float32))
        return jnp.where(broadcast_right(t, clean) > 0, entropy, 0.0)

    def step(
        self,
        state: Bits,
        output: Float[Array, "batch ..."],
        t: Float[Array, "*times"],
        later: Float[Array, "*times"],
        keys: Array,
    ) -> Bits:
        """The posterior of the bits, the mean over the bits of the data that the network finds likely."""
        t, later = broadcast_right(t, state), broadcast_right(later, state)
        one = self.data(output, state)
        if self.anew:
            share = (1 - later) * one + 0.5 * later
        else:
            share = one * self.posterior(state, 1, t, later) + (1 - one) * self.posterior(state, 0, t, later)
        if self.threshold:
            share = jnp.where(later > 0, share, one > 0.5)
        drawn = (draw(jax.random.uniform, keys, state.shape) < share).astype(state.dtype)
        return jnp.where(later < t, drawn, state)

    def data(self, output: Float[Array, "batch ..."], noisy: Bits) -> Float[Array, "batch ..."]:
        """The probability that a bit of the data is 1, by the network's ``output`` for x_t."""
        output = output.astype(jnp.float32)
        return jax.nn.sigmoid(jnp.where(noisy == 1, -output, output) if self.prediction == "flip" else output)

    @staticmethod
    def posterior(noisy: Bits, clean: Bits | int, t: Array, later: Array) -> Float[Array, "batch ..."]:
        """P(bit at ``later`` is 1 | x_t, x), by Bayes' rule; the times broadcast with the bits, and ``later < t``."""
        kept = (1 - t) / jnp.maximum(1 - later, jnp.finfo(jnp.float32).tiny)
        same, other = 0.5 * (1 + kept), 0.5 * (1 - kept)
        prior = (1 - later) * clean + 0.5 * later
        of_one = jnp.where(noisy == 1, same, other) * prior
        of_zero = jnp.where(noisy == 1, other, same) * (1 - prior)
        return of_one / (of_one + of_zero)

    def network_input(self, noisy: Bits, t: Float[Array, "*times"]) -> Float[Array, "batch ..."]:
        """Bits as -1 and 1."""
        return 2.0 * noisy - 1.0

    def start(self, white: Float[Array, "batch ..."], t: Float[Array, "*times"]) -> Bits:
        """Fair coins, whatever the time."""
        return (white > 0).astype(jnp.int32)

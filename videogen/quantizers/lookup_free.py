"""Lookup-free quantization: the sign of each dimension is one bit of the id (MAGVIT-v2, section 3.1)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.errors import UserError
from videogen.losses.commitment import commitment
from videogen.quantizers.base import Quantized, count_codes, straight_through

LARGEST_JOINT_BITS = 12
"""The batch entropy is exact up to this many bits; beyond it bits are grouped (as in BSQ) to bound memory."""


def binary_entropy(logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """Entropy in nats of Bernoulli(sigmoid(logits)), stable for large logits."""
    return jax.nn.softplus(logits) - jax.nn.sigmoid(logits) * logits


class LookupFreeQuantizer(nnx.Module):
    """LFQ: codes are the ±1 corners of a cube; ``id = Σ 2^i [z_i > 0]``.

    The entropy loss is ``weight · (E[H(p(c|z))] - diversity · H(E[p(c|z)]))`` with ``p(c|z)`` the softmax of
    ``2 z·c / temperature`` over all codes, which makes the bits independent: ``p(+1) = sigmoid(4 z / temperature)``.

    Args:
      bits: code width; the vocabulary is ``2^bits``.
      entropy_weight: weight of the entropy loss.
      diversity: weight of the batch entropy inside it (gamma).
      commitment_weight: weight of ``mean (z - sg(q))²``, which keeps z from growing without bound.
      temperature: softmax temperature (0.01 in public code).
    """

    def __init__(
        self,
        bits: int,
        *,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment_weight: float = 0.25,
        temperature: float = 0.01,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs  # nothing is learned
        if not 1 <= bits <= 24:
            raise UserError(f"LFQ takes 1 to 24 bits, got {bits}")
        self.width, self.size = bits, 2**bits
        self.entropy_weight, self.diversity = entropy_weight, diversity
        self.commitment_weight, self.temperature = commitment_weight, temperature

    @property
    def vocabulary(self) -> tuple[int, ...]:
        return (self.size,)

    def lookup(self, indices: Int[Array, "... 1"]) -> Float[Array, "... width"]:
        """The ±1 vectors of ids."""
        bits = (indices >> np.arange(self.width)) & 1
        return (2.0 * bits - 1.0).astype(jnp.float32)

    def entropy_loss(self, z: Float[Array, "... width"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean entropy of one latent's distribution, and the entropy of the batch-mean distribution, in nats."""
        logits = (4.0 / self.temperature) * z.reshape(-1, self.width)
        sample = jnp.mean(jnp.sum(binary_entropy(logits), -1))
        groups = -(-self.width // LARGEST_JOINT_BITS)
        batch = 0.0
        for columns in np.array_split(np.arange(self.width), groups):
            joint = self._joint_mean(logits[:, columns])
            batch -= jnp.sum(joint * jnp.log(jnp.maximum(joint, 1e-20)))
        return sample, batch

    def _joint_mean(self, logits: Float[Array, "samples bits"]) -> Float[Array, "codes"]:
        """Batch mean of the joint distribution over the bits: one matrix product of two half products."""
        on, off = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)

        def outer(columns: np.ndarray) -> Float[Array, "samples codes"]:
            p = jnp.ones((logits.shape[0], 1))
            for i in columns:
                p = jnp.concatenate([p * off[:, i : i + 1], p * on[:, i : i + 1]], axis=-1)
            return p

        low, high = np.array_split(np.arange(logits.shape[1]), 2)
        return (outer(low).T @ outer(high)).reshape(-1) / logits.shape[0]

    def __call__(
        self, latents: Float[Array, "... width"], *, key: jax.Array | None = None, train: bool = False
    ) -> Quantized:
        """Takes signs (the sign of 0 is -1); ``key`` and ``train`` are part of the contract and change nothing."""
        z = latents.astype(jnp.float32)
        positive = z > 0
        codes = jnp.where(positive, 1.0, -1.0)
        ids = jnp.sum(positive.astype(jnp.int32) << np.arange(self.width), -1, keepdims=True)
        sample, batch = self.entropy_loss(z)
        losses = {
            "entropy": self.entropy_weight * (sample - self.diversity * batch),
            "commitment": self.commitment_weight * commitment(z, codes),
        }
        return Quantized(straight_through(z, codes), ids, losses, {"counts": count_codes(ids, self.size)})

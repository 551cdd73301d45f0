"""Bits as codes: what lookup-free and binary spherical quantization share.

Both take the sign of each dimension as a bit and keep the bits in use with an entropy loss whose distribution over all
``2^bits`` codes factorises over bits, so that neither a codebook nor a softmax over it is ever in memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.losses.entropy import normalised
from videogen.nn import Mean, mean_where, whole
from videogen.quantizers.base import Quantizer, product

LARGEST_LEVEL_BITS = 24
"""Bits of one id: their counts must fit in memory."""


def binary_entropy(logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """Entropy in nats of Bernoulli(sigmoid(logits)), stable for large logits."""
    return jax.nn.softplus(logits) - jax.nn.sigmoid(logits) * logits


def joint_mean(
    logits: Float[Array, "samples bits"], exists: Bool[Array, "samples"] | None = None
) -> Float[Array, "codes"]:
    """Batch mean of the joint distribution over independent bits: one matrix product of two half products.

    A sample that does not exist counts as 0.
    """
    on, off = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)

    def outer(columns: np.ndarray) -> Float[Array, "samples codes"]:
        p = jnp.ones((logits.shape[0], 1))
        for i in columns:
            p = jnp.concatenate([p * off[:, i : i + 1], p * on[:, i : i + 1]], axis=-1)
        return p

    low, high = np.array_split(np.arange(logits.shape[1]), 2)
    first = outer(low) if exists is None else jnp.where(exists[:, None], outer(low), 0.0)
    return product(first.T, outer(high)).reshape(-1) / logits.shape[0]


def bit_entropies(
    logits: Float[Array, "... bits"],
    largest_group: int,
    mean: Mean = whole,
    exists: Bool[Array, "..."] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean entropy of one latent's distribution over codes, and the entropy of the batch-mean distribution, in nats.

    Args:
      logits: log odds of each bit.
      largest_group: the batch entropy is exact up to this many bits; more bits are split evenly into groups whose
        entropies are added, as if the groups were independent (Zhao et al., 2024), which bounds memory.
      mean: from means over these latents to means over the whole batch.
      exists: which latents are no padding; ``None``: all.
    """
    bits = logits.shape[-1]
    logits = logits.reshape(-1, bits)
    exists = None if exists is None else exists.reshape(-1)
    sample = mean_where(jnp.sum(binary_entropy(logits), -1), exists, mean)
    batch = jnp.zeros(())
    for columns in np.array_split(np.arange(bits), -(-bits // largest_group)):
        joint = mean(joint_mean(logits[:, columns], exists))
        joint = joint if exists is None else normalised(joint)
        batch -= jnp.sum(joint * jnp.log(jnp.maximum(joint, 1e-20)))
    return sample, batch


class BinaryQuantizer(Quantizer):
    """Signs, ids of signs, and their entropies; ``id = Σ 2^i [z_i > 0]`` in every level.

    Args:
      bits: code width.
      levels: ids per place: the bits are split evenly, the first bits in the first level.
      largest_group: bits up to which the batch entropy is exact.
    """

    remedy = "raise entropy_weight or diversity, or use fewer bits"

    def __init__(self, bits: int, levels: int, largest_group: int, rngs: nnx.Rngs | None):
        del rngs  # nothing is learned
        if bits < 1 or levels < 1 or bits % levels or bits // levels > LARGEST_LEVEL_BITS:
            limit = f"1 to {LARGEST_LEVEL_BITS} bits per level"
            raise UserError(f"binary codes take {limit}, split evenly; got {bits} bits in {levels} level(s)")
        self.width, self.levels, self.largest_group = bits, levels, largest_group

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of each level: 2 to the power of its bits."""
        return (2 ** (self.width // self.levels),) * self.levels

    def figures(self, sample: Float[Array, ""], batch: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
        """The two entropies of ``bit_entropies`` for the log, without weights.

        The best ``token_entropy`` is 0: every latent is sure of its code. The best ``batch_entropy`` stands beside it:
        ``bits · log 2``, all codes as often.
        """
        best = jnp.asarray(self.width * np.log(2.0), jnp.float32)
        found = {"token_entropy": sample, "batch_entropy": batch, "batch_entropy_best": best}
        return {name: jax.lax.stop_gradient(value) for name, value in found.items()}

    def signs(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """The ±1 vectors of ids."""
        bits = (indices[..., None] >> np.arange(self.width // self.levels)) & 1
        return (2.0 * bits - 1.0).astype(jnp.float32).reshape(*indices.shape[:-1], self.width)

    def ids(self, z: Float[Array, "... width"]) -> Int[Array, "... levels"]:
        """The ids of signs (the sign of 0 is -1)."""
        bits = (z > 0).astype(jnp.int32).reshape(*z.shape[:-1], self.levels, self.width // self.levels)
        return jnp.sum(bits << np.arange(bits.shape[-1]), -1)

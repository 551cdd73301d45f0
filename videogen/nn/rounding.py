"""Numbers in few bits: groups of neighbours between their least and largest, for caches of keys and values (A4).

A group of ``group`` numbers is stored as its least, the step between two codes, and a code of ``bits`` for each number.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from videogen.errors import UserError
from videogen.nn.caches import KeyValues


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounded:
    """Numbers in groups along their last axis.

    Attributes:
      codes: of every group, 8 / ``bits`` codes in a byte, the first in its lowest bits.
      low: the least number of a group.
      step: between two neighbouring codes.
      bits: of a code.
    """

    codes: UInt8[Array, "*rest groups bytes"]
    low: Float[Array, "*rest groups"]
    step: Float[Array, "*rest groups"]
    bits: int = dataclasses.field(metadata={"static": True})

    def values(self) -> Float[Array, "*rest width"]:
        """The numbers that the codes stand for; each is at most half a step from the one that was stored."""
        places = jnp.arange(0, 8, self.bits, dtype=jnp.uint8)
        codes = (self.codes[..., None] >> places) & jnp.uint8(2**self.bits - 1)
        codes = codes.reshape(*self.codes.shape[:-1], -1)
        found = self.low[..., None] + self.step[..., None] * codes.astype(jnp.float32)
        return found.reshape(*self.low.shape[:-1], -1)


def rounded(x: Float[Array, "*rest width"], bits: int, group: int) -> Rounded:
    """The numbers of ``x`` in groups of neighbours along the last axis.

    Args:
      x: any float dtype.
      bits: 2, 4 or 8.
      group: numbers of a group; it divides the width and fills whole bytes.

    Raises:
      UserError: other bits, or groups that do not fit.
    """
    if bits not in (2, 4, 8):
        raise UserError(f"numbers are rounded to 2, 4 or 8 bits, not {bits}")
    if x.shape[-1] % group or group * bits % 8:
        raise UserError(f"groups of {group} do not divide a width of {x.shape[-1]} into whole bytes; change group")
    parts = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, group)
    low, high = parts.min(-1), parts.max(-1)
    step = (high - low) / (2**bits - 1)
    codes = jnp.round((parts - low[..., None]) / jnp.where(step > 0, step, 1.0)[..., None])
    codes = jnp.clip(codes, 0, 2**bits - 1).astype(jnp.uint8).reshape(*low.shape, -1, 8 // bits)
    places = jnp.arange(0, 8, bits, dtype=jnp.uint8)
    return Rounded(jnp.sum(codes << places, axis=-1, dtype=jnp.uint8), low, step, bits)


def bits_per_number(bits: int, group: int) -> float:
    """Bits that a number takes, with its share of the two float32 numbers of its group."""
    return bits + 64 / group


def rounded_cache(cache: KeyValues, bits: int, group: int) -> tuple[KeyValues, dict[str, Array]]:
    """A cache whose keys and values are those that few bits hold, token by token in groups of channels.

    A token does not depend on others, so rounding each as it is appended gives the same.

    Returns:
      The cache, and its ``key_error`` and ``value_error``: the root of the mean squared error over that of the mean
      square, of the places that are filled.
    """
    filled = jnp.arange(cache.key.shape[3]) < jnp.reshape(cache.length, (-1, 1))
    if cache.places is not None:
        filled = filled & cache.places.exists

    def few(x: Array) -> Array:
        return rounded(x, bits, group).values().astype(x.dtype)

    def error(x: Array, y: Array) -> Array:
        there = filled[:, None, :, None]
        squares = [jnp.sum(jnp.where(there, v.astype(jnp.float32), 0.0) ** 2) for v in (x - y, x)]
        return jnp.sqrt(squares[0] / jnp.maximum(squares[1], 1e-12))

    key = cache.key.swapaxes(2, 3)
    new_key, new_value = few(key), few(cache.value)
    errors = {"key_error": error(key, new_key), "value_error": error(cache.value, new_value)}
    return dataclasses.replace(cache, key=new_key.swapaxes(2, 3), value=new_value), errors

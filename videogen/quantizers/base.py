"""What every quantizer is and returns, and what several of them share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn import FULL, split_keys
from videogen.parallel import cpu

LARGEST_TABLE = 2**14
"""Up to this many codes latents are compared with all of them at once; beyond it in blocks of this size."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """The result of a quantizer.

    Attributes:
      latents: quantised latents with an estimated gradient to the input.
      indices: one id per level.
      losses: weighted auxiliary losses by name, scalars.
      statistics: ``counts``, how often tokens that exist used each code, over the whole mesh: the codes of all levels
        one after another, as ``counted`` says.
      update_sums: what ``Quantizer.update`` needs of these latents; that of several calls is added up. Empty where
        nothing is to be updated.
      candidates: arrays with a leading axis of tokens, latents that ``update`` may make codes of; those of several
        calls are laid end to end. Empty like ``update_sums``.
      figures: numbers for the log, means over the whole batch that are no loss; of several levels their mean.
    """

    latents: Float[Array, "... code"]
    indices: Int[Array, "... levels"]
    losses: dict[str, Float[Array, ""]]
    statistics: dict[str, Array]
    update_sums: Any = dataclasses.field(default_factory=dict)
    candidates: Any = dataclasses.field(default_factory=dict)
    figures: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)

    @property
    def measured(self) -> dict[str, Any]:
        """The statistics, the figures, and what an update needs."""
        more = {"figures": self.figures, "update_sums": self.update_sums, "candidates": self.candidates}
        return {**self.statistics, **more}


class QuantizerState(nnx.Variable):
    """State of a quantizer that is not trained by gradients (moving averages, frozen tables)."""


class Quantizer(nnx.Module):
    """What the families have in common; each adds ``__call__``, ``lookup`` and ``vocabulary``.

    A call never changes the quantizer. What moves with the data rather than by gradients moves in ``update``, once per
    training step, by what all calls of the step with ``train`` returned. Where a call is told which tokens ``exist``,
    ``[batch, *sides]``, padding is quantised as well, but is in no loss, no statistic and no update.

    Attributes:
      width: width of a code.
      input_width: width of the latents that come in; that of a code, but for posteriors (mean and log variance).
      euclidean: whether a code approximates its latent in squared distance, so that what remains can be coded again.
      remedy: what to do when the codebook collapses, for the alarm.
    """

    width: int
    euclidean: bool = False
    remedy: str = ""

    @property
    def input_width(self) -> int:
        """Channels of the latents a call takes; a Gaussian posterior has twice ``width``."""
        return self.width

    @property
    def counted(self) -> dict[str, int]:
        """What ``statistics["counts"]`` counts, in order: name and number of codes of each level (or scale)."""
        return {f"level_{i}": size for i, size in enumerate(self.vocabulary)}

    def code_vectors(self) -> Float[Array, "size width"] | None:
        """The vector of every code; ``None`` where a place is not one code vector."""
        return self.lookup(jnp.arange(self.vocabulary[0])[:, None]) if len(self.vocabulary) == 1 else None

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Moves codebooks and averages one step; here nothing moves.

        Args:
          sums: ``Quantized.update_sums``, added up over the step.
          candidates: ``Quantized.candidates`` of the step.
          key: for what is drawn at random.
        """


def mean_figures(results: Sequence[Quantized]) -> dict[str, Float[Array, ""]]:
    """The means of the figures of several levels, which are of one kind."""
    return {name: sum(r.figures[name] for r in results) / len(results) for name in results[0].figures}


def weighted(losses: Mapping[str, tuple[float, Float[Array, ""]]]) -> dict[str, Float[Array, ""]]:
    """Each loss times its weight; one of weight 0 is left out, so that a term that asks for it is refused."""
    return {name: weight * value for name, (weight, value) in losses.items() if weight}


def product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """``a @ b``, float32 throughout: accelerators' faster products give some tokens a code that is not the nearest."""
    return jnp.matmul(a, b, precision=FULL)


def count_codes(
    indices: Int[Array, "..."], size: int, exists: Bool[Array, "..."] | None = None
) -> Float[Array, "size"]:
    """Occurrences of every id, float32. Counts are sums over the global batch, so they span the mesh."""
    one = 1.0 if exists is None else exists.reshape(-1).astype(jnp.float32)
    return jnp.zeros(size, jnp.float32).at[indices.reshape(-1)].add(one)


def count_levels(
    indices: Int[Array, "... levels"], vocabulary: tuple[int, ...], exists: Bool[Array, "..."] | None = None
) -> Float[Array, "codes"]:
    """Occurrences of every id of every level, one level after another."""
    counts = [count_codes(indices[..., level], size, exists) for level, size in enumerate(vocabulary)]
    return jnp.concatenate(counts) if counts else jnp.zeros(0, jnp.float32)


def nearest(
    latents: Float[Array, "tokens width"], codes: Float[Array, "size width"], offset: Float[Array, "size"]
) -> Int[Array, "tokens"]:
    """``argmax_k z·e_k + offset_k``, the first of equals; no gradient.

    Large codebooks are compared block by block, so that there is never a table of all distances.
    """
    latents, codes = jax.lax.stop_gradient((latents, codes))
    size = codes.shape[0]
    if cpu.takes_nearest(latents.shape[0], size):
        return cpu.nearest_in_cache(latents, codes, offset)
    if size <= LARGEST_TABLE:
        return jnp.argmax(product(latents, codes.T) + offset, axis=-1).astype(jnp.int32)
    blocks = -(-size // LARGEST_TABLE)
    padding = blocks * LARGEST_TABLE - size
    codes = jnp.pad(codes, ((0, padding), (0, 0))).reshape(blocks, LARGEST_TABLE, -1)
    offset = jnp.pad(offset, (0, padding), constant_values=-jnp.inf).reshape(blocks, LARGEST_TABLE)

    def compare(best: tuple, block: tuple) -> tuple[tuple, None]:
        value, index = best
        start, codes, offset = block
        scores = product(latents, codes.T) + offset
        here = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        score = jnp.max(scores, axis=-1)
        return (jnp.maximum(score, value), jnp.where(score > value, start + here, index)), None

    start = (jnp.full_like(latents[:, 0], -jnp.inf), jnp.zeros_like(latents[:, 0], jnp.int32))
    starts = jnp.arange(blocks, dtype=jnp.int32) * LARGEST_TABLE
    return jax.lax.scan(compare, start, (starts, codes, offset))[0][1]


def nearest_euclidean(latents: Float[Array, "tokens width"], codes: Float[Array, "size width"]) -> Int[Array, "tokens"]:
    """``argmin_k ||z - e_k||²``, without the z² term, which does not depend on the code."""
    return nearest(latents, codes, -0.5 * jnp.sum(jax.lax.stop_gradient(codes) ** 2, -1))


def require_key(key: jax.Array | None, what: str) -> jax.Array:
    """The key, or a ``UserError`` that says what needs one."""
    if key is None:
        raise UserError(f"{what} needs a random key in training")
    return key


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """``count`` keys (of each example, where ``key`` is), all ``None`` without a key."""
    return [None] * count if key is None else list(split_keys(key, count))

"""Whether a codebook is used: the figures every tokenizer logs, and the alarm when it has collapsed."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from videogen.metrics import codebook_usage, expected_usage, perplexity
from videogen.quantizers.base import Quantizer

FEWEST = 256
"""Tokens of an evaluation that say something of a codebook: those of a clip or two are alike."""

COLLAPSED = 0.1
"""A codebook has collapsed when its perplexity is below this share of the codes that even use would show."""

FALLEN = 0.5
"""Its use has fallen when that share is below this part of the best one of earlier evaluations."""


def per_level(counts: Num[Array, "codes"], counted: Mapping[str, int]) -> dict[str, Num[Array, "size"]]:
    """The counts of each level, by its name."""
    ends = np.cumsum([0, *counted.values()])
    return {name: counts[start:end] for name, start, end in zip(counted, ends[:-1], ends[1:], strict=True)}


def codebook_health(counts: Num[Array, "codes"], counted: Mapping[str, int]) -> dict[str, Float[Array, ""]]:
    """Usage, perplexity and normalised entropy (of the ids, in [0, 1]), means over levels; nothing without ids.

    Args:
      counts: uses of every code, of all levels one after another (``Quantized.statistics["counts"]``).
      counted: name and number of codes of each level (``Quantizer.counted``).
    """
    if not counted:
        return {}
    levels = per_level(counts, counted).values()
    perplexities = jnp.stack([perplexity(level) for level in levels])
    return {
        "codebook_usage": jnp.mean(jnp.stack([codebook_usage(level) for level in levels])),
        "codebook_perplexity": jnp.mean(perplexities),
        "codebook_entropy": jnp.mean(jnp.log(perplexities) / np.log(np.maximum([*counted.values()], 2))),
    }


def evaluated_health(counts: Num[np.ndarray, "codes"], counted: Mapping[str, int]) -> dict[str, float]:
    """``codebook_health`` of a whole evaluation, with the codes that never occurred and the usage of even draws.

    ``codebook_dead`` is a number of codes, over all levels; ``codebook_expected_usage`` is what evenly drawn ids would
    have reached with as many draws: with few draws a healthy codebook has codes that do not occur. Where there are
    several levels the usage, the perplexity and the usage of even draws stand under the name of each, too: a mean hides
    one that collapsed.
    """
    if not counted:
        return {}
    levels = per_level(counts, counted)
    expected = {name: float(expected_usage(int(level.sum()), level.size)) for name, level in levels.items()}
    found = {name: float(value) for name, value in codebook_health(counts, counted).items()} | {
        "codebook_dead": float(np.sum(counts == 0)),
        "codebook_expected_usage": float(np.mean([*expected.values()])),
    }
    for name, level in levels.items() if len(levels) > 1 else ():
        found[f"codebook_usage_{name}"] = float(codebook_usage(level))
        found[f"codebook_perplexity_{name}"] = float(perplexity(level))
        found[f"codebook_expected_usage_{name}"] = expected[name]
    return found


class UsageWatch:
    """Tells when a codebook is hardly used, or less and less from one evaluation to the next.

    The share in use of a level is the perplexity of its ids, less 1, over the number of codes that as many evenly drawn
    ids would show, less 1.
    """

    def __init__(self):
        self.best: dict[str, float] = {}

    def warning(self, quantizer: Quantizer, counts: Num[np.ndarray, "codes"]) -> str | None:
        """One line that names the quantizer, the figures and the remedy; ``None`` where there is nothing to say.

        Args:
          quantizer: what gave the ids.
          counts: uses of every code in an evaluation, of all levels one after another.
        """
        lines: list[str] = []
        for level, level_counts in per_level(counts, quantizer.counted).items():
            draws, size = int(level_counts.sum()), level_counts.size
            even = expected_usage(draws, size) * size
            found = float(perplexity(level_counts))
            share = (found - 1) / (even - 1) if even > 1 else 1.0
            if draws < FEWEST:
                continue
            best = self.best[level] = max(share, self.best.get(level, 0.0))
            if share >= COLLAPSED and share >= FALLEN * best:
                continue
            where = f" ({level.replace('_', ' ')})" if len(quantizer.counted) > 1 else ""
            figures = (
                f"{type(quantizer).__name__}{where} uses {int(np.sum(level_counts > 0))} of {size} codes "
                f"with perplexity {found:.1f} over {draws} tokens"
            )
            if share < COLLAPSED:
                return f"codebook collapse: {figures}; {quantizer.remedy}"
            lines.append(f"codebook use has fallen to {share / best:.0%} of its best: {figures}; {quantizer.remedy}")
        return next(iter(lines), None)

"""Clusters of tokens, of which one token each stays: medoids, density peaks, k-means (G3 to G6)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn.clustering import Clusters, kmeans
from videogen.nn.medoids import density_peaks, kkz, medoids, spectral
from videogen.ranges import Count, OneOf, Positive, Share
from videogen.reducers.base import Reducer, Report, report
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, merge, ranked, take, unit


def first_there(mask: Bool[Array, "batch tokens"], index: Int[Array, "batch kept"]) -> tuple[Array, Array]:
    """``index``, or where no more tokens exist than are to be kept, those that exist, in their order; and which of
    them there are."""
    kept, found = index.shape[1], mask.sum(1, keepdims=True)
    order = jnp.argsort(~mask, axis=1, stable=True)[:, :kept]
    return jnp.where(found <= kept, order, index), jnp.arange(kept)[None] < found


class Medoids(Reducer):
    """The medoids of the tokens of every segment of frames (CenterCLIP).

    Args:
      budget: medoids of a segment.
      segments: the frames are cut into so many equal parts.
      by: ``vectors``, or ``spectrum``: the rows of the least eigenvectors of their affinity.
      sigma: of the affinity.
      rounds: of k-medoids.
    """

    laws = ("fixed_budget", "identity_at_full_budget")

    def __init__(
        self,
        budget: Count,
        *,
        segments: Count = 1,
        by: Annotated[str, OneOf("vectors", "spectrum")] = "vectors",
        sigma: Positive = 2.0,
        rounds: Count = 20,
    ):
        self.budget, self.segments, self.by, self.sigma, self.rounds = budget, segments, by, sigma, rounds
        self.needs_grid = segments > 1

    @classmethod
    def budgeted(cls, section: Mapping[str, Any], budget: int, tokens: int, grid: Any) -> dict[str, Any]:
        if budget % (segments := section.get("segments", 1)):
            raise UserError(f"{segments} segments do not share a budget of {budget} evenly; take a multiple")
        return {**section, "budget": budget // segments}

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        given, (batch, count) = tokens.filled(), tokens.shape
        if self.segments > 1 and self.grid_of(tokens)[0] % self.segments:
            raise UserError(f"{tokens.grid[0]} frames do not divide into {self.segments} segments; change segments")
        length = count // self.segments
        budget = min(self.budget, length)
        parts = jax.tree.map(lambda a: a.reshape(-1, length, *a.shape[2:]), (given.x, given.mask))

        def chosen(x: Array, mask: Array) -> Array:
            points = spectral(x, budget, mask, self.sigma) if self.by == "spectrum" else x
            return medoids(points, budget, mask, self.rounds)[0]

        index, there = first_there(parts[1], jax.vmap(chosen)(*parts))
        starts = jnp.arange(self.segments)[None, :, None] * length
        index = (index.reshape(batch, self.segments, budget) + starts).reshape(batch, -1)
        found = take(tokens, index, there.reshape(batch, -1))
        return found, report(tokens, found, self.budget * self.segments)


class DensityPeaks(Reducer):
    """The tokens that are dense and far from denser ones, with or without what is near them (HoT, HoliTom).

    Args:
      budget: how many stay.
      neighbours: k of the density; 2 with one token a frame, 7 with patches.
      output: ``centre``: they stay as they are. ``mean``: each becomes the mean of its cluster. ``blend``:
        ``share · centre + (1 - share) · mean of the others``.
      share: of ``blend``.
    """

    def __init__(
        self,
        budget: Count,
        *,
        neighbours: Count = 7,
        output: Annotated[str, OneOf("centre", "mean", "blend")] = "centre",
        share: Share = 0.6,
    ):
        self.budget, self.neighbours, self.output, self.share = budget, neighbours, output, share
        mass = () if output == "centre" else ("conserved_mass",)
        self.laws = ("fixed_budget", *mass, "identity_at_full_budget")

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        given, budget = tokens.filled(), min(self.budget, tokens.shape[1])
        find = jax.vmap(lambda x, mask: density_peaks(x, budget, self.neighbours, mask))
        centres, cluster = find(given.x, given.mask)
        index, there = first_there(given.mask, centres)
        alone = take(tokens, index, there)
        if self.output == "centre":
            return alone, report(tokens, alone, self.budget)
        few = given.mask.sum(1, keepdims=True) <= budget
        own = jnp.cumsum(given.mask, axis=1) - 1
        group = jnp.where(given.mask, jnp.where(few, own, cluster), budget)
        found = merge(tokens, group, budget)
        if self.output == "blend":
            others = found.size - alone.size
            rest = found.size[..., None] * found.x.astype(jnp.float32) - alone.size[..., None] * alone.x
            rest = rest / jnp.maximum(others, 1e-12)[..., None]
            mixed = self.share * alone.x + (1 - self.share) * rest
            x = jnp.where((others > 0)[..., None], mixed, alone.x).astype(given.x.dtype)
            found = TokenSet(x, found.mask, found.position, found.size, found.source)
        return found, report(tokens, found, self.budget)


CHOICES = ("elbow", "silhouette")
"""Rules for the number of clusters: where the curve of the error bends most, or where tokens are nearest to their own
centroid beside the next one."""


class KMeans(Reducer):
    """The means of k-means clusters of unit vectors: the tokens of a clip by its own codebook (VQToken).

    ``aux`` is not read; the cluster of every original token is ``source``. A cluster is begun with the point farthest
    from those that are begun (``nn.medoids.kkz``), so nothing is drawn at random.

    Args:
      budget: clusters, at most where there are ``choices``.
      rounds: of k-means.
      choices: numbers of clusters of which every clip takes one, by ``rule``; none: always ``budget``.
      rule: one of ``CHOICES``.
    """

    def __init__(
        self,
        budget: Count = 32,
        *,
        rounds: Count = 20,
        choices: Sequence[Count] = (),
        rule: Annotated[str, OneOf(*CHOICES)] = "silhouette",
    ):
        if choices and (max(choices) > budget or list(choices) != sorted(set(choices)) or len(choices) < 2):
            raise UserError(f"choices of clusters are at least two, rise, and end at most at {budget}; got {choices}")
        self.budget, self.rounds, self.choices, self.rule = budget, rounds, tuple(choices), rule
        self.laws = ("fixed_budget", "conserved_mass", *(() if choices else ("identity_at_full_budget",)))

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        given, count = tokens.filled(), tokens.shape[1]
        budget = min(self.budget, count)
        points = jnp.where(given.mask[..., None], unit(given.x), 0.0)
        start = jax.vmap(lambda x, mask: x[kkz(x, budget, mask)])(points, given.mask)
        counts = [min(number, count) for number in self.choices] or [budget]
        found = [kmeans(points, start[:, :number], self.rounds, exists=given.mask) for number in counts]
        chosen = self._chosen(points, given.mask, found)
        labels = jnp.take_along_axis(jnp.stack([one.labels for one in found]), chosen[None, :, None], axis=0)[0]
        own = jnp.cumsum(given.mask, axis=1) - 1
        few = given.mask.sum(1, keepdims=True) <= jnp.asarray(counts)[chosen][:, None]
        group = jnp.where(given.mask, jnp.where(few, own, labels), budget)
        found = merge(tokens, _in_order(group, budget), budget)
        more = {"clusters": jnp.mean(jnp.asarray(counts)[chosen] * 1.0)} if self.choices else {}
        return found, report(tokens, found, self.budget, **more)

    def _chosen(
        self, points: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"], found: list[Clusters]
    ) -> Int[Array, "batch"]:
        """Which of the clusterings each clip takes; of equal ones that with the fewest clusters."""
        if len(found) == 1:
            return jnp.zeros(len(points), jnp.int32)
        if self.rule == "elbow":
            counts = jnp.asarray([one.sizes.shape[1] for one in found], jnp.float32)
            errors = jnp.stack([one.inertia for one in found], axis=1)
            share = (counts - counts[0]) / jnp.maximum(counts[-1] - counts[0], 1)
            line = errors[:, :1] + share * (errors[:, -1:] - errors[:, :1])
            return jnp.argmax(line - errors, axis=1)
        return jnp.argmax(jnp.stack([silhouette(points, mask, one) for one in found], axis=1), axis=1)


def silhouette(
    points: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"], clusters: Clusters
) -> Float[Array, "batch"]:
    """Mean over the points of ``(b - a) / max(a, b)``, a their distance to their own centroid, b that to the nearest
    other one that has points; in [-1, 1]."""
    apart = jnp.linalg.norm(points[:, :, None] - clusters.centroids[:, None], axis=-1)
    own = jax.nn.one_hot(clusters.labels, apart.shape[-1], dtype=bool)
    a = jnp.where(own, apart, 0.0).sum(-1)
    b = jnp.where(own | (clusters.sizes == 0)[:, None], jnp.inf, apart).min(-1)
    value = jnp.where(jnp.isfinite(b), (b - a) / jnp.maximum(jnp.maximum(a, b), 1e-12), 0.0)
    return jnp.where(mask, value, 0.0).sum(1) / jnp.maximum(mask.sum(1), 1)


def _in_order(group: Int[Array, "batch tokens"], budget: int) -> Int[Array, "batch tokens"]:
    """Groups numbered by their first tokens."""
    count = group.shape[1]

    def first(group: Array) -> Array:
        firsts = jax.ops.segment_min(jnp.arange(count), group, budget + 1)
        return jnp.where(group < budget, firsts[group], count)

    ordered = ranked(jax.vmap(first)(group), count)
    return jnp.where(ordered < count, ordered, budget)

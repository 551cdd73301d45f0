"""What every reducer is: fewer tokens of a clip, for an objective, a decoder or a language model."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from videogen.errors import UserError
from videogen.reducers.tokens import Grid, TokenSet, mean_of_originals

Report = Mapping[str, Array]
"""What a reducer says of what it did, by name: scalars, means over the examples."""

LAWS = ("fixed_budget", "conserved_mass", "identity_at_full_budget")
"""What a reducer may promise: always as many tokens, sizes that sum to those that came in, and tokens that stay as they
are where there is room for all."""


class Reducer(nnx.Module):
    """Base of reducers.

    Attributes:
      needs: names in ``aux`` that ``reduce`` reads.
      laws: names in ``LAWS`` that it obeys.
      needs_grid: its tokens must be a whole grid.
      keeps_grid: of a whole grid it gives a whole grid.
      framewise: of a whole grid it gives a whole grid of as many frames, each from its own frame alone.
      recurrent: it reads segments of ``frames`` frames one after another, so that a stream can go on (``begin``,
        ``fold``, ``remembered``).
    """

    needs: ClassVar[tuple[str, ...]] = ()
    laws: ClassVar[tuple[str, ...]] = ()
    needs_grid: ClassVar[bool] = False
    keeps_grid: ClassVar[bool] = False
    framewise: ClassVar[bool] = False
    recurrent: bool = False
    frames: int

    @classmethod
    def budgeted(cls, section: Mapping[str, Any], budget: int, tokens: int, grid: Grid | None) -> dict[str, Any]:
        """The section of a reducer of this class that gives ``budget`` tokens.

        Args:
          section: ``{name, …}``.
          budget: tokens of a clip.
          tokens: that it is given.
          grid: their sides, where they are a whole grid.

        Raises:
          UserError: it has no such setting, or cannot give so many.
        """
        settings = inspect.signature(cls.__init__).parameters
        # Parameters that were trained are of one budget.
        if "budget" not in settings or "rngs" in settings:
            raise UserError(f"{cls.__name__} has one budget, that of its settings; leave other budgets out")
        return {**section, "budget": budget}

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = MappingProxyType({})) -> tuple[TokenSet, Report]:
        """Fewer tokens that stand for these, and what was done.

        Args:
          tokens: of one segment.
          aux: what else is needed, by the names in ``needs``.
        """
        raise NotImplementedError

    def begin(self, batch: int, grid: Grid, count: int) -> Any:
        """What is carried from segment to segment, before the first one; of fixed size.

        Args:
          batch: streams.
          grid: sides of a segment.
          count: segments that are remembered as such.
        """
        raise NotImplementedError

    def fold(self, carry: Any, segment: TokenSet) -> Any:
        """What is carried behind one more segment, on its grid; after ``count`` segments the oldest makes room."""
        raise NotImplementedError

    def remembered(self, carry: Any) -> tuple[TokenSet, Int[Array, "tokens"]]:
        """The tokens that stand for all segments, and which segment each is of: 0 is the oldest that is remembered as
        such, the places of a token in time are those in its segment; -1: of all segments.

        After at most ``count`` segments of a clip these are the tokens of ``reduce``.
        """
        raise NotImplementedError

    def grid_of(self, tokens: TokenSet) -> Grid:
        """The sides of the grid that the tokens must be.

        Raises:
          UserError: they are no whole grid.
        """
        if tokens.grid is None:
            raise UserError(f"{type(self).__name__} needs the tokens on their whole grid, and some are gone here")
        return tokens.grid


def report(before: TokenSet, after: TokenSet, asked: int | Array, **more: Array) -> Report:
    """What is said of every reduction: tokens there were, asked for and used, and the mass that was lost."""
    a, b = before.filled(), after.filled()
    tokens, used = a.mask.sum(1), b.mask.sum(1)
    found = {
        "tokens": jnp.mean(tokens * 1.0),
        "asked": jnp.mean(jnp.asarray(asked) * 1.0),
        "kept": jnp.mean(used * 1.0),
        "share": jnp.mean(used / jnp.maximum(tokens, 1)),
        "lost": jnp.mean(a.size.sum(1) - b.size.sum(1)),
    }
    return {**found, **more}


def need(aux: Mapping[str, Any], name: str, who: Reducer) -> Any:
    """What a reducer needs in ``aux``; raises ``UserError`` where it is not there."""
    if aux.get(name) is None:
        raise UserError(f"{type(who).__name__} needs {name!r}, which is not given here")
    return aux[name]


PER_TOKEN, PER_FRAME = ("score", "joint", "metric", "difference", "mass", "teacher"), ("frames", "change", "weights")
"""What in ``aux`` has a value for every token, and for every frame."""


def follow(aux: Mapping[str, Any], tokens: TokenSet, found: TokenSet) -> dict[str, Any]:
    """What ``aux`` says of the tokens that a reducer has found: means over the originals that each stands for, and the
    values of the frames that are left."""
    known = dict(aux)
    known |= {name: mean_of_originals(jnp.asarray(aux[name]), found) for name in PER_TOKEN if aux.get(name) is not None}
    if found.grid is not None and tokens.grid is not None and found.grid[0] != tokens.grid[0]:
        first = found.filled().position.reshape(len(found.x), found.grid[0], -1, 3)[:, :, 0, 0]
        frame = jnp.clip(jnp.round(first), 0, tokens.grid[0] - 1).astype(jnp.int32)
        for name in PER_FRAME:
            if aux.get(name) is not None:
                values = jnp.asarray(aux[name])
                known[name] = jax.vmap(lambda v, f: v[f])(values, frame)
    return known


class Chain(Reducer):
    """Reducers one behind the other; what ``aux`` says of tokens and frames follows them.

    Args:
      reducers: in their order; the first gets the tokens on their grid.
      given: the names that ``aux`` will have.

    Raises:
      UserError: one needs what is gone by then, or is not given.
    """

    def __init__(self, reducers: Sequence[Reducer], given: Sequence[str] = ()):
        self.reducers = nnx.List(reducers)
        whole, broken_by = True, ""
        for reducer in reducers:
            name = type(reducer).__name__
            if reducer.needs_grid and not whole:
                raise UserError(
                    f"{name} needs the whole grid of tokens, which is gone behind {broken_by}; put it first"
                )
            if missing := [what for what in reducer.needs if what not in given]:
                known = ", ".join(given) or "nothing"
                raise UserError(f"{name} needs {missing[0]!r}, and there is {known} here; leave it out")
            if not reducer.keeps_grid and whole:
                whole, broken_by = False, name
        self.needs = tuple(dict.fromkeys(what for reducer in reducers for what in reducer.needs))
        self.laws = tuple(law for law in LAWS if all(law in reducer.laws for reducer in reducers))

    def first_that_needs(self, names: Sequence[str]) -> int:
        """The number of the first reducer that needs one of these; that of all where none does."""
        return next(
            (i for i, reducer in enumerate(self.reducers) if set(names) & set(reducer.needs)), len(self.reducers)
        )

    def reduce(
        self,
        tokens: TokenSet,
        aux: Mapping[str, Any] = MappingProxyType({}),
        *,
        original: TokenSet | None = None,
        part: slice = slice(None),
    ) -> tuple[TokenSet, Report]:
        """As of every reducer.

        Args:
          tokens: of one segment.
          aux: what else is needed; it says of the ``original`` tokens what it says of tokens.
          original: the tokens that the chain began with, where ``tokens`` come from its first reducers.
          part: which reducers there are.
        """
        original = tokens if original is None else original
        found, asked = tokens, jnp.asarray(float(tokens.shape[1]))
        for reducer in self.reducers[part]:
            found, said = reducer.reduce(found, aux if found is original else follow(aux, original, found))
            asked = said["asked"]
        return found, report(original, found, asked)

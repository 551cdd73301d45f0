"""What a sampler leaves out of a diffusion transformer, to be faster and a little different: sparse attention, and
layers whose result is taken from an earlier step. Both count calls of the network and never look at noise levels."""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.building import check_fields
from videogen.errors import UserError
from videogen.nn import Stack
from videogen.nn.block_sparse import PATHS, difference_on_device, fast_path
from videogen.nn.sparse_attention import Centroids, Clustering, SparseStream
from videogen.ranges import Count, Natural, Number, OneOf, Share, Weight

TOLERANCE = 0.02
"""How far a fast path may be from the reference, relative to its largest number: half precision is nearer."""


def rounded_up(share: float, count: int) -> int:
    """The share of ``count`` as a whole number, rounded up: 0.1 of 50 is 5, 0.03 of 30 is 1."""
    return math.ceil(Fraction(str(share)) * count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Remembered:
    """What a shortcut keeps between the calls of a network.

    Attributes:
      calls: how many there were.
      kept: of the layers, as the shortcut defines it.
    """

    calls: Int[Array, ""]
    kept: Any


class Call:
    """One call of a network with a shortcut: ``run`` stands for the layers, and ``memory`` is what is kept after it.

    Args:
      shortcut: settings.
      memory: before the call.
      calls: of the whole drawing.
    """

    def __init__(self, shortcut: Any, memory: Remembered, calls: int):
        self.shortcut, self.memory, self.calls = shortcut, memory, calls

    def run(self, stack: Stack, x: Float[Array, "batch *grid width"], text: int = 0, **call: Any) -> Array:
        """The tokens behind the layers; the first ``text`` of a sequence are those of the text."""
        out, kept = self.shortcut.layers(stack, x, self.memory, self.calls, text, call)
        self.memory = Remembered(self.memory.calls + 1, kept)
        return out


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """Base of what a sampler may leave out."""

    def __post_init__(self):
        check_fields(self)

    def check(self, model: nnx.Module, queued: bool) -> None:
        """Refuses a ``FlowTransformer``, or frames out of a queue, that it does not go with.

        Raises:
          UserError: says which.
        """
        if not model.process.solved:
            raise UserError(f"{self.setting} is for latents, and this model draws bits: leave {self.setting} out")
        if model.beside_tokens:
            raise UserError(f"{self.setting} does not go with a branch beside the layers: leave {self.setting} out")
        if queued:
            raise UserError(f"{self.setting} does not go with a queue of frames: set sampler.extension=window")

    def verify(self, model: nnx.Module) -> None:
        """Tests on the device in use what depends on it; raises ``UserError`` where it fails."""

    def call(self, memory: Remembered, calls: int) -> Call:
        """The next of so many calls."""
        return Call(self, memory, calls)

    def begin(self, model: nnx.Module, batch: int, tokens: int, branches: int, text: int) -> Remembered:
        """The memory before the first call.

        Args:
          model: the ``FlowTransformer``.
          batch: examples.
          tokens: of a clip.
          branches: how often every example is in a call: 2 with guidance.
          text: tokens of the text in the same sequence.
        """
        raise NotImplementedError

    def layers(
        self, stack: Stack, x: Array, memory: Remembered, calls: int, text: int, call: dict[str, Any]
    ) -> tuple[Array, Any]:
        """The tokens behind the layers, and what is kept of them."""
        raise NotImplementedError

    def report(self, memory: Remembered, calls: int, layers: int) -> dict[str, Float[Array, "batch"]]:
        """What was left out, in numbers of every example, after so many calls of so many layers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class SparseVideoGen2(Shortcut):
    """Sparse attention of clusters that are found anew in every call (Yang et al., 2025; ``nn.sparse_attention``).

    The word is density: the share of the pairs of a query and a key that is computed.

    Attributes:
      queries, keys: clusters of the queries and of the keys of every head.
      top_p: the estimated share of the attention that the kept clusters have; 1 keeps all.
      minimum: share of the clusters of keys that are kept at least.
      warmup: share of the calls, rounded up, that are dense: the first ones.
      warmup_layers: share of the layers, rounded up, that are always dense: the first ones.
      first_iterations: of k-means in the first sparse call.
      iterations: of k-means in later calls, which begin with the centroids of the call before.
      tolerance: k-means ends when no centroid moves by more.
      seed: decides which tokens are the first centroids.
      path: ``auto``, or a name in ``nn.block_sparse.PATHS``.
      block: tokens of a block of the fast paths.
      compare: draw the first videos densely as well and write down how far they are.
    """

    queries: Count = 100
    keys: Count = 500
    top_p: Annotated[float, Number(float, 0, 1, above=True)] = 0.9
    minimum: Share = 0.1
    warmup: Share = 0.2
    warmup_layers: Share = 0.03
    first_iterations: Count = 50
    iterations: Count = 2
    tolerance: Weight = 1e-4
    seed: Natural = 0
    path: Annotated[str, OneOf("auto", *PATHS)] = "auto"
    block: Count = 128
    compare: bool = True

    setting = "sampler.attention"

    def check(self, model: nnx.Module, queued: bool) -> None:
        super().check(model, queued)
        if model.causal:
            raise UserError("sampler.attention=svg2 is for frames that all see each other, and model.causal is set")
        if model.deep_text is not None:
            raise UserError("sampler.attention=svg2 does not go with model.text=deep: leave it out")
        if not model.stack.depth:
            raise UserError("sampler.attention=svg2 needs layers, and model.transformer.layers is 0")
        tokens = model.tokens(model.grid).tokens
        for name in ("queries", "keys"):
            if getattr(self, name) > tokens:
                raise UserError(
                    f"sampler.attention.{name}={getattr(self, name)}: a clip of this model has {tokens} tokens, and "
                    "there cannot be more clusters"
                )

    def verify(self, model: nnx.Module) -> None:
        attention = model.stack.layers.attention
        path = fast_path() if self.path == "auto" else self.path
        found = _difference(path, attention.head_width, jnp.dtype(attention.dtype), self.block)
        if not found <= TOLERANCE:
            raise UserError(
                f"on this device the path {path!r} of sparse attention is {found:.2g} away from the reference; set "
                "sampler.attention.path=reference"
            )

    @property
    def clustering(self) -> Clustering:
        """The settings that the attention needs."""
        fields = [field.name for field in dataclasses.fields(Clustering)]
        return Clustering(**{name: getattr(self, name) for name in fields})

    def dense_layers(self, layers: int) -> int:
        """How many layers are always dense."""
        return rounded_up(self.warmup_layers, layers)

    def dense_calls(self, calls: int) -> int:
        """How many calls are dense."""
        return rounded_up(self.warmup, calls)

    def begin(self, model: nnx.Module, batch: int, tokens: int, branches: int, text: int) -> Remembered:
        layers = model.stack.depth - self.dense_layers(model.stack.depth)
        attention = model.stack.layers.attention
        sizes = self.clustering.sizes(tokens)
        return Remembered(
            jnp.zeros((), jnp.int32), Centroids.empty((layers, batch), attention.heads, sizes, attention.head_width)
        )

    def layers(
        self, stack: Stack, x: Array, memory: Remembered, calls: int, text: int, call: dict[str, Any]
    ) -> tuple[Array, Centroids]:
        dense, warm = self.dense_layers(stack.depth), self.dense_calls(calls)
        first, whole = memory.calls == warm, memory.calls < warm
        stream = SparseStream(((memory.kept,),), self.clustering, first, whole, text)
        if dense:
            x = stack(x, layers=slice(0, dense), **call)
        if dense == stack.depth:
            return x, memory.kept
        x = stack(x, layers=slice(dense, None), sparse=stream, **call)
        return x, stream.cache[0][0]

    def report(self, memory: Remembered, calls: int, layers: int) -> dict[str, Float[Array, "batch"]]:
        sparse_calls, sparse_layers = calls - self.dense_calls(calls), layers - self.dense_layers(layers)
        batch = memory.kept.density.shape[1]
        if not (sparse_calls and sparse_layers):
            return {"density": jnp.ones(batch), "density_with_warmup": jnp.ones(batch)}
        density = memory.kept.density.mean((0, 2)) / sparse_calls
        share = sparse_calls * sparse_layers / (calls * layers)
        return {"density": density, "density_with_warmup": 1 - share * (1 - density)}


@functools.cache
def _difference(path: str, width: int, dtype: jnp.dtype, block: int) -> float:
    """``difference_on_device``, once in a process."""
    return difference_on_device(path, width, dtype, block)


@dataclasses.dataclass(frozen=True)
class ResidualCache(Shortcut):
    """What the layers add to their input is computed in every n-th call, and taken from then in the others.

    Attributes:
      every: n; 1 computes all calls.
      warmup: share of the calls, rounded up, that are all computed: the first ones.
      compare: draw the first videos with all calls as well and write down how far they are.
    """

    every: Count = 2
    warmup: Share = 0.2
    compare: bool = True

    setting = "sampler.cache"

    def computed(self, calls: int) -> np.ndarray:
        """Which of the calls are computed."""
        number, warm = np.arange(calls), rounded_up(self.warmup, calls)
        return (number < warm) | ((number - warm) % self.every == 0)

    def begin(self, model: nnx.Module, batch: int, tokens: int, branches: int, text: int) -> Remembered:
        shape = (branches * batch, text + tokens, model.width)
        return Remembered(jnp.zeros((), jnp.int32), jnp.zeros(shape, model.embed.dtype))

    def layers(
        self, stack: Stack, x: Array, memory: Remembered, calls: int, text: int, call: dict[str, Any]
    ) -> tuple[Array, Array]:
        def compute() -> tuple[Array, Array]:
            y = stack(x, **call)
            return y, (y - x).reshape(memory.kept.shape).astype(memory.kept.dtype)

        def reuse() -> tuple[Array, Array]:
            return x + memory.kept.reshape(x.shape).astype(x.dtype), memory.kept

        now = jnp.asarray(self.computed(calls))[jnp.minimum(memory.calls, calls - 1)]
        return jax.lax.cond(now, compute, reuse)

    def report(self, memory: Remembered, calls: int, layers: int) -> dict[str, Float[Array, "batch"]]:
        return {"computed_calls": jnp.full(1, self.computed(calls).mean())}


ATTENTIONS = {"svg2": SparseVideoGen2}
CACHES = {"residual": ResidualCache}
"""What ``sampler.attention`` and ``sampler.cache`` may be."""

"""Guidance: a denoiser made of a conditional and an unconditional prediction.

A network that answers for both, ``(x_t, t) -> (conditional, unconditional)``, and a guidance give a denoiser:
``Guided``. Guidances nest: ``Rescale(Interval(ClassifierFree(5.0), high=0.9))``.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from videogen.building import check_fields
from videogen.diffusion.processes import broadcast_right
from videogen.ranges import Finite, Number, Positive, Share

Sample = Float[Array, "batch ..."]


def _over_example(reduce: Callable[..., Array], value: Sample, t: Array) -> Array:
    """Reduces every example over the frames that are still noisy: predictions of the others were never trained."""
    noisy = broadcast_right(t > 0, value)
    # Where there is no noise at all nothing depends on the result.
    noisy = noisy | ~noisy.any(axis=tuple(range(1, noisy.ndim)), keepdims=True)
    where = jnp.broadcast_to(noisy, value.shape)
    return reduce(value, axis=tuple(range(1, value.ndim)), keepdims=True, where=where)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What guidances share; each adds ``__call__``. Most remember nothing."""

    def __post_init__(self):
        check_fields(self)

    def initialize(self, noisy: Sample) -> Any:
        """The memory before the first call."""
        return ()

    def __call__(self, conditional: Sample, unconditional: Sample, t: Array, memory: Any) -> tuple[Sample, Any]:
        """(conditional prediction, unconditional, time, memory) -> (guided prediction, memory)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ClassifierFree(Guidance):
    """``unconditional + scale·(conditional - unconditional)`` (Ho and Salimans, 2022).

    Attributes:
      scale: 1 is the conditional prediction, 0 the unconditional.
    """

    scale: Finite

    def scale_at(self, t: Array) -> Array | float:
        """The scale at time ``t``."""
        return self.scale

    def __call__(self, conditional: Sample, unconditional: Sample, t: Array, memory: tuple) -> tuple[Sample, tuple]:
        return conditional + (broadcast_right(self.scale_at(t), conditional) - 1) * (
            conditional - unconditional
        ), memory


@dataclasses.dataclass(frozen=True)
class RisingClassifierFree(ClassifierFree):
    """A scale that rises from 1 at t = 1 to ``scale`` at t = 0, late (CogVideoX's dynamic guidance).

    Attributes:
      power: the larger, the later.
    """

    power: Positive = 5.0

    def scale_at(self, t: Array) -> Array:
        return 1 + (self.scale - 1) * 0.5 * (1 - jnp.cos(jnp.pi * (1 - t) ** self.power))


@dataclasses.dataclass(frozen=True)
class AdaptiveProjected(Guidance):
    """APG (Sadat et al., 2024): classifier-free guidance without the part that only saturates.

    Attributes:
      scale: as in classifier-free guidance.
      eta: share kept of the difference's part parallel to the conditional prediction; 1 keeps all.
      momentum: the running difference is the new one plus this times the running one; negative pushes away from it.
      norm_threshold: longest difference of an example.
    """

    scale: Finite
    eta: Finite = 0.0
    momentum: Finite = -0.5
    norm_threshold: Annotated[float, Number(float, 0, above=True)] = 2.5

    def initialize(self, noisy: Sample) -> Sample:
        return jnp.zeros_like(noisy)

    def __call__(self, conditional: Sample, unconditional: Sample, t: Array, memory: Sample) -> tuple[Sample, Sample]:
        conditional, unconditional = conditional.astype(memory.dtype), unconditional.astype(memory.dtype)
        running = conditional - unconditional + self.momentum * memory
        length = jnp.sqrt(_over_example(jnp.sum, running**2, t))
        # The tiny number keeps an example without a difference, or without a prediction, from 0 / 0.
        difference = running * jnp.minimum(1.0, self.norm_threshold / (length + 1e-12))
        share = _over_example(jnp.sum, difference * conditional, t) / (
            _over_example(jnp.sum, conditional**2, t) + 1e-12
        )
        return conditional + (self.scale - 1) * (difference - (1 - self.eta) * share * conditional), running


@dataclasses.dataclass(frozen=True)
class Interval(Guidance):
    """Guidance only at some noise levels (Kynkäänniemi et al., 2024); the conditional prediction elsewhere.

    Attributes:
      inner: the guidance within.
      low: least time.
      high: greatest time.
    """

    inner: Guidance
    low: Finite = 0.0
    high: Finite = 1.0

    def initialize(self, noisy: Sample) -> Any:
        return self.inner.initialize(noisy)

    def __call__(self, conditional: Sample, unconditional: Sample, t: Array, memory: Any) -> tuple[Sample, Any]:
        guided, memory = self.inner(conditional, unconditional, t, memory)
        return jnp.where(broadcast_right((self.low <= t) & (t <= self.high), conditional), guided, conditional), memory


@dataclasses.dataclass(frozen=True)
class Rescale(Guidance):
    """The guided prediction brought back to the standard deviation of the conditional one (Lin et al., 2023).

    Attributes:
      inner: the guidance to rescale.
      share: 0 not at all, 1 fully.
    """

    inner: Guidance
    share: Share = 0.7

    def initialize(self, noisy: Sample) -> Any:
        return self.inner.initialize(noisy)

    def __call__(self, conditional: Sample, unconditional: Sample, t: Array, memory: Any) -> tuple[Sample, Any]:
        guided, memory = self.inner(conditional, unconditional, t, memory)
        ratio = _over_example(jnp.std, conditional, t) / (_over_example(jnp.std, guided, t) + 1e-12)
        return guided * (1 - self.share + self.share * ratio), memory


@dataclasses.dataclass(frozen=True)
class Guided:
    """A guided denoiser, for ``solvers.sample``.

    Attributes:
      pair: ``(x_t, t) -> (conditional, unconditional)``, both predictions, in one call of the network or two.
      guidance: how to join them.
    """

    pair: Callable[[Sample, Array], tuple[Sample, Sample]]
    guidance: Guidance

    def initialize(self, noisy: Sample) -> Any:
        """The memory before the first call."""
        return self.guidance.initialize(noisy)

    def __call__(self, noisy: Sample, t: Array, memory: Any) -> tuple[Sample, Any]:
        conditional, unconditional = self.pair(noisy, t)
        return self.guidance(conditional, unconditional, t, memory)


@dataclasses.dataclass(frozen=True)
class Plain:
    """A denoiser ``(x_t, t) -> prediction`` that is not guided, called as one that is."""

    denoise: Callable[[Sample, Array], Sample]

    def initialize(self, noisy: Sample) -> tuple[()]:
        """The memory before the first call: none."""
        return ()

    def __call__(self, noisy: Sample, t: Array, memory: tuple[()]) -> tuple[Sample, tuple[()]]:
        return self.denoise(noisy, t), memory


@dataclasses.dataclass(frozen=True)
class Remembering:
    """A denoiser whose network keeps something from one call to the next, for ``solvers.sample``.

    Its memory is that of the network and that of the guidance.

    Attributes:
      network: ``(x_t, t, memory) -> (prediction, memory)``, or with a guidance ``((conditional, unconditional),
        memory)``.
      begin: ``x_t ->`` the network's memory before the first call.
      guidance: how to join the two predictions; ``None`` where there is one.
    """

    network: Callable[[Sample, Array, Any], tuple[Any, Any]]
    begin: Callable[[Sample], Any]
    guidance: Guidance | None = None

    def initialize(self, noisy: Sample) -> tuple[Any, Any]:
        """The memory before the first call."""
        return self.begin(noisy), () if self.guidance is None else self.guidance.initialize(noisy)

    def __call__(self, noisy: Sample, t: Array, memory: tuple[Any, Any]) -> tuple[Sample, tuple[Any, Any]]:
        value, own = self.network(noisy, t, memory[0])
        if self.guidance is None:
            return value, (own, ())
        value, joined = self.guidance(*value, t, memory[1])
        return value, (own, joined)


def with_memory(denoiser: Any) -> Guided | Plain | Remembering:
    """A denoiser, guided or not, as ``initialize(x_t) -> memory`` and ``(x_t, t, memory) -> (prediction, memory)``."""
    return denoiser if isinstance(denoiser, Guided | Remembering) else Plain(denoiser)

"""What the terms of a loss read, how they are weighted, and the one place where they are added up."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.building import check_fields
from videogen.errors import UserError, near_matches
from videogen.losses.pixel import l1, l2
from videogen.nn import MicroBatch
from videogen.ranges import Natural, Weight
from videogen.schedules import ramp
from videogen.shapes import Compression, Latents, Video, VideoShape

Scalar = Float[Array, ""]
Metrics = dict[str, Scalar]
Modules = Mapping[str, nnx.Module]

RECONSTRUCTION = "reconstruction"
"""The pass that tokenizers and de-tokenizers have: the decoded clip beside the clip."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """A prediction of a forward pass, and what it should be.

    Attributes:
      prediction, target: arrays of one shape, such as clips in [-1, 1]; or logits, and ids without their last axis.
      exists: which places count, where that is not all; its axes are the first ones of these arrays.
      tokens: how many tokens the prediction was made from at most, one number for all examples; where that varies.
    """

    prediction: Array
    target: Array
    exists: Bool[Array, "*places"] | None = None
    tokens: Int[Array, ""] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a task's forward pass gives to the terms of its losses.

    Attributes:
      passes: predictions by name.
      vectors: quantised latents, with the gradient to what made them.
      ids: their codes, of all segments one after another.
      codebook: the vector of every code; ``None`` where a place is not one code vector.
      features: what else terms read, by name: latents, hidden states, masks, logits, what frozen networks give.
      quantizer: the losses of the quantizer, weighted by it.
      measured: what the quantizer's update needs of these examples.
    """

    passes: dict[str, Pass]
    vectors: Latents | None = None
    ids: Int[Array, "batch tokens levels"] | None = None
    codebook: Float[Array, "size code"] | None = None
    features: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantizer: dict[str, Scalar] = dataclasses.field(default_factory=dict)
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)

    def predicting(self, name: str, prediction: Array) -> "Outputs":
        """The same with another prediction in the pass called ``name``."""
        changed = dataclasses.replace(self.passes[name], prediction=prediction)
        return dataclasses.replace(self, passes={**self.passes, name: changed})

    def detached(self) -> "Outputs":
        """What other parameter groups learn from: no gradient leads back, and nothing the quantizer measured."""
        return jax.lax.stop_gradient(dataclasses.replace(self, quantizer={}, measured={}))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What terms are built for.

    Attributes:
      clip: the size of training clips.
      tokens: places of such a clip's codes.
      code_width: channels of a code vector.
      steps: of the run.
      features: channels of the network's features, by name.
      parts: the structure of the task's frozen parts, by name.
      compression: pixels per place of those features that have places.
      remat, dtype: of networks that a term brings.
    """

    clip: VideoShape
    tokens: int
    code_width: int
    steps: int
    features: Mapping[str, int] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, nnx.Module] = dataclasses.field(default_factory=dict)
    compression: Compression = Compression(1, 1, 1)
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """A weight that goes from ``start`` at step 0 in a straight line to ``final`` at ``steps`` and after."""

    start: Weight
    final: Weight
    steps: Natural

    def __post_init__(self):
        check_fields(self)


class Term:
    """One term of a loss.

    Attributes:
      weight: how much the term counts, 0 leaves it out; a number, or ``{start, final, steps}``.
      reads: the pass it compares; empty where it reads something else.
      adaptive: whether its weight follows the gradients of the other terms.
      group: the parameter group that it brings; empty for none.
      label: its name in ``config.losses``, which its frozen network has too.
    """

    label = ""
    reads = RECONSTRUCTION
    adaptive = False
    group = ""

    def __init__(self, weight: Weight | Mapping[str, Any], setting: Setting):
        self.weight = weight if isinstance(weight, int | float) else Ramp(**weight)
        self.setting = setting

    def weight_at(self, step: Int[Array, ""]) -> Scalar | float:
        """The weight at a step of the run."""
        if isinstance(self.weight, Ramp):
            return ramp(self.weight.start, self.weight.final, self.weight.steps, step)
        return self.weight

    def compared(self, outputs: Outputs) -> Pass:
        """The pass that it ``reads``; raises ``UserError`` where there is none of that name."""
        return self.named(outputs, self.reads)

    def named(self, outputs: Outputs, name: str) -> Pass:
        """The pass called ``name``; raises ``UserError`` where there is none."""
        if name not in outputs.passes:
            raise UserError(f"there is no pass {name!r} to compare{near_matches(name, outputs.passes)}")
        return outputs.passes[name]

    def value(
        self, modules: Modules, outputs: Outputs, key: jax.Array, step: Int[Array, ""], micro: MicroBatch
    ) -> tuple[Scalar, Metrics]:
        """The unweighted value, a mean over examples, and metrics of its own beside it."""
        raise NotImplementedError

    @classmethod
    def parts(cls, section: Mapping[str, Any]) -> Sequence[str]:
        """The published networks among ``config.parts`` that a term of this section reads, by name."""
        return ()

    def features(self, modules: Modules, video: Video) -> dict[str, Array]:
        """What a frozen network makes of clips in [-1, 1], for ``Outputs.features``; no gradient leads back."""
        return {}

    def frozen(self, structure_only: bool) -> nnx.Module | None:
        """The network it compares with, which is not trained; without weights where only the structure counts."""
        return None

    def module(self, rngs: nnx.Rngs) -> nnx.Module | None:
        """The network of its parameter group."""
        return None

    def group_value(
        self, modules: Modules, outputs: Outputs, key: jax.Array, step: Int[Array, ""], micro: MicroBatch
    ) -> tuple[Scalar, Metrics, dict[str, Array]]:
        """What its group minimises, from detached outputs; metrics; and the sums that ``update`` needs."""
        raise NotImplementedError

    def update(self, module: nnx.Module, sums: dict[str, Array], step: Int[Array, ""]) -> None:
        """Moves what its group measures, once per step."""

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """What the metrics of a step after the warm-up say against the run, in words; ``None``: nothing."""
        return None

    def moves(self, metrics: Mapping[str, Array], step: Int[Array, ""]) -> Array | None:
        """Whether its group's parameters move in this step; ``None`` where they always do."""
        return None


class Pixels(Term):
    """The mean over all elements of a distance between prediction and target.

    Args:
      reads: the pass that is compared.
    """

    distance: Callable[[Array, Array], Scalar]

    def __init__(self, weight: Weight | Mapping[str, Any], setting: Setting, reads: str = RECONSTRUCTION):
        super().__init__(weight, setting)
        self.reads = reads

    def value(self, modules, outputs, key, step, micro):
        compared = self.compared(outputs)
        return type(self).distance(compared.prediction, compared.target), {}


class AbsoluteError(Pixels):
    """Mean absolute error."""

    distance = staticmethod(l1)


class SquaredError(Pixels):
    """Mean squared error; the diffusion loss of a decoder that predicts clips."""

    distance = staticmethod(l2)


class QuantizerLoss(Term):
    """A loss of the quantizer once more weighted, such as an entropy that counts for more at first.

    Losses of the quantizer that no term names count as the quantizer weights them.

    Args:
      loss: its name.
    """

    reads = ""

    def __init__(self, weight: Weight | Mapping[str, Any], loss: str, setting: Setting):
        super().__init__(weight, setting)
        self.loss = loss

    def value(self, modules, outputs, key, step, micro):
        if self.loss not in outputs.quantizer:
            raise UserError(f"the quantizer has no loss {self.loss!r}{near_matches(self.loss, outputs.quantizer)}")
        return outputs.quantizer[self.loss], {}


LARGEST_ADAPTIVE_WEIGHT = 1e4


def adaptive_weight(reconstruction_norm: Scalar, adversarial_norm: Scalar) -> Scalar:
    """What makes the adversarial gradient as long as the reconstruction's (VQGAN; Esser et al., 2021), up to 10⁴.

    Args:
      reconstruction_norm: norm of the gradient of the other losses at the decoder's last layer.
      adversarial_norm: the same of the adversarial loss.
    """
    return jnp.clip(reconstruction_norm / (adversarial_norm + 1e-4), 0.0, LARGEST_ADAPTIVE_WEIGHT)


def with_gradient(x: Array, value: Scalar, gradient: Array) -> Scalar:
    """``value``, whose gradient with respect to ``x`` is ``gradient``: a loss whose derivative is known already."""
    return jax.lax.stop_gradient(value) + jnp.vdot(jax.lax.stop_gradient(gradient), x - jax.lax.stop_gradient(x))


def combine(
    terms: Mapping[str, Term],
    modules: Modules,
    outputs: Outputs,
    key: jax.Array,
    step: Int[Array, ""],
    micro: MicroBatch,
    pulls: Mapping[str, Callable[[Array], Any]] = MappingProxyType({}),
) -> tuple[Scalar, Metrics]:
    """The weighted sum of all terms and of the quantizer's losses, and the value of each.

    Terms that are ``adaptive`` count as much more as the gradient of the other terms of their pass is longer than
    theirs, both at the decoder's last layer and of the whole batch. Both are then differentiated as far as the
    prediction, once; what goes on from there is one gradient, and only the last layer is differentiated for the norms.

    Args:
      terms: by name.
      pulls: of each pass that an adaptive term reads, what maps a gradient of its prediction to one of the decoder's
        last layer.
    """
    arguments = (key, step, micro)
    named = {term.loss for term in terms.values() if isinstance(term, QuantizerLoss)}
    total, metrics = sum(value for name, value in outputs.quantizer.items() if name not in named), {}

    def add(chosen: Mapping[str, Term], outputs: Outputs) -> tuple[Scalar, Metrics]:
        total, metrics = jnp.zeros(()), {}
        for name, term in chosen.items():
            metrics[name], more = term.value(modules, outputs, *arguments)
            total += term.weight_at(step) * metrics[name]
            metrics |= more
        return total, metrics

    adaptive = {name: term for name, term in terms.items() if term.adaptive}
    plain = {name: term for name, term in terms.items() if not term.adaptive}
    for name, term in adaptive.items():
        others = {other: plain.pop(other) for other in [n for n, t in plain.items() if t.reads == term.reads]}
        prediction, pull = term.compared(outputs).prediction, pulls[term.reads]
        pixels = jax.lax.stop_gradient(prediction)

        def of_others(x: Array, term: Term = term, others: Mapping[str, Term] = others) -> tuple[Scalar, Metrics]:
            return add(others, outputs.predicting(term.reads, x))

        def of_this(x: Array, term: Term = term) -> tuple[Scalar, Metrics]:
            return term.value(modules, outputs.predicting(term.reads, x), *arguments)

        (rest, values), gradient = jax.value_and_grad(of_others, has_aux=True)(pixels)
        (value, more), own = jax.value_and_grad(of_this, has_aux=True)(pixels)
        ratio = adaptive_weight(*(optax.tree.norm(micro.mean(pull(g))) for g in (gradient, own)))
        weight = term.weight_at(step) * ratio
        total += with_gradient(prediction, rest + weight * value, gradient + weight * own)
        metrics |= values | {name: value, f"{name}_weight": weight} | more
    rest, values = add(plain, outputs)
    metrics = {**outputs.quantizer, **metrics, **values}
    return total + rest, metrics | {"loss": total + rest}

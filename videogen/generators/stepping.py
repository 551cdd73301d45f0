"""How a clip or a video is drawn step by step: what all generators share."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Shaped

from videogen.conditioning import Conditioning
from videogen.generators.sampling import Sampler
from videogen.nn import ClipRotary
from videogen.tokens import Layout, Tokens

At = Int[Array, ""] | Int[Array, "batch"] | int
"""The latent frame that a step begins with, counted from the first of the video; of all examples or of each one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A clip or video that is being drawn: a pytree whose static part says how.

    Attributes:
      memory: arrays of the generator's kind: caches, known frames, a queue.
      conditioning: of what is drawn next.
      keys: a random key for each example.
      layout: of what is drawn.
      sampler: how to draw.
      known: latent frames that were given.
    """

    memory: Any
    conditioning: Conditioning
    keys: Array
    layout: Layout = dataclasses.field(metadata={"static": True})
    sampler: Sampler = dataclasses.field(metadata={"static": True})
    known: int = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(eq=False)
class Stepper:
    """What stays the same in all steps of a clip or video; each kind adds ``begin`` and ``advance``.

    Attributes:
      model: the generator.
      layout: of what is drawn.
      conditioning: one entry per example.
      keys: a random key for each example.
      sampler: how to draw.
      known: latent frames that are given.
    """

    model: nnx.Module
    layout: Layout
    conditioning: Conditioning
    keys: Array
    sampler: Any
    known: int

    measured = MappingProxyType({})
    """Numbers of every example that the last step has measured, of steps that are not in a loop."""

    def __post_init__(self):
        """Computes what the steps share, once."""

    def begin(self, prefix: Tokens | None, **shown: Any) -> Any:
        """The memory before the first step.

        Raises:
          UserError: the generator does not go on from so many given frames.
        """
        raise NotImplementedError

    @property
    def frames(self) -> int:
        """Latent frames of a step."""
        raise NotImplementedError

    def reconditioned(self, memory: Any) -> Any:
        """The memory of a state that had another conditioning."""
        return memory

    def open(self, memory: Any) -> Any:
        """The memory of ``begin`` as all steps take and return it; that of a later step stays."""
        return memory

    def advance(self, memory: Any, at: At) -> tuple[Any, Tokens]:
        """The memory, which is open, one step on, and the tokens of that step."""
        raise NotImplementedError


class Generator(nnx.Module):
    """What the generators share: sampling is a loop over steps."""

    steppers: Mapping[str, type[Stepper]]
    """Extension of the sampler -> how such a generator steps, and which frames the next ones see."""

    draws_scales = False
    """It draws segment after segment, each from the sum that the tokenizer makes of those before it."""

    token_drop = 0.0
    """Share of the ids that training shows others for."""

    centres: tuple[tuple[float, float, float], ...] | None = None
    """Frame, row and column of every place of a row of tokens of several segments, for rotary positions."""

    any_size = False
    """Whether clips may be higher and wider, or less so, than those of training."""

    beside_tokens = False
    """It is told condensed tokens of its video (``Conditioning.beside``)."""

    clock: ClipRotary | None = None
    """Positions in seconds, which need the frame rate of the clips (``Conditioning.rate``)."""

    apart = False
    """Whether examples that are at different latent frames may take a step together: ``at`` is then ``[batch]``."""

    def stepper(
        self, layout: Layout, conditioning: Conditioning, keys: Array, sampler: Sampler, known: int = 0
    ) -> Stepper:
        """What stays the same in all steps; arguments as for ``sample``, ``known`` are the frames of its prefix."""
        return self.steppers[sampler.extension](self, layout, conditioning, keys, sampler, known)

    def begin(
        self,
        layout: Layout,
        conditioning: Conditioning,
        keys: Array,
        sampler: Sampler,
        prefix: Tokens | None = None,
        **shown: Any,
    ) -> State:
        """What drawing begins with; arguments as for ``sample``."""
        known = _frames(prefix)
        memory = self.stepper(layout, conditioning, keys, sampler, known).begin(prefix, **shown)
        return State(memory, conditioning, keys, layout, sampler, known)

    def advance(self, state: State, conditioning: Conditioning | None, at: At) -> tuple[State, Tokens]:
        """The next step: of blocks the next latent frames of them, of a queue one frame, of a window all of it.

        Args:
          state: of ``begin`` or of the step before.
          conditioning: of what is drawn from this step on; ``None`` is that of the state.
          at: the latent frame that the step begins with. The first is the number of given frames.

        Returns:
          The state after it, and tokens: of a window all, the given frames included, else those that were drawn.
        """
        said = state.conditioning if conditioning is None else conditioning
        stepper = self.stepper(state.layout, said, state.keys, state.sampler, state.known)
        memory = state.memory if conditioning is None else stepper.reconditioned(state.memory)
        memory, tokens = stepper.advance(stepper.open(memory), jnp.asarray(at, jnp.int32))
        return dataclasses.replace(state, memory=memory, conditioning=said), tokens

    def sample(
        self,
        layout: Layout,
        conditioning: Conditioning,
        keys: Array,
        sampler: Sampler,
        prefix: Tokens | None = None,
        **shown: Any,
    ) -> Tokens:
        """Draws tokens for every example, step after step.

        Args:
          layout: of what is drawn, at most that of training; a queue of frames goes on beyond.
          conditioning: one entry per example.
          keys: ``[batch]`` random keys, one per example: a draw does not depend on its neighbours in the batch.
          sampler: how to draw.
          prefix: tokens of the first latent frames, kept as they are.
          **shown: what else the generator goes on from (``given`` of a masked one).

        Raises:
          UserError: the generator or the sampler does not go on from so many frames.
        """
        return self.sample_and_measure(layout, conditioning, keys, sampler, prefix, **shown)[0]

    def sample_and_measure(
        self,
        layout: Layout,
        conditioning: Conditioning,
        keys: Array,
        sampler: Sampler,
        prefix: Tokens | None = None,
        **shown: Any,
    ) -> tuple[Tokens, Mapping[str, Array]]:
        """``sample``, and numbers of every example that the sampler has measured, such as the density of attention."""
        known = _frames(prefix)
        stepper = self.stepper(layout, conditioning, keys, sampler, known)
        memory = stepper.open(stepper.begin(prefix, **shown))
        places = np.arange(known, layout.only.grid.time, stepper.frames)
        if len(places) == 1:
            segment = stepper.advance(memory, np.int32(known))[1].only
        else:
            _, tokens = jax.lax.scan(stepper.advance, memory, jnp.asarray(places, jnp.int32))
            segment = jax.tree.map(_joined, tokens.only)
        values, exists = segment.values, segment.exists
        if prefix is not None and values.shape[1] < layout.only.shape[0]:
            values = jnp.concatenate([prefix.only.values, values], axis=1)
            if exists is not None:
                exists = jnp.concatenate([jnp.ones(prefix.only.values.shape[:-1], bool), exists], axis=1)
        return Tokens.single(values, layout, exists=exists), dict(stepper.measured) if len(places) == 1 else {}


def _joined(steps: Shaped[Array, "steps batch frames ..."]) -> Shaped[Array, "batch time ..."]:
    """The latent frames of all steps, one after another."""
    return jnp.moveaxis(steps, 0, 1).reshape(steps.shape[1], -1, *steps.shape[3:])


def _frames(prefix: Tokens | None) -> int:
    """Latent frames of a prefix."""
    return 0 if prefix is None else prefix.layout.only.grid.time

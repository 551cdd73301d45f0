"""The course of convolutional encoders and decoders that are made of levels."""

from typing import Any

import jax
from flax import nnx

from videogen.nn.convolution import Grid


class Levels(nnx.Module):
    """A convolution, levels with a middle at their coarsest end, a norm, swish, and a convolution.

    Who inherits builds ``input``, ``levels``, ``norm`` and ``output``, and says what the ``middle`` is.

    Attributes:
      middle_first: the middle stands before the levels (a decoder), else behind them.
    """

    middle_first: bool

    def middle(self, x: Grid, **seen: Any) -> Grid:
        """What stands at the coarsest end."""
        raise NotImplementedError

    def __call__(self, x: Grid, **seen: Any) -> Grid:
        """Frames, or latents, through all; ``seen`` is what every part is told, such as a ``stream``."""
        x = self.input(x, **seen)
        x = self.middle(x, **seen) if self.middle_first else x
        for level in self.levels:
            x = level(x, **seen)
        x = x if self.middle_first else self.middle(x, **seen)
        return self.output(jax.nn.swish(self.norm(x)), **seen)

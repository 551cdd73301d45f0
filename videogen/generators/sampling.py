"""What the samplers share, and that of blocks."""

import dataclasses
from typing import Annotated

from flax import nnx
from jaxtyping import Array, Float

from videogen.building import check_fields
from videogen.heads import HeadSampler
from videogen.ranges import Count, Finite, Natural, Number, OneOf, Weight
from videogen.schedules import DECAYS, decay

Schedule = Annotated[str, OneOf(*DECAYS)]
"""A name in ``schedules.DECAYS``."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What the samplers share: their settings are checked when they are built."""

    tokens = None
    """How many tokens are drawn; ``None``: all."""

    extension = "window"
    """How videos longer than a clip are drawn; the samplers of latents have other ways."""

    queued = False
    """Whether frames come out of a queue one by one."""

    def __post_init__(self):
        check_fields(self)

    def check(self, model: nnx.Module) -> None:
        """Raises ``UserError`` for a generator of its kind that it cannot draw from."""

    def times_of(self, model: nnx.Module) -> list[float]:
        """The times that all frames of a clip go through, for the record of a sample; empty where there are none."""
        return []

    def prepare(self, model: nnx.Module) -> None:
        """Tests on the device in use, once before it draws, what depends on it; raises ``UserError`` if that fails."""

    @property
    def compared(self) -> "Sampler | None":
        """The sampler without shortcuts, whose first videos are drawn for comparison; ``None``: there is none."""
        return None


@dataclasses.dataclass(frozen=True)
class BlockSampler(Sampler):
    """How to draw the codes of a block.

    Attributes:
      temperature: softmax temperature; near-greedy is a small one such as 0.01. 0 takes the likeliest value, of heads
        that can.
      top_k: draw among the k most likely codes; 0 means all.
      top_p: draw among the fewest codes that hold this share of the probability; 1 means all.
      guidance_scale: s in ``unconditional + s·(conditional - unconditional)``; 1 is none, the conditional alone.
      guidance_schedule: how the scale rises from 1 along the clip, a name in ``schedules.DECAYS`` read backwards.
      head_steps: of a head that draws by a solver; ``None`` takes the head's own number.
      tokens: how many codes of a row are drawn, the first ones, which the tokenizer must decode; ``None``: all.
    """

    temperature: Weight = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Number(float, 0, 1, above=True)] = 1.0
    guidance_scale: Finite = 1.0
    guidance_schedule: Schedule = "constant"
    head_steps: Count | None = None
    tokens: Count | None = None

    def check(self, model: nnx.Module) -> None:
        """Refuses a cut that the model's head cannot make, with a ``UserError``."""
        model.head.check(self.of_head(0.0))

    def of_head(self, progress: Float[Array, ""] | float) -> HeadSampler:
        """How the head draws at ``progress`` in [0, 1] of the clip."""
        return HeadSampler(self.temperature, self.top_k, self.top_p, self.guidance(progress), self.head_steps)

    def guidance(self, progress: Float[Array, ""] | float) -> Float[Array, ""]:
        """Lambda at ``progress`` in [0, 1] of the clip."""
        return 1 + (self.guidance_scale - 1) * decay(self.guidance_schedule, 1 - progress)

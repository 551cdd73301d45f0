"""How a language model over streams draws."""

import dataclasses
from typing import Annotated

from videogen.building import check_fields
from videogen.heads import HeadSampler
from videogen.ranges import Finite, Natural, Number, Weight


@dataclasses.dataclass(frozen=True)
class LanguageSampler:
    """How to draw ids and floats of a stream.

    Attributes:
      temperature: divides the logits of ids; 0 takes the likeliest.
      top_k: draw among the k most likely ids; 0 means all.
      top_p: draw among the fewest ids that hold this share of the probability; 1 means all.
      variance_scale: multiplies the variances of floats, after their clamp; 0 takes means (Divot, section 7: 0.1).
      guidance_scale: s in ``null + s·(conditional - null)`` of floats, where null has no text; 1 is none.
    """

    temperature: Weight = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Number(float, 0, 1, above=True)] = 1.0
    variance_scale: Weight = 1.0
    guidance_scale: Finite = 1.0

    extension = "window"
    """Videos longer than a clip are stories: clip after clip."""

    compared = None
    """There is no drawing without shortcuts to compare with: it has none."""

    def __post_init__(self):
        check_fields(self)

    @property
    def of_ids(self) -> HeadSampler:
        """How ids are drawn."""
        return HeadSampler(self.temperature, self.top_k, self.top_p)

    @property
    def of_floats(self) -> HeadSampler:
        """How floats are drawn."""
        return HeadSampler(self.variance_scale, guidance_scale=self.guidance_scale)

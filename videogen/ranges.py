"""What the value of a setting may be: the types and ranges that settings are declared with.

``def __init__(self, *, width: Count, dropout: Share = 0.0)`` declares them; ``building.build`` checks them.
"""

import dataclasses
import math
from typing import Annotated, Any

from videogen.errors import UserError, near_matches, shown


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a range.

    Attributes:
      kind: ``int``, or ``float`` for whole and other numbers alike.
      low, high: the ends of the range.
      above, below: whether ``low`` or ``high`` itself is outside it.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises ``UserError`` for a value of another type or out of range."""
        number = isinstance(value, int if self.kind is int else int | float) and not isinstance(value, bool)
        inside = number and (self.low < value if self.above else self.low <= value)
        inside = inside and (value < self.high if self.below else value <= self.high)
        if not inside:
            raise UserError(f"{name} must be {self}, got {shown(value)}")

    def __str__(self) -> str:
        words = ["a whole number" if self.kind is int else "a number"]
        if self.low > -math.inf:
            words.append(f"above {self.low}" if self.above else f"of at least {self.low}")
        if self.high < math.inf:
            words += ["and"] * (len(words) > 1) + [f"below {self.high}" if self.below else f"at most {self.high}"]
        return " ".join(words)


class OneOf:
    """One of a few words."""

    def __init__(self, *words: str):
        self.words = words

    def check(self, name: str, value: Any) -> None:
        """Raises ``UserError`` for any other value."""
        if not isinstance(value, str) or value not in self.words:
            raise UserError(f"unknown {name} {shown(value)}{near_matches(value, self.words)}")


Count = Annotated[int, Number(int, 1)]
"""A whole number of at least 1: widths, layers that must be there, sizes."""

Natural = Annotated[int, Number(int, 0)]
"""A whole number of at least 0."""

Share = Annotated[float, Number(float, 0, 1)]
"""A number from 0 to 1, such as a probability."""

Decay = Annotated[float, Number(float, 0, 1, below=True)]
"""A number from 0 up to but not 1: the rate of a moving average."""

Positive = Annotated[float, Number(float, 0, above=True)]
"""A number above 0, such as a temperature."""

Weight = Annotated[float, Number(float, 0)]
"""A number of at least 0, such as the weight of a loss."""

Finite = Annotated[float, Number(float, -math.inf, math.inf, above=True, below=True)]
"""Any number that is one: not infinite, not NaN."""

Triple = tuple[Count, Count, Count]
"""Whole numbers of at least 1 along time, height and width."""

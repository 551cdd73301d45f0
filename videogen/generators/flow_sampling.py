"""How clips are drawn from a diffusion transformer: solver, times and guidance, and how frames follow one another."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from videogen import diffusion
from videogen.errors import UserError, near_matches

EXTENSIONS = ("window", "queue")
"""How a video becomes longer than a clip: by windows that begin with the last frames, or by a queue of frames."""


@dataclasses.dataclass(frozen=True)
class FlowSampler:
    """How to draw latents; the parts are configs ``{name, …}`` of ``diffusion.PARTS``.

    Attributes:
      steps: of the solver.
      solver: the solver.
      grid: the times it visits, before the shift.
      shift: of the times; ``None`` takes that of the model's training.
      guidance_scale: 1 is the conditional prediction alone, as in the literature on diffusion.
      guidance: how to guide; its scale is ``guidance_scale``.
      lag: steps that every frame stays behind the one before it; 0 draws all frames at once, ``steps`` one after
        another (only for models with ``times="frame"``).
      extension: a name in ``EXTENSIONS``.
    """

    steps: int = 50
    solver: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "euler"})
    grid: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "uniform"})
    shift: float | None = None
    guidance_scale: float = 5.0
    guidance: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "classifier_free"})
    lag: int = 0
    extension: str = "window"

    def __post_init__(self):
        if self.steps < 1 or self.lag < 0:
            raise UserError(f"a sampler needs 1 or more steps and a lag of 0 or more, got {self.steps} and {self.lag}")
        if self.extension not in EXTENSIONS:
            raise UserError(f"unknown extension {self.extension!r}{near_matches(self.extension, EXTENSIONS)}")
        self.build_solver(), self.build_guidance(), diffusion.build("grid", self.grid)

    def build_solver(self) -> diffusion.Solver:
        """The solver."""
        return diffusion.build("solver", self.solver)

    def build_guidance(self) -> diffusion.Guidance:
        """The guidance with its scale."""

        def scaled(config: Mapping[str, Any]) -> dict[str, Any]:
            inner = {"inner": scaled(config["inner"])} if "inner" in config else {"scale": self.guidance_scale}
            return {**config, **inner}

        return diffusion.build("guidance", scaled(self.guidance))

    def points(self, process: diffusion.Process, shift: float) -> Float[np.ndarray, "points"]:
        """The times of a frame, falling to 0.

        Args:
          process: the model's.
          shift: the model's; it holds where the sampler has none.
        """
        grid = diffusion.build("grid", self.grid)(self.steps, process)
        return diffusion.shift_time(grid, shift if self.shift is None else self.shift).astype(np.float32)

    def times(
        self, process: diffusion.Process, shift: float, frames: int, known: int = 0, unit: int = 1
    ) -> Float[np.ndarray, "points"] | Float[np.ndarray, "points frames"]:
        """The times of a clip: of all frames, or where they differ of each one.

        Args:
          process: the model's.
          shift: the model's.
          frames: latent frames to draw.
          known: given frames before them, always at time 0.
          unit: frames that share a time.
        """
        points = self.points(process, shift)
        if not known and not self.lag:
            return points
        drawn = np.repeat(diffusion.stagger(points, frames // unit, self.lag), unit, axis=1)
        return np.concatenate([np.zeros((len(drawn), known), np.float32), drawn], axis=1)

"""Diffusion and flow: processes, times, solvers and guidance. Networks know nothing of them.

A system picks a process, which knows what the network predicts. Training draws times from a distribution and calls
``process.corrupt`` and ``process.loss``, whatever the family. With a Gaussian process ``sample`` runs a solver over a
grid of times with a denoiser ``(x_t, t) -> prediction``; ``ancestral`` runs the ``step`` of any process.
"""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.diffusion.bernoulli import Bernoulli
from videogen.diffusion.distillation import check_student, distillation_loss, mean_velocity, rollout, substeps_of
from videogen.diffusion.grids import KarrasGrid, LinearQuadraticGrid, LogSNRGrid, PowerGrid, UniformGrid, stagger
from videogen.diffusion.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    Guidance,
    Guided,
    Interval,
    Remembering,
    Rescale,
    RisingClassifierFree,
    with_memory,
)
from videogen.diffusion.latent_statistics import LatentStatistics, NormalisedLatents
from videogen.diffusion.overlaps import over_windows, window_starts
from videogen.diffusion.predictions import PREDICTIONS, WEIGHTS
from videogen.diffusion.processes import (
    BETAS,
    EDM,
    Gaussian,
    Noisy,
    Process,
    RectifiedFlow,
    Step,
    VariancePreserving,
    broadcast_right,
)
from videogen.diffusion.solvers import (
    DDIM,
    Denoise,
    DPMSolver2M,
    Euler,
    Heun,
    Solver,
    UniPC,
    ancestral,
    check_times,
    fresh_noise,
    integrate,
    integrate_with_memory,
    sample,
)
from videogen.diffusion.times import (
    LogitNormal,
    LogNormalSigma,
    Mode,
    Uniform,
    draw_times,
    shift_by_exponent,
    shift_by_frames,
    shift_time,
)

PROCESSES = {"rectified_flow": RectifiedFlow, "variance_preserving": VariancePreserving, "edm": EDM}
BIT_PROCESSES = {"bernoulli": Bernoulli}
TIME_DISTRIBUTIONS = {"uniform": Uniform, "logit_normal": LogitNormal, "mode": Mode, "log_normal_sigma": LogNormalSigma}
GRIDS = {
    "uniform": UniformGrid,
    "power": PowerGrid,
    "linear_quadratic": LinearQuadraticGrid,
    "karras": KarrasGrid,
    "log_snr": LogSNRGrid,
}
SOLVERS = {"euler": Euler, "heun": Heun, "ddim": DDIM, "dpm_2m": DPMSolver2M, "unipc": UniPC}
GUIDANCES = {
    "classifier_free": ClassifierFree,
    "rising_classifier_free": RisingClassifierFree,
    "adaptive_projected": AdaptiveProjected,
    "interval": Interval,
    "rescale": Rescale,
}
PARTS = {
    "process": PROCESSES,
    "bit_process": BIT_PROCESSES,
    "time_distribution": TIME_DISTRIBUTIONS,
    "grid": GRIDS,
    "solver": SOLVERS,
    "guidance": GUIDANCES,
}
"""Part -> its classes by name. A process of floats (``process``) and one of bits learn different networks."""


def build(part: str, config: Mapping[str, Any], **shared: Any) -> Any:
    """Builds a ``part``, a key of ``PARTS``, from ``{name, …}``; a guidance's ``inner`` is a config of its own.

    ``shared`` are settings that stand elsewhere in the config: ``config`` may not have them.
    """
    settings = {key: config[key] for key in config}
    if isinstance(settings.get("inner"), Mapping):
        settings["inner"] = build(part, settings["inner"])
    return building.build(PARTS[part], settings, part, **shared)


def build_guidance(config: Mapping[str, Any], scale: float) -> Guidance:
    """A guidance from ``{name, …}``, with a scale that stands elsewhere in the config; an ``inner`` one has it, too."""

    def scaled(config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, **({"inner": scaled(config["inner"])} if "inner" in config else {"scale": scale})}

    return build("guidance", scaled(config))


__all__ = [
    "over_windows",
    "window_starts",
    "BETAS",
    "BIT_PROCESSES",
    "EDM",
    "DDIM",
    "GRIDS",
    "GUIDANCES",
    "TIME_DISTRIBUTIONS",
    "PARTS",
    "PREDICTIONS",
    "PROCESSES",
    "SOLVERS",
    "WEIGHTS",
    "AdaptiveProjected",
    "Bernoulli",
    "ClassifierFree",
    "DPMSolver2M",
    "Denoise",
    "Euler",
    "Gaussian",
    "Guidance",
    "Guided",
    "Heun",
    "Interval",
    "KarrasGrid",
    "LatentStatistics",
    "LinearQuadraticGrid",
    "LogNormalSigma",
    "LogSNRGrid",
    "LogitNormal",
    "Mode",
    "Noisy",
    "PowerGrid",
    "NormalisedLatents",
    "Process",
    "RectifiedFlow",
    "Remembering",
    "Rescale",
    "RisingClassifierFree",
    "Solver",
    "Step",
    "UniPC",
    "Uniform",
    "UniformGrid",
    "VariancePreserving",
    "ancestral",
    "build",
    "build_guidance",
    "check_student",
    "check_times",
    "distillation_loss",
    "draw_times",
    "fresh_noise",
    "integrate",
    "integrate_with_memory",
    "mean_velocity",
    "rollout",
    "sample",
    "shift_by_exponent",
    "shift_by_frames",
    "shift_time",
    "broadcast_right",
    "stagger",
    "with_memory",
    "substeps_of",
]

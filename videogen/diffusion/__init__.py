"""Diffusion and flow: processes, times, solvers and guidance. Networks know nothing of them.

A system picks a process and what its network predicts; training draws times from a law and compares with
``process.target``; ``sample`` runs a solver over a grid of times with a denoiser ``(x_t, t) -> prediction``.
"""

from collections.abc import Mapping
from typing import Any

from videogen import building
from videogen.diffusion.distillation import check_student, distillation_loss, mean_velocity, rollout, substeps_of
from videogen.diffusion.grids import KarrasGrid, LinearQuadraticGrid, LogSNRGrid, UniformGrid, stagger
from videogen.diffusion.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    Guidance,
    Guided,
    Interval,
    Rescale,
    RisingClassifierFree,
    with_memory,
)
from videogen.diffusion.processes import (
    BETAS,
    EDM,
    PREDICTIONS,
    Process,
    RectifiedFlow,
    VariancePreserving,
    spread,
)
from videogen.diffusion.solvers import (
    DDIM,
    Denoise,
    DPMSolver2M,
    Euler,
    Heun,
    Solver,
    Step,
    UniPC,
    check_times,
    integrate,
    sample,
)
from videogen.diffusion.times import (
    WEIGHTS,
    LogitNormal,
    LogNormalSigma,
    Mode,
    Uniform,
    draw_times,
    loss_weight,
    shift_by_exponent,
    shift_by_frames,
    shift_time,
)

PROCESSES = {"rectified_flow": RectifiedFlow, "variance_preserving": VariancePreserving, "edm": EDM}
LAWS = {"uniform": Uniform, "logit_normal": LogitNormal, "mode": Mode, "log_normal_sigma": LogNormalSigma}
GRIDS = {
    "uniform": UniformGrid,
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
PARTS = {"process": PROCESSES, "law": LAWS, "grid": GRIDS, "solver": SOLVERS, "guidance": GUIDANCES}


def build(part: str, config: Mapping[str, Any]) -> Any:
    """Builds a ``part``, a key of ``PARTS``, from ``{name, …}``; a guidance's ``inner`` is a config of its own."""
    settings = {key: config[key] for key in config}
    if isinstance(settings.get("inner"), Mapping):
        settings["inner"] = build(part, settings["inner"])
    return building.build(PARTS[part], settings, part)


__all__ = [
    "BETAS",
    "EDM",
    "DDIM",
    "GRIDS",
    "GUIDANCES",
    "LAWS",
    "PARTS",
    "PREDICTIONS",
    "PROCESSES",
    "SOLVERS",
    "WEIGHTS",
    "AdaptiveProjected",
    "ClassifierFree",
    "DPMSolver2M",
    "Denoise",
    "Euler",
    "Guidance",
    "Guided",
    "Heun",
    "Interval",
    "KarrasGrid",
    "LinearQuadraticGrid",
    "LogNormalSigma",
    "LogSNRGrid",
    "LogitNormal",
    "Mode",
    "Process",
    "RectifiedFlow",
    "Rescale",
    "RisingClassifierFree",
    "Solver",
    "Step",
    "UniPC",
    "Uniform",
    "UniformGrid",
    "VariancePreserving",
    "build",
    "check_student",
    "check_times",
    "distillation_loss",
    "draw_times",
    "integrate",
    "loss_weight",
    "mean_velocity",
    "rollout",
    "sample",
    "shift_by_exponent",
    "shift_by_frames",
    "shift_time",
    "spread",
    "stagger",
    "with_memory",
    "substeps_of",
]

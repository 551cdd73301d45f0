"""What a network may predict of ``x_t = alpha·x + sigma·e``, and how much its error counts."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from videogen.errors import UserError, near_matches

Scales = tuple[Array, Array]

EDM_DATA_DEVIATION = 0.5
"""Standard deviation of the data that EDM's preconditioning assumes unless told: of pixels (Karras et al., 2022)."""


def _edm(alpha: Array, sigma: Array, deviation: float) -> Scales:
    total = edm_deviation(alpha, sigma, deviation)
    return sigma / (deviation * total), -deviation * alpha / total


def edm_deviation(alpha: Array, sigma: Array, deviation: float) -> Array:
    """Standard deviation of x_t for data of this standard deviation."""
    return jnp.sqrt(sigma**2 + (deviation * alpha) ** 2)


PREDICTIONS: dict[str, Callable[[Array, Array, float], Scales]] = {
    "x0": lambda alpha, sigma, _: (jnp.ones_like(alpha), jnp.zeros_like(sigma)),
    "epsilon": lambda alpha, sigma, _: (jnp.zeros_like(alpha), jnp.ones_like(sigma)),
    "v": lambda alpha, sigma, _: (-sigma, alpha),
    "velocity": lambda alpha, sigma, _: (-jnp.ones_like(alpha), jnp.ones_like(sigma)),
    "edm": _edm,
}
"""Name -> (p, q) with target = p·x + q·e, given alpha, sigma and the standard deviation of the data.

``x0`` the data, ``epsilon`` the noise, ``v`` (Salimans and Ho, 2022), ``velocity`` that of a rectified flow, ``edm``
the network F in ``x0 = c_skip·x_t + c_out·F(c_in·x_t)``; its c_in is ``Gaussian.network_input``. Being linear in data
and noise, each gives all others: with x_t and one prediction known, data and noise solve two linear equations.
"""


def prediction_scales(name: str, alpha: Array, sigma: Array, deviation: float = EDM_DATA_DEVIATION) -> Scales:
    """(p, q) of ``PREDICTIONS[name]``; an unknown name is a ``UserError``."""
    if name not in PREDICTIONS:
        raise UserError(f"unknown prediction {name!r}{near_matches(name, PREDICTIONS)}")
    return PREDICTIONS[name](alpha, sigma, deviation)


def _flow_time(alpha: Array, sigma: Array) -> Array:
    return sigma / (alpha + sigma)


# ∫ exp(-2·(t - 1/2)²) - exp(-1/2) over [0, 1].
_BELL_MEAN = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - math.exp(-0.5)

WEIGHTS: dict[str, Callable[..., Array]] = {
    **{
        name: lambda alpha, sigma, deviation=EDM_DATA_DEVIATION, name=name: (
            error_ratio(name, alpha, sigma, deviation) ** 2
        )
        for name in PREDICTIONS
    },
    "min_snr": lambda alpha, sigma, _=None: jnp.minimum((alpha / sigma) ** 2, 5.0),
    "cosmap": lambda alpha, sigma, _=None: (
        2 / (jnp.pi * (1 - 2 * _flow_time(alpha, sigma) + 2 * _flow_time(alpha, sigma) ** 2))
    ),
    "bell": lambda alpha, sigma, _=None: (
        error_ratio("velocity", alpha, sigma) ** 2
        * (jnp.exp(-2 * (_flow_time(alpha, sigma) - 0.5) ** 2) - math.exp(-0.5))
        / _BELL_MEAN
    ),
}
"""Name -> weight of the squared error of x0, given alpha, sigma and (for ``edm``) the deviation of the data.

The names of predictions stand for the plain squared error of that prediction; ``min_snr`` (Hang et al., 2023, with
gamma 5), ``cosmap`` (Esser et al., 2024), ``bell``: the velocity's error, middle times more, mean 1 over uniform times.
"""


def error_ratio(prediction: str, alpha: Array, sigma: Array, deviation: float = EDM_DATA_DEVIATION) -> Array:
    """|error of the prediction| / |error of the x0 it implies|."""
    p, q = prediction_scales(prediction, alpha, sigma, deviation)
    return alpha * q / sigma - p

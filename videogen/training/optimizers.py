"""Optimizers and learning-rate schedules from config values."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from videogen.errors import UserError, near_matches
from videogen.schedules import decay

DECAYED = ("kernel",)
"""Names of the parameters that weight decay applies to: matrices, not norms, biases or tables."""


def _is_matrix(path: tuple, leaf: Any) -> bool:
    return path[-1].key in DECAYED


def learning_rate(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Linear warm-up over ``warmup`` steps, then ``schedule`` down to ``final`` times the peak at ``steps``.

    ``config.horizon`` replaces ``steps`` where the decay is longer than the run (Phenaki section 5).
    """
    horizon = config["horizon"] or steps

    def rate(step: Any) -> Any:
        warm = jnp.minimum(1.0, (step + 1) / max(config["warmup"], 1))
        progress = (step - config["warmup"]) / max(horizon - config["warmup"], 1)
        shape = decay(config["schedule"], progress)
        return config["learning_rate"] * warm * (config["final"] + (1 - config["final"]) * shape)

    return rate


def _adamw(config: Mapping[str, Any], rate: optax.Schedule) -> optax.GradientTransformation:
    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(_is_matrix, params)

    return optax.adamw(rate, b1=config["b1"], b2=config["b2"], eps=1e-8, weight_decay=config["weight_decay"], mask=mask)


def _muon(config: Mapping[str, Any], rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the matrices of stacks and the kernels of convolutions, AdamW for the rest."""

    def dimensions(params: Any) -> Any:
        def dims(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
            if not _is_matrix(path, leaf):
                return None
            if any(p.key == "layers" for p in path):
                # [layers, in, out]: one orthogonalisation per layer.
                return optax.contrib.MuonDimensionNumbers(1, 2)
            if leaf.ndim == 5:
                # [time, height, width, in, out]: a matrix from all that a kernel sees to its outputs.
                return optax.contrib.MuonDimensionNumbers((0, 1, 2, 3), 4)
            return None

        return jax.tree_util.tree_map_with_path(dims, params)

    return optax.contrib.muon(
        rate,
        weight_decay=config["weight_decay"],
        adam_b1=config["b1"],
        adam_b2=config["b2"],
        adam_learning_rate=lambda step: rate(step) * config["adam_share"],
        muon_weight_dimension_numbers=dimensions,
    )


def is_frozen(path: tuple, prefixes: Sequence[str]) -> bool:
    """Whether a parameter's or variable's path (of ``jax.tree_util``) begins with one of the dotted ``prefixes``."""
    name = ".".join(str(part.key) for part in path)
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}


def build_optimizer(config: Mapping[str, Any], steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The gradient transformation of one parameter group and its learning rate, for logging.

    Args:
      config: ``{name, learning_rate, warmup, schedule, final, horizon, b1, b2, weight_decay, clip, adam_share,
        freeze}``. Parameters below the paths ``freeze`` have no update and no optimizer state.
      steps: length of the run.
    """
    if config["name"] not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {config['name']!r}{near_matches(config['name'], OPTIMIZERS)}")
    rate = learning_rate(config, steps)
    transform = OPTIMIZERS[config["name"]](config, rate)
    if config["clip"]:
        transform = optax.chain(optax.clip_by_global_norm(config["clip"]), transform)
    if freeze := config.get("freeze", ()):

        def labels(params: Any) -> Any:
            def label(path: tuple, _: Any) -> str:
                return "frozen" if is_frozen(path, freeze) else "trained"

            return jax.tree_util.tree_map_with_path(label, params)

        transform = optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, labels)
    return transform, rate

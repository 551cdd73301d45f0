"""The format of ``config.json``, and how one of an older format is read."""

from typing import Any

from videogen.errors import UserError

FORMAT = 3
"""Of the configs that runs and exports write; one without a number is of format 1."""


def to_present(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A config in the present format; names that have moved since are moved.

    Args:
      config: the content of a ``config.json``.
      where: its path, for messages.

    Raises:
      UserError: a later format, or no number.
    """
    config = dict(config)
    found = config.pop("format", 1)
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= FORMAT:
        raise UserError(
            f"{where} has format {found!r}, and this videogen reads up to {FORMAT}; use the one that wrote it"
        )
    for convert in (_terms_by_name, _frozen_parts)[found - 1 :]:
        config = convert(config)
    return config


def _frozen_parts(config: dict[str, Any]) -> dict[str, Any]:
    """Format 2 -> 3: the tokenizer and the teacher became ``parts``, and how the teacher draws ``distillation``."""
    config, parts = dict(config), {}
    for name in ("tokenizer", "teacher"):
        if isinstance(old := config.pop(name, None), dict):
            keys = ("checkpoint", "model", "hash")
            parts[name] = {"checkpoint": "", "model": {}, "hash": "", **{key: old[key] for key in keys if key in old}}
            if name == "teacher":
                config["distillation"] = {key: value for key, value in old.items() if key not in keys}
    return {**config, "parts": parts}


def _terms_by_name(config: dict[str, Any]) -> dict[str, Any]:
    """Format 1 -> 2: losses became sections of one form, ``{term: {name, weight, …}}``."""
    old = config.get("losses")
    if not isinstance(old, dict):
        return config
    losses = {}
    for label, value in old.items():
        if label in ("l1", "l2"):
            losses[label] = {"name": label, "weight": value}
        elif label == "adversarial":
            losses[label] = _adversarial(dict(value))
        elif label == "prior":
            losses[label] = {"name": "prior", **value}
        elif label == "schedule":
            for loss, start, final, steps in value:
                weight = {"start": start, "final": final, "steps": steps}
                losses[loss] = {"name": "quantizer", "loss": loss, "weight": weight}
        else:
            losses[label] = value
    return {**config, "losses": losses}


def _adversarial(term: dict[str, Any]) -> dict[str, Any]:
    name = term.pop("discriminator", "frame")
    multiplier, multipliers = term.pop("channel_multiplier", 1.0), term.pop("multipliers", None)
    discriminator = {"name": name, **(term.pop("transformer", {}) if name == "transformer" else {})}
    if name == "frame":
        discriminator["channel_multiplier"] = multiplier
    elif name == "clip":
        discriminator["channels"] = round(128 * multiplier)
        discriminator |= {"multipliers": multipliers} if multipliers else {}
    term["objective"] = term.pop("name")
    return {"name": "adversarial", **term, "discriminator": discriminator}

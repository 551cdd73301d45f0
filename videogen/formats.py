"""The format of ``config.json``, and how one of an older format is read."""

from typing import Any

from videogen.errors import UserError

FORMAT = 4
"""Of the configs that runs and exports write; one without a number is of format 1."""


def to_present(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A config in the present format; names that have moved since are moved.

    Args:
      config: the content of a ``config.json``.
      where: its path, for messages.

    Raises:
      UserError: a later format, no number, or a run whose weights have other names today.
    """
    config = dict(config)
    found = config.pop("format", 1)
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= FORMAT:
        raise UserError(
            f"{where} has format {found!r}, and this videogen reads up to {FORMAT}; use the one that wrote it"
        )
    if found == 1:
        config = _terms_by_name(config)
    if found < 3:
        config = _renamed(_text_encoder(_sections_of_generators(_frozen_parts(config), where)))
    return _one_d(config) if found < 4 else config


RENAMED = {"law": "time_distribution", "rest_below": "pause_below"}
"""Keys of any section in format 2 -> what they are called today."""


def _renamed(section: Any) -> Any:
    """A section, and those inside of it, with the names of today."""
    if not isinstance(section, dict):
        return section
    return {RENAMED.get(key, key): _renamed(value) for key, value in section.items()}


def _one_d(section: Any) -> Any:
    """Format 3 -> 4: LARP's tokenizer is a setting of ``one_d``, whose transformers have sections of their own."""
    if not isinstance(section, dict):
        return section
    section = {key: _one_d(value) for key, value in section.items()}
    if section.get("name") != "larp" or "queries" not in section:
        return section
    network = {key: section.pop(key) for key in ("width", "heads", "mlp_width") if key in section}
    for part in ("encoder", "decoder"):
        if f"{part}_layers" in section:
            section[part] = {**network, "layers": section.pop(f"{part}_layers")}
    return {**section, "name": "one_d"}


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


def _text_encoder(config: dict[str, Any]) -> dict[str, Any]:
    """Format 2 -> 3: the frozen text encoder became the part ``text_encoder``, with no hash of its weights."""
    text = config.get("text")
    encoder = text.get("encoder") if isinstance(text, dict) else None
    if not isinstance(encoder, dict) or encoder.get("name") != "t5":
        return config
    width = {"width": encoder["width"]} if "width" in encoder else {}
    model = {"name": "t5", **width, **(encoder.get("architecture") or {})}
    part = {"checkpoint": encoder.get("path", ""), "model": model, "hash": ""}
    parts = {**config.get("parts", {}), "text_encoder": part}
    return {**config, "text": {**text, "encoder": {"name": "t5"}}, "parts": parts}


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


LAST_OF_FORMAT_2 = "da65c3c"
"""The commit that reads the weights of masked and next-block generators of format 2 and below."""

TRANSFORMER = ("width", "layers", "heads", "mlp_width", "norm", "qk_norm", "dropout")
NOISE = ("process", "prediction", "law", "weighting", "shift")


def _sections_of_generators(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Format 2 -> 3: settings of generators moved into the sections ``transformer``, ``noise`` and ``head``.

    Weights of a flow generator kept their names. Those of the others moved with the head, which embeds codes now.
    """
    model = config.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    if name in ("masked", "next_block"):
        raise UserError(
            f"{where} is of an older format, in which the head of a {name!r} generator had no weights for what it is "
            f"shown; read this run with the videogen of commit {LAST_OF_FORMAT_2}, or train it again"
        )
    if name != "flow":
        return config
    transformer = {key: model[key] for key in TRANSFORMER if key in model}
    noise = {key: model[key] for key in NOISE if key in model}
    rest = {key: value for key, value in model.items() if key not in (*TRANSFORMER, *NOISE)}
    return {**config, "model": {**rest, "transformer": transformer, "noise": noise}}

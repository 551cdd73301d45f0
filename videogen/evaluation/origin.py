"""Where numbers come from: the code and the machine that computed them."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from videogen.training.loading import Loaded


def commit() -> str:
    """The git commit of this code, ``+`` appended when tracked files have changes, ``unknown`` outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        # Files that git does not know, such as data folders, change nothing.
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def of_model(loaded: Loaded) -> dict[str, Any]:
    """The fields of a protocol that say which model was measured."""
    config = loaded.config
    weights = {"weights": "ema" if config.ema.decay else "last", "step": loaded.step}
    return weights | ({"sampler": config.sampler.to_dict()} if "sampler" in config else {})


def hardware() -> str:
    """The devices in words."""
    devices = jax.devices()
    kind = f"{os.cpu_count()} cores, {platform.machine()}" if devices[0].platform == "cpu" else devices[0].device_kind
    return f"{len(devices)} × {devices[0].platform} ({kind})"

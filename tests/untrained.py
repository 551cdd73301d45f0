"""Run directories without a training: the initial state of a stage, saved as its first checkpoint."""

import contextlib
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from videogen import tasks, tokenizers
from videogen.configuration import save_config
from videogen.data.inputs import build_source, keep_findings, new_text_tokenizer, save_text_tokenizer
from videogen.runs.checkpoints import Checkpoints
from videogen.training.loading import CONFIG, hash_of, save_frozen
from videogen.training.state import new_state, structure_of


def save_untrained(config: Any, workdir: Path, ema: float = 1.5) -> Path:
    """Writes a run whose averages are ``ema`` times its parameters, so that the two can be told apart."""
    for part in config.parts.values():
        part.hash = ""
    source = build_source(config, "train")
    keep_findings(config, source)
    task = tasks.build(config)
    frozen = task.frozen(lambda *_: _drawn(config))
    for name, part in config.parts.items():
        part.hash = hash_of(frozen[name])
    structure, _ = structure_of(task, config)
    state = jax.jit(lambda: new_state(task, structure, config))()
    state["ema"] = jax.tree.map(lambda x: x * ema, state["ema"])
    workdir.mkdir(parents=True)
    save_config(workdir / CONFIG, config)
    if (text := new_text_tokenizer(config, source)) is not None:
        save_text_tokenizer(text, workdir)
    save_frozen(frozen, workdir)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(1, state, {"position": 0})
    return workdir


def _drawn(config: Any) -> nnx.Module:
    return tokenizers.build(config.parts.tokenizer.model, remat="none", rngs=nnx.Rngs(1))

"""A trained video-language model with the recipe of another."""

import copy
from typing import Any

import jax
from flax import nnx

from videogen import tasks
from videogen.configs.recipes import Chain


def settings_of(base: Any, chain: Chain, hooks: Chain = ()) -> Any:
    """The config of the trained model with another recipe."""
    config = copy.deepcopy(base)
    with config.unlocked(), config.ignore_type():
        config.model.vision.update({"reducers": chain, "budgets": (), "frames": (), "subsets": ()})
        if hooks:
            config.model.backbone.hooks = hooks
    return config


def with_recipe(origin: Any, chain: Chain, hooks: Chain = ()) -> tuple[Any, dict[str, nnx.Module]]:
    """The task and the modules of a recipe with the weights of a trained model; what these have not is fresh."""
    task = tasks.build(settings_of(origin.config, chain, hooks))
    task.texts = origin.text
    fresh = jax.jit(lambda: nnx.split(task.init(nnx.Rngs(0))["language"])[1])()
    graph = nnx.graphdef(nnx.eval_shape(lambda: task.init(nnx.Rngs(0))["language"]))
    trained = nnx.to_flat_state(nnx.state(origin.modules["language"]))
    known = dict(zip(trained.paths, trained.leaves, strict=True))
    flat = nnx.to_flat_state(fresh)
    state = nnx.from_flat_state(
        [(path, known.get(path, leaf)) for path, leaf in zip(flat.paths, flat.leaves, strict=True)]
    )
    return task, {**origin.modules, "language": nnx.merge(graph, state)}

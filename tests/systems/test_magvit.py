"""The generators of MAGVIT and MAGVIT-v2: published sizes without allocating them, the ten tasks, buildable sizes."""

import pytest
from flax import nnx

from videogen import tasks
from videogen.conditioning import TASKS
from videogen.configs import magvit, magvit2
from videogen.training.state import parameter_count

CONFIGS = {"magvit": magvit, "magvit2": magvit2}


def generator(system: str, argument: str) -> tuple[tasks.Task, nnx.Module]:
    task = tasks.build(CONFIGS[system].get_config(f"stage=generator,{argument}"))
    return task, nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["generator"].generator


def published_part(module: nnx.Module) -> int:
    """Parameters without those by which the class comes in, which in the paper is a token."""
    layers = module.stack.layers
    ours = (module.context, layers.cross_attention, layers.cross_norm)
    return parameter_count(nnx.state(module, nnx.Param)) - sum(parameter_count(nnx.state(m, nnx.Param)) for m in ours)


@pytest.mark.parametrize(
    ("system", "model", "parameters"),
    [("magvit", "B", 87e6), ("magvit", "L", 305e6), ("magvit", "H", 634e6), ("magvit2", "", 307e6)],
)
def test_paper_sizes(system, model, parameters):
    _, module = generator(system, "size=paper" + (f",model={model}" if model else ""))
    assert published_part(module) == pytest.approx(parameters, rel=0.01)


def test_paper_grids_and_factors():
    task, module = generator("magvit", "size=paper")
    assert task.grid.shape == (4, 16, 16) and module.head.vocabulary == (1024,)
    task, module = generator("magvit2", "size=paper")
    assert task.grid.shape == (5, 16, 16) and module.head.vocabulary == (2**18,)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("system", CONFIGS)
def test_smaller_sizes_build_with_all_tasks(system, size):
    task, module = generator(system, f"size={size}")
    assert parameter_count(nnx.state(module, nnx.Param)) > 1e5
    assert set(task.config.tasks) == set(TASKS) and (task.tasks == 0.1).all()

"""Every size of the NBP config: published sizes without allocating them, grids, blocks, buildable tasks."""

import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import nbp
from videogen.errors import UserError
from videogen.training.state import parameter_count


def shape_of(argument: str) -> tuple[tasks.Task, nnx.Module]:
    task = tasks.build(nbp.get_config(argument))
    modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    return task, modules[next(iter(task.losses))]


@pytest.mark.parametrize(("model", "layers_hold"), [("700M", 0.68e9), ("1.2B", 1.21e9), ("3B", 3.62e9)])
def test_paper_generators_have_the_published_layers(model, layers_hold):
    """Table 1 gives layers, width and heads; the layers' 12·width² parameters each are what the names count."""
    task, module = shape_of(f"stage=generator,size=paper,model={model}")
    assert parameter_count(nnx.state(module.generator.stack, nnx.Param)) == pytest.approx(layers_hold, rel=0.005)
    assert task.grid.shape == (5, 16, 16) and task.tokenizer.vocabulary == (64_000,)
    assert module.generator.passes(task.grid, prefix_tokens=512) == 48


def test_paper_tokenizer_has_about_370_million_parameters():
    _, module = shape_of("stage=tokenizer,size=paper")
    assert parameter_count(nnx.state(module, nnx.Param)) == pytest.approx(370e6, rel=0.05)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_smaller_sizes_build(stage, size):
    assert parameter_count(nnx.state(shape_of(f"stage={stage},size={size}")[1], nnx.Param)) > 1e5


def test_every_block_of_the_sweep_divides_the_debug_grid():
    for change in nbp.SWEEPS["block"]:
        config = nbp.get_config("stage=generator,size=debug")
        config.update_from_flattened_dict(change)
        task = tasks.build(config)
        nnx.eval_shape(lambda task=task: task.init(nnx.Rngs(0)))


def test_an_unknown_model_is_named():
    with pytest.raises(UserError, match="unknown model '2B'"):
        nbp.get_config("stage=generator,size=paper,model=2B")

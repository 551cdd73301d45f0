"""Every size of the Phenaki config: published parameter counts without allocating them, and buildable tasks."""

import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import phenaki
from videogen.errors import UserError
from videogen.training.state import parameter_count


def config_of(argument: str):
    return phenaki.get_config(argument)


def count(argument: str) -> dict[str, int]:
    config = config_of(argument)
    modules = nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))
    return {name: parameter_count(nnx.state(module, nnx.Param)) for name, module in modules.items()}


def test_paper_tokenizer_has_about_50_million_parameters():
    assert count("stage=tokenizer,size=paper")["tokenizer"] == pytest.approx(50e6, rel=0.05)


def test_paper_generator_has_about_1800_million_parameters():
    assert count("stage=generator,size=paper")["generator"] == pytest.approx(1.8e9, rel=0.05)


def test_paper_grid_is_six_by_sixteen_by_sixteen():
    task = tasks.build(config_of("stage=generator,size=paper"))
    assert task.grid.shape == (6, 16, 16) and task.tokenizer.vocabulary == (8192,)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_smaller_sizes_build(stage, size):
    assert all(n > 1e5 for n in count(f"stage={stage},size={size}").values())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("stage=tokeniser", "did you mean 'tokenizer'"),
        ("sise=debug", "did you mean 'size'"),
        ("size=huge", "unknown size"),
    ],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises(UserError, match=message):
        config_of(argument)

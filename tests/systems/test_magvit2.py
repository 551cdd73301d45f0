"""Every size of the MAGVIT and MAGVIT-v2 configs: published sizes without allocating them, and buildable tasks."""

import functools

import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import magvit, magvit2
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.training.state import parameter_count

CONFIGS = {"magvit": magvit, "magvit2": magvit2}


@functools.cache
def modules(system: str, size: str) -> dict[str, nnx.Module]:
    config = CONFIGS[system].get_config(f"stage=tokenizer,size={size}")
    return nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))


def count(system: str, size: str) -> dict[str, int]:
    return {name: parameter_count(nnx.state(m, nnx.Param)) for name, m in modules(system, size).items()}


@pytest.mark.parametrize(("system", "parameters"), [("magvit2", 370e6), ("magvit", 158e6)])
def test_paper_sizes(system, parameters):
    counts = count(system, "paper")
    assert counts["tokenizer"] == pytest.approx(parameters, rel=0.01)
    assert counts["discriminator"] > 1e7


def test_paper_grids():
    causal, clip = (modules(system, "paper")["tokenizer"] for system in ("magvit2", "magvit"))
    assert causal.grid(VideoShape(17, 128, 128)).shape == (5, 16, 16)
    assert causal.grid(VideoShape(1, 128, 128)).shape == (1, 16, 16)
    assert clip.grid(VideoShape(16, 128, 128)).shape == (4, 16, 16)
    assert causal.vocabulary == (2**18,) and clip.vocabulary == (1024,)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("system", CONFIGS)
def test_smaller_sizes_build(system, size):
    assert all(n > 1e5 for n in count(system, size).values())


@pytest.mark.parametrize(("size", "bits"), [("debug", 10), ("small", 14), ("paper", 18)])
@pytest.mark.parametrize("quantizer", ["lfq", "fsq", "vq"])
def test_quantizers_have_as_many_codes(quantizer, size, bits):
    config = magvit2.get_config(f"stage=tokenizer,size={size},quantizer={quantizer}")
    task = tasks.build(config)
    tokenizer = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["tokenizer"]
    assert tokenizer.vocabulary == (2**bits,)


@pytest.mark.parametrize("system", CONFIGS)
def test_stages_that_are_not_there_are_named(system):
    with pytest.raises(UserError, match="unknown stage"):
        CONFIGS[system].get_config("stage=upscaler")

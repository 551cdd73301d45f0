"""Every stage and size of the OmniTokenizer config: published sizes without allocating them, and buildable tasks."""

import functools

import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import omnitokenizer
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.training.state import parameter_count

TRAINING_ONLY = 2.77e6 + 11.06e6 + 14.71e6
"""Parameters of the public code's image and video discriminators and its perceptual network."""

TOKENIZERS = ("image", "tokenizer", "kl")


@functools.cache
def modules(stage: str, size: str) -> dict[str, nnx.Module]:
    config = omnitokenizer.get_config(f"stage={stage},size={size}")
    return nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))


def count(stage: str, size: str) -> dict[str, int]:
    return {name: parameter_count(nnx.state(m, nnx.Param)) for name, m in modules(stage, size).items()}


@pytest.mark.parametrize("stage", TOKENIZERS)
def test_paper_size(stage):
    """82M are published, of which the tokenizer has what the networks that only training needs leave over."""
    assert count(stage, "paper")["tokenizer"] == pytest.approx(82e6 - TRAINING_ONLY, rel=0.05)


@pytest.mark.parametrize(
    ("stage", "million"), [("autoregressive,model=650M", 707), ("autoregressive,model=227M", 231), ("diffusion", 673)]
)
def test_paper_size_of_the_generators(stage, million):
    """DiT-XL/2 has 675M. 650M and 227M are published of the others, whose layers and width give 707M for the first;
    the cross-attention to the class is ours and not counted."""
    generator = modules(stage, "paper")["generator"].generator
    crossed = generator.stack.layers.cross_attention
    counted = parameter_count(nnx.state(generator, nnx.Param))
    counted -= 0 if crossed is None else parameter_count(nnx.state(crossed, nnx.Param))
    assert counted / 1e6 == pytest.approx(million, rel=0.01)


def test_paper_grids():
    model = modules("tokenizer", "paper")["tokenizer"]
    assert model.grid(VideoShape(17, 256, 256)).shape == (5, 32, 32)
    assert model.grid(VideoShape(1, 256, 256)).tokens == 1024
    assert model.vocabulary == (8192,) and modules("kl", "paper")["tokenizer"].vocabulary == ()
    for side in omnitokenizer.RESOLUTIONS:
        assert model.grid(VideoShape(17, side, side)).shape == (5, side // 8, side // 8)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("stage", TOKENIZERS)
def test_smaller_sizes_build(stage, size):
    assert all(n > 1e5 for n in count(stage, size).values())


@pytest.mark.parametrize("size", ["debug", "small", "paper"])
@pytest.mark.parametrize(("later", "earlier"), omnitokenizer.START_FROM.items())
def test_stages_differ_in_the_quantizer_head_alone(later, earlier, size):
    def shapes(stage: str) -> dict:
        flat = nnx.to_flat_state(nnx.state(modules(stage, size)["tokenizer"]))
        return {path: v.get_value().shape for path, v in flat}

    new, old = shapes(later), shapes(earlier)
    other = {path[0] for path in new.keys() | old.keys() if new.get(path) != old.get(path)}
    head = {"quantizer", "to_code"} if later == "kl" else set()
    # The relative bias of the published first stage is left behind.
    assert other - head <= ({"encoder", "decoder"} if (later, size) == ("tokenizer", "paper") else set())
    assert not [path for path in new if path[0] not in head and new[path] != old.get(path)]


def test_stages_that_are_not_there_are_named():
    with pytest.raises(UserError, match="unknown stage 'generator'"):
        omnitokenizer.get_config("stage=generator")

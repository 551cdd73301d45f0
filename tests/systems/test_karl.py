"""Every size of the KARL config, and what its losses and stages promise."""

import functools

import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import karl
from videogen.shapes import VideoShape
from videogen.tasks.adaptive import Passes
from videogen.tokenizers.requests import BINS
from videogen.training.state import parameter_count


@functools.cache
def task_of(argument: str):
    return tasks.build(karl.get_config(argument))


@functools.cache
def modules_of(argument: str):
    return nnx.eval_shape(lambda: task_of(argument).init(nnx.Rngs(0)))


def count(argument: str, group: str = "tokenizer") -> int:
    return parameter_count(nnx.state(modules_of(argument)[group], nnx.Param))


@pytest.mark.parametrize("model", karl.MODELS)
def test_paper_sizes(model):
    """Blocks of 12 · width² + what norms they have, and what stands around them, to the last parameter."""
    width, layers, heads, hidden = karl.MODELS[model].values()
    block = 4 * width**2 + 2 * width * hidden + 2 * 2 * width + 2 * width // heads
    stacks = 2 * (layers * block + 2 * width)
    pixels, code = 16 * 16 * 3, 12
    patches = (pixels + 1) * width + (width + 1) * pixels
    codes = (width + 1) * code + (code + 1) * width + 4096 * code
    condition = (len(BINS) + 1) * width
    halting = 2 * width + (width + 1) * 512 + 512 + 1
    expected = stacks + patches + codes + condition + halting + 368 * width + width
    assert count(f"size=paper,model={model}") == expected
    assert expected == pytest.approx(2 * 12 * width**2 * layers, rel=0.06)


def test_the_published_recipe():
    config = karl.get_config("size=paper")
    model = modules_of("size=paper")["tokenizer"]
    layout = model.layout(VideoShape(1, 256, 256)).only
    assert (layout.tokens, layout.bits, model.longest) == (256, 12.0, 368)
    assert model.places == (1, 16, 16) and model.lengths.threshold == 0.75 and not model.lengths.cut
    assert (model.error, model.halting_hidden.kernel.shape) == (0.05, (1024, 512))
    assert task_of("size=paper").passes == Passes(step=16, easier_at=32, replaced=0.45)
    # 400 epochs; the adversarial terms begin with the 20th and have their full weight from the 100th on.
    adversarial = config.losses.estimate_adversarial
    assert (config.steps, adversarial.start, adversarial.weight.steps) == tuple(n * karl.EPOCH for n in (400, 20, 100))
    assert (adversarial.objective, adversarial.weight.final, adversarial.adaptive) == ("hinge", 0.8, True)
    buckets = adversarial.discriminator
    assert (buckets.name, buckets.buckets, buckets.size) == ("by_tokens", 8, 32)
    rate = config.optimizer.tokenizer
    assert (rate.learning_rate, rate.weight_decay, rate.clip) == (1e-4 * 144 / 256, 0.05, 3.0)
    assert (config.data.batch_size, config.ema.decay, rate.warmup) == (144, 0.9999, 20 * karl.EPOCH)


def test_every_pass_has_its_losses():
    terms = task_of("size=paper").terms
    assert {(name, term.reads) for name, term in terms.items()} == {
        (f"{name}_{kind}", f"{name}_halting" if kind == "halting" else name)
        for name in ("estimate", "complete")
        for kind in ("l1", "halting", "adversarial")
    }
    assert set(modules_of("size=paper")) == {"tokenizer", "discriminator", "second_discriminator"}
    one, eight = (count("size=paper", group) for group in ("second_discriminator", "discriminator"))
    assert eight == 8 * one
    assert list(task_of("size=debug").losses) == ["tokenizer"]


@pytest.mark.parametrize("size", ["debug", "small"])
def test_smaller_sizes_build(size):
    assert count(f"size={size}") > 5e5


@pytest.mark.parametrize("name", karl.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in karl.SWEEPS[name]:
        config = karl.get_config("size=debug")
        config.update_from_flattened_dict(change)
        (value,) = change.values()
        assert tasks.build(config).config.model.lengths.threshold == value

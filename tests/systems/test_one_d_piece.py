"""Every size of the One-D-Piece config, and what its losses and stages promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import one_d_piece
from videogen.errors import UserError
from videogen.generators import BlockSampler
from videogen.shapes import VideoShape
from videogen.tasks import to_pixels
from videogen.tasks.generation import VideoGenerator
from videogen.tokens import Tokens
from videogen.training.state import parameter_count


@functools.cache
def task_of(argument: str):
    return tasks.build(one_d_piece.get_config(argument))


def count(argument: str) -> int:
    model = nnx.eval_shape(lambda: task_of(argument).init(nnx.Rngs(0)))["tokenizer"]
    return parameter_count(nnx.state(model, nnx.Param))


@pytest.mark.parametrize(("model", "expected"), [("S", 51.3e6), ("B", 171.4e6), ("L", 606.1e6)])
def test_paper_sizes(model, expected):
    """Encoder and decoder of 12 · width² a layer, and little beside them."""
    argument = f"size=paper,model={model}"
    section = one_d_piece.MODELS[model]
    assert count(argument) == pytest.approx(2 * 12 * section["width"] ** 2 * section["layers"], rel=0.03)
    assert count(argument) == pytest.approx(expected, rel=1e-3)


def test_the_published_recipe():
    config = one_d_piece.get_config("size=paper")
    model = nnx.eval_shape(lambda: task_of("size=paper").init(nnx.Rngs(0)))["tokenizer"]
    layout = model.layout(VideoShape(1, 256, 256)).only
    # 256 codes of 12 bits are 384 bytes, k of them 1.5 k.
    assert (layout.tokens, layout.bits, layout.tokens * layout.bits / 8) == (256, 12.0, 384.0)
    assert model.places == (1, 16, 16) and model.quantizer.width == 12
    assert (config.steps, config.data.batch_size, config.ema.decay) == (500_000, 512, 0.999)
    adversarial = config.losses.adversarial
    assert (adversarial.objective, adversarial.weight, adversarial.start) == ("hinge", 0.01, 20_000)
    assert (config.losses.l2.weight, adversarial.lecam) == (1.0, 0.001)
    rate = config.optimizer.tokenizer
    assert (rate.learning_rate, rate.b1, rate.b2, rate.weight_decay, rate.warmup) == (1e-4, 0.9, 0.99, 1e-4, 5000)
    assert rate.learning_rate * rate.final == pytest.approx(1e-5)
    lengths = config.model.lengths
    assert (lengths.name, lengths.distribution, lengths.minimum) == ("tail_drop", "uniform", 1)


@pytest.mark.parametrize("size", ["debug", "small"])
def test_smaller_sizes_build(size):
    assert count(f"size={size}") > 5e5


@pytest.mark.parametrize("name", one_d_piece.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in one_d_piece.SWEEPS[name]:
        config = one_d_piece.get_config("size=debug")
        config.update_from_flattened_dict(change)
        (value,) = change.values()
        assert tasks.build(config).config.model.lengths.distribution == value


def test_a_generator_draws_the_first_codes_alone():
    config = one_d_piece.get_config("stage=generator,size=debug")
    network = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    config.parts.tokenizer.model.update({"queries": 6, "encoder": dict(network), "decoder": dict(network)})
    config.model.transformer.update(network)
    config.text.encoder.update({"width": 16, "heads": 2})
    task = tasks.build(config)
    modules = task.init(nnx.Rngs(0)) | {"tokenizer": task.structure_of_part("tokenizer")}
    kernel = modules["tokenizer"].pixels.kernel
    kernel.set_value(0.3 * jax.random.normal(jax.random.key(1), kernel.get_value().shape))
    whole, first = (VideoGenerator(task, modules, {"tokens": tokens}) for tokens in (None, 2))
    said, keys = task.unprompted(3), jax.random.split(jax.random.key(0), 3)

    def tokens_of(drawing: VideoGenerator) -> jax.Array:
        arguments = (drawing.layout, task.conditioning(modules, said), keys, drawing.sampler)
        return modules["generator"].generator.sample(*arguments, **task.shown(modules)).only.values

    of_whole, of_first = (jax.jit(functools.partial(tokens_of, drawing))() for drawing in (whole, first))
    assert of_whole.shape[1] == 6 and of_first.shape[1] == 2
    np.testing.assert_array_equal(of_first, of_whole[:, :2])
    model, layout = modules["tokenizer"], task.layout
    kept = jnp.arange(6) < 2
    tokens = Tokens.single(of_whole, layout, kept=jnp.broadcast_to(kept, (3, 6)))
    pixels = to_pixels(jax.jit(model.detokenize)(tokens))
    tokens = first._draw(first._states, said, keys, None, first.layout)[1]
    drawn = to_pixels(first._decode(first._states, tokens, said))
    np.testing.assert_allclose(drawn.astype(int), pixels, atol=1)
    with pytest.raises(UserError, match="sampler.tokens=7: a clip has 6 tokens"):
        VideoGenerator(task, modules, {"tokens": 7})


def test_registers_of_frames():
    config = one_d_piece.get_config("size=debug,registers=frame")
    model = nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))["tokenizer"]
    layout = model.layout(VideoShape(5, 24, 24))
    # A quarter of the 64 codes of a clip for each latent frame.
    assert layout.only.sides == (("time", 3), ("query", 16)) and layout.only.vocabulary == (512,)
    generator = tasks.build(one_d_piece.get_config("stage=generator,size=debug,registers=frame"))
    assert generator.grid.shape == (3, 1, 16)
    with pytest.raises(UserError, match="first tokens of a row: leave it out"):
        generator.drawn_by(BlockSampler(tokens=3))

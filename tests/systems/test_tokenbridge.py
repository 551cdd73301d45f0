"""Every size of the TokenBridge config; the stage that measures and trains nothing; what rounding costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import tokenbridge
from videogen.errors import UserError
from videogen.shapes import TokenGrid
from videogen.tasks import to_video
from videogen.training.state import new_state, parameter_count, structure_of
from videogen.training.step import make_train_step


@functools.cache
def built(argument: str) -> tuple[tasks.Task, nnx.Module]:
    task = tasks.build(tokenbridge.get_config(argument))
    modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    return task, modules[next(iter(task.losses))]


def count(module: nnx.Module) -> int:
    return parameter_count(nnx.state(module, nnx.Param))


# Published: 486M and 910M; of the larger one the adaptive norms of ours alone, (6 · 6 + 2) · 1280², are 62M.
@pytest.mark.parametrize(("model", "parameters"), [("L", 486e6), ("H", 972e6)])
def test_paper_generators(model, parameters):
    task, module = built(f"stage=generator,size=paper,model={model}")
    generator = module.generator
    layers = generator.stack.layers
    by_class = (generator.context, layers.cross_attention, layers.cross_norm)
    assert count(generator) - sum(map(count, by_class)) == pytest.approx(parameters, rel=0.01)
    assert task.grid == TokenGrid(1, 16, 16, 16) and task.config.sampler.steps == 256
    raster, _ = built(f"stage=generator,size=paper,model={model},order=raster")
    assert raster.generator.passes(task.grid) == 256
    assert sum(np.log2(task.tokenizer.vocabulary)) == 96


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("stage", tokenbridge.STAGES)
def test_smaller_sizes_build(stage, size):
    assert count(built(f"stage={stage},size={size}")[1]) > 5e5


@pytest.mark.parametrize("size", ["debug", "small", "paper"])
def test_rounding_is_the_only_thing_between_the_two_tokenizers(size):
    old, new = (
        {path: v.get_value().shape for path, v in nnx.to_flat_state(nnx.state(built(f"stage={stage},size={size}")[1]))}
        for stage in ("tokenizer", "quantized")
    )
    assert {path[0] for path in new.keys() - old.keys()} == {"quantizer"}
    assert {path: new[path] for path in old} == old


@pytest.mark.parametrize("size", ["debug", "small", "paper"])
def test_only_statistics_are_left_to_move(size):
    config = tokenbridge.get_config(f"stage=quantized,size={size}")
    moved = {path[0] for path, _ in nnx.to_flat_state(nnx.state(built(f"stage=quantized,size={size}")[1]))}
    assert moved == {*config.optimizer.tokenizer.freeze, "quantizer"}
    assert list(built(f"stage=quantized,size={size}")[0].losses) == ["tokenizer"]


def test_delayed_channels_are_drawn_in_raster_order():
    for order in ("", ",order=raster"):
        model = tokenbridge.get_config(f"stage=generator,size=paper,levels=delay{order}").model
        assert model.name == "next_block" and model.delay
    with pytest.raises(UserError, match="levels=delay draws places one after another, and order=random does not"):
        tokenbridge.get_config("stage=generator,size=paper,levels=delay,order=random")


@pytest.mark.parametrize("name", tokenbridge.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in tokenbridge.SWEEPS[name]:
        config = tokenbridge.get_config(f"size=debug,stage={'quantized' if name == 'bins' else 'generator'}")
        config.update_from_flattened_dict(change)
        task = tasks.build(config)
        nnx.eval_shape(lambda task=task: task.init(nnx.Rngs(0)))


@pytest.fixture(scope="module")
def measured():
    """A narrow tokenizer with random weights, after two steps of the stage ``quantized``."""
    config = tokenbridge.get_config("stage=quantized,size=debug")
    config.model.quantizer.drawn = False  # so that the measured numbers are known
    config.model.update({"width": 16, "heads": 2, "mlp_width": 32, "decoder_layers": (1, 1)})
    config.model.quantizer.update({"width": 4, "bins": 64})
    task = tasks.build(config)
    structure, _ = structure_of(task, config)
    states = [jax.jit(lambda: new_state(task, structure, config))()]
    step = jax.jit(make_train_step(task, structure, {}, config))
    videos = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 8, 8, 3), np.uint8)
    for video in videos:
        state, metrics = step(states[-1], {}, {"video": video})
        states.append(state)
    return structure, states, videos, metrics


def test_the_stage_measures_every_channel_over_all_its_batches(measured):
    structure, states, videos, metrics = measured
    for name in ("params", "optimizer"):
        moments = [[x for x in jax.tree.leaves(s[name]) if x.ndim] for s in (states[0], states[-1])]
        jax.tree.map(np.testing.assert_array_equal, *moments)
    assert metrics["gradient_norm"] == 0 and metrics["finite"] == 1
    model = structure.modules(states[-1]["params"], states[-1]["variables"])["tokenizer"]
    latents = np.concatenate([model.encode(to_video(video)).values for video in videos])[..., :4].reshape(-1, 4)
    np.testing.assert_allclose(model.quantizer.mean.get_value(), latents.mean(0), atol=1e-5)
    np.testing.assert_allclose(model.quantizer.deviation.get_value(), latents.std(0), rtol=1e-4)
    assert model.quantizer.measured.get_value() == len(latents)


def test_rounded_latents_decode_to_almost_the_same_video(measured):
    structure, states, videos, _ = measured
    model = structure.modules(states[-1]["params"], states[-1]["variables"])["tokenizer"]
    video = to_video(videos[0])
    mean = model.encode(video).values[..., :4]
    codes = model.tokenize(video)
    assert codes.only.values.shape == (3, 3, 2, 2, 4) and model.vocabulary == (64,) * 4
    error = jnp.mean((model.quantizer.lookup(codes.only.values) - mean) ** 2) / jnp.var(mean)
    assert 0 < error < 0.002
    exact = jnp.clip(model.decode(mean), -1, 1)
    assert jnp.std(model.detokenize(codes) - exact) < 0.1 * jnp.std(exact)

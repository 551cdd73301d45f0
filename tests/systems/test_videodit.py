"""Every size of the video diffusion transformer's config: published sizes, grids, buildable tasks."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh

from tests.parallel.test_flops import t5_flops
from videogen import tasks
from videogen.configs import videodit
from videogen.parallel import AXES
from videogen.parallel.flops import Flops, count
from videogen.planning.programs import abstract_run, abstract_step, complete_for_planning
from videogen.shapes import TokenGrid, VideoShape
from videogen.training.state import parameter_count


def shape_of(argument: str) -> tuple[tasks.Task, nnx.Module]:
    task = tasks.build(videodit.get_config(argument))
    modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    return task, modules[next(iter(task.losses))]


# Wan2.1 published 1.42B and 14.29B; LTX-Video's transformer 1.92B.
@pytest.mark.parametrize(
    ("model", "published", "grid", "tokens"),
    [
        ("1.3B", 1.42e9, (21, 90, 160), (21, 45, 80)),
        ("2B", 1.92e9, (16, 22, 40), (16, 22, 40)),
        ("14B", 14.29e9, (21, 90, 160), (21, 45, 80)),
    ],
)
def test_paper_generators_have_the_published_size(model, published, grid, tokens):
    task, module = shape_of(f"stage=generator,size=paper,model={model}")
    assert parameter_count(nnx.state(module, nnx.Param)) == pytest.approx(published, rel=0.02)
    assert task.grid.shape == grid
    assert module.generator.tokens(task.grid) == TokenGrid(*tokens)


def test_paper_tokenizer_is_continuous_with_sixteen_channels():
    task, module = shape_of("stage=tokenizer,size=paper")
    assert module.vocabulary == () and module.quantizer.width == 16
    assert module.grid(VideoShape(81, 720, 1280)).shape == (21, 90, 160)
    _, module = shape_of("stage=tokenizer,size=paper,model=2B")
    assert module.quantizer.width == 128
    assert module.grid(VideoShape(121, 704, 1280)).shape == (16, 22, 40)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_smaller_sizes_build(stage, size):
    assert parameter_count(nnx.state(shape_of(f"stage={stage},size={size}")[1], nnx.Param)) > 1e5


@pytest.mark.parametrize("name", videodit.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in videodit.SWEEPS[name]:
        config = videodit.get_config("stage=generator,size=debug")
        config.update_from_flattened_dict(change)
        task = tasks.build(config)
        nnx.eval_shape(lambda task=task: task.init(nnx.Rngs(0)))


@pytest.fixture(scope="module")
def counted() -> tuple:
    """The train step of 14B as a TPU slice would run it, of clips of 1280 tokens."""
    config = videodit.get_config("stage=generator,size=paper,model=14B")
    config.data.clip.update({"frames": 17, "height": 256, "width": 256})
    complete_for_planning(config)
    run = abstract_run(config)
    device = AbstractDevice(device_kind="v5p", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 1, 16, 1, config.parallel.mesh.context), AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        step, arguments = abstract_step(run, config, mesh)
        program = step.trace(*arguments).jaxpr
    return config, run, program, count(program, tile=128)


def test_a_pod_trades_the_sequence_for_heads_around_kernels_whose_output_is_kept(counted):
    config, _, program, flops = counted
    assert not flops.unknown and config.parallel.remat == "attention"
    passes = {part: [n for n in flops.kernels if n.startswith(f"splash_mha_{part}")] for part in ("fwd", "dkv")}
    # Sequences are short here: one kernel gives all gradients.
    assert all(passes.values())
    assert "all_to_all" in str(program)
    # Layers are computed again, but for the kernels' forward passes: there is no second one in the backward pass.
    assert 0 < flops.recomputed < flops.model / 3


def test_flops_match_the_closed_form_to_two_percent(counted):
    config, run, _, flops = counted
    model, clip, length = config.model.transformer, config.data.clip, config.text.tokenizer.length
    tokens, w = 5 * 16 * 16, model.width
    projections = 2 * (4 * w * w + 2 * w * w + 2 * w * model.mlp_width)
    attention = 4 * w * (tokens + length)
    text = length * 2 * (config.parts.text_encoder.model.width * w + w * w)
    times = 2 * (256 * w + w * w + 6 * w * w)
    layers = model.layers * (tokens * (projections + attention) + length * 2 * 2 * w * w)
    forward = layers + text + times + tokens * 2 * 2 * 64 * w
    video = jax.ShapeDtypeStruct((1, clip.frames, clip.height, clip.width, 3), jnp.float32)
    encoder = of_encoder(run.frozen["tokenizer"], video).model
    expected = config.data.batch_size * (3 * forward + encoder + t5_flops(config, length))
    assert flops.model == pytest.approx(expected, rel=0.02)


def of_encoder(tokenizer: nnx.Module, video: jax.ShapeDtypeStruct) -> Flops:
    graph, state = nnx.split(tokenizer)
    return count(jax.make_jaxpr(lambda state, video: nnx.merge(graph, state).tokenize(video).only.values)(state, video))

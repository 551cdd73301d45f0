"""Every stage and size of the CDT config, and a de-tokenizer from its first step to its export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from tests.parameters import with_random_parameters
from videogen import tasks, tokenizers
from videogen.configs import cdt
from videogen.errors import UserError
from videogen.evaluation.protocols import evaluate
from videogen.nn import MicroBatch
from videogen.parallel import make_mesh
from videogen.planning.programs import abstract_run, abstract_step
from videogen.shapes import VideoShape
from videogen.training.loading import Loaded, export_safetensors, hash_of, load
from videogen.training.state import new_state, parameter_count, structure_of
from videogen.training.step import make_train_step


@functools.cache
def modules(stage: str, size: str, decoder: str = "diffusion") -> dict[str, nnx.Module]:
    config = cdt.get_config(f"stage={stage},size={size},decoder={decoder}")
    return nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))


def count(stage: str, size: str, decoder: str = "diffusion") -> dict[str, int]:
    return {name: parameter_count(nnx.state(m, nnx.Param)) for name, m in modules(stage, size, decoder).items()}


def test_paper_size():
    """No count is published; these follow from the widths of the public code."""
    model = modules("tokenizer", "paper")["tokenizer"]
    assert count("tokenizer", "paper") == {"tokenizer": pytest.approx(192e6, rel=0.01)}
    assert parameter_count(nnx.state(model.encoder)) == pytest.approx(43.4e6, rel=0.01)
    assert parameter_count(nnx.state(model.decoder.denoiser)) == pytest.approx(105e6, rel=0.01)
    assert count("detokenizer", "paper") == {"detokenizer": pytest.approx(149e6, rel=0.01)}


def test_paper_shapes():
    model = modules("tokenizer", "paper")["tokenizer"]
    assert model.grid(VideoShape(17, 256, 256)).shape == (5, 32, 32)
    latents = jax.ShapeDtypeStruct((1, 5, 32, 32, 16), np.float32)
    context = nnx.eval_shape(lambda m, z: m.decoder.context(z), model, latents)
    expected = [(17, 256, 256, 16), (17, 256, 256, 128), (17, 128, 128, 256), (9, 64, 64, 384)]
    assert [features.shape[1:] for features in context] == expected


@pytest.mark.slow
@pytest.mark.parametrize("size", ["debug", "small", "paper"])
@pytest.mark.parametrize("stage", ["tokenizer", "detokenizer"])
def test_both_decoders_have_the_same_size(stage, size):
    assert count(stage, size) == count(stage, size, "l2")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "detokenizer"])
def test_the_step_of_small_can_be_traced_for_a_mesh(stage):
    config = cdt.get_config(f"stage={stage},size=small")
    mesh = make_mesh({"data": 1})
    with jax.set_mesh(mesh):
        step, arguments = abstract_step(abstract_run(config), config, mesh)
        state, metrics = jax.eval_shape(step, *arguments)
    assert {"loss", "l2"} <= metrics.keys() and state.keys() == arguments[0].keys()


def test_a_stage_that_is_not_there_is_named():
    with pytest.raises(UserError, match="unknown stage"):
        cdt.get_config("stage=decoder")


def narrow() -> ConfigDict:
    """A de-tokenizer of few channels on 3×16×16 clips."""
    config = cdt.get_config("stage=detokenizer,size=debug")
    config.steps = 10
    config.data.clip.update({"frames": 3, "height": 16, "width": 16})
    config.parts.tokenizer.model.update({"width": 4, "multipliers": (1, 2), "norm_groups": 2})
    config.parts.tokenizer.model.update({"spatial_strides": (2,), "temporal_strides": (2,)})
    config.model.update({"widths": (4, 4), "context_width": 2, "steps": 2})
    config.model.pyramid.update({"widths": (4,), "spatial_strides": (2,), "temporal_strides": (2,)})
    return config


@pytest.fixture(scope="module")
def built() -> tuple[ConfigDict, tasks.Task, dict[str, nnx.Module]]:
    """The config, the task, and its modules with random parameters: the frozen tokenizer's and the de-tokenizer's."""
    config = narrow()
    task = tasks.build(config)
    abstract = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)) | task.frozen(None))
    return config, task, {name: with_random_parameters(module) for name, module in abstract.items()}


@pytest.mark.slow
def test_the_loss_is_weighed_and_reaches_every_parameter_of_the_de_tokenizer(built):
    config, task, modules = built
    assert list(task.losses) == ["detokenizer"]
    graph, params, variables = nnx.split(modules["detokenizer"], nnx.Param, ...)
    batch = {"video": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8))}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        live = modules | {"detokenizer": nnx.merge(graph, params, variables)}
        value, outcome = task.losses["detokenizer"](live, batch, jax.random.key(0), jnp.zeros((), int), MicroBatch())
        return value, outcome.metrics | {"loss": value}

    gradients, metrics = gradient(params)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradients))
    expected = metrics["l2"] + config.losses.perceptual.weight * metrics["perceptual"]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_only_the_de_tokenizer_learns():
    config = narrow()
    task = tasks.build(config)
    structure, _ = structure_of(task, config)
    frozen = task.frozen(None)
    graphs = {name: nnx.graphdef(module) for name, module in frozen.items()}
    arrays = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in frozen.items()}
    states = [jax.jit(lambda: new_state(task, structure, config))()]
    step = jax.jit(make_train_step(task, structure, graphs, config))
    for seed in range(2):
        video = np.random.default_rng(seed).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
        state, metrics = step(states[-1], arrays, {"video": video})
        states.append(state)
    assert list(states[0]["params"]) == ["detokenizer"]
    pairs = zip(*(jax.tree.leaves(s["params"]) for s in states[1:]), strict=True)
    assert all(np.any(a != b) for a, b in pairs)
    expected = metrics["l2"] + config.losses.perceptual.weight * metrics["perceptual"]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_a_tokenizer_without_places_is_refused(built):
    config = built[0].copy_and_resolve_references()
    with config.unlocked():
        config.parts.tokenizer.model = {
            "name": "one_d",
            "clip": (3, 16, 16),
            "patch": (3, 8, 8),
            "queries": 5,
        }
        for part in ("encoder", "decoder"):
            config.parts.tokenizer.model[part] = {"width": 12, "layers": 1, "heads": 2, "mlp_width": 24}
        config.parts.tokenizer.model.quantizer = {"name": "stochastic", "size": 64, "width": 6}
    with pytest.raises(UserError, match="no place in the picture"):
        tasks.build(config)


@pytest.mark.slow
def test_an_export_is_a_tokenizer_with_both_decoders_measured(built, tmp_path):
    config, task, live = built
    export_safetensors(Loaded(tmp_path, config, task, live, 2), tmp_path / "export")
    loaded = load(tmp_path / "export")
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 16, 3)).astype(np.float32)
    codes = jax.jit(loaded.tokenizer.tokenize)(video)
    assert codes.only.values.shape == (1, 2, 8, 8, 1)
    rebuilt, expected = (jax.jit(m.detokenize)(codes) for m in (loaded.tokenizer, task.assembled(live)))
    np.testing.assert_array_equal(rebuilt, expected)
    # Whoever has codes of the frozen tokenizer can decode them here.
    assert loaded.hash == hash_of(live["tokenizer"])
    common = dict(remat="none", dtype=np.float32)
    built = nnx.eval_shape(lambda: tokenizers.build(loaded.model_of("tokenizer"), **common, rngs=nnx.Rngs(0)))
    assert parameter_count(nnx.state(built)) == parameter_count(nnx.state(loaded.tokenizer))
    record, clips = evaluate(loaded, "reconstruction", 2, 0)
    assert {"psnr", "gradient_sharpness", "deterministic_psnr", "judge_on_deterministic"} <= record["metrics"].keys()
    assert clips["deterministic"].shape == clips["reconstructions"].shape == clips["originals"].shape
    record, _ = evaluate(loaded, "denoising_steps", 2, 0)
    assert list(record["metrics"]["denoising_steps"]) == ["1", "2", "4", "8"]
    picture = task.pictures(loaded.modules, {"video": clips["originals"]}, 0)[0]
    assert len(picture.rows[0]) == len(picture.columns) == 3

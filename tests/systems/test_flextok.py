"""Every size of the FlexTok config, and its stages: a VAE, and a tokenizer of its latents that alone learns."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import videogen
from launch import local
from tests.parameters import with_random_parameters
from tests.training_configs import tiny
from videogen import encoders, tasks, tokenizers
from videogen.configs import flextok
from videogen.defaults import optimizer
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape
from videogen.training.loading import export_safetensors
from videogen.training.loop import train
from videogen.training.state import parameter_count

DINO = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 8}


@functools.cache
def task_of(argument: str) -> tasks.Task:
    return tasks.build(flextok.get_config(argument))


@functools.cache
def model_of(argument: str) -> nnx.Module:
    return nnx.eval_shape(lambda: task_of(argument).init(nnx.Rngs(0)))["tokenizer"]


def count(module: nnx.Module) -> int:
    return parameter_count(nnx.state(module, nnx.Param))


@pytest.mark.parametrize(
    ("model", "reported", "expected"),
    [("d12-d12", None, 257.5e6), ("d18-d18", 573e6, 865.4e6), ("d18-d28", 1.4e9, 2456e6)],
)
def test_paper_sizes(model, reported, expected):
    """Figures of other papers' tables count the layers without their modulation, of 2 · 6 · width² each."""
    network = model_of(f"size=paper,model={model}")
    depths, modulation = flextok.MODELS[model], network.decoder.tower.stack.layers.modulation
    layers = count(network.encoder) + count(network.decoder.tower) - count(modulation)
    assert layers == pytest.approx(sum(12 * (64 * depth) ** 2 * depth for depth in depths), rel=2e-3)
    assert count(modulation) == pytest.approx(12 * (64 * depths[1]) ** 2 * depths[1], rel=2e-3)
    assert reported is None or layers == pytest.approx(reported, rel=0.03)
    assert count(network) == pytest.approx(expected, rel=1e-3)


def test_the_published_tokenizer():
    config, model = flextok.get_config("size=paper"), model_of("size=paper")
    task = task_of("size=paper")
    layout = task.vae.layout(VideoShape(1, 256, 256)).only
    assert (layout.shape, layout.channels) == ((1, 32, 32), 16)
    assert (model.places, model.area, model.quantizer.vocabulary) == ((1, 16, 16), 64, (64_000,))
    codes = model.layout(model.clip).only
    # 256 tokens of 15.97 bits: 0.062 bits of a pixel.
    assert codes.tokens == 256 and codes.tokens * codes.bits == pytest.approx(4087, rel=1e-3)
    assert codes.tokens * codes.bits / 256**2 == pytest.approx(0.062, rel=0.01)
    assert [(part.heads, part.width // part.heads) for part in (config.model.encoder, config.model.decoder)] == [
        (18, 64),
        (28, 64),
    ]
    flow = config.model.flow
    assert (flow.steps, flow.guidance_scale, flow.guidance.name) == (20, 7.5, "adaptive_projected")
    assert (flow.guidance.norm_threshold, flow.guidance.momentum, flow.guidance.eta) == (2.5, -0.5, 0.0)
    assert config.model.lengths.distribution == "power_of_two"
    assert {name for name, term in config.losses.items() if term.weight} == {"flow"}
    vae = flextok.get_config("stage=vae,size=paper")
    assert vae.model == config.parts.vae.model and vae.data.clip == config.data.clip


@pytest.mark.parametrize("decoder", ["flow", "deterministic"])
@pytest.mark.parametrize("space", ["latents", "pixels"])
@pytest.mark.parametrize("size", ["debug", "small"])
def test_smaller_sizes_build(size, space, decoder):
    argument = f"size={size},space={space},decoder={decoder}"
    assert count(model_of(argument)) > 5e5
    clip = flextok.get_config(argument).data.clip
    assert task_of(argument).tokens == len(model_of(argument).queries.get_value())
    vae = flextok.get_config(f"stage=vae,size={size}").data.clip
    assert space == "pixels" or (clip.frames, clip.height, clip.width) == (vae.frames, vae.height, vae.width)


@pytest.mark.parametrize("name", flextok.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in flextok.SWEEPS[name]:
        config = flextok.get_config("size=debug")
        config.update_from_flattened_dict(change)
        tasks.build(config)


def test_the_vae_of_a_local_run_is_its_first_stage(tmp_path):
    stages = local.plan("flextok:size=debug", tmp_path, [], clip="5x16x24")
    assert [stage.name for stage in stages] == ["vae", "tokenizer", "generator"]
    assert stages[1].config.parts.vae.checkpoint == str(tmp_path / "vae")
    assert tuple(stages[1].config.model.clip) == (5, 16, 24) and stages[0].config.data.clip.height == 16
    assert "--protocol=reconstruction" in stages[1].evaluate and "--protocol=prompt_fidelity" in stages[2].evaluate
    assert stages[2].config.parts.tokenizer.checkpoint == str(tmp_path / "tokenizer")
    assert stages[2].config.data.clip.frames == 5 and stages[2].config.data.clip.width == 24


def narrow(**changes) -> ConfigDict:
    """The tokenizer of latents of ``tiny`` with a Gaussian."""
    config = flextok.get_config("stage=tokenizer,size=debug")
    config.parts.vae.model = vae().model
    config.data.clip.update({"height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 2
    config.model.update({"clip": (5, 8, 8), "queries": 4})
    for part in (config.model.encoder, config.model.decoder):
        part.update({"width": 16, "layers": 2, "heads": 2, "mlp_width": 16})
    config.model.flow.steps = 2
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    config.update_from_flattened_dict(changes)
    return config


def vae() -> ConfigDict:
    sides = {"data.clip.height": 8, "data.clip.width": 8}
    return tiny(**{"model.quantizer": {"name": "gaussian", "width": 4, "kl_weight": 1e-3}}, **sides)


@pytest.mark.slow
def test_repa_reaches_an_early_layer(tmp_path):
    """Property 13: the projector and the first layers learn from the frozen encoder, and nothing frozen moves."""
    (tmp_path / "config.json").write_text(json.dumps({**DINO, "model_type": "dinov2"}))
    config = narrow()
    config.parts.dino = {"checkpoint": str(tmp_path), "hash": "", "model": encoders.describe("dinov2", tmp_path)}
    config.losses.repa = flextok.get_config("size=debug,repa=dinov2").losses.repa
    config.losses.repa.update({"hidden": (16, 16), "side": 8})
    config.losses.flow.weight = 0.0
    config.optimizer.distillation = optimizer()
    task = tasks.build(config)
    assert set(task.losses) == {"tokenizer", "distillation"}
    abstract = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)) | task.frozen(None))
    modules = {name: with_random_parameters(module) for name, module in abstract.items()}
    modules["tokenizer"].statistics.square.set_value(jnp.full(4, 2.0))
    assert len(modules["distillation"].layers) == 3
    batch = {"video": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), np.uint8))}
    split = {name: nnx.split(module, nnx.Param, ...) for name, module in modules.items()}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        live = {name: nnx.merge(split[name][0], params[name], split[name][2]) for name in modules}
        value, outcome = task.losses["tokenizer"](live, batch, jax.random.key(0), jnp.zeros((), int), MicroBatch())
        return value, (value, outcome.metrics)

    found, (value, metrics) = gradient({name: params for name, (_, params, _) in split.items()})
    assert float(value) == pytest.approx(float(metrics["repa"]), rel=1e-5) and 0 < float(value) < 2
    moved = {name: bool(any(np.any(leaf) for leaf in jax.tree.leaves(part))) for name, part in found.items()}
    assert moved == {"tokenizer": True, "distillation": True, "vae": False, "dino": False}
    # Behind the second layer nothing is compared: the head learns nothing, the layers before it do.
    decoder = found["tokenizer"]["decoder"]
    assert not np.any(decoder["head"]["kernel"].get_value()) and np.any(decoder["patches"]["kernel"].get_value())


@pytest.mark.slow
def test_a_tokenizer_of_latents_from_its_first_step_to_its_export(tmp_path):
    train(vae(), tmp_path / "vae")
    config = narrow()
    config.parts.vae = {"checkpoint": str(tmp_path / "vae"), "model": {}, "hash": ""}
    train(config, tmp_path / "run")
    loaded, frozen = videogen.load(tmp_path / "run"), videogen.load(tmp_path / "vae")
    assert loaded.config.parts.vae.hash == frozen.hash and set(loaded.modules) == {"tokenizer", "vae"}
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(loaded.modules["vae"])), jax.tree.leaves(nnx.state(frozen.tokenizer)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    # Both steps were measured: batches of 2 clips of 3 × 2 × 2 latents.
    statistics = loaded.trained.statistics
    assert int(statistics.count.get_value()) == 2 and float(statistics.seen.get_value()) == 2 * 2 * 12
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 5, 8, 8, 3)), jnp.float32)
    whole = loaded.tokenizer
    tokens = whole.tokenize(video, 2)
    np.testing.assert_allclose(tokens.bits(), 2 * np.log2(1000), rtol=1e-6)
    few, again = whole.detokenize(tokens), whole.detokenize(tokens)
    assert few.shape == video.shape and np.array_equal(few, again)
    export_safetensors(loaded, tmp_path / "export")
    exported = videogen.load(tmp_path / "export")
    assert exported.hash == loaded.hash
    np.testing.assert_allclose(exported.tokenizer.detokenize(tokens), few, atol=1e-5)
    rebuilt = nnx.eval_shape(lambda: tokenizers.build(loaded.model_of("tokenizer"), rngs=nnx.Rngs(0)))
    shapes = [jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(nnx.state(m))) for m in (rebuilt, whole)]
    assert shapes[0] == shapes[1]

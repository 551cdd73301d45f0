"""Every size of the Divot and DiCoDe configs, their stages, and a run from its first step to its export."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import videogen
from launch import local
from tests.training_configs import tiny
from videogen import data, tasks
from videogen.configs import dicode, divot
from videogen.configs.common import bpe_text
from videogen.configs.generators import flow, flow_from_text
from videogen.errors import UserError
from videogen.inference.sampled import write_sampled_cache
from videogen.inference.sampling import draw_videos
from videogen.runs.records import FILE, read_metrics
from videogen.shapes import VideoShape
from videogen.training.loading import export_safetensors
from videogen.training.loop import train
from videogen.training.state import parameter_count

SYSTEMS = {"divot": divot, "dicode": dicode}


@functools.cache
def task_of(system: str, argument: str) -> tasks.Task:
    return tasks.build(SYSTEMS[system].get_config(argument))


@functools.cache
def model_of(system: str, argument: str) -> nnx.Module:
    return nnx.eval_shape(lambda: task_of(system, argument).init(nnx.Rngs(0)))["tokenizer"]


def count(module: nnx.Module) -> int:
    return parameter_count(nnx.state(module, nnx.Param))


def denoiser_count(width: int, layers: int, mlp: int, context: int, patch: int) -> int:
    """Attention, cross-attention, MLP, modulation and norm of a block; patches, times, last modulation and head."""
    block = 4 * width**2 + 2 * width**2 + 2 * context * width + 2 * width * mlp + 6 * width * (width + 1)
    norms = width + width + 4 * (width // 16)
    times, modulation = 256 * width + width**2 + 2 * width, 2 * width * (width + 1)
    ends = 2 * patch * width + width + patch + times + modulation
    return layers * (block + norms) + ends


def test_paper_sizes():
    """The published image encoder to the last parameter; the count of the denoiser is ours."""
    for system, expected in (("divot", 1_063_671_824), ("dicode", 866_380_048)):
        model, task = model_of(system, "size=paper"), task_of(system, "size=paper")
        assert count(task.vision) == 632_076_800 and count(model) == expected
        assert count(model.denoiser) == pytest.approx(denoiser_count(1152, 28, 4608, 1024, 16), rel=1e-3)
        assert model.denoiser.stack.layers.cross_attention.key_value.kernel.shape == (28, 1024, 2 * 1152)
        assert (model.grid, model.channels) == ((16, 32, 32), 4) and model.denoiser.patch == (1, 2, 2)


def test_shapes_of_divot_are_the_published_ones():
    """Property 1: five frames to 64 tokens of 256 channels to 125 vectors of 1024."""
    task = task_of("divot", "size=paper")
    graph, state = nnx.split(nnx.eval_shape(lambda: task._networks(nnx.Rngs(0))[1]))
    video = jax.ShapeDtypeStruct((2, 16, 256, 256, 3), jnp.float32)

    def through(state, video):
        model = nnx.merge(graph, state)
        tokens = model.encode(video).values
        (parts,) = model.tokenizer.conditions(tokens)
        return model.tokenizer.shown(video), tokens, model.tokenizer.context(parts), model.latents(video)

    shown, tokens, context, latents = jax.eval_shape(through, state, video)
    assert shown.shape == (2, 5, 256, 256, 3) and latents.shape == (2, 16, 32, 32, 4)
    assert tokens.shape == (2, 64, 256) and context.shape == (2, 125, 1024)


def test_the_published_diffusion():
    for module in (divot, dicode):
        flow = module.get_config("size=paper").model.denoising
        assert (flow.steps, flow.solver.eta, flow.guidance_scale, flow.guidance.share) == (50, 1.0, 7.5, 0.7)
        assert flow.process.zero_terminal_snr and flow.process.schedule == "scaled_linear" and flow.prediction == "v"
        losses = module.get_config("size=paper").losses
        assert {name for name, term in losses.items() if term.weight} == {"denoising"}


def test_key_frames_of_dicode():
    """Property 1: 31 key frames are a minute of 2-second clips, and 496 tokens fit into 512 with a text of 16."""
    model = nnx.eval_shape(lambda: task_of("dicode", "size=paper")._networks(nnx.Rngs(0))[1])
    layout = model.layout(VideoShape(15 * 30 + 1, 256, 256)).only
    assert layout.sides == (("time", 31), ("query", 16)) and layout.tokens == 496 and layout.channels == 256
    assert model.compression.frames(31) == 15 * 30 + 1


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_smaller_sizes_build(system, size):
    assert count(model_of(system, f"size={size}")) > 5e5
    module = SYSTEMS[system]
    clips = [module.get_config(f"stage={stage},size={size}").data.clip for stage in ("vae", "tokenizer")]
    assert clips[0].frames == clips[1].frames and clips[0].height == clips[1].height


@pytest.mark.parametrize("system", SYSTEMS)
def test_stages_differ_in_what_learns_and_in_the_share_of_the_null(system):
    """Divot, property 12."""
    module = SYSTEMS[system]
    first, second, third = (module.get_config(f"stage={s}") for s in ("tokenizer", "detokenizer", "sampled"))
    assert first.model.denoising.null_share == 0.0 and first.optimizer.tokenizer.freeze == ()
    for config in (second, third):
        assert config.model.denoising.null_share == 0.05
        assert set(config.optimizer.tokenizer.freeze) == set(model_of(system, "size=debug").encoder)
    first.model.denoising.null_share = 0.05
    with pytest.raises(UserError, match="freeze what leads to the tokens"):
        tasks.build(first)


def test_latents_of_another_scale_are_warned_of(monkeypatch, caplog):
    """Users, case 11: normalised latents of a deviation beyond 0.5 to 2, here 7, are named in the log."""
    task, found = tasks.build(divot.get_config("size=debug")), {"loss": 1.0, "loss_shuffled": 1.0}
    monkeypatch.setattr(tasks.TokenizerTask, "evaluate", lambda *_: {"psnr": 20.0})
    for deviation, said in ((1.2, False), (7.0, True), (0.4, True)):
        monkeypatch.setattr(task, "_diffusion_losses", lambda *_, d=deviation: found | {"latent_deviation": d})
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert task.evaluate({}, [], 0)["latent_deviation"] == deviation
        assert (f"have the deviation {deviation:g}" in caplog.text) == said


@pytest.mark.parametrize(("system", "name"), [(s, n) for s, module in SYSTEMS.items() for n in module.SWEEPS])
def test_every_variant_of_the_sweeps_builds(system, name):
    for change in SYSTEMS[system].SWEEPS[name]:
        config = SYSTEMS[system].get_config("size=debug")
        config.update_from_flattened_dict(change)
        tasks.build(config)


@pytest.mark.parametrize("system", SYSTEMS)
def test_stages_of_a_local_run_begin_with_the_one_before(system, tmp_path):
    stages = local.plan(f"{system}:size=debug", tmp_path, [], clip="5x16x24")
    assert [stage.name for stage in stages] == ["vae", "tokenizer", "detokenizer", "language"]
    for stage in stages[1:3]:
        assert stage.config.parts.vae.checkpoint == str(tmp_path / "vae")
        assert tuple(stage.config.model.clip) == (5, 16, 24) and "--protocol=reconstruction" in stage.evaluate
    assert stages[2].config.start_from.run == str(tmp_path / "tokenizer")
    assert stages[3].config.parts.tokenizer.checkpoint == str(tmp_path / "detokenizer")
    assert "--protocol=prompt_fidelity" in stages[3].evaluate


@pytest.mark.parametrize(("system", "queries", "slots"), [("divot", True, 16), ("dicode", False, 16)])
def test_language_stages_draw_the_tokens_of_the_system(system, queries, slots):
    config = SYSTEMS[system].get_config("stage=language,size=debug,clips=2")
    assert config.parts.tokenizer.model.tokenizer == model_config(system)
    task = tasks.build(config)
    assert task.layout.tokens == slots and task.clips == 2
    drawn = [item for item in config.layouts.draw["sequence"] if "output" in item]
    assert [bool(item.get("queries")) for item in drawn] == [queries]
    sizes = {"divot": ("mistral", "vicuna"), "dicode": ("100M", "0.8B", "1B", "3B")}[system]
    for name in sizes:
        paper = SYSTEMS[system].get_config(f"stage=language,size=paper,model={name}")
        assert (
            paper.parts.tokenizer.model.tokenizer.queries * paper.parts.tokenizer.model.tokenizer.width
            == {
                "divot": 64 * 256,
                "dicode": 16 * 256,
            }[system]
        )


def model_config(system: str) -> ConfigDict:
    return SYSTEMS[system].get_config("stage=tokenizer,size=debug").model


def vae() -> ConfigDict:
    sides = {"data.clip.height": 8, "data.clip.width": 8}
    return tiny(**{"model.quantizer": {"name": "gaussian", "width": 4, "kl_weight": 1e-3}}, **sides)


def narrow(system: str, stage: str, **changes) -> ConfigDict:
    """The tokenizer over latents of ``tiny`` with a Gaussian."""
    config = SYSTEMS[system].get_config(f"stage={stage},size=debug")
    config.parts.vae.model = vae().model
    config.data.clip.update({"height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 2
    network = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    resampler = {"width": 16, "depth": 1, "heads": 2, "head_width": 8}
    config.model.update({"clip": (5, 8, 8), "queries": 4, "width": 3})
    for name in ("motion", "blocks", "resampler", "expander"):
        if name in config.model:
            config.model[name].update(resampler if "depth" in config.model[name] else network)
    config.model.denoiser.update({"transformer": network, "patch": (1, 1, 1)})
    config.model.denoising.update({"steps": 2, "guidance_scale": 2.0})
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_stages_from_their_first_step_to_their_export(system, tmp_path, caplog):
    """The second stage leaves the tokens as they are and knows the null, which the export has."""
    train(vae(), tmp_path / "vae")
    runs = {}
    for stage, origin in (("tokenizer", ""), ("detokenizer", str(tmp_path / "tokenizer"))):
        config = narrow(system, stage)
        config.parts.vae = {"checkpoint": str(tmp_path / "vae"), "model": {}, "hash": ""}
        config.start_from.run = origin
        with caplog.at_level(logging.WARNING):
            train(config, tmp_path / stage)
        runs[stage] = videogen.load(tmp_path / stage)
        record = {name: value for row in read_metrics(tmp_path / stage / FILE) for name, value in row.items()}
        # Users, case 11: how far normalised latents deviate is in the record.
        assert record["eval/latent_deviation"] > 0 and record["train/latent_deviation"] > 0
        assert {"eval/loss", "eval/loss_shuffled", "eval/psnr"} <= set(record)
    first, second = (runs[stage].tokenizer for stage in ("tokenizer", "detokenizer"))
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 5, 8, 8, 3)), jnp.float32)
    tokens = [jax.jit(model.tokenize)(video) for model in (first, second)]
    np.testing.assert_array_equal(*[t.only.values for t in tokens])
    known = [int(model.tokenizer.null_known.get_value()) for model in (first, second)]
    assert known == [0, 1]
    zero = jax.jit(second.tokenize)(jnp.zeros((1, 5, 8, 8, 3))).only.values
    np.testing.assert_allclose(second.tokenizer.null.get_value(), zero[0], atol=1e-5)
    kernels = [np.asarray(model.tokenizer.denoiser.embed.kernel.get_value()) for model in (first, second)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    export_safetensors(runs["detokenizer"], tmp_path / "export")
    exported = videogen.load(tmp_path / "export")
    assert exported.hash == runs["detokenizer"].hash
    shown = [jax.jit(model.detokenize)(tokens[1]) for model in (second, exported.tokenizer)]
    np.testing.assert_allclose(*shown, atol=1e-5)
    # Users, case 12: what the null drops is in the record of the run.
    assert tuple(runs["detokenizer"].config.model.denoising.drops) == exported.tokenizer.tokenizer.parts
    spoken = SYSTEMS[system].get_config("stage=language,size=debug")
    spoken.parts.tokenizer = {"checkpoint": str(tmp_path / "export"), "model": {}, "hash": ""}
    spoken.model.backbone.transformer = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    spoken.data.clip.update({"height": 8, "width": 8})
    spoken.data.batch_size = spoken.data.eval_batch_size = 2
    spoken.steps = spoken.eval_every = spoken.checkpoint_every = spoken.log_every = 2
    train(spoken, tmp_path / "language")
    drawn = draw_videos(videogen.load(tmp_path / "language"), ["a circle"], seed=0)
    assert drawn.shape == (1, 5, 8, 8, 3)


@pytest.mark.slow
def test_the_denoiser_goes_on_with_tokens_that_a_generator_has_drawn(tmp_path):
    """Stage 5: a cache of drawn tokens beside their clips, on which only the denoiser moves."""
    train(vae(), tmp_path / "vae")
    config = narrow("divot", "tokenizer")
    config.parts.vae = {"checkpoint": str(tmp_path / "vae"), "model": {}, "hash": ""}
    train(config, tmp_path / "tokenizer")
    drawn = flow("debug", ConfigDict({"name": "cvivit"}))
    flow_from_text(drawn, "debug")
    drawn.parts.tokenizer = {"checkpoint": str(tmp_path / "tokenizer"), "model": {}, "hash": ""}
    drawn.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 16})
    drawn.text = bpe_text(vocabulary_size=300, length=8, width=16, layers=1, heads=2)
    drawn.model.prefix_share = 0.0
    drawn.data.clip.update({"frames": 5, "height": 8, "width": 8})
    drawn.data.batch_size = drawn.data.eval_batch_size = 2
    drawn.steps = drawn.eval_every = drawn.checkpoint_every = drawn.log_every = drawn.sampler.steps = 2
    train(drawn, tmp_path / "generator")
    generator = videogen.load(tmp_path / "generator")
    assert write_sampled_cache(generator, tmp_path / "cache", clips=6, batch_size=4) == 6
    with pytest.raises(UserError, match="--from needs a generator"):
        write_sampled_cache(videogen.load(tmp_path / "tokenizer"), tmp_path / "other")
    clip = data.Clip(5, 8, 8, 8.0)
    source = data.build({"name": "tokens", "path": str(tmp_path / "cache")}, clip=clip, seed=0, split="train")
    shapes = data.build({"name": "shapes"}, clip=clip, seed=drawn.seed, split="train")
    np.testing.assert_array_equal(source[3]["tokens/pixels"], shapes[3]["video"])
    assert source[3]["tokens/video"].shape == (4, 3) and source[3]["caption"] == shapes[3]["caption"]
    config = narrow("divot", "sampled")
    config.parts.vae = {"checkpoint": str(tmp_path / "vae"), "model": {}, "hash": ""}
    config.start_from.run = str(tmp_path / "tokenizer")
    config.data.source.path = str(tmp_path / "cache")
    train(config, tmp_path / "sampled")
    first, last = (videogen.load(tmp_path / name).tokenizer.tokenizer for name in ("tokenizer", "sampled"))
    ours, theirs = (nnx.to_pure_dict(nnx.state(model)) for model in (first, last))
    for name in first.encoder:
        jax.tree.map(np.testing.assert_array_equal, ours[name], theirs[name])
    assert np.abs(first.denoiser.embed.kernel.get_value() - last.denoiser.embed.kernel.get_value()).max() > 0

"""Every size of the TokensGen config, and its stages from a VAE to a planned video."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import videogen
from launch import local
from tests.generators.clips import layout_of
from tests.parameters import with_random_parameters
from tests.training_configs import tiny
from videogen import tasks
from videogen.conditioning import Conditioning, EncodedText
from videogen.configs import tokensgen
from videogen.configs.common import bpe_text
from videogen.errors import UserError
from videogen.generators import FlowTransformer
from videogen.inference.caching import write_token_cache
from videogen.inference.planned import PlannedVideos, keys_of
from videogen.shapes import TokenGrid, VideoShape
from videogen.tasks.base import to_pixels, to_video
from videogen.tasks.plans import chunk_tokens
from videogen.tokens import Tokens
from videogen.training.loop import train
from videogen.training.state import parameter_count


@functools.cache
def task_of(argument: str) -> tasks.Task:
    return tasks.build(tokensgen.get_config(argument))


@functools.cache
def model_of(argument: str) -> nnx.Module:
    return nnx.eval_shape(lambda: task_of(argument).init(nnx.Rngs(0)))["generator"].generator


def count(module: nnx.Module) -> int:
    return parameter_count(nnx.state(module, nnx.Param))


def test_paper_sizes():
    """The blocks have the published widths; the counts are ours."""
    base, told = model_of("size=paper,stage=generator"), model_of("size=paper,stage=to2v")
    assert count(base.stack) == pytest.approx(42 * 12 * 3072**2, rel=2e-3) and count(base) == 4_846_424_384
    assert count(told) - count(base) == count(told.branch) + count(told.resampler)
    # Queries, keys and values of every block, and the projection of the tokens.
    assert count(told.branch) == pytest.approx((42 * 3 + 1) * 3072**2, rel=2e-3)
    assert count(told.resampler) == 372_462_080
    config = tokensgen.get_config("size=paper,stage=to2v")
    assert (config.model.resampler.depth, config.model.resampler.heads, config.sampler.steps) == (4, 16, 52)
    assert told.slots.seen * 8 * 12 == 480 and told.resampler.count == 384


def test_layouts_of_paper():
    """A chunk of 49 frames is 13 × 60 × 90 latents and 384 tokens; 24 chunks are 9216 of 16 components."""
    base, plan = task_of("size=paper,stage=generator"), task_of("size=paper,stage=t2to")
    assert base.layout.only.shape == (13, 60, 90) and base.layout.only.channels == 16
    assert plan.layout.only.shape == (96, 8, 12) and (plan.layout.tokens, plan.layout.only.channels) == (9216, 16)
    with pytest.raises(UserError, match="whole chunks of 13 latent frames, and 53 frames are 14; use 49 or 101"):
        plan.tokenizer.layout(VideoShape(53, 480, 720))


@pytest.mark.parametrize("size", ["debug", "small"])
def test_smaller_sizes_build(size):
    chunk, queries = tokensgen.CHUNK[size], tokensgen.QUERIES[size]
    assert task_of(f"size={size},stage=generator").layout.only.shape[0] == chunk
    assert task_of(f"size={size},stage=to2v").layout.only.shape[0] == 2 * chunk
    plan = task_of(f"size={size},stage=t2to").layout.only
    assert plan.shape == (tokensgen.PLANNED[size] * queries[0], *queries[1:])
    model = model_of(f"size={size},stage=to2v")
    steps = tokensgen.get_config(f"size={size},stage=to2v").sampler.steps
    assert steps == 4 * chunk and model.grid.time == chunk


def test_every_variant_of_the_sweeps_builds():
    for change in tokensgen.SWEEPS["scale"]:
        config = tokensgen.get_config("size=debug,stage=to2v")
        config.update_from_flattened_dict(change)
        tasks.build(config)


def test_stages_of_a_local_run_begin_with_the_one_before(tmp_path):
    stages = local.plan("tokensgen:size=debug", tmp_path, [])
    assert [stage.name for stage in stages] == ["tokenizer", "generator", "to2v"]
    assert stages[2].config.start_from.run == str(tmp_path / "generator")
    assert stages[2].config.data.clip.frames == 11 and stages[1].config.data.clip.frames == 5


def test_the_plan_does_not_see_chunks_that_do_not_exist():
    """Property 10: what stands there changes neither the loss nor what is predicted elsewhere."""
    grid = TokenGrid(4, 2, 1)
    settings = {"transformer": {"width": 16, "layers": 2, "heads": 2, "mlp_width": 16}, "patch": (1, 1, 1)}
    model = with_random_parameters(
        nnx.eval_shape(
            lambda: FlowTransformer(3, grid.shape, **settings, text="joint", context_width=4, rngs=nnx.Rngs(0))
        )
    )
    model.statistics.mean.set_value(jnp.zeros(3))
    model.statistics.square.set_value(jnp.ones(3))
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 2, 1, 3)), jnp.float32)
    exists = jnp.broadcast_to((jnp.arange(4) < jnp.array([[2], [4]]))[:, :, None, None], (2, 4, 2, 1))
    text = Conditioning(EncodedText(jnp.ones((2, 2, 4)), jnp.ones((2, 2), bool)))

    def loss(values, exists):
        tokens = Tokens.single(values, layout_of(grid, channels=3), exists=exists)
        return model.loss(tokens, text, jax.random.key(0), train=False)[0]

    run = jax.jit(jax.value_and_grad(loss))
    found, gradient = run(values, exists)
    np.testing.assert_allclose(run(values.at[0, 2:].set(1e6), exists)[0], found, rtol=1e-6)
    assert not gradient[0, 2:].any() and gradient[0, :2].all() and gradient[1].all()
    # Where all exist it is the loss of clips without a mask.
    np.testing.assert_allclose(run(values, jnp.ones_like(exists))[0], jax.jit(loss)(values, None), rtol=1e-5)


def narrow(stage: str, vae: ConfigDict) -> ConfigDict:
    """A stage over the latents of ``tiny`` with a Gaussian, 3 × 2 × 2 of a chunk."""
    config = tokensgen.get_config(f"size=debug,stage={stage}")
    transformer = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 16}
    resampler = {"width": 8, "depth": 1, "heads": 2, "head_width": 8}
    if stage == "t2to":
        condensed = config.parts.tokenizer.model.tokenizer
        condensed.vae = vae.model
        condensed.condenser.width = 16
        condensed.condenser.resampler.update(resampler)
        config.parts.tokenizer.model.normaliser.components = 3
    else:
        config.parts.tokenizer.model = vae.model
    if stage == "to2v":
        config.model.base.transformer.update(transformer)
        config.model.resampler.update(resampler)
    else:
        config.model.transformer.update(transformer)
    config.text = bpe_text(vocabulary_size=300, length=8, width=16, layers=1, heads=2)
    config.data.clip.update({"height": 8, "width": 8})
    if stage == "t2to":
        config.data.clip.frames = 11
    config.data.batch_size = config.data.eval_batch_size = 2
    config.sampler.update({"steps": 6 if stage == "to2v" else 2})
    config.optimizer.generator.warmup = 0
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    return config


@pytest.mark.slow
def test_from_a_vae_to_a_planned_video(tmp_path):
    sides = {"data.clip.height": 8, "data.clip.width": 8}
    vae = tiny(**{"model.quantizer": {"name": "gaussian", "width": 4, "kl_weight": 1e-3}}, **sides)
    train(vae, tmp_path / "tokenizer")
    for stage in ("generator", "to2v"):
        config = narrow(stage, vae)
        config.parts.tokenizer = {"checkpoint": str(tmp_path / "tokenizer"), "model": {}, "hash": ""}
        config.start_from.run = str(tmp_path / "generator") if stage == "to2v" else ""
        config.data.own = ("clip",)
        train(config, tmp_path / stage)
    base, told = (videogen.load(tmp_path / stage) for stage in ("generator", "to2v"))
    ours, theirs = (nnx.to_pure_dict(nnx.state(run.trained.generator)) for run in (told, base))
    # Property 2: nothing of the base has moved, and the branch is no copy any more, but near it.
    jax.tree.map(np.testing.assert_array_equal, {name: ours[name] for name in theirs}, theirs)
    copied = ours["branch"]["stack"]["layers"]["attention"]["query_key_value"]["kernel"]
    distance = np.abs(copied - theirs["stack"]["layers"]["attention"]["query_key_value"]["kernel"]).max()
    assert 0 < distance < 0.1
    # The plan.
    write_token_cache(told, tmp_path / "cache", None, clips=8, batch_size=4, normalise="pca:3")
    plan = narrow("t2to", vae)
    plan.parts.tokenizer = {"checkpoint": str(tmp_path / "cache" / "tokenizer"), "model": {}, "hash": ""}
    plan.data.source.update({"name": "tokens", "path": str(tmp_path / "cache")})
    plan.data.own = ("clip", "source")
    train(plan, tmp_path / "t2to")
    planner = videogen.load(tmp_path / "t2to")
    videos = PlannedVideos(told, planner)
    story = planner.task.unprompted(2)
    drawn = videos.draw(story, chunks=2, seed=0)
    assert drawn.shape == (2, 11, 8, 8, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, videos.draw(story, chunks=2, seed=0))
    given = np.random.default_rng(0).integers(0, 256, (2, 11, 8, 8, 3), np.uint8)
    edited = videos.edit(given, story, seed=0)
    # Users, case 13: frames that come out one by one decode to what all of them decode to at once.
    beside = chunk_tokens(told.tokenizer.tokenize(to_video(jnp.asarray(given))).only.values)
    said = dataclasses.replace(told.task.conditioning(told.modules, story), beside=beside)
    keys, model = keys_of(0, "paint", story), told.trained.generator
    drawn = jax.jit(lambda: model.sample(told.task.layout, said, keys, videos.sampler))()
    whole = to_pixels(told.task.detokenize(told.modules, drawn))
    assert edited.shape == given.shape and np.abs(edited.astype(int) - whole).max() <= 1
    with pytest.raises(UserError, match="trained on 2 chunks, and 3 are asked for"):
        videos.draw(story, chunks=3, seed=0)
    with pytest.raises(UserError, match="is told no tokens"):
        PlannedVideos(base)

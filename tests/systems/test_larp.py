"""Every size of the LARP config; two training steps after which the prior is nowhere but in its run; codes without a
place in a generator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.conditioning import Conditioning
from videogen.configs import larp, magvit, phenaki
from videogen.defaults import optimizer
from videogen.errors import UserError
from videogen.generators import BlockSampler, NextBlockTransformer
from videogen.shapes import TokenGrid, VideoShape
from videogen.tokens import Layout, SegmentLayout
from videogen.training.loading import Loaded, export_safetensors, load
from videogen.training.state import new_state, parameter_count, structure_of
from videogen.training.step import make_train_step

NETWORK = {"width": 24, "layers": 1, "heads": 2, "mlp_width": 48}


def config_of(size: str):
    return larp.get_config(f"stage=tokenizer,size={size}")


@functools.cache
def modules(size: str) -> dict[str, nnx.Module]:
    config = config_of(size)
    return nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))


def count(size: str) -> dict[str, int]:
    return {name: parameter_count(nnx.state(m, nnx.Param)) for name, m in modules(size).items()}


def test_paper_sizes():
    counts = count("paper")
    assert counts["tokenizer"] == pytest.approx(173e6, rel=0.01)
    assert counts["prior"] == pytest.approx(21.7e6, rel=0.01)
    assert counts["discriminator"] > 3e7


@pytest.mark.parametrize("queries", [256, 512, 1024])
def test_paper_grids(queries):
    config = config_of("paper")
    config.model.queries = queries
    model = nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))["tokenizer"]
    assert model.grid(VideoShape(16, 128, 128)).shape == (1, 1, queries)
    assert model.vocabulary == (8192,) and model.places == (4, 16, 16)


@pytest.mark.parametrize("size", ["debug", "small"])
def test_smaller_sizes_build(size):
    counts = count(size)
    assert counts["tokenizer"] > 5e5 and counts["prior"] > 1e5


def test_a_stage_that_is_not_there_is_named():
    with pytest.raises(UserError, match="unknown stage"):
        larp.get_config("stage=image")


@pytest.fixture(scope="module")
def trained():
    """The debug system, narrower, after two steps with every network."""
    config = config_of("debug")
    config.steps = 10
    config.model.update({"encoder": dict(NETWORK), "decoder": dict(NETWORK)})
    config.losses.prior.update({"width": 16, "layers": 1})
    config.losses.adversarial.update({"weight": 0.1})
    config.losses.adversarial.discriminator.update({"width": 24, "layers": 1})
    # Muon takes a minute to compile.
    config.optimizer = {group: optimizer(learning_rate=1e-3) for group in config.optimizer}
    task = tasks.build(config)
    structure, _ = structure_of(task, config)
    states, metrics = [jax.jit(lambda: new_state(task, structure, config))()], []
    step = jax.jit(make_train_step(task, structure, {}, config))
    for seed in range(2):
        video = np.random.default_rng(seed).integers(0, 256, (2, 4, 24, 24, 3), np.uint8)
        state, values = step(states[-1], {}, {"video": video})
        states.append(state)
        metrics.append({name: float(value) for name, value in values.items()})
    return config, task, structure, states, metrics


@pytest.mark.slow
def test_every_network_learns(trained):
    _, task, _, states, metrics = trained
    assert list(task.losses) == ["tokenizer", "discriminator", "prior"]
    for group in task.losses:
        pairs = zip(*(jax.tree.leaves(s["params"][group]) for s in states[:2]), strict=True)
        assert any(np.any(a != b) for a, b in pairs), group
        assert metrics[1][f"gradient_norm_{group}"] > 0
    # Predictions of an untrained prior are about even.
    assert metrics[0]["prior"] == pytest.approx(np.log(192), rel=0.1)
    assert 0 < metrics[0]["prior_entropy"] <= np.log(192) + 1e-4


@pytest.mark.slow
def test_loss_is_the_weighted_sum_of_its_terms(trained):
    config, *_, metrics = trained
    last, weights = metrics[-1], config.losses
    expected = weights.l2.weight * last["l2"] + last["commitment"] + last["codebook"]
    expected += weights.adversarial.weight * last["adversarial"] + weights.prior.weight * last["prior"]
    assert last["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_exports_and_hashes_know_nothing_of_the_prior(trained, tmp_path):
    config, task, structure, states, _ = trained
    live = structure.modules(states[-1]["params"], states[-1]["variables"])
    run = Loaded(tmp_path, config, task, live, 2)
    export_safetensors(run, tmp_path / "export")
    export = load(tmp_path / "export")
    assert export.modules.keys() == {"tokenizer"}
    without = Loaded(tmp_path, config, task, {"tokenizer": live["tokenizer"]}, 2)
    assert export.hash == run.hash == without.hash
    video = np.random.default_rng(0).uniform(-1, 1, (1, 4, 24, 24, 3)).astype(np.float32)
    codes, again = (jax.jit(m["tokenizer"].tokenize)(video) for m in (live, export.modules))
    np.testing.assert_array_equal(codes.only.values, again.only.values)
    pictures = [jax.jit(m["tokenizer"].detokenize)(codes) for m in (live, export.modules)]
    np.testing.assert_array_equal(*pictures)


def test_a_prior_changes_nothing_of_a_fresh_tokenizer():
    config = config_of("debug")
    states = []
    for weight in (0.06, 0.0):
        config.losses.prior.weight = weight
        states.append(nnx.state(tasks.build(config).init(nnx.Rngs(0))["tokenizer"]))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_prior_of_a_tokenizer_without_code_vectors_is_refused():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    with config.unlocked():
        # Two ids at each place: none of them is the place's vector.
        config.model.quantizer = {"name": "residual", "base": {"name": "lfq", "bits": 4}, "levels": 2}
        config.losses.prior = {"name": "prior", "weight": 0.1, "width": 16, "layers": 1, "heads": 2}
        config.optimizer.prior = config.optimizer.discriminator
    task = tasks.build(config)
    structure, _ = structure_of(task, config)
    state = jax.eval_shape(lambda: new_state(task, structure, config))
    batch = {"video": jax.ShapeDtypeStruct((1, 5, 24, 24, 3), np.uint8)}
    with pytest.raises(UserError, match="such as 'one_d'"):
        jax.eval_shape(make_train_step(task, structure, {}, config), state, {}, batch)


def generator(argument: str, **tokenizer) -> tuple[tasks.Task, nnx.Module]:
    config = larp.get_config(f"stage=generator,{argument}")
    config.parts.tokenizer.model.quantizer.update(tokenizer)
    task = tasks.build(config)
    return task, nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["generator"].generator


def published_part(module: nnx.Module) -> int:
    """Parameters without those by which the class comes in, which in the paper is a token."""
    layers = module.stack.layers
    ours = (module.context, layers.cross_attention, layers.cross_norm)
    return parameter_count(nnx.state(module, nnx.Param)) - sum(parameter_count(nnx.state(m, nnx.Param)) for m in ours)


@pytest.mark.parametrize(
    ("model", "codes", "parameters"),
    [("LP", 8192, 632e6), ("L", 16_384, 343e6), ("B", 16_384, 111e6), ("L", 8192, 326e6)],
)
def test_paper_generators(model, codes, parameters):
    task, module = generator(f"size=paper,model={model}", size=codes)
    assert published_part(module) == pytest.approx(parameters, rel=0.005)
    assert task.grid.shape == (1, 1, 1024) and module.passes(task.grid) == 1024


@pytest.mark.parametrize(("size", "codes"), [("debug", 96), ("small", 256)])
def test_smaller_generators_build(size, codes):
    task, module = generator(f"size={size}")
    assert task.grid.tokens == codes and parameter_count(nnx.state(module, nnx.Param)) > 5e5


@pytest.fixture(scope="module")
def drawing():
    config = larp.get_config("stage=generator,size=debug")
    config.parts.tokenizer.model.update({"encoder": dict(NETWORK), "decoder": dict(NETWORK)})
    config.parts.tokenizer.model.update({"queries": 8})
    config.model.transformer.update({"width": 32, "layers": 1, "heads": 2, "mlp_width": 32})
    config.text.encoder.update({"width": 32, "heads": 2})
    task = tasks.build(config)
    return task, task.init(nnx.Rngs(0)) | task.frozen(None)


def test_a_generator_draws_whole_clips(drawing):
    task, modules = drawing
    generator = tasks.VideoGenerator(task, modules)
    assert generator.window == 4
    videos = generator.generate(task.unprompted(2), 4, seed=0)
    assert videos.shape == (2, 4, 24, 24, 3) and videos.dtype == np.uint8
    # Fewer frames are the first ones of a whole clip.
    np.testing.assert_array_equal(generator.generate(task.unprompted(2), 3, seed=0), videos[:, :3])


def test_what_needs_codes_with_a_place_is_refused(drawing):
    task, modules = drawing
    generator, story = tasks.VideoGenerator(task, modules), task.unprompted(1)
    pixels = np.zeros((1, 1, 24, 24, 3), np.uint8)
    for call in ({"frames": 5}, {"frames": 4, "first_frames": pixels}, {"frames": 4, "story": [story] * 2}):
        with pytest.raises(UserError, match="codes 4 frames as a whole"):
            generator.generate(**{"story": story, "seed": 0, **call})
    config = magvit.get_config("stage=generator,size=debug")
    config.parts.tokenizer.model = larp.larp("debug")
    config.data.clip.update({"frames": 4})
    with pytest.raises(UserError, match="no place in the picture"):
        tasks.build(config)


@pytest.mark.parametrize("rotary", [False, True])
def test_codes_in_a_row_are_drawn_as_the_full_pass_predicts_them(rotary):
    grid, conditioning = TokenGrid(1, 1, 6), Conditioning(label=jnp.arange(3))
    transformer = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32, "rotary": rotary}
    model = NextBlockTransformer((9,), grid.shape, transformer, context_width=16, classes=3, rngs=nnx.Rngs(0))
    keys = jax.random.split(jax.random.key(0), 3)
    layout = Layout.of(video=SegmentLayout((("query", 6),), (9,)))
    drawn = jax.jit(lambda: model.sample(layout, conditioning, keys, BlockSampler(top_k=1)))()
    assert drawn.layout == layout
    ids = drawn.only.values
    logits = jax.jit(lambda ids: model.head.logits(model.features(ids, conditioning, grid))[0])(ids)
    np.testing.assert_array_equal(ids[..., 0], logits.argmax(-1))

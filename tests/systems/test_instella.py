"""Every size of the Instella-T2I config: published counts and shapes, and stages that train, save, load and draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.processes import REPOSITORY
from videogen import encoders, tasks
from videogen.conditioning import CaptionModel, LanguageModel
from videogen.configs import instella
from videogen.errors import UserError
from videogen.planning.programs import complete_for_planning
from videogen.shapes import VideoShape
from videogen.training.loading import load
from videogen.training.loop import train
from videogen.training.state import parameter_count

GENERATORS = ("diffusion", "autoregressive")


@functools.cache
def task_of(argument: str) -> tasks.Task:
    config = instella.get_config(argument)
    complete_for_planning(config)
    return tasks.build(config)


def count(argument: str) -> int:
    modules = nnx.eval_shape(lambda: task_of(argument).init(nnx.Rngs(0)))
    return parameter_count(nnx.state(modules[next(iter(modules))], nnx.Param))


@pytest.mark.parametrize(("stage", "published"), [("diffusion", 1.2e9), ("autoregressive", 0.8e9)])
def test_paper_generators_have_the_published_size(stage, published):
    """To the last parameter: 16 layers of 12 · width², a modulation of six vectors where there is one."""
    width, layers, bits, tokens, head = 2048, 16, 64, 128, 128
    block = 12 * width**2 + 2 * head
    text = width + width**2 + width
    if stage == "diffusion":
        modulations = layers * (6 * width**2 + 6 * width) + 2 * width**2 + 2 * width
        times = 256 * width + width + width**2 + width
        around = (bits + 1) * width + (width + 1) * bits + tokens * width + times + modulations
    else:
        # Norms, a table of two vectors for each bit, positions, one vector to begin with, and the logits.
        around = (2 * layers + 1) * width + 2 * bits * width + tokens * width + width + (width + 1) * bits
    assert count(f"stage={stage},size=paper") == layers * block + text + around
    assert count(f"stage={stage},size=paper") == pytest.approx(published, rel=0.05)


def test_the_published_shapes_and_recipe():
    tokenizer = task_of("stage=tokenizer,size=paper")
    model = nnx.eval_shape(lambda: tokenizer.init(nnx.Rngs(0)))["tokenizer"]
    layout = model.layout(VideoShape(1, 1024, 1024))
    assert (layout.tokens, layout.bits, layout.only.vocabulary) == (128, 8192, (2,) * 64)
    assert layout.bits / 1024**2 == pytest.approx(0.0078, abs=5e-5) and layout.bits / 256**2 == 0.125
    assert (model.encoder.depth, model.decoder.depth, model.resized_after) == (12, 16, (8, 8))
    assert model.rotary_channels == (8, 28, 28) and model.quantizer.temperature == 0.1
    assert model.embed.kernel.shape == (64, 768) and model.embed.bias is None
    for stage in GENERATORS:
        config = task_of(f"stage={stage},size=paper").config
        rate = config.optimizer.generator
        assert (rate.learning_rate, rate.warmup, rate.weight_decay, rate.clip) == (1e-4, 1000, 0.0, 1.0)
        assert (rate.schedule, config.steps, config.model.condition_drop) == ("constant", 2_000_000, 0.1)
        assert config.sampler.guidance_scale == 1 + 7.5 and config.text.tokenizer.length == 128
        assert (config.parts.text_encoder.model.layers, config.parts.text_encoder.model.width) == (16, 2048)
    assert 20 <= task_of("stage=diffusion,size=paper").config.sampler.steps <= 50
    drawn = task_of("stage=autoregressive,size=paper")
    assert drawn.generator.passes(drawn.grid) == 128


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("stage", instella.STAGES)
def test_smaller_sizes_build(stage, size):
    assert count(f"stage={stage},size={size}") > 5e5


@pytest.mark.parametrize("name", instella.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in instella.SWEEPS[name]:
        config = instella.get_config("stage=diffusion,size=debug")
        config.update_from_flattened_dict(change)
        complete_for_planning(config)
        tasks.build(config)


def test_what_was_not_found_is_said():
    for words in ("Not found", "losses of the tokenizer", "EMA", "range that rows and columns"):
        assert words in instella.__doc__


def test_the_language_model_of_captions_comes_with_the_package():
    """It knows the grammar: a caption is likelier than its words in another order."""
    model = encoders.load(instella.STAND_IN, encoders.SHIPPED / instella.STAND_IN)
    right, wrong = model.score(["a red circle moves left", "left moves circle red a"])
    assert right > wrong + 5
    states = CaptionModel.load(encoders.SHIPPED / instella.STAND_IN)
    ids, mask = map(jnp.asarray, model.text.encode(["a red circle moves left"]))
    assert states(ids, mask).features.shape == (1, 24, 2, 64) and issubclass(CaptionModel, LanguageModel)
    assert (encoders.SHIPPED / instella.STAND_IN / "model.safetensors").stat().st_size < 300_000


def tiny(stage: str, **changes):
    """The debug config, smaller and of one step."""
    config = instella.get_config(f"stage={stage},size=debug")
    model = config.model if stage == "tokenizer" else config.parts.tokenizer.model
    model.update({"clip": (2, 8, 8), "patch": (1, 2, 2), "queries": 4})
    model.update({"rotary_channels": (4, 2, 2)})
    for section in (model.encoder, model.decoder):
        section.update({"width": 16, "heads": 2, "mlp_width": 16})
    model.quantizer.bits = 4
    config.data.clip.update({"frames": 2, "height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 2
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    if stage != "tokenizer":
        config.model.transformer.update({"width": 16, "heads": 2, "mlp_width": 16, "layers": 2})
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_the_stages_train_load_and_draw(tmp_path):
    config = tiny("tokenizer", **{"data.buckets": ((2, 8, 8, 2, 1), (2, 12, 8, 2, 1))})
    train(config, tmp_path / "tokenizer")
    tokenizer = load(tmp_path / "tokenizer").tokenizer
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 2, 12, 16, 3)), jnp.float32)
    tokens = tokenizer.tokenize(video)
    assert tokens.only.values.shape == (2, 4, 4) and tokenizer.detokenize(tokens, size=(4, 8)).shape[2:4] == (4, 8)
    for stage in GENERATORS:
        config = tiny(stage)
        config.parts.tokenizer.checkpoint = str(tmp_path / "tokenizer")
        train(config, tmp_path / stage)
        loaded = load(tmp_path / stage)
        assert set(loaded.modules) == {"generator", "tokenizer", "text_encoder"}
        ids, mask = loaded.text.encode(["a red circle", "a blue square"])
        drawn = loaded.generator().generate({"text_ids": ids, "text_mask": mask}, frames=2, seed=0)
        assert drawn.shape == (2, 2, 8, 8, 3) and drawn.dtype == np.uint8


@pytest.mark.parametrize("stage", GENERATORS)
def test_more_layers_of_the_language_model_than_of_the_generator_are_refused(stage):
    """At the first trace, before anything is computed."""
    config = tiny(stage, **{"model.transformer.layers": 3})
    complete_for_planning(config)
    task = tasks.build(config)
    modules = nnx.eval_shape(lambda: {**task.init(nnx.Rngs(0)), **task.frozen(None)})
    graphs = {name: nnx.split(module) for name, module in modules.items()}

    def loss(states, batch):
        live = {name: nnx.merge(graph, states[name]) for name, (graph, _) in graphs.items()}
        return task.generator_loss(live, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[0]

    batch = {"video": jax.ShapeDtypeStruct((2, 2, 8, 8, 3), jnp.uint8)}
    batch |= {"text_ids": jnp.zeros((2, 24), jnp.int32), "text_mask": jnp.ones((2, 24), bool)}
    with pytest.raises(UserError, match="set model.transformer.layers to a multiple of 2"):
        jax.eval_shape(loss, {name: state for name, (_, state) in graphs.items()}, batch)


def test_an_encoder_of_another_kind_than_its_part_is_named():
    config = instella.get_config("stage=diffusion,size=debug")
    config.text.encoder.name = "t5"
    with pytest.raises(UserError, match="name is 't5', and the part text_encoder is a 'shapes_captions'"):
        tasks.build(config)


def test_the_guides_name_it():
    text = (REPOSITORY / "docs" / "generators.md").read_text() + (REPOSITORY / "docs" / "tokenizers.md").read_text()
    assert "one_d_any_size" in text and "videogen/configs/instella.py" in text

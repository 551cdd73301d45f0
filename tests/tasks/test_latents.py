"""A tiny untrained system of continuous latents: training, long videos, animation, pictures, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import data, tasks
from videogen.configs import phenaki, videodit
from videogen.configs.networks import cvivit
from videogen.errors import UserError
from videogen.generators import NormalisedLatents
from videogen.planning.programs import abstract_run, complete_for_planning
from videogen.tokenizers import Normalised, build_normaliser

WINDOW = 5


def config(**model):
    config = videodit.get_config("stage=generator,size=debug")
    config.data.clip.update({"frames": WINDOW, "height": 16, "width": 16})
    config.parts.tokenizer.model.update({"width": 16, "heads": 2, "mlp_width": 32, "decoder_layers": (1, 1)})
    config.parts.tokenizer.model.quantizer.width = 4
    config.model.update({"times": "frame", **model})
    config.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 32})
    config.text.encoder.update({"width": 16, "heads": 2})
    config.sampler.update({"steps": 3, "guidance_scale": 2.0})
    return config


@pytest.fixture(scope="module")
def system():
    task = tasks.build(config())
    modules = task.init(nnx.Rngs(0)) | task.frozen(None)
    # A fresh network predicts nothing: a random head makes the prompt matter.
    for kernel in (modules["generator"].generator.head.kernel, modules["generator"].text_encoder.embedding.table):
        kernel.set_value(jax.random.normal(jax.random.key(0), kernel.get_value().shape))
    for linear in (modules["generator"].generator.stack.layers.cross_attention.out,):
        linear.kernel.set_value(jax.random.normal(jax.random.key(1), linear.kernel.get_value().shape))
    return task, modules


def batch(count: int) -> dict[str, np.ndarray]:
    source = data.build({"name": "shapes"}, clip=data.Clip(WINDOW, 16, 16, 8.0), seed=0, split="train")
    return {"video": np.stack([source[i]["video"] for i in range(count)]), **text(*range(1, 1 + count))}


def text(*ids: int) -> dict[str, np.ndarray]:
    return {"text_ids": np.array([[i] * 4 for i in ids], np.int32), "text_mask": np.ones((len(ids), 4), bool)}


@pytest.mark.slow
def test_training_measures_the_latents_of_videos_and_images(system):
    task, modules = system
    graph, state = nnx.split(modules["generator"])
    live = nnx.merge(graph, jax.tree.map(jnp.array, state))
    parts = [batch(4), {"video": batch(2)["video"][:, :1], **text(5, 6)}]
    sums = []
    for part in parts:
        loss, outcome = task.generator_loss(modules | {"generator": live}, part, jax.random.key(0), jnp.zeros((), int))
        assert np.isfinite(loss) and outcome.metrics["loss"] == loss
        sums.append(outcome.sums)
    sums = jax.tree.map(jnp.add, *sums)
    statistics = live.generator.statistics
    assert statistics.count.get_value() == 0
    task.updates["generator"](modules | {"generator": live}, sums, {}, jax.random.key(0), 0)
    assert statistics.count.get_value() == 1
    every = [np.asarray(task.tokens(modules, part).only.values).reshape(-1, 4) for part in parts]
    np.testing.assert_allclose(statistics.mean.get_value(), np.concatenate(every).mean(0), rtol=1e-4, atol=1e-5)
    scores = task.evaluate(modules, [batch(4)], seed=0)
    assert scores == task.evaluate(modules, [batch(4)], seed=0) and scores.keys() == {"loss"}


def test_longer_videos_begin_with_the_shorter_one(system):
    generator = tasks.VideoGenerator(*system)
    short, long = (generator.generate(text(1), n, seed=0, overlap=3) for n in (WINDOW, 11))
    assert long.shape == (1, 11, 16, 16, 3) and long.dtype == np.uint8
    np.testing.assert_array_equal(long[:, :WINDOW], short)
    story = generator.generate([text(1), text(9)], 7, seed=0, overlap=3)
    np.testing.assert_array_equal(story[:, :WINDOW], short)
    assert (story != generator.generate(text(1), 7, seed=0, overlap=3)).any()


def test_a_queue_draws_any_length_and_does_not_change_what_it_has_drawn(system):
    generator = tasks.VideoGenerator(*system, {"extension": "queue"})
    seven, twelve = (generator.generate(text(1, 2), n, seed=0) for n in (7, 12))
    assert twelve.shape == (2, 12, 16, 16, 3)
    np.testing.assert_array_equal(twelve[:, :7], seven)
    with pytest.raises(UserError, match="cannot go through a queue from 0 given ones or by a story"):
        generator.generate([text(1), text(2)], 9, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [{}, {"extension": "queue"}])
def test_statistics_of_the_tokenizer_are_worth_those_of_the_generator(system, sampler):
    """The same statistics in either place: the same videos, of any length, and the same loss."""
    task, modules = system
    graph, state = nnx.split(modules["generator"])
    measured = nnx.merge(graph, jax.tree.map(jnp.array, state))
    mean, deviation = jnp.array([0.3, -1.0, 0.0, 2.0]), jnp.array([0.5, 1.0, 3.0, 0.2])
    measured.generator.statistics.mean.set_value(mean)
    measured.generator.statistics.square.set_value(deviation**2 + mean**2)
    changed = config()
    model = changed.parts.tokenizer.model.to_dict()
    with changed.unlocked(), changed.ignore_type():
        changed.parts.tokenizer.model = {"name": "normalised", "tokenizer": model, "normaliser": {"name": "mean"}}
    other = tasks.build(changed)
    normaliser = build_normaliser({"name": "mean"}, 4)
    normaliser.mean.set_value(mean[None])
    normaliser.deviation.set_value(deviation[None])
    plain = nnx.merge(graph, state)
    plain.generator.statistics = NormalisedLatents()
    assert nnx.graphdef(plain) == nnx.graphdef(other.init(nnx.Rngs(0))["generator"])
    pairs = [
        (task, modules | {"generator": measured}),
        (other, {"generator": plain, "tokenizer": Normalised(modules["tokenizer"], normaliser)}),
    ]
    losses = [t.generator_loss(m, batch(4), jax.random.key(0), jnp.zeros((), int))[0] for t, m in pairs]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    given = {} if sampler else {"first_frames": batch(1)["video"][:, :1]}
    a, b = (tasks.VideoGenerator(*pair, sampler).generate(text(1), 7, seed=0, **given) for pair in pairs)
    assert np.abs(a.astype(int) - b).max() <= 1 and np.std(a) > 1


def test_animation_starts_with_the_picture(system):
    still = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16, 3)).astype(np.uint8)
    video = tasks.VideoGenerator(*system).generate(text(1, 2), WINDOW, seed=0, first_frames=still)
    np.testing.assert_array_equal(video[:, :1], still)


def test_prompt_seed_and_place_decide_a_video_and_neighbours_do_not(system):
    generator = tasks.VideoGenerator(*system)
    one, same = (generator.generate(text(1, 2), WINDOW, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    other = generator.generate(text(1, 7), WINDOW, seed=3)
    # Whole numbers of a pixel, up to the rounding of another batch.
    assert np.abs(other[0].astype(int) - one[0]).max() <= 1 and (other[1] != one[1]).any()
    assert (generator.generate(text(1, 2), WINDOW, seed=4) != one).any()


def test_pictures_show_clips_beside_samples(system):
    task, modules = system
    (picture,) = task.pictures(modules, batch(2), seed=0)
    assert len(picture.rows) == 2 and all(clip.shape == (WINDOW, 16, 16, 3) for clip in picture.rows[0])


def test_classes_without_text():
    changed = config()
    changed.classes, changed.text.encoder = 5, {"name": "none"}
    task = tasks.build(changed)
    modules = task.init(nnx.Rngs(0)) | task.frozen(None)
    assert modules["generator"].generator.context is None and modules["generator"].generator.label.size == 6
    video = tasks.VideoGenerator(task, modules).generate({"label": np.array([1, 2])}, WINDOW, seed=0)
    assert video.shape == (2, WINDOW, 16, 16, 3)


def test_generators_and_tokenizers_that_do_not_fit_are_refused():
    codes = config()
    codes.parts.tokenizer.model = cvivit("debug")
    with pytest.raises(UserError, match="quantizer.name = gaussian"):
        tasks.build(codes)
    masked = phenaki.get_config("stage=generator,size=debug")
    masked.parts.tokenizer.model = videodit.continuous("debug")
    with pytest.raises(UserError, match="'categorical' does not predict continuous latents; take one of: diffusion"):
        tasks.build(masked)


def test_a_plan_knows_its_statistics_as_variables():
    changed = config()
    complete_for_planning(changed)
    run = abstract_run(changed)
    assert set(run.state["variables"]["generator"]["generator"]["statistics"]) == {"mean", "square", "count", "seen"}

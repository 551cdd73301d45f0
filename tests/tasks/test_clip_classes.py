"""Classifiers of long clips: losses in closed form, the moving average as a module, windows of one clip, runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.test_accumulation import compare
from videogen import data, losses, tasks
from videogen.configs import selective_s4
from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.reducers.tokens import of_grid
from videogen.runs.records import FILE, read_metrics
from videogen.shapes import VideoShape
from videogen.tasks.clip_classes import MOMENTUM
from videogen.training.loop import train
from videogen.training.state import new_state, structure_of
from videogen.training.step import make_train_step


def tiny(stage="classification", recipe="s5"):
    config = selective_s4.get_config(f"stage={stage},size=debug,recipe={recipe}")
    config.data.clip.update({"frames": 8, "height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 4
    config.model.encoder.update({"patch": 4, "transformer": {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}})
    config.model.update({"width": 16, "layers": 2, "states": 3, "hidden": 8, "embed": 4})
    config.optimizer.model.update({"name": "adamw", "learning_rate": 1e-2, "warmup": 0})
    if stage == "pretraining":
        config.windows.update({"short": 2, "long": 6})
    return config


def batch(size=4):
    source = data.build({"name": "events"}, clip=data.Clip(8, 8, 8, 8.0), seed=0, split="train")
    samples = [source[i] for i in range(size)]
    return {
        "video": np.stack([s["video"] for s in samples]),
        "label": np.array([s["label"] for s in samples], np.int32),
    }


@pytest.mark.slow
def test_the_loss_is_the_cross_entropy_of_the_labels_and_so_is_what_is_measured():
    task = tasks.build(tiny(recipe="all"))
    modules, given = task.init(nnx.Rngs(0)), batch()
    loss, outcome = jax.jit(lambda given: task.loss(modules, given, jax.random.key(0), 0))(given)
    model, clips = modules["model"], task.reader.clips(modules, given)
    logits = model.logits(model.pooled(model.read(clips.inputs, clips.seconds)))
    expected = np.mean([jax.nn.logsumexp(row) - row[y] for row, y in zip(logits, given["label"], strict=True)])
    right = float(np.mean(np.argmax(logits, -1) == given["label"]))
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(outcome.metrics["classes_accuracy"]) == right
    parts = [{name: array[part] for name, array in given.items()} for part in (slice(1), slice(1, 4))]
    found = task.evaluate(modules, parts, 0)
    assert found["loss"] == pytest.approx(expected, rel=1e-4) and found["accuracy"] == right
    assert found["tokens"] == found["looked_at"] == 32 == task.bucket_tokens[0]
    half = tasks.build(tiny())
    assert half.evaluate(half.init(nnx.Rngs(0)), parts, 0)["looked_at"] == 16


def test_the_copy_guides_the_choice_and_an_evaluation_guides_itself():
    task = tasks.build(tiny())
    model, copy = task.init(nnx.Rngs(0))["model"], task.init(nnx.Rngs(1))["model"]
    clips = task.reader.clips({}, batch())
    own = task.chosen({"model": model}, clips)
    same = task.chosen({"model": model, MOMENTUM: model}, clips)
    other = task.chosen({"model": model, MOMENTUM: copy}, clips)
    np.testing.assert_array_equal(own.source, same.source)
    assert (own.source != other.source).any()
    scores = model.selector.scores(copy.guide(copy.read(clips.inputs, clips.seconds)))
    best = [set(np.argsort(-np.asarray(row), kind="stable")[:16]) for row in scores]
    assert [set(np.flatnonzero(np.asarray(row) >= 0)) for row in other.source] == best


def test_a_step_has_the_average_that_it_began_with():
    """The module ``momentum`` of a loss is the moving average, without gradient, of the step before."""
    config = tiny()
    task = tasks.build(config)
    seen = {}

    def loss(modules, batch, key, step, micro=None):
        average, own = (modules[n].classifier.bias.get_value() for n in (MOMENTUM, "model"))
        value = jnp.sum(own * (1.0 + average))
        return value, tasks.Outcome({"loss": value, "average": jnp.sum(average), "own": jnp.sum(own)})

    task.losses = {"model": loss}
    structure, _ = structure_of(task, config)
    step = jax.jit(make_train_step(task, structure, {}, config))
    state = new_state(task, structure, config)
    for _ in range(3):
        expected = float(jnp.sum(state["ema"]["model"]["classifier"]["bias"]))
        own = float(jnp.sum(state["params"]["model"]["classifier"]["bias"]))
        state, metrics = step(state, {}, batch(2))
        seen[expected] = own
        assert float(metrics["average"]) == pytest.approx(expected, abs=1e-6)
        assert float(metrics["own"]) == pytest.approx(own, abs=1e-6)
    # The gradient is that of the own part alone: 1 + average of 16 channels, none through the average.
    assert float(metrics["gradient_norm"]) == pytest.approx(4 * (1 + expected / 16), rel=1e-3)
    assert len(seen) == 3 and expected != own


def test_windows_are_runs_of_frames_less_a_part_of_their_tokens():
    task = tasks.build(tiny("pretraining"))
    x = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None, None], (3, 8, 2, 2, 1))
    keys = jax.random.split(jax.random.key(0), 3)
    found = task.window(of_grid(x), 3, 0.5, keys)
    assert found.x.shape == (3, 6, 1)
    starts = set()
    for row in np.asarray(found.x[..., 0]):
        assert (np.diff(row) >= 0).all() and row.max() - row.min() <= 2
        starts.add(row.min())
    whole = task.window(of_grid(x), 8, 0.0, keys)
    np.testing.assert_array_equal(whole.x[..., 0], np.repeat(np.arange(8.0), 4)[None].repeat(3, 0))
    many = task.window(of_grid(jnp.broadcast_to(x[:1], (200, 8, 2, 2, 1))), 3, 0.0, jax.random.split(keys[0], 200))
    assert set(np.asarray(many.x[:, 0, 0])) == set(range(6))
    assert task.window(of_grid(x), 1, 1.0, keys).x.shape == (3, 1, 1)


@pytest.mark.slow
def test_the_key_of_the_own_clip_is_among_the_keys():
    """Windows are whole clips without a mask, and the copy is the network: every query is its own key."""
    config = tiny("pretraining")
    config.windows.update({"short": 8, "long": 8, "masked": 0.0})
    task = tasks.build(config)
    modules, given = task.init(nnx.Rngs(0)), batch()
    outputs = jax.jit(
        lambda given: task.outputs(
            modules, task.reader.clips(modules, given), given, jax.random.key(0), MicroBatch()
        ).passes["windows"]
    )(given)
    np.testing.assert_allclose(outputs.prediction, outputs.target, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(outputs.target, axis=-1), 1.0, rtol=1e-5)
    assert task.evaluate(modules, [given], 0)["accuracy"] == 1.0
    loss, outcome = jax.jit(lambda given: task.loss(modules, given, jax.random.key(0), 0))(given)
    alike = np.asarray(outputs.prediction) @ np.asarray(outputs.target).T / 0.1
    expected = np.mean([jax.nn.logsumexp(row) - row[i] for i, row in enumerate(jnp.asarray(alike))])
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(outcome.metrics["windows_accuracy"]) == 1.0
    assert float(outcome.metrics["windows_chance"]) == pytest.approx(np.log(4))


def test_the_term_of_the_copy():
    setting = losses.Setting(VideoShape(1, 1, 1), tokens=1, code_width=0, steps=1)
    terms = losses.build({"w": {"name": "momentum_contrast", "weight": 1.0, "temperature": 0.5}}, setting)
    outputs = losses.Outputs({"windows": losses.Pass(jnp.eye(3), jnp.eye(3))})
    total, metrics = losses.combine(terms, {}, outputs, jax.random.key(0), jnp.zeros((), int), MicroBatch())
    # Cosines of 1 and 0 over 0.5.
    assert float(total) == pytest.approx(np.log(1 + 2 * np.exp(-2)), rel=1e-5)
    micro = MicroBatch()

    def of_keys(keys):
        given = losses.Outputs({"windows": losses.Pass(jnp.eye(3), keys)})
        return losses.combine(terms, {}, given, None, jnp.zeros((), int), micro)[0]

    slope = jax.grad(of_keys)(jnp.eye(3))
    assert float(jnp.abs(slope).max()) == 0 and float(metrics["w_accuracy"]) == 1


@pytest.mark.slow
def test_micro_batches_have_the_gradient_of_the_whole_batch():
    for stage in selective_s4.STAGES:
        compare(tiny(stage), batch())


def test_what_cannot_be_is_refused():
    task = tasks.build(tiny())
    with pytest.raises(UserError, match="needs a source with classes"):
        task.loss(task.init(nnx.Rngs(0)), {"video": batch()["video"]}, jax.random.key(0), 0)
    config = tiny()
    config.ema.decay = 0.0
    with pytest.raises(UserError, match="set ema.decay above 0"):
        tasks.build(config)
    for short, long in ((7, 6), (2, 9)):
        config = tiny("pretraining")
        config.windows.update({"short": short, "long": long})
        with pytest.raises(UserError, match="windows are short ≤ long ≤ 8"):
            tasks.build(config)
    config = tiny()
    config.data.image_batch_size = 4
    with pytest.raises(UserError, match="long clips have one shape"):
        tasks.build(config)


def test_published_sizes():
    task = tasks.build(selective_s4.get_config("size=paper"))
    assert (task.network.tokens, task.network.budget) == (2048, 1024)
    assert task.network.linear.outputs == 1024 and task.network.stack.outputs == 128
    assert selective_s4.START_FROM == {"classification": "pretraining"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", selective_s4.STAGES)
def test_a_run_learns_and_is_evaluated(tmp_path, stage):
    config = tiny(stage)
    config.steps = config.eval_every = config.checkpoint_every = 12
    config.log_every = 1
    train(config, tmp_path)
    records = read_metrics(tmp_path / FILE)
    assert any("eval/accuracy" in r for r in records) and any("train/loss" in r for r in records)

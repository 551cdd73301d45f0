"""The tokenizer task with all of its losses: two parameter groups, frozen perceptual network, joint images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import phenaki
from videogen import tasks
from videogen.errors import UserError
from videogen.training.state import new_state, split, structure_of
from videogen.training.step import make_train_step


@pytest.fixture(scope="module")
def config():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.steps = 10
    config.data.clip.update({"frames": 3, "height": 16, "width": 16})
    config.model.update({"width": 32, "heads": 2, "mlp_width": 64, "encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    config.model.quantizer.size = 32
    config.optimizer.tokenizer.warmup = 0
    config.losses.l1 = 0.5
    config.losses.perceptual.weight = 0.1
    config.losses.adversarial.update({"weight": 0.1, "start": 2, "channel_multiplier": 0.03})
    return config


def batch(seed: int) -> dict:
    random = np.random.default_rng(seed)
    return {
        "video": random.integers(0, 256, (4, 3, 16, 16, 3), np.uint8),
        "image": {"video": random.integers(0, 256, (2, 1, 16, 16, 3), np.uint8)},
    }


@pytest.fixture(scope="module")
def steps(config):
    """States and metrics of four steps; the discriminator starts at the third."""
    task = tasks.build(config)
    structure, _ = structure_of(task, config)
    frozen = task.frozen(lambda directory: None)
    graphs = {name: nnx.graphdef(module) for name, module in frozen.items()}
    arrays = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in frozen.items()}
    step = jax.jit(make_train_step(task, structure, graphs, config))
    states, metrics = [jax.jit(lambda: new_state(task, structure, config))()], []
    for i in range(4):
        state, values = step(states[-1], arrays, batch(i))
        states.append(state)
        metrics.append(values)
    return states, metrics


def moved(a, b) -> bool:
    return any(bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_both_groups_learn_and_the_discriminator_waits_for_its_start(steps):
    states, metrics = steps
    for before, after, value, started in zip(states, states[1:], metrics, (0, 0, 1, 1), strict=False):
        assert moved(before["params"]["tokenizer"], after["params"]["tokenizer"])
        assert (float(value["discriminator_loss"]) > 0) == bool(started)
        assert (float(value["gradient_norm_discriminator"]) > 0) == bool(started)
    assert {"l1", "l2", "perceptual", "adversarial", "r1", "commitment"} <= metrics[0].keys()


def test_loss_is_the_weighted_sum_of_its_terms(steps, config):
    _, metrics = steps
    last = {name: float(value) for name, value in metrics[-1].items()}
    weights = config.losses
    expected = (
        weights.l2 * last["l2"]
        + weights.l1 * last["l1"]
        + weights.perceptual.weight * last["perceptual"]
        + weights.adversarial.weight * last["adversarial"]
        + last["commitment"]
    )
    assert last["loss"] == pytest.approx(expected, rel=1e-4)


def test_codebook_statistics_move_with_training_only(config):
    task = tasks.build(config)
    module = task.init(nnx.Rngs(0))["tokenizer"]
    video = tasks.to_video(jnp.asarray(batch(0)["video"]))
    _, _, before = split({"m": module})
    before = jax.tree.map(jnp.array, before)
    module.tokenize(video)
    assert not moved(before, split({"m": module})[2])
    module.bottleneck(module.encode(video), key=jax.random.key(0), train=True)
    assert moved(before, split({"m": module})[2])


def test_evaluation_reports_what_the_report_needs(config):
    task = tasks.build(config)
    values = task.evaluate(task.init(nnx.Rngs(0)), [{"video": batch(i)["video"]} for i in range(2)], seed=0)
    assert {"psnr", "ssim", "codebook_usage", "codebook_perplexity"} <= values.keys()
    # 2 latent frames × 4 × 4 places × 5 bits over 3 × 16 × 16 pixels
    assert values["bits_per_pixel"] == pytest.approx(32 * 5 / (3 * 16 * 16))


def test_clips_and_images_are_judged_by_one_video_discriminator_with_lecam(config):
    config = config.copy_and_resolve_references()
    judge = {"discriminator": "clip", "multipliers": (1, 2), "lecam": 0.5, "start": 0, "channel_multiplier": 0.05}
    config.losses.adversarial.update(judge)
    config.losses.perceptual.weight = 0.0
    task = tasks.build(config)
    structure, _ = structure_of(task, config)
    state = jax.jit(lambda: new_state(task, structure, config))()
    after, metrics = jax.jit(make_train_step(task, structure, {}, config))(state, {}, batch(0))
    expected = 2 * np.log(2) + 0.5 * config.losses.adversarial.r1 * float(metrics["r1"]) + 0.5 * float(metrics["lecam"])
    assert float(metrics["discriminator_loss"]) == pytest.approx(expected, rel=0.5)
    averages = after["variables"]["discriminator"]["lecam"]
    assert float(averages["real"]) == pytest.approx(1e-3 * float(metrics["discriminator_real"]), rel=1e-3)
    assert moved(state["params"]["discriminator"], after["params"]["discriminator"])


def test_an_unknown_discriminator_is_named(config):
    config = config.copy_and_resolve_references()
    config.losses.adversarial.discriminator = "clips"
    with pytest.raises(UserError, match="did you mean 'clip'"):
        tasks.build(config)

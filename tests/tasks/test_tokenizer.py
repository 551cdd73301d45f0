"""The tokenizer task with all of its losses: two parameter groups, frozen perceptual network, joint images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import phenaki
from videogen.errors import UserError
from videogen.losses import RECONSTRUCTION, Outputs, Pass
from videogen.nn import MicroBatch
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
    config.losses.l1.weight = 0.5
    config.losses.perceptual.weight = 0.1
    config.losses.adversarial.update({"weight": 0.1, "start": 2})
    config.losses.adversarial.discriminator.channel_multiplier = 0.03
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
    frozen = task.frozen(None)
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


@pytest.mark.slow
def test_both_groups_learn_and_the_discriminator_waits_for_its_start(steps):
    states, metrics = steps
    for before, after, value, started in zip(states, states[1:], metrics, (0, 0, 1, 1), strict=False):
        assert moved(before["params"]["tokenizer"], after["params"]["tokenizer"])
        assert (float(value["discriminator_loss"]) > 0) == bool(started)
        assert (float(value["gradient_norm_discriminator"]) > 0) == bool(started)
    assert {"l1", "l2", "perceptual", "adversarial", "r1", "commitment"} <= metrics[0].keys()


@pytest.mark.slow
def test_loss_is_the_weighted_sum_of_its_terms(steps, config):
    _, metrics = steps
    last = {name: float(value) for name, value in metrics[-1].items()}
    weights = config.losses
    expected = (
        weights.l2.weight * last["l2"]
        + weights.l1.weight * last["l1"]
        + weights.perceptual.weight * last["perceptual"]
        + weights.adversarial.weight * last["adversarial"]
        + last["commitment"]
    )
    assert last["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_codebook_statistics_move_with_training_only(config):
    task = tasks.build(config)
    module = task.init(nnx.Rngs(0))["tokenizer"]
    video = tasks.to_video(jnp.asarray(batch(0)["video"]))
    _, _, before = split({"m": module})
    before = jax.tree.map(jnp.array, before)
    module.tokenize(video)
    assert not moved(before, split({"m": module})[2])
    _, _, _, measured = module.bottleneck(module.encode(video), key=jax.random.key(0), train=True)
    assert not moved(before, split({"m": module})[2])
    module.quantizer.update(measured["update_sums"], measured["candidates"], jax.random.key(0))
    assert moved(before, split({"m": module})[2])


def test_evaluation_reports_what_the_report_needs(config):
    task = tasks.build(config)
    values = task.evaluate(task.init(nnx.Rngs(0)), [{"video": batch(i)["video"]} for i in range(2)], seed=0)
    assert {"psnr", "ssim", "codebook_usage", "codebook_perplexity"} <= values.keys()
    # 2 latent frames × 4 × 4 places × 5 bits over 3 × 16 × 16 pixels
    assert values["bits_per_pixel"] == pytest.approx(32 * 5 / (3 * 16 * 16))


@pytest.mark.slow
def test_clips_and_images_are_judged_by_one_video_discriminator_with_lecam(config):
    config = config.copy_and_resolve_references()
    config.losses.adversarial.discriminator = {"name": "clip", "multipliers": (1, 2), "channels": 6}
    config.losses.adversarial.update({"objective": "hinge", "lecam": 0.5, "start": 0})
    config.losses.perceptual.weight = 0.0
    task = tasks.build(config)
    structure, _ = structure_of(task, config)
    state = jax.jit(lambda: new_state(task, structure, config))()
    after, metrics = jax.jit(make_train_step(task, structure, {}, config))(state, {}, batch(0))
    values = {name: float(value) for name, value in metrics.items()}
    # Logits of a fresh discriminator are within the margin, where the hinge is a straight line.
    hinge = 2 - values["discriminator_real"] + values["discriminator_fake"]
    expected = hinge + 0.5 * config.losses.adversarial.r1 * values["r1"] + 0.5 * values["lecam"]
    assert values["discriminator_loss"] == pytest.approx(expected, rel=1e-5)
    averages = after["variables"]["discriminator"]["lecam"]
    assert float(averages["real"]) == pytest.approx(1e-3 * float(metrics["discriminator_real"]), rel=1e-3)
    assert moved(state["params"]["discriminator"], after["params"]["discriminator"])


def test_an_unknown_discriminator_is_named(config):
    config = config.copy_and_resolve_references()
    config.losses.adversarial.discriminator.name = "clips"
    with pytest.raises(UserError, match="did you mean 'clip'"):
        tasks.build(config)


def modules_with_discriminator(config, **adversarial):
    """A task with a small discriminator of frames, its modules, and the video of a batch."""
    config = config.copy_and_resolve_references()
    config.losses.perceptual.weight = 0.0
    config.model.update({"encoder_layers": (0, 0), "decoder_layers": (0, 0)})
    config.losses.adversarial.update({"start": 0} | adversarial)
    task = tasks.build(config)
    return task, nnx.jit(lambda: task.init(nnx.Rngs(0)))(), tasks.to_video(jnp.asarray(batch(0)["video"]))


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(config):
    task, modules, video = modules_with_discriminator(config, adaptive=True, weight=0.5)
    graph, *state = nnx.split(modules["tokenizer"], nnx.Param, ...)
    params, rest = map(nnx.to_pure_dict, state)
    key, step = jax.random.key(1), jnp.zeros((), jnp.int32)

    def reconstruct(params):
        model = nnx.merge(graph, params, rest)
        latents, _, losses, _ = model.bottleneck(model.encode(video), key=key, train=True)
        return model.decode(latents), sum(losses.values())

    def value(term, params):
        outputs = Outputs({RECONSTRUCTION: Pass(reconstruct(params)[0], video)})
        return task.terms[term].value(modules, outputs, key, step, MicroBatch())[0]

    @jax.jit
    def separately(params):
        fidelity = jax.grad(lambda p: value("l2", p) + 0.5 * value("l1", p))(params)
        realism = jax.grad(lambda p: value("adversarial", p))(params)
        return fidelity, realism, jax.grad(lambda p: reconstruct(p)[1])(params)

    @jax.jit
    def together(params):
        def loss(params):
            live = {**modules, "tokenizer": nnx.merge(graph, params, rest)}
            total, outcome = task.tokenizer_loss(live, {"video": batch(0)["video"]}, key, step)
            return total, outcome.metrics

        return jax.grad(loss, has_aux=True)(params)

    gradient, terms = together(params)
    fidelity, realism, quantizer = separately(params)
    norms = [jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g["pixels"]))) for g in (fidelity, realism)]
    weight = 0.5 * norms[0] / (norms[1] + 1e-4)
    assert float(terms["adversarial_weight"]) == pytest.approx(float(weight), rel=1e-4)
    assert float(weight) != pytest.approx(0.5, rel=0.1)
    expected = jax.tree.map(lambda f, r, q: f + weight * r + q, fidelity, realism, quantizer)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7)
    total = float(terms["l2"]) + 0.5 * float(terms["l1"]) + float(weight * terms["adversarial"] + terms["commitment"])
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_adversarial_loss_of_the_generator_waits_for_its_start(config, adaptive):
    task, modules, video = modules_with_discriminator(config, start=5, weight=0.5, adaptive=adaptive)
    graph, params, rest = nnx.split(modules["tokenizer"], nnx.Param, ...)

    @jax.jit
    def run(params, step):
        def loss(params):
            live = {**modules, "tokenizer": nnx.merge(graph, params, rest)}
            value, outcome = task.tokenizer_loss(live, {"video": batch(0)["video"]}, jax.random.key(0), step)
            return value, outcome.metrics

        return jax.value_and_grad(loss, has_aux=True)(params)

    ((before, terms), still), ((after, later), pulled) = (run(params, jnp.asarray(step)) for step in (4, 5))
    weight = float(later["adversarial_weight"]) if adaptive else 0.5
    assert float(after - before) == pytest.approx(weight * float(later["adversarial"]), rel=1e-3)
    assert float(terms["adversarial"]) == float(later["adversarial"]) != 0
    assert moved(still, pulled)


def test_buckets_must_fit_the_tokenizer(config):
    config = config.copy_and_resolve_references()
    config.data.buckets = ((5, 16, 16, 4, 1), (3, 24, 32, 2, 1))
    task = tasks.build(config)
    assert task.bucket_tokens == [3 * 4 * 4, 2 * 6 * 8]
    config.data.buckets = ((5, 16, 16, 4, 1), (4, 16, 16, 4, 1))
    with pytest.raises(UserError, match="use 3 or 5"):
        tasks.build(config)

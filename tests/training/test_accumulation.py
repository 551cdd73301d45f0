"""A step in micro-batches equals the step of the whole batch: losses, gradients, codebooks, discriminators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import phenaki
from videogen.training.state import new_state, structure_of
from videogen.training.step import make_train_step

CLIP = {"frames": 3, "height": 16, "width": 16}


def small_tokenizer(quantizer: dict, adversarial: dict):
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.data.clip.update(CLIP)
    config.model.update({"width": 16, "heads": 2, "mlp_width": 16, "encoder_layers": (0, 1), "decoder_layers": (0, 1)})
    config.model.quantizer = quantizer
    config.losses.perceptual.weight = 0.0
    config.losses.adversarial.update({"weight": 0.3, "start": 0, "r1": 1.0} | adversarial)
    config.losses.adversarial.discriminator.channel_multiplier = 0.02
    return config


VQ = {"name": "vq", "size": 16, "width": 4, "restart_threshold": 0.5}
TOKENIZERS = {
    "moving averages, restarts, LeCam and R1": (VQ, {"lecam": 0.5}),
    "codes by gradient, restarts, a discriminator that may rest": (
        VQ | {"codebook_update": "gradient"},
        {"pause_below": 0.1},
    ),
    "batch entropy and an adaptive weight": ({"name": "lfq", "bits": 4, "temperature": 1.0}, {"adaptive": True}),
}


def batch(images: bool) -> dict:
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (4, 3, 16, 16, 3), np.uint8)
    return {"video": video} | (
        {"image": {"video": random.integers(0, 256, (2, 1, 16, 16, 3), np.uint8)}} if images else {}
    )


def prepared(task, config):
    frozen = task.frozen(None)
    structure, _ = structure_of(task, config)
    state = jax.jit(lambda: new_state(task, structure, config))()
    graphs = {name: nnx.graphdef(module) for name, module in frozen.items()}
    arrays = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in frozen.items()}
    return structure, graphs, state, arrays


def assert_equal(parts, whole):
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    for (path, b), a in zip(leaves, jax.tree.leaves(parts), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        scale = float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale + 1e-8, err_msg=name)


def compare(config, data: dict, count: int = 2) -> dict:
    """The step's metrics, after they, the gradients and the new statistics have been compared."""
    task, results = tasks.build(config), []
    structure, graphs, state, arrays = prepared(task, config)
    for accumulate in (1, count):
        config.accumulate = accumulate
        new, metrics = jax.jit(make_train_step(task, structure, graphs, config))(state, arrays, data)
        # The first moment after one step is a tenth of the clipped gradient.
        moments = {group: optax.tree_utils.tree_get(new["optimizer"][group], "mu") for group in task.losses}
        results.append({"metrics": metrics, "gradients": moments, "variables": new["variables"]})
    whole, parts = results
    assert_equal(parts, whole)
    assert float(whole["metrics"]["finite"]) == 1
    return whole["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name):
    metrics = compare(small_tokenizer(*TOKENIZERS[name]), batch(images=True))
    assert {"loss", "discriminator_loss", "codebook_usage"} <= metrics.keys()


@pytest.mark.slow
def test_codes_by_gradient_restart_through_the_step():
    """Dead codes are latents of the batch after one step: in the parameter, and in its average."""
    config = small_tokenizer(VQ | {"codebook_update": "gradient", "cosine": False}, {"weight": 0.0})
    config.ema.decay = 0.9
    task = tasks.build(config)
    structure, graphs, state, arrays = prepared(task, config)
    new, metrics = jax.jit(make_train_step(task, structure, graphs, config))(state, arrays, batch(images=False))
    model = structure.modules(state["params"], state["variables"])["tokenizer"]
    video = tasks.to_video(jnp.asarray(batch(images=False)["video"]))
    latents = model.encode(video).values.reshape(-1, 4)
    ids = model.tokenize(video).only.values.reshape(-1)
    counts = np.bincount(ids, minlength=16)
    dead = 0.01 * counts < 0.5
    assert dead.sum() > 8
    for codebook in (
        new["params"]["tokenizer"]["quantizer"]["codebook"],
        new["ema"]["tokenizer"]["quantizer"]["codebook"],
    ):
        distance = jnp.abs(codebook[:, None] - latents).max(-1).min(-1)
        assert (distance[dead] < 1e-5 * float(jnp.abs(latents).max())).all()
    np.testing.assert_allclose(new["variables"]["tokenizer"]["quantizer"]["counts"][dead], 1.0)
    assert float(metrics["codebook_usage"]) == pytest.approx(np.mean(counts > 0))


@pytest.mark.slow
@pytest.mark.parametrize("poisoned", ["update", "ema", "variables"])
def test_a_new_state_that_is_not_finite_changes_nothing(poisoned):
    """Loss and gradient are finite; the state after them is not."""
    config = small_tokenizer(VQ, {"weight": 0.0})
    config.ema.decay = 0.9
    if poisoned == "update":
        config.optimizer.tokenizer.b2 = 1.0
    task = tasks.build(config)
    structure, graphs, state, arrays = prepared(task, config)
    if poisoned == "ema":
        state["ema"]["tokenizer"]["pixels"] = jax.tree.map(lambda x: x * jnp.nan, state["ema"]["tokenizer"]["pixels"])
    if poisoned == "variables":
        task.updates["tokenizer"] = lambda modules, *_: (
            modules["tokenizer"].quantizer.counts.set_value(jnp.full(16, jnp.inf)) or {}
        )
    new, metrics = jax.jit(make_train_step(task, structure, graphs, config))(state, arrays, batch(images=False))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
    assert float(metrics["finite"]) == 0
    assert int(new["step"]) == 1
    for before, after in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(new["params"]), strict=True):
        np.testing.assert_array_equal(before, after)

"""Lifting poses: the loss, what is measured, published sizes, and a run from the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import data, tasks
from videogen.configs import hot
from videogen.errors import UserError
from videogen.metrics.poses import aligned_mpjpe, mpjpe
from videogen.perception import lifting_flops
from videogen.runs.records import FILE, read_metrics
from videogen.training.loop import train


def tiny(recipe="hot"):
    config = hot.get_config(f"size=debug,recipe={recipe}")
    config.data.clip.frames = 6
    config.data.batch_size = config.data.eval_batch_size = 2
    config.model.transformer.update({"width": 8, "layers": 3, "heads": 2, "mlp_width": 8})
    if recipe == "hot":
        config.model.hourglass.update({"start": 1, "stop": 2, "kept": 3})
    return config


def batch(size=2):
    clip = data.Clip(6, 1, 1)
    samples = [data.build({"name": "skeletons"}, clip=clip, seed=0, split="train")[i] for i in range(size)]
    return {name: np.stack([sample[name] for sample in samples]) for name in ("points", "joints")}


def test_the_loss_is_the_error_of_the_joints_and_so_is_what_is_measured():
    task = tasks.build(tiny())
    modules, given = task.init(nnx.Rngs(0)), batch(3)
    found = task.lifting(modules)(given["points"])
    loss, outcome = jax.jit(lambda given: task.loss(modules, given, jax.random.key(0), 0))(given)
    expected = mpjpe(found, given["joints"], 1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(outcome.metrics["joint_error"]) == pytest.approx(expected, rel=1e-5)
    # Batches of any size count by their frames.
    parts = [{name: array[part] for name, array in given.items()} for part in (slice(1), slice(1, 3))]
    measured = task.evaluate(modules, parts, 0)
    assert measured["mpjpe"] == pytest.approx(expected, rel=1e-5)
    assert measured["p_mpjpe"] == pytest.approx(aligned_mpjpe(found, given["joints"]).mean(), rel=1e-5)
    sizes = task.lifter.sizes
    assert measured["flops"] == lifting_flops(sizes, 6, task.lifter.middle) < measured["flops_of_host"]
    assert measured["flops_share"] == measured["flops"] / lifting_flops(sizes, 6)
    assert task.bucket_tokens == [48] and task.default_protocol(task.config) is None


def test_what_is_wrong_is_said():
    task = tasks.build(tiny())
    modules, given = task.init(nnx.Rngs(0)), batch()
    with pytest.raises(UserError, match="skeletons or pose_folder"):
        task.loss(modules, {"video": given["points"]}, None, 0)
    few = {name: array[:, :, :5] for name, array in given.items()}
    with pytest.raises(UserError, match="the poses have 5 joints; set model.joints=5"):
        task.loss(modules, few, None, 0)
    for root in (-1, 8):
        config = tiny()
        config.root = root
        with pytest.raises(UserError, match="one of the joints 0 … 7"):
            tasks.build(config)
    config = tiny()
    config.data.image_batch_size = 2
    with pytest.raises(UserError, match="of one length"):
        tasks.build(config)


def test_published_sizes():
    """MixSTE has 33.78 M parameters and with HoT 35.00 M (Li et al., 2024, table 1), at six tenths of the cost."""
    counts, shares = {}, {}
    for recipe in ("hot", "host"):
        config = hot.get_config(f"size=paper,recipe={recipe}")
        lifter = tasks.build(config).lifter
        counts[recipe] = sum(x.size for x in jax.tree.leaves(nnx.state(lifter, nnx.Param)))
        shares[recipe] = lifting_flops(lifter.sizes, 243, lifter.middle) / lifting_flops(lifter.sizes, 243)
    assert counts == {"hot": 34_997_379, "host": 33_781_763}
    assert shares["host"] == 1 and shares["hot"] == pytest.approx(0.598, abs=0.001)
    config = hot.get_config("size=paper")
    assert config.model.hourglass.to_dict() == {
        **{"start": 3, "stop": 8, "kept": 81, "neighbours": 2, "recover": "queries"}
    }
    assert (config.data.clip.frames, config.model.joints, config.root, config.losses.joint_error.root) == (
        243,
        17,
        0,
        0,
    )


@pytest.mark.slow
def test_a_run_learns_and_is_evaluated(tmp_path):
    config = tiny()
    config.steps = config.eval_every = config.checkpoint_every = 20
    config.log_every = 1
    config.optimizer.model.warmup = 0
    train(config, tmp_path)
    records = read_metrics(tmp_path / FILE)
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    assert np.mean(losses[-5:]) < np.mean(losses[:3])
    assert any("eval/mpjpe" in r for r in records)


def test_micro_batches_have_the_gradient_of_the_whole():
    task = tasks.build(tiny("host"))
    modules, given = task.init(nnx.Rngs(0)), batch(4)
    graph, state = nnx.split(modules["model"])
    slope = jax.jit(
        jax.grad(lambda state, given: task.loss({"model": nnx.merge(graph, state)}, given, jax.random.key(0), 0)[0])
    )
    halves = [slope(state, {n: jnp.asarray(a[i::2]) for n, a in given.items()}) for i in range(2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), mean, slope(state, given))

"""MPJPE and P-MPJPE in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import losses
from videogen.losses.poses import joint_errors, mean_joint_error
from videogen.metrics.poses import aligned_mpjpe, mpjpe
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

RNG = np.random.default_rng(0)
POSES = RNG.normal(size=(2, 3, 5, 3))


def rotation():
    q, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_equal_poses_and_shifted_bodies_have_no_error():
    shifted = POSES + RNG.normal(size=(2, 3, 1, 3))
    for found in (POSES, shifted):
        np.testing.assert_allclose(mpjpe(found, POSES, 1), 0.0, atol=1e-12)
        np.testing.assert_allclose(mean_joint_error(jnp.asarray(found), jnp.asarray(POSES), 1), 0.0, atol=1e-6)


def test_one_wrong_joint_counts_by_its_distance():
    wrong = POSES.copy()
    wrong[..., 3, :] += (3.0, 0.0, 4.0)
    np.testing.assert_allclose(mpjpe(wrong, POSES, 1), 1.0)  # 5 over five joints
    np.testing.assert_allclose(joint_errors(jnp.asarray(wrong), jnp.asarray(POSES), 1)[..., 3], 5.0, rtol=1e-5)
    # A wrong root makes all others wrong.
    np.testing.assert_allclose(mpjpe(wrong, POSES, 3), 4.0)
    np.testing.assert_allclose(mean_joint_error(jnp.asarray(wrong), jnp.asarray(POSES), 3), 4.0, rtol=1e-5)


def test_padding_does_not_count_and_the_gradient_at_no_error_is_nothing():
    wrong = jnp.asarray(POSES).at[:, 2].add(jnp.eye(5, 3))
    exists = jnp.array([[True, True, False]] * 2)
    assert float(mean_joint_error(wrong, jnp.asarray(POSES), 4, exists)) == pytest.approx(0, abs=1e-6)
    slope = jax.grad(lambda x: mean_joint_error(x, jnp.asarray(POSES), 1))(jnp.asarray(POSES))
    np.testing.assert_array_equal(slope, np.zeros(POSES.shape))


def test_aligned_errors_know_no_turn_scale_or_shift():
    turned = 1.7 * POSES @ rotation() + np.array([3.0, -1.0, 2.0])
    np.testing.assert_allclose(aligned_mpjpe(turned, POSES), 0.0, atol=1e-9)
    # A mirrored body stays wrong.
    assert aligned_mpjpe(POSES * np.array([-1.0, 1.0, 1.0]), POSES).min() > 0.1
    # No fit is better than the least-squares one, the identity among them.
    near = POSES + 0.1 * RNG.normal(size=POSES.shape)
    squares = lambda a: ((a - POSES) ** 2).sum((-1, -2))  # noqa: E731
    assert (aligned_mpjpe(near, POSES) <= np.sqrt(squares(near) / 5) + 1e-9).all()
    # Of four corners of a square of which one is bent upwards by h, nothing but the shift and turn is left.
    assert aligned_mpjpe(np.zeros((4, 3)), np.eye(4, 3)) == pytest.approx(
        np.linalg.norm(np.eye(4, 3) - np.eye(4, 3).mean(0), axis=-1).mean()
    )


def test_the_term_reads_its_pass():
    setting = losses.Setting(VideoShape(3, 1, 1), tokens=3, code_width=0, steps=1)
    terms = losses.build({"joints": {"name": "joint_error", "weight": 2.0, "root": 3}}, setting)
    wrong = jnp.asarray(POSES).at[..., 3, :].add(jnp.array([3.0, 0.0, 4.0]))
    outputs = losses.Outputs({"poses": losses.Pass(wrong, jnp.asarray(POSES))})
    total, metrics = losses.combine(terms, {}, outputs, jax.random.key(0), jnp.zeros((), int), MicroBatch())
    assert float(metrics["joints"]) == pytest.approx(4.0, rel=1e-5) and float(total) == pytest.approx(8.0, rel=1e-5)

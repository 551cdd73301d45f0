"""Measures of time: closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.metrics import features, temporal
from videogen.metrics.fidelity import entropy_bits

RNG = np.random.default_rng(0)


def clip(*levels):
    """One clip whose frames have these brightnesses."""
    return jnp.broadcast_to(jnp.array(levels, jnp.float32)[None, :, None, None, None], (1, len(levels), 4, 4, 3))


def test_flicker():
    np.testing.assert_allclose(temporal.flicker(clip(0.2, 0.4, 0.3)), [0.85], rtol=1e-6)
    np.testing.assert_allclose(temporal.flicker(clip(0.5, 0.5)), [1.0])
    with pytest.raises(UserError, match="at least 2, got 1"):
        temporal.flicker(clip(0.5))


def test_differences_do_not_see_a_constant_error():
    reference = clip(0.2, 0.4, 0.3)
    np.testing.assert_allclose(temporal.difference_psnr(reference + 0.1, reference), [100.0])
    # The second frame 0.1 too bright: both differences are off by 0.1, 20 dB each.
    np.testing.assert_allclose(temporal.difference_psnr(clip(0.2, 0.5, 0.3), reference), [20.0], rtol=1e-5)


def test_a_shift_by_one_frame_is_seen():
    video = jnp.asarray(RNG.uniform(size=(2, 5, 8, 8, 3)), jnp.float32)
    assert (temporal.difference_psnr(jnp.roll(video, 1, axis=1), video) < 10).all()


def test_the_first_frame_and_the_later_ones():
    first, later = temporal.first_and_later_psnr(clip(0.3, 0.4, 0.31), clip(0.2, 0.4, 0.3))
    np.testing.assert_allclose(first, [20.0], rtol=1e-5)
    np.testing.assert_allclose(later, [(100 + 40) / 2], rtol=1e-4)


def test_consistency_counts_the_frame_before_and_the_first():
    x, y = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    # x y y: frame 1: before 0, first 0; frame 2: before 1, first 0.
    np.testing.assert_allclose(features.consistency(np.stack([x, y, y])[None]), [0.25], atol=1e-6)
    np.testing.assert_allclose(features.consistency(np.stack([x, -x])[None]), [0.0], atol=1e-6)
    np.testing.assert_allclose(features.consistency(np.stack([x, 3 * x])[None]), [1.0], rtol=1e-6)


def test_clip_score():
    images, texts = np.array([[1.0, 0], [1, 1], [1, 0]]), np.array([[2.0, 0], [1, 0], [-1, 0]])
    np.testing.assert_allclose(features.clip_score(images, texts), [100, 100 / 2**0.5, 0], rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="every picture needs its text"):
        features.clip_score(images, texts[:2])


def test_agreement_and_entropy():
    assert features.agreement(np.eye(4), np.eye(4)[[0, 1, 2, 0]]) == 0.75
    for other in (np.eye(3), np.zeros((0, 4))):
        with pytest.raises(UserError, match="scores of the same examples"):
            features.agreement(other, np.zeros((0, 4)))
    assert entropy_bits(np.array([4, 4, 4, 4])) == pytest.approx(2.0)
    assert entropy_bits(np.array([2, 1, 1, 0])) == pytest.approx(1.5)
    with pytest.raises(UserError, match="at least one code"):
        entropy_bits(np.zeros(3))


def test_in_time_names_every_measure_and_flicker_is_below_0_where_it_grows():
    reference = np.zeros((1, 4, 2, 2, 3), np.float32) + 0.5
    video = reference + np.float32([0.1, 0.3, 0.1, 0.3])[None, :, None, None, None]
    found = {name: float(value[0]) for name, value in temporal.in_time(video, reference).items()}
    assert found["flicker_difference"] == pytest.approx(-0.2, rel=1e-5)
    # Differences are off by 0.2, the first frame by 0.1, the others by 0.3, 0.1 and 0.3.
    assert found["difference_psnr"] == pytest.approx(-20 * np.log10(0.2), rel=1e-5)
    assert found["first_frame_psnr"] == pytest.approx(20.0, rel=1e-5)
    assert found["later_frames_psnr"] == pytest.approx((-2 * 20 * np.log10(0.3) + 20) / 3, rel=1e-5)


def test_a_pulse_is_the_change_where_windows_begin_over_that_elsewhere():
    changes = np.array([0.1, 0.1, 0.1, 0.25, 0.1, 0.1, 0.1, 0.15, 0.1])
    levels = np.concatenate([[0], np.cumsum(0.5 * changes)])
    video = np.broadcast_to(levels[None, :, None, None, None], (2, 10, 2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(temporal.pulse(video, [4, 8]), 2.0, rtol=1e-5)
    np.testing.assert_allclose(temporal.pulse(video, [1]), 0.1 / np.delete(changes, 0).mean(), rtol=1e-5)
    still = np.zeros((1, 10, 2, 2, 3), np.float32)
    once = np.where(np.arange(10)[:, None, None, None] < 4, still, 1.0)
    assert temporal.pulse(still, [4]) == 1 and np.isinf(temporal.pulse(once, [4]))
    for starts in ([], [0], [10], [*range(1, 10)]):
        with pytest.raises(UserError, match="at some frames of 1 to 9"):
            temporal.pulse(video, starts)

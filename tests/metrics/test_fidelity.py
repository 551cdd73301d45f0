"""Exact values, reference loops and refusals of the frame and code metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from videogen.errors import UserError
from videogen.metrics import (
    codebook_usage,
    expected_usage,
    gradient_sharpness,
    perplexity,
    psnr,
    region_psnr,
    ssim,
    to_unit,
)


def clips(seed: int = 0, shape: tuple[int, ...] = (2, 3, 16, 14, 3)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize(("difference", "decibel"), [(0.1, 20.0), (0.001**0.5, 30.0), (1 / 255, 48.1308)])
def test_psnr_of_a_constant_error(difference, decibel):
    reference = np.full((2, 2, 4, 4, 3), 0.5, np.float32)
    np.testing.assert_allclose(psnr(reference + np.float32(difference), reference), [decibel] * 2, atol=1e-3)


def test_psnr_averages_decibels_over_frames():
    reference = np.full((1, 2, 4, 4, 3), 0.5, np.float32)
    video = reference.copy()
    video[:, 0] += 0.1
    video[:, 1] += 0.01
    np.testing.assert_allclose(psnr(video, reference), [30.0], atol=1e-3)


def test_psnr_caps_identical_frames_at_100():
    video = clips()
    np.testing.assert_allclose(psnr(video, video), [100.0, 100.0], atol=1e-4)
    half = video.copy()
    half[:, 1:] = 1 - half[:, 1:]
    frames = [float(psnr(half[:, t : t + 1], video[:, t : t + 1])[0]) for t in range(3)]
    assert float(psnr(half, video)[0]) == pytest.approx(np.mean(frames), abs=1e-4)


def test_psnr_detects_a_shift_by_one_frame():
    video = clips(shape=(1, 4, 8, 8, 3))
    assert float(psnr(np.roll(video, 1, axis=1), video)[0]) < 12


def test_ssim_exact_values():
    def constant(value):
        return np.full((1, 2, 12, 13, 3), value, np.float32)

    np.testing.assert_allclose(ssim(constant(0), constant(1)), [9.999e-5], atol=1e-8)
    np.testing.assert_allclose(ssim(constant(0.2), constant(0.4)), [0.80010], atol=1e-5)
    np.testing.assert_allclose(ssim(clips(), clips()), [1.0, 1.0], atol=1e-6)


def loop_ssim(video: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM window by window in float64, with the two-dimensional kernel."""
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    result = []
    for x, y in zip(video.astype(np.float64), reference.astype(np.float64), strict=True):
        values = []
        for t, i, j, c in np.ndindex(x.shape[0], x.shape[1] - 10, x.shape[2] - 10, x.shape[3]):
            a, b = x[t, i : i + 11, j : j + 11, c], y[t, i : i + 11, j : j + 11, c]
            mean_a, mean_b = (kernel * a).sum(), (kernel * b).sum()
            var_a, var_b = (kernel * (a - mean_a) ** 2).sum(), (kernel * (b - mean_b) ** 2).sum()
            covariance = (kernel * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * covariance + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
        result.append(np.mean(values))
    return np.array(result)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_ssim_matches_a_direct_loop(noise):
    ramp = np.linspace(0.1, 0.9, 16)[:, None, None] * np.linspace(0.5, 1, 14)[:, None]
    reference = np.broadcast_to(ramp, (2, 2, 16, 14, 3)).astype(np.float32)
    video = np.clip(0.9 * reference + noise * (clips(1, reference.shape) - 0.5), 0, 1)
    np.testing.assert_allclose(ssim(video, reference), loop_ssim(video, reference), atol=1e-6)


def test_ssim_is_symmetric_and_not_invariant_to_scale():
    a, b = clips(1), clips(2)
    np.testing.assert_allclose(ssim(a, b), ssim(b, a), atol=1e-7)
    assert abs(float(ssim(a / 4, b / 4)[0]) - float(ssim(a, b)[0])) > 1e-3


@pytest.mark.parametrize("metric", [psnr, ssim, gradient_sharpness])
def test_metrics_inside_jit(metric):
    a, b = clips(1), clips(2)
    np.testing.assert_allclose(jax.jit(metric)(a, b), metric(a, b), rtol=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim, gradient_sharpness])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01])
@pytest.mark.parametrize("which", [0, 1])
def test_metrics_refuse_meaningless_pixels(metric, bad, which):
    pair = [clips(), clips()]
    pair[which][0, 0, 3, 2, 1] = bad
    with pytest.raises(UserError, match=("video", "reference")[which]):
        metric(*pair)


@pytest.mark.parametrize("metric", [psnr, ssim, gradient_sharpness])
def test_metrics_refuse_other_shapes(metric):
    with pytest.raises(UserError, match="one shape"):
        metric(clips(), clips()[:1])
    with pytest.raises(UserError, match="one shape"):
        metric(clips()[0], clips()[0])


@pytest.mark.parametrize("side", [(10, 16), (16, 10)])
def test_ssim_refuses_frames_smaller_than_its_window(side):
    small = clips(shape=(1, 1, *side, 3))
    with pytest.raises(UserError, match="11×11"):
        ssim(small, small)


def test_gradient_sharpness_of_an_edge():
    """A step of height h between two columns is h at one in w - 1 places; at half the height the distance is h / 2."""
    reference = np.zeros((1, 2, 4, 9, 3), np.float32)
    reference[..., 5:, :] = 0.8
    np.testing.assert_allclose(gradient_sharpness(reference / 2, reference), [255 * 0.4 / 8], rtol=1e-5)
    mirrored = reference[:, :, :, ::-1]
    np.testing.assert_allclose(gradient_sharpness(mirrored, reference), [0.0], atol=1e-4)


def test_blur_and_noise_change_the_sharpness():
    reference = np.zeros((1, 1, 16, 16, 3), np.float32)
    reference[:, :, 4:12, 4:12] = 1
    blurred = ndimage.gaussian_filter(reference, (0, 0, 1, 1, 0)).clip(0, 1)
    noise = np.random.default_rng(0).normal(size=reference.shape).astype(np.float32)
    distances = [float(gradient_sharpness(x, reference)[0]) for x in (reference, blurred, blurred * 0)]
    assert distances[0] == 0 < distances[1] and distances[2] > 20
    small, large = (gradient_sharpness((reference + s * noise).clip(0, 1), reference)[0] for s in (0.02, 0.1))
    assert 0 < small < large


def test_to_unit_clamps_and_rounds_to_grey_levels():
    levels = np.arange(256, dtype=np.float32)
    video = jnp.asarray(levels / 127.5 - 1)
    np.testing.assert_array_equal(to_unit(video), jnp.asarray(levels) / 255)
    np.testing.assert_array_equal(to_unit(video + 0.4 / 127.5), jnp.asarray(levels) / 255)
    np.testing.assert_array_equal(to_unit(jnp.array([-7.0, 1.001])), [0.0, 1.0])
    assert np.isnan(to_unit(jnp.array([np.nan]))[0])


def test_perplexity_of_known_counts():
    assert float(perplexity(np.full(10, 7))) == pytest.approx(10, abs=1e-4)
    assert float(perplexity(np.array([0, 3, 0, 3]))) == pytest.approx(2, abs=1e-5)
    assert float(perplexity(np.array([5, 0, 0]))) == pytest.approx(1, abs=1e-6)
    assert float(perplexity(np.array([1, 3]))) == pytest.approx(4 / 3**0.75, abs=1e-5)
    assert float(perplexity(np.zeros(4))) == 1
    np.testing.assert_allclose(perplexity(np.array([[1, 1], [1, 0]])), [2, 1], atol=1e-5)


def test_codebook_usage_of_known_counts():
    assert float(codebook_usage(np.array([0, 3, 0, 1, 9]))) == pytest.approx(0.6)
    np.testing.assert_allclose(codebook_usage(np.array([[1, 1], [0, 0]])), [1, 0])


@pytest.mark.parametrize("metric", [perplexity, codebook_usage])
@pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
def test_code_metrics_refuse_impossible_counts(metric, bad):
    with pytest.raises(UserError, match="counts"):
        metric(np.array([1.0, bad]))


@pytest.mark.parametrize(("draws", "size"), [(300, 256), (2000, 1000)])
def test_usage_of_even_draws_matches_the_expectation(draws, size):
    generator = np.random.default_rng(0)
    usage = [
        float(codebook_usage(np.bincount(generator.integers(size, size=draws), minlength=size))) for _ in range(40)
    ]
    assert np.mean(usage) == pytest.approx(expected_usage(draws, size), abs=0.01)


@pytest.mark.parametrize(("draws", "share"), [(512, 0.0155), (5000, 0.142), (50_000, 0.783)])
def test_even_draws_of_a_large_codebook_show_few_of_its_codes(draws, share):
    """Users' notes on tokens, case 6: what one pooled figure hides."""
    assert expected_usage(draws, 32_768) == pytest.approx(share, rel=5e-3)


def test_expected_usage_at_the_borders():
    assert expected_usage(0, 16) == 0
    assert expected_usage(1, 16) == pytest.approx(1 / 16)
    assert expected_usage(1, 1) == 1
    with pytest.raises(UserError):
        expected_usage(3, 0)


def test_region_psnr_pools_the_region_of_each_clip():
    video, reference = clips(0), clips(1)
    region = np.random.default_rng(2).random(video.shape[:4]) < 0.3
    error = [((video[i] - reference[i]) ** 2).mean(-1)[region[i]].mean() for i in range(2)]
    np.testing.assert_allclose(region_psnr(video, reference, region), -10 * np.log10(error), rtol=1e-5)
    # Beyond the region anything goes; equal regions have the cap.
    outside = np.where(region[..., None], reference, video)
    np.testing.assert_allclose(region_psnr(outside, reference, region), 100.0)

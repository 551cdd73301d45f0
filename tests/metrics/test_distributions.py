"""Distances of feature sets: closed forms, and what must not change them."""

import numpy as np
import pytest
import scipy.linalg

from videogen.errors import UserError
from videogen.metrics.distributions import (
    JEDI_KERNEL,
    KID_KERNEL,
    Moments,
    PolynomialKernel,
    discrepancy,
    frechet_distance,
    inception_score,
    jedi,
    kernel_distance,
)

RNG = np.random.default_rng(0)


def gaussian(mean, variances):
    """Moments with a given mean and diagonal covariance, whatever is divided by."""
    return Moments(2, np.asarray(mean, float), np.diag(np.asarray(variances, float)))


def test_gaussians_with_diagonal_covariances():
    a, b = gaussian([0, 0, 0], [1, 4, 9]), gaussian([2, 2, 2], [4, 9, 16])
    assert frechet_distance(a, b) == pytest.approx(15.0, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(15.0, rel=1e-12)
    assert frechet_distance(a, a) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "unbiased", "biased"),
    [
        ([(0, 0, 0, 0), (2, 0, 0, 0)], [(0, 0, 0, 0), (0, 4, 0, 0)], 15.0, 10.0),
        ([(-1, 0), (1, 0)], [(-(0.5**0.5),) * 2, (0.5**0.5,) * 2], 4 - 2 * 2**0.5, 2 - 2**0.5),
    ],
)
def test_covariances_of_too_few_examples(first, second, unbiased, biased):
    a, b = Moments.of(np.array(first)), Moments.of(np.array(second))
    assert frechet_distance(a, b) == pytest.approx(unbiased, rel=1e-9)
    assert frechet_distance(a, b, biased=True) == pytest.approx(biased, rel=1e-9)


def test_a_set_against_itself_is_exactly_zero():
    few = RNG.normal(size=(4, 400))
    assert frechet_distance(Moments.of(few), Moments.of(few)) == 0.0


def test_the_root_is_that_of_scipy_and_rotations_change_nothing():
    x, y = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)), RNG.normal(size=(60, 6)) + 1
    a, b = Moments.of(x), Moments.of(y)
    root = scipy.linalg.sqrtm(a.covariance() @ b.covariance()).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance() + b.covariance() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    assert frechet_distance(Moments.of(x @ turn), Moments.of(y @ turn)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1, 7, 16])
def test_batches_and_shards_give_the_moments_of_the_whole(size):
    x = RNG.normal(size=(50, 5)) * 3 + 1e3
    parts = Moments.all_of(x[i : i + size] for i in range(0, len(x), size))
    shards = Moments.all_of(x[i::4] for i in range(4))
    for moments in (parts, shards):
        assert moments.count == 50
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance(), np.cov(x.T), rtol=1e-9)
        np.testing.assert_allclose(moments.covariance(biased=True), np.cov(x.T, bias=True), rtol=1e-9)


def test_statistics_of_float32_features_are_float64():
    """A variance of 1 around 10⁶, where float32 has steps of 1/16 and squares of 65,536."""
    x = (RNG.normal(size=(4000, 2)) + 1e6).astype(np.float32)
    moments = Moments.of(x)
    assert moments.mean.dtype == moments.scatter.dtype == np.float64
    np.testing.assert_allclose(moments.covariance(), np.cov(x.astype(np.float64).T), rtol=1e-9)


@pytest.mark.parametrize(("count", "expected"), [(256, 300.0), (1024, 79.0), (2048, 39.8)])
def test_the_distance_of_equal_distributions_falls_with_the_number_of_examples(count, expected):
    rng = np.random.default_rng(count)
    a, b = (Moments.of(rng.normal(size=(count, 400))) for _ in range(2))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.05)


def test_what_cannot_be_measured_is_refused():
    one, two = Moments.of(np.ones((1, 3))), Moments.of(RNG.normal(size=(2, 3)))
    with pytest.raises(UserError, match="at least 2 examples, got 1"):
        frechet_distance(one, two)
    with pytest.raises(UserError, match="3 and 4 dimensions"):
        frechet_distance(two, Moments.of(RNG.normal(size=(2, 4))))
    with pytest.raises(UserError, match="NaN or infinity"):
        Moments.of(np.array([[0.0, np.nan]]))
    with pytest.raises(UserError, match="no features"):
        Moments.all_of([])
    with pytest.raises(UserError, match=r"got \(3,\)"):
        Moments.of(np.zeros(3))


A = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
B = np.array([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])


def test_published_values_of_jedi():
    assert jedi(A, B) / 100 == pytest.approx(270.722, rel=1e-5)
    kernel = PolynomialKernel(degree=2, scale=1.0, offset=0.0)
    assert discrepancy(A, B, kernel, biased=True) == pytest.approx(2436.5, rel=1e-5)
    kernel = PolynomialKernel(degree=3, scale=1 / 3, offset=1.0)
    assert discrepancy(A, B, kernel, biased=True) == pytest.approx(23088.08, rel=1e-5)
    assert discrepancy(A, A, JEDI_KERNEL, biased=True) == pytest.approx(0.0, abs=1e-9)


def test_the_unbiased_discrepancy_leaves_out_examples_with_themselves():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    kernel = PolynomialKernel(degree=1, scale=1.0, offset=0.0)
    # Within: 1·2 and 0·3. Between: the mean of 0, 3, 0, 6.
    assert discrepancy(x, y, kernel) == pytest.approx(2 + 0 - 2 * 9 / 4)


def test_the_kernel_distance_of_splits_of_one_set_is_zero_on_average():
    x = RNG.normal(size=(400, 8))
    mean, deviation = kernel_distance(x[:200], x[200:], subsets=50, size=50)
    shifted, _ = kernel_distance(x[:200], x[200:] + 1, subsets=50, size=50)
    assert abs(mean) < 3 * deviation / 50**0.5 + 0.01 and shifted > 10 * deviation
    assert kernel_distance(x[:200], x[200:], subsets=5, size=50) == kernel_distance(
        x[:200], x[200:], subsets=5, size=50
    )
    assert KID_KERNEL(np.ones((1, 4)), np.ones((1, 4))) == pytest.approx(8.0)
    with pytest.raises(UserError, match="subsets of 1000 examples cannot be drawn from 200"):
        kernel_distance(x[:200], x[200:])


def test_inception_scores():
    assert inception_score(np.full((20, 10), 0.1))[0] == pytest.approx(1.0)
    sorted_classes = np.repeat(np.eye(100), 10, axis=0)
    assert inception_score(sorted_classes) == (pytest.approx(100.0), 0.0)
    # In the order of the file ten parts would give 10; shuffled, a part of 100 examples shows about 63 classes.
    mean, deviation = inception_score(sorted_classes, parts=10)
    assert mean == pytest.approx(100 * (1 - 1 / np.e), rel=0.1) and 0 < deviation < 10
    with pytest.raises(UserError, match="at least 10 examples, got 5"):
        inception_score(np.full((5, 2), 0.5), parts=10)
    with pytest.raises(UserError, match="sum to 1"):
        inception_score(np.full((5, 2), 3.0))

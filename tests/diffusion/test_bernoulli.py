"""Noise on bits: marginals, Bayes' rule by enumeration, and steps back that keep the marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videogen.diffusion import AdaptiveProjected, Bernoulli, ClassifierFree, Guided, ancestral, build
from videogen.errors import UserError

FLIP, X0 = Bernoulli(), Bernoulli("x0")
MANY = 40_000
KEYS = jax.random.split(jax.random.key(0), 2)
ONES = 0.8
"""Share of ones among the bits of the data, which are independent."""


def marginal(t: float) -> np.ndarray:
    """P(x_t | x), rows by x."""
    return np.array([[1 - t / 2, t / 2], [t / 2, 1 - t / 2]])


def logits(process: Bernoulli, bits: jax.Array, t: jax.Array) -> jax.Array:
    """The perfect network of the data."""
    one = np.log(ONES / (1 - ONES)) + jnp.where(bits == 1, 1, -1) * jnp.log((1 - t / 2) / (t / 2))
    return jnp.where(bits == 1, -one, one) if process.prediction == "flip" else one


@pytest.mark.parametrize(("t", "later"), [(1.0, 0.6), (0.9, 0.3), (0.4, 0.0), (1.0, 0.0)])
def test_the_posterior_is_bayes_rule(t, later):
    """The kernel from ``later`` to t follows from the two marginals; all eight paths are counted."""
    kernel = np.linalg.solve(marginal(later), marginal(t))
    paths = marginal(later)[:, :, None] * kernel  # [x, x_later, x_t]
    for clean, noisy in np.ndindex(2, 2):
        expected = paths[clean, 1, noisy] / paths[clean, :, noisy].sum()
        found = Bernoulli.posterior(jnp.array([noisy]), clean, jnp.float32(t), jnp.float32(later))
        np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-7)


def test_bits_are_the_data_at_0_and_fair_coins_at_1():
    t = jnp.array([[0.0, 0.3], [0.7, 1.0]])
    clean = jnp.ones((2, 2, MANY), jnp.int32).at[1].set(0)
    noisy = FLIP.corrupt(clean, t, KEYS)
    np.testing.assert_array_equal(noisy.values[0, 0], 1)
    np.testing.assert_array_equal(noisy.values, clean ^ noisy.noise.astype(jnp.int32))
    # Four standard deviations of the mean of so many coins.
    np.testing.assert_allclose(noisy.noise.mean(-1), t / 2, atol=2 / MANY**0.5)
    assert noisy.values.dtype == clean.dtype
    alone = FLIP.corrupt(clean[1:], t[1:], KEYS[1:])
    np.testing.assert_array_equal(alone.values[0], noisy.values[1])


@pytest.mark.parametrize("process", [FLIP, X0], ids=lambda process: process.prediction)
def test_steps_with_the_perfect_network_keep_the_marginals(process):
    times = np.float32([1.0, 0.7, 0.4, 0.1, 0.0])
    bits = process.corrupt(jnp.zeros((2, MANY), jnp.int32), 1.0, KEYS).values
    step = jax.jit(lambda bits, t, later, keys: process.step(bits, logits(process, bits, t), t, later, keys))
    for index, (t, later) in enumerate(zip(times[:-1], times[1:], strict=True)):
        bits = step(bits, t, later, jax.random.split(jax.random.key(index + 1), 2))
        assert bits.dtype == jnp.int32
        np.testing.assert_allclose(bits.mean(-1), (1 - later) * ONES + later / 2, atol=2 / MANY**0.5)


def test_a_step_draws_x_later_given_x_t():
    """Not only its marginal: bits that agree between two times are as many as by the kernel."""
    t, later = 0.8, 0.5
    clean = (jax.random.uniform(jax.random.key(9), (2, MANY)) < ONES).astype(jnp.int32)
    noisy = FLIP.corrupt(clean, t, KEYS).values
    stepped = FLIP.step(noisy, logits(FLIP, noisy, jnp.float32(t)), t, later, jax.random.split(jax.random.key(8), 2))
    kernel = np.linalg.solve(marginal(later), marginal(t))
    np.testing.assert_allclose((stepped == noisy).mean(-1), kernel[0, 0], atol=2 / MANY**0.5)


def test_what_waits_stays_also_at_both_ends_of_time():
    bits = jax.random.randint(jax.random.key(3), (2, 3, 50), 0, 2)
    t = jnp.array([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    later = t.at[:, 1].set(0.2)
    stepped = FLIP.step(bits, jnp.full(bits.shape, 5.0), t, later, KEYS)
    np.testing.assert_array_equal(stepped[:, ::2], bits[:, ::2])
    assert (stepped[:, 1] != bits[:, 1]).any()


def test_flips_that_are_known_give_the_data_in_one_step():
    clean = jax.random.randint(jax.random.key(3), (2, 50), 0, 2)
    noisy = FLIP.corrupt(clean, 0.9, KEYS)
    for process in (FLIP, Bernoulli(threshold=True)):
        known = jnp.where(noisy.noise, 200.0, -200.0)
        np.testing.assert_array_equal(process.step(noisy.values, known, 0.9, 0.0, KEYS), clean)
        # Without a flip the bits are the data.
        np.testing.assert_array_equal(
            process.step(noisy.values, jnp.full((2, 50), -200.0), 0.9, 0.0, KEYS), noisy.values
        )


def test_a_threshold_takes_the_likelier_bit_at_the_end_only():
    process, bits = Bernoulli("x0", threshold=True), jnp.zeros((2, 1000), jnp.int32)
    likely = jnp.where(jnp.arange(1000) % 2 == 0, 0.1, -0.1) + jnp.zeros((2, 1))
    last = process.step(bits, likely, 0.5, 0.0, KEYS)
    np.testing.assert_array_equal(last, likely > 0)
    before = process.step(bits, likely, 0.5, 0.1, KEYS)
    np.testing.assert_array_equal(before, X0.step(bits, likely, 0.5, 0.1, KEYS))


def test_the_loss_is_the_cross_entropy_of_the_bits_whatever_is_predicted():
    clean = jax.random.randint(jax.random.key(3), (2, 3, 20), 0, 2)
    t = jnp.array([[0.5, 1.0, 0.2], [0.0, 0.9, 0.4]])
    noisy = FLIP.corrupt(clean, t, KEYS)
    one = 3 * jax.random.normal(jax.random.key(4), clean.shape)
    flip = jnp.where(noisy.values == 1, -one, one)
    expected = optax.sigmoid_binary_cross_entropy(one, clean)
    for process, output in ((X0, one), (FLIP, flip)):
        loss = process.loss(output, clean, noisy, t)
        np.testing.assert_allclose(loss[0], expected[0], rtol=1e-5)
        np.testing.assert_array_equal(loss[1, 0], 0.0)
        np.testing.assert_allclose(process.data(output, noisy.values), jax.nn.sigmoid(one), rtol=1e-5)
        slope = jax.grad(lambda x, process=process: process.loss(x, clean, noisy, t).sum())(jnp.full(clean.shape, 1e4))
        assert jnp.isfinite(slope).all()


def test_guidance_is_of_the_logits():
    start = FLIP.corrupt(jnp.zeros((2, 200), jnp.int32), 1.0, KEYS).values
    grid = jnp.broadcast_to(jnp.linspace(1.0, 0.0, 4)[:, None], (4, 2))
    low, high = (lambda bits, t, a=a: jnp.full(bits.shape, a) for a in (-0.5, 0.5))

    def draw(denoiser):
        return jax.jit(lambda: ancestral(denoiser, X0, grid, start, KEYS))()

    plain = draw(high)
    np.testing.assert_array_equal(draw(Guided(lambda *x: (high(*x), low(*x)), ClassifierFree(1.0))), plain)
    moved = draw(lambda bits, t: jnp.full(bits.shape, 2.5))
    np.testing.assert_array_equal(draw(Guided(lambda *x: (high(*x), low(*x)), ClassifierFree(3.0))), moved)
    assert moved.mean() > plain.mean() + 0.1 and plain.dtype == jnp.int32
    # One that remembers, of floats beside bits.
    assert set(np.unique(draw(Guided(lambda *x: (high(*x), low(*x)), AdaptiveProjected(3.0))))) <= {0, 1}


def test_it_is_built_by_name_and_no_process_of_floats():
    assert build("bit_process", {"name": "bernoulli", "prediction": "x0"}) == X0
    with pytest.raises(UserError, match="did you mean 'flip'"):
        Bernoulli("flips")
    with pytest.raises(UserError, match="unknown process 'bernoulli'"):
        build("process", {"name": "bernoulli"})


def test_steps_anew_with_the_perfect_network_keep_the_marginals():
    """The first of the two samplers of Instella-T2I draws every time from what the network finds."""
    process, times = Bernoulli(anew=True), np.float32([1.0, 0.7, 0.4, 0.1, 0.0])
    bits = process.start(jax.random.normal(jax.random.key(5), (2, MANY)), 1.0)
    assert bits.dtype == jnp.int32 and abs(float(bits.mean()) - 0.5) < 2 / MANY**0.5
    for index, (t, later) in enumerate(zip(times[:-1], times[1:], strict=True)):
        own = jax.random.split(jax.random.key(index + 1), 2)
        bits = process.step(bits, logits(process, bits, jnp.float32(t)), t, later, own)
        np.testing.assert_allclose(bits.mean(-1), (1 - later) * ONES + later / 2, atol=2 / MANY**0.5)


def test_both_samplers_draw_the_same_from_coins_and_the_last_bits_alike():
    """At t = 1 the bits say nothing of the data, and at 0 nothing is left to draw but the data."""
    coins = jax.random.randint(jax.random.key(3), (2, 500), 0, 2)
    output = 2 * jax.random.normal(jax.random.key(4), coins.shape)
    for t, later in ((1.0, 0.4), (0.6, 0.0)):
        both = [Bernoulli(anew=anew).step(coins, output, t, later, KEYS) for anew in (False, True)]
        np.testing.assert_array_equal(*both)


def test_all_paths_over_two_steps_add_up_to_one_step():
    """By enumeration of two bits: the posterior to 0.3 and from there to 0 is that to 0, whatever the data."""
    t, middle = jnp.float32(0.8), jnp.float32(0.3)
    for clean in (0, 1):
        for noisy in (0, 1):
            one = Bernoulli.posterior(jnp.array([noisy]), clean, t, middle)[0]
            of = [Bernoulli.posterior(jnp.array([bit]), clean, middle, jnp.float32(0.0))[0] for bit in (0, 1)]
            total = (1 - one) * of[0] + one * of[1]
            np.testing.assert_allclose(total, clean, atol=1e-6)
    # And forward: noise to 0.3, then by the kernel to 0.8, is noise to 0.8.
    np.testing.assert_allclose(marginal(0.3) @ np.linalg.solve(marginal(0.3), marginal(0.8)), marginal(0.8))


def test_released_guidance_is_one_less():
    """(1 + s) c - s u = u + (1 + s) (c - u): their s is our scale less 1, and s = 0 changes nothing."""
    conditional, null = jax.random.normal(jax.random.key(2), (2, 3, 5))
    for s in (0.0, 7.5):
        found, _ = ClassifierFree(1 + s)(conditional, null, jnp.ones(3), ())
        np.testing.assert_allclose(found, (1 + s) * conditional - s * null, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ClassifierFree(1.0)(conditional, null, jnp.ones(3), ())[0], conditional)


def test_what_needs_a_signal_to_noise_ratio_is_refused():
    with pytest.raises(UserError, match="no signal-to-noise ratio: take grid.name uniform, power"):
        build("grid", {"name": "karras"})(4, FLIP)
    with pytest.raises(UserError, match="time_distribution.name uniform"):
        build("time_distribution", {"name": "log_normal_sigma"})(jnp.full(2, 0.5), FLIP)

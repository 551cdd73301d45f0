"""The distillation loss against teachers and students whose steps are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.diffusion.oracles import Mixture
from videogen import diffusion
from videogen.diffusion import DDIM, EDM, ClassifierFree, DPMSolver2M, Euler, Guided, Heun, RectifiedFlow, UniPC
from videogen.errors import UserError

PROCESSES = {
    "rectified_flow": RectifiedFlow(),
    "variance_preserving": diffusion.VariancePreserving(zero_terminal_snr=True, prediction="v"),
    "edm": EDM(prediction="edm"),
}
GAUSSIAN = Mixture()
POINTS = np.float32([1.0, 0.75, 0.5, 0.25, 0.0])
BATCH = 64


def grid(batch: int = BATCH) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(POINTS)[:, None], (len(POINTS), batch))


def noise(process: diffusion.Gaussian, seed: int = 0, batch: int = BATCH, size: int = 3) -> jax.Array:
    return process.scales(jnp.float32(POINTS[0]))[1] * jax.random.normal(jax.random.key(seed), (batch, size))


def oracle(process: diffusion.Gaussian, scale: jax.Array | float = 1.0):
    """The perfect network of Gaussian data; other than 1, ``scale`` makes it wrong."""
    exact = GAUSSIAN.denoiser(process)
    return lambda x, t: scale * exact(x, t)


def exact_step(process: diffusion.Gaussian):
    """The student that goes through each interval by the closed-form flow of Gaussian data."""

    def ends_of(here: float, there: float) -> tuple[float, float]:
        """The flow of a Gaussian is a line."""
        zero, one = (float(GAUSSIAN.flow(process, jnp.float32(x), here, there)) for x in (0, 1))
        return zero, one - zero

    lines = [(a, b, *ends_of(float(a), float(b))) for a, b in zip(POINTS[:-1], POINTS[1:], strict=True)]

    def student(x: jax.Array, t: jax.Array) -> jax.Array:
        value = jnp.zeros_like(x)
        for here, there, offset, slope in lines:
            ends = jnp.full(t.shape, here), jnp.full(t.shape, there)
            end = offset + slope * x
            velocity = diffusion.mean_velocity(process, x, end, *ends)
            alpha, sigma = (diffusion.broadcast_right(scale, x) for scale in process.scales(ends[0]))
            clean = (x - sigma * velocity) / (alpha + sigma)
            own = process.convert(clean, x, ends[0], "x0", process.prediction)
            value = jnp.where(diffusion.broadcast_right(t == here, x), own, value)
        return value

    return student


def loss(student, teacher, process, *, solver=Euler(), substeps=1, start=None, times=None, seed=1):
    start = noise(process) if start is None else start
    times = grid() if times is None else times
    states = diffusion.rollout(student, process, times, start)
    key, common = jax.random.key(seed), dict(substeps=substeps)
    return diffusion.distillation_loss(student, teacher, process, solver, times, states, key, **common)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_student_that_steps_like_its_teacher_has_neither_loss_nor_gradient(name):
    process = PROCESSES[name]
    teacher = oracle(process)

    def of_scale(scale):
        return loss(oracle(process, scale), teacher, process)

    value, slope = jax.jit(jax.value_and_grad(of_scale))(1.0)
    wrong, _ = jax.jit(jax.value_and_grad(of_scale))(1.1)
    assert abs(value) < 1e-5 * wrong and abs(slope) < 1e-2 * wrong and wrong > 1e-3


@pytest.mark.parametrize("name", ["rectified_flow", "variance_preserving"])
def test_the_exact_mean_velocity_is_approached_by_ever_more_steps_of_the_teacher(name):
    process = PROCESSES[name]
    student, teacher = exact_step(process), oracle(process)
    few, many = (jax.jit(lambda n=n: loss(student, teacher, process, solver=Heun(), substeps=n))() for n in (2, 16))
    # Heun's error falls with the square of the steps, and so its square with the fourth power, at best to 1 / 8^4.
    assert few < 0.01 and many < 5e-3 * few


def test_the_mean_velocity_leads_straight_to_the_end_of_the_step():
    process = PROCESSES["variance_preserving"]
    start, end = noise(process), noise(process, seed=5)
    ends = jnp.full(BATCH, 0.75), jnp.full(BATCH, 0.5)
    velocity = diffusion.mean_velocity(process, start, end, *ends)
    alpha, sigma = process.scales(ends[0][:1, None])

    def network(x, t):
        return process.convert((x - sigma * velocity) / (alpha + sigma), x, t, "x0", process.prediction)

    for solver in (Euler(), DDIM()):
        drawn = diffusion.integrate(network, process, solver, jnp.stack(ends), start)
        np.testing.assert_allclose(drawn, end, atol=1e-5)


def test_guidance_is_folded_into_the_target():
    """The loss of a student of one pass vanishes where it is the guided prediction, not the conditional one."""
    process = PROCESSES["rectified_flow"]
    given, null = (oracle(process, scale) for scale in (1.0, 0.5))
    teacher = Guided(lambda x, t: (given(x, t), null(x, t)), ClassifierFree(3.0))
    # 0.5 + 3·(1 - 0.5)
    guided = jax.jit(lambda: loss(oracle(process, 2.0), teacher, process))()
    alone = jax.jit(lambda: loss(given, teacher, process))()
    assert guided < 1e-10 < 1e-2 < alone


def test_states_are_those_a_sampler_of_the_same_times_visits():
    process = PROCESSES["rectified_flow"]
    student = oracle(process, 1.2)
    start = noise(process)
    states = diffusion.rollout(student, process, grid(), start)
    assert states.shape == (4, BATCH, 3)
    keys = jax.random.split(jax.random.key(0), BATCH)
    for i, state in enumerate(states):
        drawn = start
        if i:
            drawn = diffusion.sample(student, process, Euler(), POINTS[: i + 1], keys, (3,), start=start)
        np.testing.assert_allclose(state, drawn, atol=1e-6)


def test_given_frames_neither_move_nor_count():
    process = PROCESSES["rectified_flow"]
    start = noise(process, size=3).at[:, 0].set(7.0)
    times = jnp.repeat(grid()[..., None], 3, axis=2).at[:, :, 0].set(0.0)

    def student(scale):
        def predict(x, t):
            other = oracle(process, scale)(x, jnp.maximum(t, 0.1))
            # What is predicted of a frame that is given does not matter.
            return jnp.where(t > 0, other, 100.0 * scale)

        return predict

    states = diffusion.rollout(student(1.0), process, times, start)
    np.testing.assert_array_equal(states[:, :, 0], 7.0)

    def of_scale(scale):
        teacher = oracle(process)
        return loss(student(scale), teacher, process, solver=UniPC(), substeps=3, start=start, times=times)

    value, slope = jax.jit(jax.value_and_grad(of_scale))(1.3)
    start, times = start[:, 1:], times[..., 1:]
    alone = jax.jit(of_scale)(1.3)
    assert np.isfinite(slope) and slope > 0
    np.testing.assert_allclose(value, alone, rtol=1e-5)


def test_a_student_of_four_steps_learns_the_map_of_its_teacher():
    """Data at ±1: a network of the teacher's form cannot do it in four steps, a table of each step's own can."""
    process = PROCESSES["rectified_flow"]
    data = Mixture((0.5, 0.5), (-1.0, 1.0), (0.3, 0.3))
    teacher = data.denoiser(process)
    knots = jnp.linspace(-4, 4, 65)

    def student(tables):
        def predict(x, t):
            which = jnp.argmin(jnp.abs(t[:, None] - POINTS[:-1]), axis=1)
            mine = jax.vmap(lambda row, table: jnp.interp(row, knots, table))(x, tables[which])
            return teacher(x, t) + mine

        return predict

    def draw(network, points, start, solver=Euler()):
        times = jnp.broadcast_to(jnp.asarray(points)[:, None], (len(points), len(start)))
        return diffusion.integrate(network, process, solver, times, start)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 400))

    @jax.jit
    def train(tables):
        def step(i, carry):
            tables, state = carry
            start = jax.random.normal(jax.random.key(i), (BATCH, 32))
            states = diffusion.rollout(student(tables), process, grid(), start)

            def of_tables(tables):
                return diffusion.distillation_loss(
                    student(tables), teacher, process, Heun(), grid(), states, jax.random.key(i), substeps=8,
                )  # fmt: skip

            updates, state = optimizer.update(jax.grad(of_tables)(tables), state)
            return optax.apply_updates(tables, updates), state

        return jax.lax.fori_loop(0, 400, step, (tables, optimizer.init(tables)))[0]

    start = jax.random.normal(jax.random.key(99), (256, 4))
    tables = jnp.zeros((4, len(knots)))
    goal = jax.jit(lambda: draw(teacher, np.linspace(1, 0, 33), start, Heun()))()
    before, after = (
        float(jnp.sqrt(jnp.mean((draw(student(t), POINTS, start) - goal) ** 2))) for t in (tables, train(tables))
    )
    assert before > 0.1 and after < before / 4


def test_solvers_and_steps_that_cannot_be_learned_are_named():
    diffusion.check_student(Euler())
    diffusion.check_student(DDIM())
    assert diffusion.substeps_of(UniPC(), 16, 4) == 4
    for solver in (Heun(), DPMSolver2M(), DDIM(eta=1.0)):
        with pytest.raises(UserError, match="euler or ddim"):
            diffusion.check_student(solver)
    for solver in (DDIM(eta=0.5), DPMSolver2M(stochastic=True)):
        with pytest.raises(UserError, match="fresh noise"):
            diffusion.substeps_of(solver, 16, 4)
    for steps in (2, 18):
        with pytest.raises(UserError, match="multiple of the student's 4"):
            diffusion.substeps_of(Euler(), steps, 4)

"""Terms of a loss: how they are weighted and added up, and what the adversarial one does with its discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import losses
from videogen.errors import UserError
from videogen.losses import RECONSTRUCTION, Outputs, Pass
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

SETTING = losses.Setting(VideoShape(3, 16, 16), tokens=8, code_width=4, steps=10)
FRAMES = {"name": "frame", "channel_multiplier": 0.03}
KEY, FIRST = jax.random.key(1), jnp.zeros((), jnp.int32)


def clips(seed, shape=(2, 3, 16, 16, 3)):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


def outputs(**more):
    return Outputs({RECONSTRUCTION: Pass(clips(0), clips(1))}, **more)


def combined(config, given=None, step=FIRST, modules=None, setting=SETTING):
    terms = losses.build(config, setting)
    return losses.combine(terms, modules or {}, given or outputs(), KEY, step, MicroBatch())


def adversarial(**settings):
    section = {"name": "adversarial", "objective": "nonsaturating", "weight": 0.1, "discriminator": FRAMES}
    (term,) = losses.build({"adversarial": section | settings}, SETTING).values()
    return term


def judged(term, step, given=None, key=KEY):
    """``(loss, metrics, sums)`` of the discriminator in a step, of the same weights always."""
    module = term.module(nnx.Rngs(0))
    given = given or Outputs({RECONSTRUCTION: Pass(-clips(1), clips(1))})
    return jax.jit(lambda step: term.group_value({"discriminator": module}, given, key, step, MicroBatch()))(step)


def test_the_total_is_the_weighted_sum_of_terms_and_the_quantizers_losses():
    config = {
        "l2": {"name": "l2", "weight": 2.0},
        "far": {"name": "l1", "weight": 0.5},
        "no": {"name": "l1", "weight": 0},
    }
    given = outputs(quantizer={"commitment": jnp.asarray(0.25), "entropy": jnp.asarray(-1.0)})
    total, metrics = combined(config, given)
    difference = np.asarray(clips(0) - clips(1), np.float64)
    assert float(metrics["l2"]) == pytest.approx(np.mean(difference**2), rel=1e-6)
    assert float(metrics["far"]) == pytest.approx(np.mean(np.abs(difference)), rel=1e-6)
    expected = 2 * np.mean(difference**2) + 0.5 * np.mean(np.abs(difference)) + 0.25 - 1.0
    assert float(total) == pytest.approx(expected, rel=1e-6) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert set(metrics) == {"l2", "far", "commitment", "entropy", "loss"}


@pytest.mark.parametrize(("step", "factor"), [(0, 3.0), (5, 2.0), (10, 1.0), (99, 1.0)])
def test_a_weight_may_change_with_the_step(step, factor):
    weight = {"start": 3.0, "final": 1.0, "steps": 10}
    config = {"commitment": {"name": "quantizer", "loss": "commitment", "weight": weight}}
    given = outputs(quantizer={"commitment": jnp.asarray(2.0), "entropy": jnp.asarray(5.0)})
    total, metrics = combined(config, given, jnp.asarray(step))
    assert float(total) == pytest.approx(2 * factor + 5.0, rel=1e-6) and float(metrics["commitment"]) == 2.0
    plain, _ = combined({"l2": {"name": "l2", "weight": weight}}, step=jnp.asarray(step))
    assert float(plain) == pytest.approx(factor * float(jnp.mean((clips(0) - clips(1)) ** 2)), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"l2": 1.0}, "losses.l2 must be a section"),
        ({"x": {"name": "l3", "weight": 1.0}}, "did you mean 'l1', 'l2'|did you mean 'l2', 'l1'|unknown loss term"),
        ({"l2": {"name": "l2", "weight": -1.0}}, "of at least 0"),
        ({"l2": {"name": "l2", "weight": {"start": 1.0, "final": 0.0, "steps": -1}}}, "steps of Ramp"),
        ({"l2": {"name": "l2", "weight": 1.0, "loud": True}}, "has no setting 'loud'"),
        ({"p": {"name": "lpips", "weight": 1.0}}, None),
        (
            {n: {"name": "adversarial", "objective": "hinge", "weight": 1, "discriminator": FRAMES} for n in "ab"},
            "losses.a and losses.b both train a discriminator",
        ),
    ],
)
def test_wrong_sections_are_one_line(config, message):
    if message is None:
        with pytest.raises(UserError, match="'path'"):
            losses.build(config, SETTING)["p"].frozen(structure_only=False)
        return
    with pytest.raises(UserError, match=message) as stop:
        losses.build(config, SETTING)
    assert "\n" not in str(stop.value)


def test_a_loss_that_the_quantizer_does_not_have_is_named():
    config = {"x": {"name": "quantizer", "loss": "entropi", "weight": 1.0}}
    with pytest.raises(UserError, match="did you mean 'entropy'"):
        combined(config, outputs(quantizer={"entropy": jnp.asarray(5.0)}))


def test_nothing_leads_back_from_detached_outputs():
    def loss(x):
        given = Outputs({RECONSTRUCTION: Pass(x, clips(1))}, quantizer={"a": x.sum()}).detached()
        assert given.quantizer == {} and given.measured == {}
        return given.passes[RECONSTRUCTION].prediction.sum() + x[0, 0, 0, 0, 0]

    gradient = jax.grad(loss)(clips(0))
    assert float(gradient.sum()) == 1.0 and float(gradient[0, 0, 0, 0, 0]) == 1.0


@pytest.mark.slow
def test_the_discriminator_and_its_penalty_work_in_the_steps_that_are_due():
    term = adversarial(start=1, every=2, r1=10.0, r1_every=2, pause_below=0.5)
    outcomes = [judged(term, jnp.asarray(step)) for step in range(6)]
    moves = [bool(term.moves(metrics, jnp.asarray(step))) for step, (_, metrics, _) in enumerate(outcomes)]
    assert moves == [False, True, False, True, False, True]
    assert [float(loss) > 0 for loss, *_ in outcomes] == moves
    penalties = [float(metrics["r1"]) for _, metrics, _ in outcomes]
    assert [penalty > 0 for penalty in penalties] == [False, True, False, False, False, True]

    always = adversarial(start=1, r1=10.0)
    loss, metrics, _ = judged(always, jnp.asarray(1))
    assert always.moves(metrics, jnp.asarray(0)) is None
    # Two updates without the penalty for one of double weight.
    assert penalties[1] == pytest.approx(2 * float(metrics["r1"]), rel=1e-4)
    assert float(outcomes[1][0] - loss) == pytest.approx(0.5 * 10.0 * float(metrics["r1"]), rel=1e-3)


def test_a_discriminator_that_wins_rests():
    term = adversarial(pause_below=100.0)
    _, metrics, _ = judged(term, FIRST)
    assert not term.moves(metrics, FIRST)
    assert term.moves({"discriminator_loss": jnp.asarray(100.5)}, FIRST)


def test_the_same_frame_is_shown_of_a_clip_and_of_its_reconstruction():
    term, reals = adversarial(), []
    for seed in range(3):
        same = Outputs({RECONSTRUCTION: Pass(clips(1), clips(1))})
        _, metrics, _ = judged(term, FIRST, same, jax.random.key(seed))
        assert float(metrics["discriminator_real"]) == pytest.approx(float(metrics["discriminator_fake"]), rel=1e-5)
        reals.append(float(metrics["discriminator_real"]))
    assert np.ptp(reals) > 1e-3 * np.abs(reals).max()


def test_label_smoothing_and_the_penalty_weigh_as_they_are_set():
    changes = {"plain": {}, "smoothed": {"label_smoothing": 0.2}, "penalised": {"r1": 3.0}}
    values = {name: judged(adversarial(**settings), FIRST) for name, settings in changes.items()}
    losses = {name: float(loss) for name, (loss, *_) in values.items()}
    metrics = values["penalised"][1]
    # (1 - s)·softplus(-D) + s·softplus(D) is softplus(-D) + s·D.
    expected = 0.2 * float(metrics["discriminator_real"])
    assert losses["smoothed"] - losses["plain"] == pytest.approx(expected, rel=1e-3)
    assert losses["penalised"] - losses["plain"] == pytest.approx(0.5 * 3.0 * float(metrics["r1"]), rel=1e-3)


def test_lecam_averages_take_in_the_mean_logits_of_a_step():
    term = adversarial(lecam=0.5)
    module = term.module(nnx.Rngs(0))
    loss, metrics, sums = judged(term, FIRST)
    plain = judged(adversarial(), FIRST)[0]
    assert float(loss - plain) == pytest.approx(0.5 * float(metrics["lecam"]), rel=1e-4)
    assert float(sums["count"]) == 2.0
    term.update(module, {"real": jnp.asarray(3.0), "fake": jnp.asarray(-1.0), "count": jnp.asarray(2.0)}, FIRST)
    assert float(module.lecam.real.get_value()) == pytest.approx(1e-3 * 1.5, rel=1e-5)
    assert float(module.lecam.fake.get_value()) == pytest.approx(-1e-3 * 0.5, rel=1e-5)


def test_clips_of_other_sizes_are_judged_at_the_size_of_the_discriminator():
    larger = Outputs({RECONSTRUCTION: Pass(jnp.ones((2, 3, 24, 32, 3)), jnp.ones((2, 3, 24, 32, 3)))})
    same = Outputs({RECONSTRUCTION: Pass(jnp.ones((2, 3, 16, 16, 3)), jnp.ones((2, 3, 16, 16, 3)))})
    (a, *_), (b, *_) = (judged(adversarial(), FIRST, given) for given in (larger, same))
    assert float(a) == pytest.approx(float(b), rel=1e-5)

"""Cross-entropy of ids: by closed forms, at labelled places only, over several budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import losses
from videogen.errors import UserError
from videogen.losses import Outputs, Pass, cross_entropy, log_probability, mean_over_scales, negative_log_likelihood
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

SETTING = losses.Setting(VideoShape(1, 16, 16), tokens=1, code_width=1, steps=10)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 5, 7)), jnp.float32)
IDS = jnp.asarray(RNG.integers(0, 7, (2, 5)))
LABELLED = jnp.array([[True, False, True, False, False], [False, False, False, True, False]])


def combined(config, passes):
    terms = losses.build(config, SETTING)
    return losses.combine(terms, {}, Outputs(passes), jax.random.key(0), jnp.zeros((), int), MicroBatch())


def test_an_even_head_costs_the_logarithm_of_its_ids():
    assert float(cross_entropy(jnp.full((2, 5, 7), 3.0), IDS, LABELLED)) == pytest.approx(np.log(7), rel=1e-6)


def test_labelled_places_alone_count():
    expected = -np.asarray(jax.nn.log_softmax(LOGITS))[np.arange(2)[:, None], np.arange(5), IDS]
    np.testing.assert_allclose(negative_log_likelihood(LOGITS, IDS), expected, rtol=1e-5)
    found = cross_entropy(LOGITS, IDS, LABELLED)
    assert float(found) == pytest.approx(expected[np.asarray(LABELLED)].mean(), rel=1e-5)
    assert float(cross_entropy(LOGITS, IDS)) == pytest.approx(expected.mean(), rel=1e-5)
    others = jnp.where(LABELLED, IDS, (IDS + 3) % 7)
    assert float(cross_entropy(LOGITS, others, LABELLED)) == float(found)
    gradient = jax.grad(lambda logits: cross_entropy(logits, IDS, LABELLED))(LOGITS)
    assert not np.asarray(gradient)[~np.asarray(LABELLED)].any()


def test_nothing_labelled_costs_nothing():
    none = jnp.zeros((2, 5), bool)
    value, gradient = jax.value_and_grad(lambda logits: cross_entropy(logits, IDS, none))(LOGITS)
    assert float(value) == 0.0 and not gradient.any()


def test_micro_batches_with_other_numbers_of_places_have_the_mean_of_the_whole():
    whole = float(cross_entropy(LOGITS, IDS, LABELLED))
    known = [jnp.mean(LABELLED)]
    parts = [
        cross_entropy(LOGITS[i : i + 1], IDS[i : i + 1], LABELLED[i : i + 1], MicroBatch(i, 2, known).mean)
        for i in (0, 1)
    ]
    assert float(sum(parts) / 2) == pytest.approx(whole, rel=1e-6)


def test_an_answer_has_the_sum_of_its_tokens():
    found = log_probability(LOGITS, IDS, LABELLED)
    each = np.asarray(negative_log_likelihood(LOGITS, IDS))
    np.testing.assert_allclose(found, [-each[0, 0] - each[0, 2], -each[1, 3]], rtol=1e-6)


def test_ids_of_another_grid_are_refused():
    with pytest.raises(UserError, match=r"logits of \[2, 5\] places have no targets of \[2, 4\]"):
        cross_entropy(LOGITS, IDS[:, :4])


def test_scales_have_one_mean_whatever_their_order():
    values = {576: jnp.asarray(1.5), 9: jnp.asarray(3.25), 1: jnp.asarray(0.5)}
    assert float(mean_over_scales(values)) == pytest.approx(1.75)
    assert float(mean_over_scales(dict(reversed(values.items())))) == float(mean_over_scales(values))
    assert float(mean_over_scales([values[9]])) == 3.25
    with pytest.raises(UserError, match="at least one"):
        mean_over_scales([])


def test_the_term_reads_one_pass_or_the_mean_of_several():
    passes = {"nine": Pass(LOGITS, IDS, LABELLED), "one": Pass(LOGITS[:, :1], IDS[:, :1])}
    values = [float(cross_entropy(p.prediction, p.target, p.exists)) for p in passes.values()]
    section = {"name": "cross_entropy", "weight": 2.0}
    total, metrics = combined({"answers": {**section, "reads": "nine"}}, passes)
    assert float(total) == pytest.approx(2 * values[0], rel=1e-6)
    hits = np.asarray(jnp.argmax(LOGITS, -1) == IDS)[np.asarray(LABELLED)]
    assert float(metrics["answers_accuracy"]) == pytest.approx(hits.mean())
    for reads in (("nine", "one"), ("one", "nine")):
        total, _ = combined({"answers": {**section, "reads": reads}}, passes)
        assert float(total) == pytest.approx(sum(values), rel=1e-6)
    with pytest.raises(UserError, match="no pass 'nin'.*nine"):
        combined({"answers": {**section, "reads": "nin"}}, passes)

"""Preference optimisation: its margin, its value where nothing was learned, and who learns."""

import jax
import jax.numpy as jnp
import numpy as np

from videogen.losses import preference_loss, preference_margin

CHOSEN, REJECTED = jnp.array([-3.0, -12.5]), jnp.array([-4.0, -2.5])
BEFORE = jnp.array([-5.0, -11.0]), jnp.array([-3.5, -6.0])


def test_the_loss_is_log_two_where_nothing_was_learned():
    margin = preference_margin(CHOSEN, REJECTED, CHOSEN, REJECTED)
    np.testing.assert_allclose(preference_loss(margin), np.log(2), rtol=1e-6)


def test_the_margin_is_the_formula_and_turns_with_the_answers():
    margin = preference_margin(CHOSEN, REJECTED, *BEFORE)
    np.testing.assert_allclose(margin, [(-3 + 5) - (-4 + 3.5), (-12.5 + 11) - (-2.5 + 6)])
    np.testing.assert_allclose(preference_margin(REJECTED, CHOSEN, *reversed(BEFORE)), -margin)
    np.testing.assert_allclose(preference_loss(margin, 0.3), -np.log(1 / (1 + np.exp(-0.3 * margin))), rtol=1e-5)


def test_the_frozen_model_gets_no_gradient():
    def loss(chosen, rejected, chosen_before, rejected_before):
        return preference_loss(preference_margin(chosen, rejected, chosen_before, rejected_before)).sum()

    ours = jax.grad(loss, argnums=(0, 1))(CHOSEN, REJECTED, *BEFORE)
    theirs = jax.grad(loss, argnums=(2, 3))(CHOSEN, REJECTED, *BEFORE)
    assert (ours[0] < 0).all() and (ours[1] > 0).all() and not any(g.any() for g in theirs)


def test_the_value_of_pairs():
    values = preference_loss(preference_margin(CHOSEN, REJECTED, *BEFORE), 0.2)
    np.testing.assert_allclose(values, np.log1p(np.exp(-0.2 * np.array([2.5, -5.0]))), rtol=1e-5)

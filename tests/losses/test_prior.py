"""LARP's prior: causal, scheduled sampling, where its gradient goes and where it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from videogen.losses import AutoregressivePrior, mixing_ratio
from videogen.nn import l2_normalize

TOKENS, CODE, SIZE = 6, 4, 10


@functools.cache
def prior(temperature: float = 0.2) -> AutoregressivePrior:
    make = functools.partial(AutoregressivePrior, TOKENS, CODE, 16, 2, 2, temperature=temperature)
    return with_random_parameters(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), seed=0)


def codebook() -> jax.Array:
    return l2_normalize(jax.random.normal(jax.random.key(0), (SIZE, CODE)))


def ids() -> jax.Array:
    return jax.random.randint(jax.random.key(1), (3, TOKENS), 0, SIZE)


@functools.cache
def compiled(ratio: float):
    @jax.jit
    def predict(vectors, codes, key):
        return prior()(vectors, ids(), codes, ratio=jnp.asarray(ratio), key=key)

    return predict


def test_logits_see_no_later_vector():
    logits = jax.jit(prior().logits)
    vectors = codebook()[ids()]
    before = logits(vectors, codebook())
    for i in range(TOKENS):
        changed = np.abs(logits(vectors.at[:, i].multiply(-1), codebook()) - before).max((0, 2))
        assert (changed[:i] == 0).all() and (changed[i:] > 1e-4).all()


def test_logits_are_cosines_over_the_temperature():
    vectors = codebook()[ids()]
    sharp, flat = (prior(t).logits(vectors, codebook()) for t in (0.2, 1.0))
    np.testing.assert_allclose(0.2 * sharp, flat, atol=1e-5)
    assert np.abs(flat).max() <= 1 + 1e-5


def test_ratio_rises_to_a_half_over_the_first_third():
    steps = 1000
    wanted = {0: 0, 150: 0.25, 300: 0.5, 1000: 0.5}
    assert {s: float(mixing_ratio(jnp.asarray(s), steps)) for s in wanted} == pytest.approx(wanted)


def test_without_mixing_both_rounds_are_teacher_forcing():
    vectors = codebook()[ids()]
    prediction = compiled(0.0)(vectors, codebook(), jax.random.key(0))
    log_p = jax.nn.log_softmax(prior().logits(vectors[:, :-1], codebook()), axis=-1)
    # The first code has no loss.
    expected = -jnp.take_along_axis(log_p, ids()[:, 1:, None], axis=-1).mean()
    assert float(prediction.loss) == pytest.approx(float(expected), rel=1e-5)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1).mean()
    assert float(prediction.entropy) == pytest.approx(float(entropy), rel=1e-5)
    for seed in (1, 2):
        assert float(compiled(0.0)(vectors, codebook(), jax.random.key(seed)).loss) == float(prediction.loss)


def test_full_mixing_leaves_the_second_round_only_the_first_vector():
    @jax.jit
    @jax.grad
    def second_round(vectors, ratio):
        return jnp.sum(jnp.sin(prior().rounds(vectors, codebook(), ratio, jax.random.key(0))[1]))

    vectors = codebook()[ids()]
    reach = np.abs(second_round(vectors, 1.0)).max((0, 2))
    assert reach[0] > 1e-6 and (reach[1:] == 0).all()
    assert (np.abs(second_round(vectors, 0.0)).max((0, 2)) > 1e-6).all()


def test_draws_stand_one_place_after_their_prediction():
    """A sharp prior draws its favourite; with full mixing the second round reads these."""
    vectors, codes = codebook()[ids()], codebook()
    first, second = prior(1e-4).rounds(vectors, codes, jnp.asarray(1.0), jax.random.key(0))
    drawn = jnp.concatenate([vectors[:, :1], codes[first.argmax(-1)][:, :-1]], axis=1)
    np.testing.assert_allclose(1e-4 * second, 1e-4 * prior(1e-4).logits(drawn, codes), atol=1e-5)


def test_the_encoder_learns_from_it_and_the_codebook_does_not():
    def loss(vectors, codes):
        return compiled(0.5)(vectors, codes, jax.random.key(0)).loss

    to_vectors, to_codes = jax.grad(loss, argnums=(0, 1))(codebook()[ids()], codebook())
    reach = np.abs(to_vectors).max((0, 2))
    assert (reach[:-1] > 1e-6).all() and reach[-1] == 0
    assert np.abs(to_codes).max() == 0


def test_gradient_reaches_every_parameter():
    graph, params = nnx.split(prior())

    def loss(params):
        model = nnx.merge(graph, params)
        return model(codebook()[ids()], ids(), codebook(), ratio=0.5, key=jax.random.key(0)).loss

    grads = jax.jit(jax.grad(loss))(params)
    assert not [path for path, g in nnx.to_flat_state(grads) if not jnp.abs(g.get_value()).max() > 0]


def test_a_run_of_few_steps_mixes_at_once():
    assert [float(mixing_ratio(jnp.asarray(step), 1)) for step in (0, 1)] == [0, 0.5]
    assert float(mixing_ratio(jnp.asarray(1), 10)) == pytest.approx(0.5 / 3)


def test_the_policy_of_the_backward_pass_reaches_the_layers():
    model = nnx.eval_shape(lambda: AutoregressivePrior(TOKENS, CODE, 16, 2, 2, remat="full", rngs=nnx.Rngs(0)))
    assert model.stack.remat == "full"

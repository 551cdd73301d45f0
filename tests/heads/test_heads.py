"""Every head against closed forms, and what all heads promise: gradients, keys of examples, guidance, hidden places."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from videogen import heads
from videogen.errors import UserError
from videogen.heads import HeadSampler

WIDTH, BATCH, PLACES = 16, 3, (2, 2)
KINDS = {
    "categorical": ({"name": "categorical"}, (6, 4)),
    "categorical, factors": ({"name": "categorical", "factors": 2, "join": "concatenation", "bias": True}, (16,)),
    "categorical, special": ({"name": "categorical", "special": ("end",)}, (6,)),
    "depth": ({"name": "depth", "layers": 1, "heads": 2}, (6, 4)),
    "depth, factors": ({"name": "depth", "layers": 1, "heads": 2, "factors": 2}, (16,)),
    "depth, adaptive": (
        {"name": "depth", "layers": 1, "heads": 2, "condition": "adaptive", "guidance": "features", "order": (1, 0)},
        (6, 4),
    ),
    "bernoulli": ({"name": "bernoulli"}, (2, 2, 2)),
    "bernoulli, ids": ({"name": "bernoulli", "join": "concatenation"}, (16, 2)),
    "gaussian_mixture": ({"name": "gaussian_mixture", "components": 3}, 4),
    "gaussian_mixture, vectors": ({"name": "gaussian_mixture", "components": 2, "guidance": "vectors", "layers": 2}, 4),
    "gaussian": ({"name": "gaussian"}, 4),
    "gaussian, one": ({"name": "gaussian", "variance": "one", "layers": 2}, 4),
    "diffusion": ({"name": "diffusion", "hidden_width": 16, "layers": 1, "steps": 4, "draws": 2}, 4),
}
LIKELIHOODS = [name for name in KINDS if name != "diffusion"]


@functools.cache
def make(name: str) -> heads.Head:
    """A head with random parameters: those of a fresh one are partly zeros."""
    config, values = KINDS[name]
    sizes = {"channels": values} if isinstance(values, int) else {"vocabulary": values}
    head = heads.build(config, **sizes, width=WIDTH, hidden=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(head)
    keys = iter(jax.random.split(jax.random.key(9), len(jax.tree.leaves(state))))
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), state))


def features(batch: int = BATCH, seed: int = 1):
    return jax.random.normal(jax.random.key(seed), (batch, *PLACES, WIDTH))


def values(head: heads.Head, batch: int = BATCH):
    return head.random_values(jax.random.split(jax.random.key(3), batch), (batch, *PLACES, head.levels))


def keys(batch: int = BATCH):
    return jax.random.split(jax.random.key(5), batch)


def quotient(head, x, targets, mask=None, **call):
    mask = jnp.ones(targets.shape[:-1], bool) if mask is None else mask
    total, count, metrics = head.loss(x, targets, mask, jax.random.key(0), **call)
    return total / count, {name: a / b for name, (a, b) in metrics.items()}


# Closed forms ---------------------------------------------------------------------------------------------------------


def zeroed(name: str) -> heads.Head:
    graph, state = nnx.split(make(name))
    return nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("categorical", (math.log(6) + math.log(4)) / 2),
        ("categorical, factors", math.log(4)),
        ("categorical, special", math.log(7)),
        ("depth", (math.log(6) + math.log(4)) / 2),
        ("bernoulli, ids", math.log(2)),
    ],
)
def test_without_weights_every_value_is_as_likely(name, expected):
    """The cross-entropy of uniform logits is the logarithm of what there is to choose from."""
    head = zeroed(name)
    np.testing.assert_allclose(quotient(head, features(), values(head))[0], expected, rtol=1e-6)
    drawn, log_probability = head.draw(features(), None, keys(), HeadSampler())
    np.testing.assert_allclose(log_probability, -expected * len(head.sizes), rtol=1e-6)
    assert drawn.shape == (BATCH, *PLACES, head.levels) and drawn.dtype == jnp.int32


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if "special" not in name])
def test_the_loss_is_minus_the_log_probability_of_a_draw(name):
    head = make(name)
    drawn, log_probability = head.draw(features(), None, keys(), HeadSampler())
    total = head.loss(features(), drawn, jnp.ones(drawn.shape[:-1], bool), None)[0]
    np.testing.assert_allclose(total, -log_probability.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["categorical", "depth", "depth, adaptive", "bernoulli"])
def test_probabilities_of_all_values_add_up_to_one(name):
    head = make(name)
    sizes = head.vocabulary
    every = jnp.stack(jnp.meshgrid(*map(jnp.arange, sizes), indexing="ij"), -1).reshape(-1, 1, len(sizes))
    x = jnp.broadcast_to(features(1)[:, :1, 0], (len(every), 1, WIDTH))
    rows = jax.vmap(lambda f, v: head.loss(f[None], v[None], jnp.ones((1, 1), bool), None)[0])(x, every)
    np.testing.assert_allclose(jnp.exp(-rows).sum(), 1, rtol=1e-5)


def test_bits_have_the_negative_log_likelihood_of_bernoulli():
    head = zeroed("bernoulli")
    head.logits_of.bias.set_value(jnp.array([2.0, -1.0, 0.0]))
    p = 1 / (1 + np.exp([-2.0, 1.0, 0.0]))
    targets = jnp.broadcast_to(jnp.array([1, 0, 1]), (BATCH, *PLACES, 3))
    loss, metrics = quotient(head, features(), targets)
    np.testing.assert_allclose(loss, -np.mean(np.log([p[0], 1 - p[1], p[2]])), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 2 / 3, rtol=1e-6)


def test_a_bit_of_logit_two_at_temperature_two_is_one_with_the_sigmoid_of_one():
    head = zeroed("bernoulli")
    head.logits_of.bias.set_value(jnp.array([2.0, 2.0, 2.0]))
    drawn, _ = head.draw(jnp.zeros((2000, 5, WIDTH)), None, keys(2000), HeadSampler(temperature=2.0))
    assert abs(float(drawn.mean()) - 0.7311) < 4 * math.sqrt(0.7311 * 0.2689 / 30_000)


def test_bits_at_temperature_0_are_the_threshold_and_other_heads_have_none():
    head = make("bernoulli")
    drawn, log_probability = head.draw(features(), 0.5 * features(), keys(), HeadSampler(0.0, guidance_scale=3.0))
    expected = 3 * head.logits(features()) - 2 * head.logits(0.5 * features())
    np.testing.assert_array_equal(drawn, expected > 0)
    assert not log_probability.any()
    head.check(HeadSampler(0.0))
    for name in ("categorical", "depth", "gaussian_mixture", "diffusion"):
        with pytest.raises(UserError, match="above 0: near-greedy is sampler.temperature=0.01"):
            make(name).check(HeadSampler(0.0))


def test_the_vectors_of_64_bits_are_added_as_one_product():
    head = heads.build({"name": "bernoulli"}, vocabulary=(2,) * 64, width=WIDTH, rngs=nnx.Rngs(0))
    bits = values(head)
    one_by_one = head.inputs.vectors(bits).sum(axis=-2)
    np.testing.assert_allclose(head.embed(bits), one_by_one, atol=1e-5)
    # Of two places with no common bit the sum is that of both, as a matrix of bits has it.
    first, none = bits.at[..., 32:].set(0), jnp.zeros_like(bits)
    second = bits.at[..., :32].set(0)
    zero = head.embed(none)
    np.testing.assert_allclose(head.embed(bits) - zero, head.embed(first) + head.embed(second) - 2 * zero, atol=1e-5)


def test_a_mixture_of_one_gaussian_is_that_gaussian():
    config = {"name": "gaussian_mixture", "components": 1}
    head = heads.build(config, channels=3, width=WIDTH, rngs=nnx.Rngs(0))
    targets = jax.random.normal(jax.random.key(1), (BATCH, *PLACES, 3))
    _, mean, variance = head.mixture(features())
    expected = jax.scipy.stats.norm.logpdf(targets, mean[..., 0, :], jnp.sqrt(variance[..., 0, :]))
    np.testing.assert_allclose(quotient(head, features(), targets)[0], -expected.mean(), rtol=1e-5)


def two_points(variance: float = 1e-4) -> heads.Head:
    """Equal components around (-1, -1) and (1, 1)."""
    config = {"name": "gaussian_mixture", "components": 2, "candidates": 8}
    head = heads.build(config, channels=2, width=WIDTH, rngs=nnx.Rngs(0))
    raw = math.log(math.expm1(variance))
    head.parameters_of.kernel.set_value(jnp.zeros_like(head.parameters_of.kernel.get_value()))
    head.parameters_of.bias.set_value(jnp.array([0.0, 0.0, -1, -1, 1, 1, raw, raw, raw, raw]))
    return head


def test_a_draw_from_a_mixture_takes_one_component_for_all_channels():
    """A mixture per number has correlation 0, the weighted sum of the components a variance of 5e-5."""
    drawn, _ = two_points().draw(jnp.zeros((1000, 100, WIDTH)), None, keys(1000), HeadSampler())
    flat = np.asarray(drawn).reshape(-1, 2)
    np.testing.assert_allclose(flat.var(axis=0), 1.0, rtol=0.01)
    assert np.corrcoef(flat.T)[0, 1] > 0.999


def test_the_temperature_of_a_mixture_multiplies_the_variance():
    head, x = two_points(), jnp.zeros((200, 100, WIDTH))
    for temperature in (1.0, 0.1):
        drawn, log_density = head.draw(x, None, keys(200), HeadSampler(temperature=temperature))
        within = np.asarray(drawn) - np.sign(np.asarray(drawn))
        np.testing.assert_allclose(within.var(), 1e-4 * temperature, rtol=0.03)
        np.testing.assert_allclose(log_density, head.mixture(x).log_density(drawn), rtol=1e-5)


@pytest.mark.slow
def test_guidance_of_a_mixture_draws_from_the_density_times_a_power_of_its_ratio():
    """Of two far components with weights w and null weights v the first has the share w²/v of w²/v + (1-w)²/(1-v)."""
    config = {"name": "gaussian_mixture", "components": 2, "candidates": 64}
    head = heads.build(config, channels=1, width=1, rngs=nnx.Rngs(0))
    raw, kernel = math.log(math.expm1(1e-2)), jnp.zeros((1, 6)).at[0, 0].set(1.0)
    head.parameters_of.kernel.set_value(kernel)
    head.parameters_of.bias.set_value(jnp.array([0.0, 0.0, 1, -1, raw, raw]))
    given, null = jnp.full((100, 100, 1), math.log(0.6 / 0.4)), jnp.full((100, 100, 1), math.log(0.4 / 0.6))
    drawn, _ = head.draw(given, null, keys(100), HeadSampler(guidance_scale=2.0))
    first = 0.6**2 / 0.4 / (0.6**2 / 0.4 + 0.4**2 / 0.6)
    assert abs(float((drawn > 0).mean()) - first) < 0.03


def test_a_mixture_far_from_its_data_has_finite_loss_and_gradient():
    head = two_points(1e-4)
    graph, state = nnx.split(head)

    def loss(state):
        return nnx.merge(graph, state).loss(features(), jnp.full((BATCH, *PLACES, 2), 1e4), jnp.array(True), None)[0]

    value, gradient = jax.value_and_grad(loss)(state)
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


# What all heads promise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_every_parameter(name):
    head = make(name)
    graph, state = nnx.split(head)
    hidden = jnp.zeros((BATCH, *PLACES, 1), bool).at[0].set(True)

    def loss(state):
        head = nnx.merge(graph, state)
        targets = values(head)
        if "special" in name:
            targets = targets.at[1].set(head.end)
        x = head.embed(targets, hidden)
        return head.loss(features() + x, targets, jnp.ones((BATCH, *PLACES), bool), jax.random.key(0))[0]

    gradients = jax.jit(jax.grad(loss))(state)
    dead = [path for path, g in jax.tree_util.tree_leaves_with_path(gradients) if not jnp.abs(g).max() > 0]
    assert not dead


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("guided", [False, True])
def test_a_draw_does_not_depend_on_its_neighbours(name, guided):
    head, sampler = make(name), HeadSampler(guidance_scale=2.5, temperature=0.9)
    null = features(seed=2) if guided else None
    together = jax.jit(head.draw, static_argnums=3)(features(), null, keys(), sampler)
    one = slice(1, 2)
    alone = jax.jit(head.draw, static_argnums=3)(features()[one], null[one] if guided else None, keys()[one], sampler)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b[one], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_guidance_by_nothing_changes_nothing(name):
    """Scale 1, or features without the conditioning that are those with it."""
    head = make(name)
    x, null = features(), features(seed=2)
    plain = head.draw(x, None, keys(), HeadSampler())[0]
    same = head.draw(x, x, keys(), HeadSampler(guidance_scale=1.0))[0]
    if name == "gaussian_mixture":
        # Guidance chooses among candidates: with equal ones any of them, whatever the scale.
        np.testing.assert_array_equal(same, head.draw(x, x, keys(), HeadSampler(guidance_scale=7.0))[0])
        np.testing.assert_array_equal(same, head.draw(x, null, keys(), HeadSampler(guidance_scale=1.0))[0])
        return
    other = head.draw(x, null, keys(), HeadSampler(guidance_scale=1.0))[0]
    equal = head.draw(x, x, keys(), HeadSampler(guidance_scale=7.0))[0]
    for drawn in (same, other, equal):
        np.testing.assert_allclose(drawn, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_what_the_mask_leaves_out_counts_for_nothing(name):
    head, targets = make(name), values(make(name))
    mask = jnp.zeros((BATCH, *PLACES), bool).at[:, 0].set(True)
    changed = jnp.where(mask[..., None], targets, values(head)[::-1])
    call = dict(key=jax.random.key(0))
    one, other = (head.loss(features(), t, mask, **call) for t in (targets, changed))
    assert one[0] == other[0] and one[1] == head.loss(features(), targets, mask | True, **call)[1] / 2
    nothing = head.loss(features(), targets, mask & False, **call)
    assert nothing[0] == 0 and nothing[1] == 0


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name][0]["name"] in ("categorical", "bernoulli")])
def test_a_mask_of_places_is_that_of_all_their_levels(name):
    head = make(name)
    targets = values(head)
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, targets.shape[:-1])
    levels = jnp.broadcast_to(mask[..., None], targets.shape)
    by_place, by_level = (head.loss(features(), targets, m, None) for m in (mask, levels))
    jax.tree.map(np.testing.assert_array_equal, by_place, by_level)


@pytest.mark.parametrize("name", KINDS)
def test_a_hidden_value_is_not_seen(name):
    head = make(name)
    one, other = values(head), values(head)[::-1]
    hidden = jnp.ones((BATCH, *PLACES, 1), bool)
    np.testing.assert_array_equal(head.embed(one, hidden), head.embed(other, hidden))
    assert jnp.abs(head.embed(one) - head.embed(one, hidden)).max() > 1e-3
    np.testing.assert_array_equal(head.embed(one), head.embed(one, ~hidden))


def test_levels_are_hidden_one_by_one():
    head = make("categorical")
    ids = jnp.array([[[1, 2]]])
    shown = head.embed(ids, jnp.array([[[False, True]]]))
    np.testing.assert_array_equal(shown, head.embed(ids.at[..., 1].set(3), jnp.array([[[False, True]]])))
    assert jnp.abs(shown - head.embed(ids.at[..., 0].set(3), jnp.array([[[False, True]]]))).max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_the_embedding_of_another_network_takes_the_same_values(name):
    head = make(name)
    other = head.input_embedding(8, dtype=jnp.float32, rngs=nnx.Rngs(1))
    assert other(values(head), None).shape == (BATCH, *PLACES, 8)


# Single heads ---------------------------------------------------------------------------------------------------------


def test_special_ids_are_embedded_learned_and_drawn():
    head = make("categorical, special")
    assert head.end == 6 and make("categorical").end is None
    logits = jnp.zeros((WIDTH, 7)).at[:, 6].set(10.0)
    graph, state = nnx.split(head)
    head = nnx.merge(graph, state)
    head.logits_of.kernel.set_value(logits)
    drawn, _ = head.draw(jnp.ones((BATCH, *PLACES, WIDTH)), None, keys(), HeadSampler())
    assert (drawn == head.end).all()
    assert quotient(head, jnp.ones((BATCH, *PLACES, WIDTH)), drawn)[0] < 1e-3
    assert jnp.isfinite(head.embed(drawn)).all() and head.vocabulary == (6,)
    assert jnp.abs(head.embed(drawn) - head.embed(drawn - 1)).max() > 1e-3
    with pytest.raises(UserError, match="special ids need codes of one level"):
        heads.build({"name": "categorical", "special": ("end",)}, vocabulary=(4, 4), width=4, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="unknown special of head 'categorical', entry 0, 'stop'; known: end"):
        heads.build({"name": "categorical", "special": ("stop",)}, vocabulary=(4,), width=4, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="'depth' has no setting 'special'"):
        heads.build({"name": "depth", "special": ("end",)}, vocabulary=(4,), width=4, rngs=nnx.Rngs(0))


def test_smoothed_labels_weigh_as_they_are_set_in_training_alone():
    head = heads.build({"name": "categorical", "label_smoothing": 0.3}, vocabulary=(5,), width=WIDTH, rngs=nnx.Rngs(0))
    targets = values(head)
    logits = jax.nn.log_softmax(head.logits(features())[0])
    plain = -jnp.take_along_axis(logits, targets, -1).mean()
    np.testing.assert_allclose(quotient(head, features(), targets, train=False)[0], plain, rtol=1e-6)
    np.testing.assert_allclose(quotient(head, features(), targets)[0], 0.7 * plain - 0.3 * logits.mean(), rtol=1e-5)


def test_a_level_in_depth_knows_the_levels_before_it():
    head = make("depth")
    ids = values(head)
    base = head.logits(features(), ids)
    for changed in range(2):
        other = head.logits(features(), (ids.at[..., changed].add(1)) % jnp.array(head.vocabulary))
        moved = [bool(jnp.any(jnp.abs(a - b) > 1e-6)) for a, b in zip(base, other, strict=True)]
        assert moved == [level > changed for level in range(2)]


def test_another_order_of_levels_is_inside_the_head_alone():
    settings = {"name": "depth", "layers": 1, "heads": 2}
    plain, turned = (
        heads.build(settings | {"order": order}, vocabulary=sizes, width=WIDTH, rngs=nnx.Rngs(4))
        for order, sizes in (((), (4, 6)), ((1, 0), (6, 4)))
    )
    x, own = features(), values(plain)
    for a, b in zip(quotient(plain, x, own), quotient(turned, x, own[..., ::-1]), strict=True):
        assert a == b
    mask = jnp.arange(BATCH * 8).reshape(BATCH, 2, 2, 2) % 3 == 0
    assert quotient(plain, x, own, mask)[0] == quotient(turned, x, own[..., ::-1], mask[..., ::-1])[0]
    drawn, again = (head.draw(x, None, keys(), HeadSampler())[0] for head in (plain, turned))
    np.testing.assert_array_equal(drawn, again[..., ::-1])
    np.testing.assert_array_equal(plain.embed(own), turned.embed(own[..., ::-1]))
    assert (values(turned) < jnp.array([6, 4])).all() and values(turned)[..., 0].max() > 3
    with pytest.raises(UserError, match="order must name each of the 2 levels once"):
        heads.build(settings | {"order": (0, 0)}, vocabulary=(6, 4), width=WIDTH, rngs=nnx.Rngs(0))


def test_guidance_of_features_comes_before_the_head():
    head, x, null = make("depth, adaptive"), features(), features(seed=2)
    guided = head.draw(x, null, keys(), HeadSampler(guidance_scale=2.5))[0]
    np.testing.assert_array_equal(guided, head.draw(null + 2.5 * (x - null), None, keys(), HeadSampler())[0])


def test_accuracy_counts_the_places_it_is_told_of():
    head, x = make("categorical"), features()
    right = jnp.stack([part.argmax(-1) for part in head.logits(x)], -1)
    wrong = (right + 1) % jnp.array(head.vocabulary)
    targets, all_places = jnp.concatenate([right[:, :1], wrong[:, 1:]], axis=1), jnp.ones((BATCH, *PLACES), bool)
    assert quotient(head, x, targets)[1]["accuracy"] == 0.5
    assert quotient(head, x, targets, all_places, measured=all_places.at[:, 1:].set(False))[1]["accuracy"] == 1


@pytest.mark.slow
def test_a_diffusion_head_learns_a_distribution_of_two_points():
    """Features of one kind mean the points ±(1, -1), those of the other kind the point (0.5, 0.5)."""
    config = {"name": "diffusion", "hidden_width": 32, "layers": 1, "steps": 20, "draws": 8}
    head = heads.build(config, channels=2, width=4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(head)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))

    def batch(key):
        sign = jax.random.rademacher(key, (32, 1, 1)).astype(jnp.float32)
        kind = (jnp.arange(32) % 2 == 0)[:, None, None]
        return jnp.where(kind, sign * jnp.array([1.0, -1.0]), 0.5), jnp.where(kind, jnp.eye(4)[0], jnp.eye(4)[1])

    @jax.jit
    def train(params):
        def step(carry, key):
            def loss(params):
                targets, x = batch(key)
                total, count, _ = nnx.merge(graph, params).loss(x, targets, jnp.ones((32, 1), bool), key)
                return total / count

            updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 1500))[0][0]

    head, x = nnx.merge(graph, train(params)), jnp.broadcast_to(jnp.eye(4)[:2], (200, 2, 4))
    draw = jax.jit(head.draw, static_argnums=3)
    drawn, log_probability = draw(x, None, keys(200), HeadSampler())
    assert log_probability is None
    points, still = np.asarray(drawn[:, 0]), np.asarray(drawn[:, 1])
    np.testing.assert_allclose(np.abs(points).mean(axis=0), 1, atol=0.1)
    assert np.corrcoef(points.T)[0, 1] < -0.95 and abs((points[:, 0] > 0).mean() - 0.5) < 0.15
    np.testing.assert_allclose(still.mean(axis=0), 0.5, atol=0.05)
    # Less noise, less spread; the number of steps may be the sampler's.
    cold, _ = draw(x, None, keys(200), HeadSampler(temperature=0.5, steps=10))
    assert cold[:, 1].std() < drawn[:, 1].std() or drawn[:, 1].std() < 0.02


@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        ({"name": "categorial"}, {"vocabulary": (4,)}, "did you mean 'categorical'"),
        ({"name": "categorical", "factor": 2}, {"vocabulary": (4,)}, "did you mean 'factors'"),
        ({"name": "categorical", "factors": 2}, {"vocabulary": (1000,)}, "does not split into equal factors"),
        ({"name": "categorical", "join": "product"}, {"vocabulary": (4,)}, "unknown join 'product'"),
        ({"name": "bernoulli"}, {"vocabulary": (6,)}, "need powers of two"),
        ({"name": "diffusion"}, {"vocabulary": (4,)}, "does not predict codes; .* bernoulli, categorical, depth"),
        (
            {"name": "depth", "heads": 1},
            {"channels": 4},
            "continuous latents; take one of: diffusion, gaussian, gaussian_mixture",
        ),
        ({"name": "diffusion", "prediction": "w"}, {"channels": 4}, "unknown prediction 'w'"),
    ],
)
def test_heads_that_cannot_be_are_refused(config, sizes, message):
    with pytest.raises(UserError, match=message):
        heads.build(config, **sizes, width=8, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["bernoulli", "gaussian_mixture", "diffusion"])
def test_heads_that_do_not_cut_refuse_to(name):
    make(name).check(HeadSampler())
    for sampler in (HeadSampler(top_k=2), HeadSampler(top_p=0.5)):
        make("categorical").check(sampler)
        with pytest.raises(UserError, match="top_k at 0 and sampler.top_p at 1"):
            make(name).check(sampler)

"""Every pair of the table of generators and heads learns a rule and draws it; others are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.generators.clips import codes_of, latents_of
from videogen import generators, heads
from videogen.conditioning import Conditioning
from videogen.errors import UserError
from videogen.generators import HEADS_OF, BlockSampler, MaskGITSampler
from videogen.shapes import TokenGrid
from videogen.tokens import Tokens

GRID = TokenGrid(2, 1, 2)
TRANSFORMER = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 64}
SETTINGS = {
    "depth": {"layers": 1, "heads": 2},
    "diffusion": {"hidden_width": 32, "layers": 1, "steps": 8},
    "gaussian_mixture": {"components": 2},
}
SAMPLERS = {
    "masked": MaskGITSampler(steps=2, temperature=0.05, final_temperature=0.05, guidance_scale=1.5),
    "next_block": BlockSampler(temperature=0.05, guidance_scale=1.5),
}
PAIRS = [(generator, head) for generator in SAMPLERS for head in HEADS_OF[generator]]
"""Those of ``next_scale``, which reads sums of a tokenizer, are in test_next_scale.py."""
LABELS = jnp.arange(4)
BITS = jnp.stack([LABELS // 2, LABELS % 2], axis=-1)


def build(generator: str, head: str, **settings):
    values = {"vocabulary": (2, 2)}
    if not heads.HEADS[head].discrete:
        values = {"vocabulary": (), "channels": 2}
    config = {
        "name": generator,
        "transformer": TRANSFORMER,
        "head": {"name": head, **SETTINGS.get(head, {})},
        **settings,
    }
    shared = dict(grid=GRID.shape, context_width=8, classes=4, remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0))
    return generators.build(config, **values, **shared)


def clips(model):
    """Every place shows the two bits of the label: as ids, or as numbers -1 and 1."""
    shape = (4, *GRID.shape, 2)
    bits = jnp.broadcast_to(BITS[:, None, None, None], shape)
    return codes_of(bits, GRID, 2) if model.head.discrete else latents_of(2.0 * bits - 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("generator", "head"), PAIRS)
def test_every_pair_learns_a_rule_and_draws_it(generator, head):
    model = build(generator, head)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    batch, conditioning, optimizer = clips(model), Conditioning(label=LABELS), optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(carry, key):
            def loss(params):
                return nnx.merge(graph, params, rest).loss(batch, conditioning, key)[0]

            value, gradient = jax.value_and_grad(loss)(carry[0])
            updates, state = optimizer.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], updates), state), value

        keys = jax.random.split(jax.random.key(1), 400)
        (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, values

    params, values = train(params)
    assert jnp.isfinite(values).all() and values[-20:].mean() < values[:20].mean()
    model, keys = nnx.merge(graph, params, rest), jax.random.split(jax.random.key(2), 4)
    sample = jax.jit(lambda known: model.sample(batch.layout, conditioning, keys, SAMPLERS[generator], known))
    drawn, expected = sample(None).only.values, batch.only.values
    assert drawn.shape == expected.shape and drawn.dtype == expected.dtype
    if model.head.discrete:
        np.testing.assert_array_equal(drawn, expected)
    else:
        assert (jnp.sign(drawn) == expected).mean() > 0.9 and jnp.abs(drawn - expected).mean() < 0.4
    # The first latent frame may be given, and stays as it is.
    first = 1 - expected[:, :1] if model.head.discrete else -expected[:, :1]
    given = Tokens.single(first, batch.layout.with_time(1))
    np.testing.assert_array_equal(sample(given).only.values[:, :1], first)


@pytest.mark.parametrize("head", ["categorical", "gaussian_mixture", "diffusion"])
def test_a_critic_judges_what_any_head_draws(head):
    model = build("masked", head, critic={"layers": 1, "weight": 0.5})
    loss, metrics = jax.jit(lambda: model.loss(clips(model), Conditioning(label=LABELS), jax.random.key(0)))()
    assert jnp.isfinite(loss) and {"critic_loss", "critic_accuracy"} <= metrics.keys()
    np.testing.assert_allclose(loss, metrics["loss"] + 0.5 * metrics["critic_loss"], rtol=1e-6)


def test_heads_that_do_not_go_with_a_generator_are_refused(monkeypatch):
    monkeypatch.setitem(HEADS_OF, "masked", ("bernoulli", "categorical"))
    with pytest.raises(UserError, match="the head 'depth' does not go with 'masked'; take one of: bernoulli, categor"):
        build("masked", "depth")
    with pytest.raises(UserError, match="'flow' has no setting 'head'"):
        build("flow", "diffusion")


@pytest.mark.parametrize("generator", SAMPLERS)
def test_samplers_that_a_head_cannot_follow_are_refused(generator):
    cut = {"masked": MaskGITSampler(top_k=2), "next_block": BlockSampler(top_k=2)}[generator]
    generators.check_sampler(build(generator, "categorical"), cut)
    with pytest.raises(UserError, match="leave sampler.top_k at 0"):
        generators.check_sampler(build(generator, "bernoulli"), cut)

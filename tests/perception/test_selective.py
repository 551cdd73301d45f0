"""State spaces over chosen tokens: identity with all of them, their order, and what the choice learns from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.perception import SelectiveStateSpace
from videogen.shapes import VideoShape

CLIP = VideoShape(8, 8, 8)
ENCODER = {"name": "patches", "patch": 4, "transformer": {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}}
VIDEO = jax.random.uniform(jax.random.key(0), (2, 8, 8, 8, 3), minval=-1)
SECONDS = jnp.broadcast_to(jnp.arange(8) / 8, (2, 8))


def made(**settings):
    given = {"encoder": ENCODER, "width": 16, "layers": 2, "states": 3, "hidden": 8, "embed": 4, **settings}
    return SelectiveStateSpace(CLIP, 5, **given, rngs=nnx.Rngs(0))


def logits(model, key=None, guided=True):
    graph, state = nnx.split(model)

    def run(state):
        model = nnx.merge(graph, state)
        tokens = model.read(VIDEO, SECONDS)
        guide = model.guide(tokens) if guided else None
        return model.logits(model.pooled(model.choose(tokens, guide, key)))

    return jax.jit(run)(state)


def test_all_tokens_chosen_are_all_tokens():
    """S5 with K = N is S4, in the forward pass."""
    learned, plain = made(share=1.0), made(selection="all")
    nnx.update(plain, nnx.State({k: v for k, v in nnx.to_pure_dict(nnx.state(learned)).items() if k != "selector"}))
    expected = logits(plain)
    np.testing.assert_allclose(logits(learned), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits(learned, jax.random.key(1)), expected, rtol=1e-5, atol=1e-6)
    assert (learned.tokens, learned.budget, plain.budget) == (32, 32, 32)
    assert learned.guided and not plain.guided and not made(selection="random").guided


def test_half_of_the_tokens_in_their_order():
    model = made()
    assert (model.tokens, model.budget, made(share=0.0).budget) == (32, 16, 1)
    tokens = model.read(VIDEO, SECONDS)
    guide = model.guide(tokens)
    chosen = model.choose(tokens, guide)
    scores = model.selector.scores(guide)
    for i in range(2):
        index = np.flatnonzero(np.asarray(chosen.source[i]) >= 0)
        assert set(index) == set(np.argsort(-np.asarray(scores[i]), kind="stable")[:16])
        np.testing.assert_allclose(chosen.x[i], tokens.x[i, index], rtol=1e-5, atol=1e-6)
    random = made(selection="random")
    a, b = (random.choose(tokens, None, jax.random.key(k)).source for k in (0, 1))
    assert (a >= 0).sum(1).tolist() == [16, 16] and (a != b).any()


def test_the_guide_is_the_first_layer_before_lengths_are_halved():
    model = made()
    tokens = model.read(VIDEO, SECONDS)
    first = model.stack.layers[0]
    np.testing.assert_allclose(model.guide(tokens), tokens.x + first.space(first.norm(tokens.x)), rtol=1e-5, atol=1e-6)
    assert model.guide(tokens).shape == (2, 32, 16)
    np.testing.assert_array_equal(made(layers=0).guide(tokens), tokens.x)


def test_tokens_are_means_of_windows_with_their_places():
    one, pooled = made(), made(pool=2)
    assert pooled.tokens == 8 and pooled.grid == (8, 1, 1)
    pooled.encoder, pooled.linear, pooled.times = one.encoder, one.linear, one.times
    grid = one.encoder(VIDEO, SECONDS)
    expected = one.linear(grid.mean((2, 3), keepdims=True)) + one.times(8)[:, None, None] + pooled.places(1)
    found = pooled.read(VIDEO, SECONDS)
    np.testing.assert_allclose(found.x, expected.reshape(2, 8, 16), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="windows of 3 × 3 do not tile frames of 2 × 2 places"):
        made(pool=3)


def test_the_mean_counts_what_exists_and_unit_vectors_have_length_1():
    model = made(selection="all")
    tokens = model.read(VIDEO, SECONDS)
    x, there = model.stack(tokens.x)
    np.testing.assert_allclose(model.pooled(tokens), x.mean(1), rtol=1e-4, atol=1e-5)
    assert x.shape == (2, 8, 4)
    np.testing.assert_allclose(jnp.linalg.norm(model.embedded(x.mean(1)), axis=-1), 1.0, rtol=1e-5)


def test_the_selector_learns_through_the_choice_and_its_guide_does_not():
    model = made()
    graph, state = nnx.split(model)

    def loss(state, guide):
        model = nnx.merge(graph, state)
        tokens = model.read(VIDEO, SECONDS)
        return jnp.sum(model.logits(model.pooled(model.choose(tokens, guide))) ** 2)

    guide = jax.random.normal(jax.random.key(2), (2, 32, 16))
    slopes, of_guide = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, guide)
    assert float(jnp.abs(of_guide).max()) == 0
    flat = {"/".join(map(str, path)): float(jnp.abs(x).max()) for path, x in nnx.to_flat_state(slopes)}
    still = {name for name, size in flat.items() if not size > 0}
    # Windows are compared in pretraining alone.
    assert {name for name in still if not name.startswith("projection")} == set()

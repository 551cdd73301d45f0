"""The Phenaki sheet's invariants 6-9 and 13: masks, loss, sampler, guidance, position table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import truncnorm

from tests.generators.clips import codes_of, layout_of
from videogen.conditioning import Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import MaskedTransformer, MaskGITSampler
from videogen.generators.masked import RATIOS, random_mask
from videogen.generators.maskgit import decode, masked_after
from videogen.heads import Categorical
from videogen.heads.sampling import sample_categorical
from videogen.shapes import TokenGrid
from videogen.tokens import Tokens

GRID = TokenGrid(3, 2, 2)
VIDEO = layout_of(GRID, (16,))
TRANSFORMER = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 64}


@pytest.fixture(scope="module")
def model():
    return MaskedTransformer((16,), GRID.shape, TRANSFORMER, context_width=8, rngs=nnx.Rngs(0))


def text(batch: int, seed: int = 0) -> Conditioning:
    features = jax.random.normal(jax.random.key(seed), (batch, 5, 8))
    return Conditioning(EncodedText(features, jnp.arange(5)[None] < 3 + jnp.zeros((batch, 1), int)))


def codes(batch: int, grid: TokenGrid = GRID, mask=None) -> Tokens:
    return codes_of(jax.random.randint(jax.random.key(7), (batch, *grid.shape, 1), 0, 16), grid, 16, exists=mask)


def logits_of(model: MaskedTransformer, ids, conditioning: Conditioning, **call):
    """Logits of the one level of every place in raster order."""
    return model.head.logits(model.features(ids, conditioning, **call))[0].reshape(*ids.shape[:2], -1)


def keys(batch: int):
    return jax.random.split(jax.random.key(5), batch)


@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.25, 0.5, 0.999, 1.0])
def test_mask_count_is_the_ceiling_and_at_least_one(ratio):
    exists = jnp.arange(20)[None] < jnp.array([[20], [7], [1]])
    masked = random_mask(jax.random.key(0), jnp.full(3, ratio), exists)
    expected = [max(1, int(np.ceil(np.float32(ratio) * n))) for n in (20, 7, 1)]
    np.testing.assert_array_equal(masked.sum(-1), expected)
    assert not (masked & ~exists).any()


def test_mask_places_are_uniform():
    exists = jnp.ones((2000, 10), bool)
    share = random_mask(jax.random.key(0), jnp.full(2000, 0.3), exists).mean(0)
    np.testing.assert_allclose(share, 0.3, atol=0.05)


def test_loss_gradient_is_zero_at_unmasked_places(model, monkeypatch):
    """Perturbing the logits of visible places must not change the loss."""
    batch, original = codes(2), Categorical.logits

    def ratio_of(key):
        return float(model.loss(batch, text(2), key, train=False)[1]["mask_ratio"])

    key = next(key for key in map(jax.random.key, range(50)) if 0.2 < ratio_of(key) < 0.8)

    def loss(noise):
        monkeypatch.setattr(Categorical, "logits", lambda self, *a: [original(self, *a)[0] + noise])
        return model.loss(batch, text(2), key, train=False)[0]

    grads = jnp.abs(jax.grad(loss)(jnp.zeros((2, *GRID.shape, 16)))).sum(-1)
    monkeypatch.undo()
    assert int((grads > 0).sum()) == round(ratio_of(key) * grads.size)


def test_image_loss_uses_the_first_frame_only(model):
    """Codes of an image padded to the video grid with a mask give the loss of the short sequence."""
    image = codes(2, GRID.with_time(1))
    padded_ids = jnp.concatenate([image.only.values, jnp.full((2, 2, 2, 2, 1), 9)], 1)
    exists = jnp.broadcast_to(jnp.arange(GRID.tokens) < GRID.tokens_per_frame, (2, GRID.tokens))

    def logits(ids, exists):
        return logits_of(model, ids, text(2), exists=exists)

    short = logits(image.only.values.reshape(2, -1, 1), None)
    padded = logits(padded_ids.reshape(2, -1, 1), exists)[:, : GRID.tokens_per_frame]
    np.testing.assert_allclose(short, padded, atol=1e-5)
    graph, state = nnx.split(model)

    def loss(state):
        return nnx.merge(graph, state).loss(
            codes_of(padded_ids, GRID, exists=exists), text(2), jax.random.key(1), train=False
        )[0]

    grads = jnp.abs(nnx.to_pure_dict(jax.grad(loss)(state))["positions"]["table"]).sum(-1)
    assert (grads[: GRID.tokens_per_frame] > 0).all()
    assert (grads[GRID.tokens_per_frame :] == 0).all()


@pytest.mark.parametrize("unknown", [1, 5, 18, 320])
@pytest.mark.parametrize("steps", [1, 3, 18])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "square"])
def test_masked_count_falls_strictly_to_zero(unknown, steps, schedule):
    sampler = MaskGITSampler(steps=steps, schedule=schedule)
    left = jnp.array([unknown])
    for step in range(steps):
        after = masked_after(jnp.array(step), sampler, jnp.array([unknown]), left)
        assert (after < left).all() or (left == 0).all()
        left = after
    assert (left == 0).all()


def test_prefix_never_changes_and_everything_gets_filled(model):
    prefix = codes(3, GRID.with_time(1))
    drawn = model.sample(VIDEO, text(3), keys(3), MaskGITSampler(steps=4), prefix)
    np.testing.assert_array_equal(drawn.only.values[:, :1], prefix.only.values)
    assert drawn.layout.only.grid == GRID
    assert (drawn.only.values >= 0).all() and (drawn.only.values < 16).all()


def test_guidance_zero_is_conditional_only(model):
    """lambda = 0 draws what a loop over the conditional logits alone draws; lambda > 0 draws something else."""
    conditioning, sampler = text(4), MaskGITSampler(steps=5)
    unknown = jnp.ones((4, GRID.tokens), bool)

    def draw(ids, unknown, keys, how):
        features = model.features(ids, conditioning, corrupted=unknown).reshape(4, GRID.tokens, -1)
        return model.head.draw(features, None, keys, how)

    alone = decode(draw, jnp.zeros((4, GRID.tokens, 1), int), unknown, keys(4), sampler)
    drawn = model.sample(VIDEO, conditioning, keys(4), sampler)
    np.testing.assert_array_equal(drawn.only.values.reshape(alone.shape), alone)
    guided = model.sample(VIDEO, conditioning, keys(4), MaskGITSampler(steps=5, guidance_scale=50.0))
    assert (guided.only.values != drawn.only.values).any()


def test_dropped_text_depends_on_the_null_embedding_only(model):
    ids = codes(2).only.values.reshape(2, -1, 1)
    one, other = (logits_of(model, ids, text(2, seed).null()) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - logits_of(model, ids, text(2))).max() > 1e-6


def test_a_draw_does_not_depend_on_its_neighbours(model):
    sampler = MaskGITSampler(steps=4)
    together = model.sample(VIDEO, text(4), keys(4), sampler).only.values
    alone = model.sample(VIDEO, jax.tree.map(lambda x: x[2:3], text(4)), keys(4)[2:3], sampler).only.values
    np.testing.assert_array_equal(together[2:3], alone)


def test_position_table_serves_the_window_and_refuses_more(model):
    """Two frozen latent frames plus one to draw are an ordinary window."""
    assert logits_of(model, jnp.zeros((1, GRID.tokens, 1), int), text(1)).shape == (1, 12, 16)
    with pytest.raises(UserError, match="extension"):
        logits_of(model, jnp.zeros((1, GRID.tokens + 1, 1), int), text(1))


def test_categorical_draws_follow_the_distribution_and_top_k():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2, 1e-9]))
    uniform = (jnp.arange(10_000) + 0.5) / 10_000
    drawn = sample_categorical(uniform, jnp.broadcast_to(logits, (10_000, 4)))
    np.testing.assert_allclose(jnp.bincount(drawn, length=4) / 10_000, [0.5, 0.3, 0.2, 0.0], atol=2e-3)
    top = sample_categorical(uniform, jnp.broadcast_to(logits, (10_000, 4)), top_k=2)
    np.testing.assert_allclose(jnp.bincount(top, length=4) / 10_000, [0.625, 0.375, 0, 0], atol=2e-3)


def test_gradient_reaches_every_parameter():
    model = MaskedTransformer((16,), GRID.shape, TRANSFORMER, context_width=8, classes=3, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)

    def loss(params):
        conditioning = Conditioning(text(8).text, jnp.array([0, 1, 2, 0, 1, 2, 0, 1]))
        return nnx.merge(graph, params).loss(codes(8), conditioning, jax.random.key(0))[0]

    # condition_drop is 0.1 of 8 examples: a key that drops at least one reaches the null embedding too.
    grads = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    silent = {path[-1] for path, g in grads if not jnp.abs(g.get_value()).max() > 0}
    assert silent <= {"null_text"}


def test_learns_a_deterministic_rule():
    """Codes that all equal the label are learned to certainty, and sampled right."""
    import optax

    model = MaskedTransformer((8,), (2, 2, 2), TRANSFORMER, context_width=8, classes=8, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    labels = jnp.arange(8)
    batch = codes_of(jnp.broadcast_to(labels[:, None, None, None, None], (8, 2, 2, 2, 1)), TokenGrid(2, 2, 2))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            return nnx.merge(graph, params).loss(batch, Conditioning(label=labels), key)[0]

        updates, state = optimizer.update(jax.jit(jax.grad(loss))(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(400):
        params, state = step(params, state, jax.random.key(i))
    drawn = nnx.merge(graph, params).sample(
        batch.layout,
        Conditioning(label=labels),
        keys(8),
        MaskGITSampler(steps=4, temperature=0.05, final_temperature=0.05),
    )
    np.testing.assert_array_equal(drawn.only.values, batch.only.values)


def test_the_ratios_of_mar_are_a_cut_normal():
    u = np.linspace(0, 1, 11)
    expected = truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25).ppf(1 - u)
    np.testing.assert_allclose(RATIOS["mar"](jnp.asarray(u)), expected, atol=2e-6)


def test_random_order_does_not_look_at_the_confidence():
    """With the sureness of a place growing along the row, the order by confidence is the row from its end."""
    keys, start = jax.random.split(jax.random.key(0), 200), jnp.full((200, 4, 1), 9)

    def first_known(order: str) -> np.ndarray:
        seen = []

        def draw(values, unknown, keys, how):
            seen.append(np.asarray(unknown))
            return jnp.zeros_like(values), jnp.broadcast_to(jnp.arange(4.0), values.shape[:2])

        sampler = MaskGITSampler(steps=4, choice_temperature=0.0, order=order)
        with jax.disable_jit():
            decode(draw, start, jnp.ones((200, 4), bool), keys, sampler)
        return (~seen[1]).argmax(1)

    assert (first_known("confidence") == 3).all()
    counts = np.bincount(first_known("random"), minlength=4)
    assert (counts > 30).all()


def test_guidance_rises_to_its_scale_in_the_last_step():
    sampler = MaskGITSampler(steps=4, guidance_scale=5.0, guidance_schedule="linear", temperature=2.0)
    np.testing.assert_allclose([sampler.of_head(k).guidance_scale for k in range(4)], [2.0, 3.0, 4.0, 5.0])
    np.testing.assert_allclose([sampler.of_head(k).temperature for k in range(4)], [1.75, 1.5, 1.25, 1.0])

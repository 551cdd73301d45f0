"""The NBP sheet's invariants: who sees whom, alignment of targets, cached = full, counts of passes, prefixes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import codes_of, layout_of
from videogen.conditioning import Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import BlockSampler, NextBlockTransformer
from videogen.heads import Categorical
from videogen.heads.digits import split
from videogen.nn import BlockCausal, Causal, Full, mask_array
from videogen.shapes import TokenGrid
from videogen.tokens import Layout, Tokens

GRID = TokenGrid(3, 2, 4)
SMALL = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
DEPTH = {"name": "depth", "layers": 2, "heads": 4}
ROTARY = {"rotary": True}
MODELS = {
    "next token": {},
    "rows": {"block": (1, 1, 4)},
    "rows, rotary": {"block": (1, 1, 4), "transformer": {"rotary": True}},
    "frames": {"block": (1, 2, 4), "transformer": {"norm": "layer", "qk_norm": False}},
    "squares": {"block": (1, 2, 2)},
    "tubelets": {"block": (3, 1, 2)},
    "whole clip": {"block": (3, 2, 4)},
    "rows, token start": {"block": (1, 1, 4), "start": "tokens"},
    "squares, token start": {"block": (1, 2, 2), "start": "tokens", "transformer": {"rotary": True}},
    "given": {"block": (1, 1, 4), "start": "given", "given": 1},
    "prefix LM": {"block": (1, 1, 2), "start": "prefix", "given": 1},
    "factors": {"vocabulary": (16,), "head": {"name": "categorical", "factors": 2}, "block": (1, 1, 2)},
    "two levels": {"vocabulary": (8, 6), "block": (1, 1, 4)},
    "two levels, delayed": {"vocabulary": (8, 6), "block": (1, 1, 4), "delay": True},
    "three levels, delayed tokens": {"vocabulary": (8, 6, 4), "delay": True, "transformer": {"rotary": True}},
    "three levels in depth": {"vocabulary": (8, 6, 4), "block": (1, 1, 2), "head": DEPTH},
    "deep text": {"text": "deep"},
    "rows, token start, deep text": {"text": "deep", "block": (1, 1, 4), "start": "tokens", "transformer": ROTARY},
    "prefix LM, deep text": {"text": "deep", "block": (1, 1, 2), "start": "prefix", "given": 1},
}

FIRST_TIER = ("next token", "rows, token start", "prefix LM", "factors", "three levels, delayed tokens")
FIRST_TIER += ("three levels in depth", "deep text")
"""One model for every kind of block, start, prefix and level; the others are compiled in the second tier."""
SLOW = pytest.mark.slow
EVERY = [name if name in FIRST_TIER else pytest.param(name, marks=SLOW) for name in MODELS]


@functools.cache
def make(name: str) -> NextBlockTransformer:
    settings = {"vocabulary": (16,), **MODELS[name]}
    settings["transformer"] = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 64, **settings.get("transformer", {})}
    return NextBlockTransformer(grid=GRID.shape, context_width=8, **settings, rngs=nnx.Rngs(0))


def video_of(model) -> Layout:
    return layout_of(GRID, model.head.vocabulary)


def text(batch: int, seed: int = 0) -> Conditioning:
    features = jax.random.normal(jax.random.key(seed), (batch, 5, 8))
    return Conditioning(EncodedText(features, jnp.arange(5)[None] < 3 + jnp.zeros((batch, 1), int)))


def codes(model: NextBlockTransformer, batch: int = 2, grid: TokenGrid = GRID) -> Tokens:
    size = (batch, *grid.shape, model.head.levels)
    return codes_of(
        jax.random.randint(jax.random.key(7), size, 0, jnp.array(model.head.vocabulary)), grid, model.head.vocabulary
    )


def keys(batch: int):
    return jax.random.split(jax.random.key(5), batch)


def logits_of(model: NextBlockTransformer, clip: Tokens):
    """Logits of the one level of every place in order of generation."""
    return model.head.logits(model.features(model.sequence(clip.only.values, GRID), text(len(clip.only.values)), GRID))[
        0
    ]


def first_frames(codes: Tokens, count: int) -> Tokens:
    layout = codes.layout.with_time(count)
    return Tokens.single(codes.only.values[:, :count], layout)


def test_block_mask_is_causal_for_tokens_and_full_for_one_block():
    np.testing.assert_array_equal(mask_array(BlockCausal(1), 6, 6), mask_array(Causal(), 6, 6))
    np.testing.assert_array_equal(mask_array(BlockCausal(6), 6, 6), mask_array(Full(), 6, 6))
    rows = ["100000", "110000", "111100", "111100", "111111", "111111"]
    expected = np.array([[c == "1" for c in row] for row in rows])
    np.testing.assert_array_equal(mask_array(BlockCausal(2, causal_first=True), 6, 6), expected)
    seen = mask_array(BlockCausal(2, prefix=4), 6, 6)
    assert seen[:, :4].all() and not seen[:4, 4:].any()


@pytest.mark.parametrize("name", EVERY)
def test_logits_depend_on_exactly_the_codes_of_earlier_blocks(name):
    """By gradients with respect to one-hot-like embeddings of every place of the sequence."""
    model = make(name)
    ids = model.sequence(codes(model, 1).only.values, GRID)
    size, places = model.block_tokens, ids.shape[1]
    embedded = model.head.inputs.vectors(split(ids, model.head.bases))

    def features(embedded):
        class Fixed:
            def __call__(self, ids, hidden):
                return embedded.sum(-2)

        graph, state = nnx.split(model)
        copy = nnx.merge(graph, state)
        copy.head.inputs = nnx.data(Fixed())
        return copy.features(ids, text(1), GRID)

    # Another weight for each place and channel, or the norm would hide the gradient of a plain sum.
    jacobian = jax.jit(jax.jacobian(lambda e: jnp.sum(features(e)[0] ** 3, axis=-1)))(embedded)
    seen = np.abs(np.asarray(jacobian)).sum(axis=(1, 3, 4)) > 0
    predicted = np.arange(places)[places - seen.shape[0] :]
    place = np.arange(places)
    expected = place[None] // size < predicted[:, None] // size
    if model.start == "tokens":
        expected |= (predicted[:, None] < size) & (place[None] < predicted[:, None])
    if model.mask.prefix:
        # Inputs of the given codes see each other; what they predict among themselves has no loss.
        expected |= place[None] < model.given
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    ("name", "guided"),
    [
        pytest.param(name, guided, marks=() if name in FIRST_TIER and (guided or name == "next token") else SLOW)
        for guided in (True, False)
        for name in MODELS
    ],
)
def test_cached_decoding_equals_the_full_forward(name, guided):
    model = make(name)
    ids, sampler = model.sequence(codes(model).only.values, GRID), BlockSampler(guidance_scale=1.0 + guided)
    whole = model.features(ids, text(2), GRID)
    decoding = model.stepper(video_of(model), text(2), keys(2), sampler)
    inputs = jnp.tile(model.inputs(ids, GRID), (1 + guided, 1, 1))
    first = ids.shape[1] - inputs.shape[1]
    caches = decoding.empty_caches()
    pieces, place = [], 0
    # A prefix must be read in one pass where it sees itself both ways.
    steps = [model.mask.prefix] if model.mask.prefix else []
    steps += [1] * model.block_tokens if model.start == "tokens" else []
    while place < inputs.shape[1]:
        step = steps.pop(0) if steps else model.block_tokens
        features, caches = decoding.pass_through(inputs[:, place : place + step], first + place, caches)
        pieces.append(features)
        place += step
    parts = jnp.concatenate(pieces, axis=1)
    np.testing.assert_allclose(parts[:2], whole, atol=1e-5)
    if guided:
        np.testing.assert_allclose(parts[2:], model.features(ids, text(2).null(), GRID), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_sample_is_what_the_full_forward_draws_and_a_prefix_continues_it(name):
    """The logits of the finished clip, with the sampler's own random numbers, give the clip back."""
    model, sampler = make(name), BlockSampler(temperature=0.7, top_k=5, guidance_scale=1.5)
    known = 0 if not model.given else 1
    prefix = first_frames(codes(model), known) if known else None
    drawn = jax.jit(lambda: model.sample(video_of(model), text(2), keys(2), sampler, prefix))()
    assert drawn.only.values.shape == (2, *GRID.shape, model.head.levels)
    assert (drawn.only.values >= 0).all() and (drawn.only.values < jnp.array(model.head.vocabulary)).all()
    if prefix is not None:
        np.testing.assert_array_equal(drawn.only.values[:, :1], prefix.only.values)
    ids = model.sequence(drawn.only.values, GRID)
    targets = split(model.targets(ids), model.head.bases)
    both = [model.head.logits(model.features(ids, c, GRID), targets) for c in (text(2), text(2).null())]
    first = ids.shape[1] - targets.shape[1]
    starts = [*range(first, ids.shape[1], model.block_tokens)]
    if model.start == "tokens":
        starts = [*range(model.block_tokens), *starts[1:]]
    for place, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True):
        uniform = jnp.stack(
            [
                jax.random.uniform(jax.random.fold_in(key, place), (end - place, len(model.head.sizes)))
                for key in keys(2)
            ]
        )
        for digit, level in enumerate(model.head.level_of):
            given, null = (b[digit][:, place - first : end - first] for b in both)
            logits = (1.5 * given - 0.5 * null) / 0.7
            # Few codes are drawn in their order, a cut choice from the most likely down.
            best = jnp.argsort(-logits if logits.shape[-1] > 5 else jnp.zeros_like(logits), -1)[..., :5]
            cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, best, -1)), -1)
            drawn_place = jnp.argmax(cumulative > uniform[..., digit][..., None] * cumulative[..., -1:], -1)
            expected = jnp.take_along_axis(best, drawn_place[..., None], -1)[..., 0]
            own = np.arange(place, end) - model.shift(level)
            here = (own >= model.given) & (own < GRID.tokens)
            drawn_here = targets[:, place - first : end - first, digit]
            np.testing.assert_array_equal(drawn_here[:, here], expected[:, here])
    if model.block[0] == 1:
        again = model.sample(video_of(model), text(2), keys(2), sampler, first_frames(drawn, 2))
        np.testing.assert_array_equal(again.only.values, drawn.only.values)


@pytest.mark.slow
def test_a_draw_does_not_depend_on_its_neighbours():
    model, sampler = make("rows"), BlockSampler(guidance_scale=2.0)
    three = jax.tree.map(lambda x: x, text(3))
    drawn = model.sample(video_of(model), three, keys(3), sampler)
    alone = model.sample(video_of(model), jax.tree.map(lambda x: x[1:2], three), keys(3)[1:2], sampler)
    np.testing.assert_array_equal(drawn.only.values[1:2], alone.only.values)


def test_passes_are_counted_as_in_the_paper():
    grid = TokenGrid(5, 16, 16)

    def count(prefix: int = 0, **settings) -> int:
        model = nnx.eval_shape(lambda: NextBlockTransformer((64,), grid.shape, SMALL, **settings, rngs=nnx.Rngs(0)))
        return model.passes(grid, prefix)

    assert count(512, block=(1, 1, 16), start="given", given=2) == 48
    assert count(block=(1, 1, 16), start="tokens") == 95
    assert count() == 1280
    assert count(block=(5, 16, 16)) == 1


def test_one_block_of_the_whole_clip_is_one_shot_prediction():
    model = make("whole clip")
    one, other = (logits_of(model, codes_of(codes(model).only.values * factor, GRID)) for factor in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_next_token_loss_is_that_of_the_shifted_sequence():
    model, clip = make("next token"), codes(make("next token"))
    loss, metrics = model.loss(clip, text(2), jax.random.key(0), train=False)
    ids = clip.only.values.reshape(2, -1)
    log_probability = jax.nn.log_softmax(logits_of(model, clip))
    expected = -np.mean([[log_probability[b, i, ids[b, i]] for i in range(ids.shape[1])] for b in range(2)])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert 0 <= metrics["accuracy"] <= 1


def test_given_frames_have_no_loss(monkeypatch):
    model, original = make("given"), Categorical.logits
    clip = codes(model)
    ids = model.sequence(clip.only.values, GRID)

    def loss(noise):
        monkeypatch.setattr(Categorical, "logits", lambda self, *a: [original(self, *a)[0] + noise])
        return model.loss(clip, text(2), jax.random.key(0), train=False)[0]

    grads = jnp.abs(jax.grad(loss)(jnp.zeros((2, ids.shape[1] - 4, 16)))).sum(-1)
    # The targets are places 4 to 23; the given frame holds places 0 to 7.
    np.testing.assert_array_equal(grads[0] > 0, np.arange(4, 24) >= 8)


@pytest.mark.parametrize("name", ["rows, token start", "three levels in depth", "three levels, delayed tokens"])
def test_gradient_reaches_every_parameter(name):
    model = make(name)
    graph, params = nnx.split(model)

    def loss(params):
        conditioning = text(2).drop(jnp.array([False, True]))
        return nnx.merge(graph, params).loss(codes(model), conditioning, jax.random.key(0), train=False)[0]

    grads = jax.jit(jax.grad(loss))(params)
    dead = [path for path, g in jax.tree_util.tree_leaves_with_path(grads) if not jnp.abs(g).sum() > 0]
    assert not dead


def test_an_image_is_a_clip_of_one_frame():
    model = make("rows")
    image = codes(model, grid=GRID.with_time(1))
    assert np.isfinite(model.loss(image, text(2), jax.random.key(0))[0])
    assert model.sample(
        layout_of(image.layout.only.grid, model.head.vocabulary), text(2), keys(2), BlockSampler()
    ).only.values.shape == (2, 1, 2, 4, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": (1, 1, 3)}, "does not divide into blocks of 3"),
        ({"start": "middle"}, "unknown start 'middle'"),
        ({"head": {"name": "deep"}}, "did you mean 'depth'"),
        ({"head": {"name": "depth", "heads": 2}, "delay": True}, "delay needs a head whose levels are independent"),
        ({"transformer": {**SMALL, "position_generator": True}}, "cannot be decoded"),
        ({"transformer": {**SMALL, "widht": 3}}, "did you mean 'width'"),
        ({"given": 1}, "contradict each other"),
        ({"start": "prefix"}, "contradict each other"),
        ({"start": "given", "given": 3, "block": (1, 1, 4)}, "fewer than all 3"),
        ({"head": {"name": "categorical", "factors": 3}}, "does not split into equal factors"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        NextBlockTransformer((16,), GRID.shape, **{"transformer": SMALL, **settings}, rngs=nnx.Rngs(0))


def test_a_prefix_must_be_whole_blocks():
    model = make("tubelets")
    with pytest.raises(UserError, match="whole blocks of 6"):
        model.sample(video_of(model), text(2), keys(2), BlockSampler(), first_frames(codes(model), 1))

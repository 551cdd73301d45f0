"""Frames one after another, the tokens of a frame at once: who sees whom, what is learned, how it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from videogen import generators
from videogen.conditioning import Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import BlockSampler
from videogen.nn import MicroBatch
from videogen.tokens import Layout, SegmentLayout, Tokens

FRAMES, LEVELS, CODES, WIDTH = 6, 3, 7, 16
END, PAD = CODES, CODES + 1
GREEDY = BlockSampler(temperature=0.0)


def layout(frames=FRAMES):
    return Layout.of(video=SegmentLayout((("time", frames), ("query", LEVELS)), (CODES,)))


def make(**settings):
    """With a logit of 0 for the end, which some code beats, so that clips have frames."""
    transformer = {"width": WIDTH, "layers": 2, "heads": 2, "mlp_width": 32}
    config = {"name": "next_frame", "transformer": transformer, **settings}
    shapes = dict(vocabulary=(CODES,), grid=(FRAMES, 1, LEVELS), context_width=8)
    model = with_random_parameters(nnx.eval_shape(lambda: generators.build(config, **shapes, rngs=nnx.Rngs(0))), seed=0)
    model.head.kernel.set_value(model.head.kernel[...].at[..., END].set(0.0))
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def said():
    features = jax.random.normal(jax.random.key(4), (2, 4, 8))
    return Conditioning(EncodedText(features, jnp.array([[True] * 4, [True] * 2 + [False] * 2])))


@pytest.fixture(scope="module")
def ids():
    return jax.random.randint(jax.random.key(5), (2, FRAMES, LEVELS), 0, CODES)


@pytest.fixture(scope="module")
def features(model):
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, ids, said: nnx.merge(graph, state).features(ids, said))
    return lambda ids, said: run(state, ids, said)


def tokens_of(ids, exists=None):
    masks = {} if exists is None else {"exists": jnp.broadcast_to(exists[..., None], ids.shape)}
    return Tokens.single(ids[..., None], layout(ids.shape[1]), **masks)


def keys(batch=2):
    return jax.random.split(jax.random.key(6), batch)


def test_a_frame_depends_on_earlier_frames_only(features, ids, said):
    """Property 3: features that predict frame i (place i) do not move when frames from i on do, and do when one
    before does."""
    found = features(ids, said)
    assert found.shape == (2, FRAMES + 1, LEVELS, WIDTH)
    for frame in (0, 2, 5):
        changed = features(ids.at[:, frame].set((ids[:, frame] + 1) % CODES), said)
        np.testing.assert_array_equal(found[:, : frame + 1], changed[:, : frame + 1])
        assert float(jnp.abs(found[:, frame + 1] - changed[:, frame + 1]).max()) > 1e-4


def test_tokens_of_a_frame_are_independent_given_the_past(model, features, ids, said):
    """Property 3: drawn together, a token of a frame has the distribution that it has alone: its logits come from its
    own branch, and other tokens of the frame enter nowhere."""
    found = features(ids, said)
    logits = model.head.logits(found)
    moved = model.head.logits(found.at[:, :, 1].add(1.0))
    np.testing.assert_array_equal(logits[:, :, [0, 2]], moved[:, :, [0, 2]])
    assert logits.shape == (2, FRAMES + 1, LEVELS, CODES + 1)


def test_a_frame_sees_so_many_frames_as_the_window(ids, said):
    """One layer of tower and one of branches, each over 2 places: place 5 depends on places 3 to 5, and on no other."""
    transformer = {"width": WIDTH, "layers": 1, "heads": 2, "mlp_width": 32}
    model = make(window=2, transformer=transformer)
    found = model.features(ids, said)
    for frame, sees in ((0, False), (1, False), (2, True), (4, True)):  # frame i stands at place i + 1
        changed = model.features(ids.at[:, frame].set((ids[:, frame] + 1) % CODES), said)
        assert (float(jnp.abs(found[:, 5] - changed[:, 5]).max()) > 1e-6) == sees, frame


def test_decoding_with_caches_gives_what_the_full_pass_says(model, features, said):
    """Property 4: the drawn frames are the likeliest ones of a full pass over them, with as many steps as frames."""
    stepper = model.stepper(layout(), said, keys(), GREEDY)
    assert stepper.frames == 1 and model.passes(model.grid) == FRAMES
    memory = stepper.begin(None)
    graph, state = nnx.split(model)
    advance = jax.jit(
        lambda state, memory, at: nnx.merge(graph, state).stepper(layout(), said, keys(), GREEDY).advance(memory, at)
    )
    drawn, ended = [], []
    for at in range(FRAMES):
        memory, tokens = advance(state, memory, jnp.int32(at))
        drawn.append(memory[0][:, 0])
        ended.append(~tokens.only.exists.all((1, 2)))
    drawn = jnp.stack(drawn, axis=1)
    wanted = model.head.logits(features(drawn, said)).argmax(-1)[:, :FRAMES]
    alive = ~jnp.stack(ended, axis=1)
    assert bool(alive[:, 0].all())
    np.testing.assert_array_equal(drawn[alive], wanted[alive])
    whole = model.sample(layout(), said, keys(), GREEDY).only
    np.testing.assert_array_equal(whole.values[..., 0], drawn)
    assert whole.exists.shape == (2, FRAMES, LEVELS)


def test_guided_decoding_is_that_of_guided_logits(model, features, said):
    sampler = BlockSampler(temperature=0.0, guidance_scale=2.0)
    drawn = model.sample(layout(), said, keys(), sampler).only
    ids = drawn.values[..., 0]
    told, null = (model.head.logits(features(ids, c)) for c in (said, said.null()))
    wanted = (2 * told - null).argmax(-1)[:, :FRAMES]
    alive = drawn.exists
    assert bool(alive.any())
    np.testing.assert_array_equal(ids[alive], wanted[alive])


def test_targets_are_the_frames_the_end_and_padding(model, ids):
    """Property 5."""
    exists = jnp.array([[True] * 6, [True, True, False, True, False, False]])
    targets, learned = model.targets(tokens_of(ids, exists).only)
    np.testing.assert_array_equal(targets[0], jnp.concatenate([ids[0], jnp.full((1, LEVELS), END)]))
    np.testing.assert_array_equal(targets[1, :2], ids[1, :2])
    np.testing.assert_array_equal(targets[1, 2], [END] * LEVELS)
    np.testing.assert_array_equal(targets[1, 3:], PAD)
    np.testing.assert_array_equal(learned.sum(1), [7, 3])


def test_padding_does_not_contribute_to_the_loss(model, features, ids, said):
    """Property 5: the loss is the mean of the 7 + 3 learned places by hand, whatever stands in the padding."""
    exists = jnp.array([[True] * 6, [True, True, False, False, False, False]])
    loss = jax.jit(lambda ids: model.loss(tokens_of(ids, exists), said, jax.random.key(0), train=False)[0])
    logits = jax.nn.log_softmax(model.head.logits(features(ids, said)))
    targets, learned = model.targets(tokens_of(ids, exists).only)
    nll = -np.take_along_axis(np.asarray(logits), np.where(targets == PAD, 0, targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss(ids), nll[np.asarray(learned)].mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(ids), loss(ids.at[1, 2:].set(3)), rtol=1e-6)


def test_an_end_of_any_token_ends_all(model, said):
    """Property 5: a head whose last token alone draws the end at the third frame; two whole frames are left."""
    stepper = model.stepper(layout(), said, keys(), GREEDY)

    class Ending:
        end, calls = END, 0

        def draw(self, features, null, keys, sampler):
            Ending.calls += 1
            frame = jnp.full((2, 1, LEVELS), Ending.calls % CODES, jnp.int32)
            return (frame.at[1, 0, 2].set(END) if Ending.calls == 3 else frame), None

        def embed(self, ids):
            return jnp.zeros((*ids.shape[:2], WIDTH))

    graph, state = nnx.split(model)
    stepper.model = other = nnx.merge(graph, state)
    object.__setattr__(other, "head", Ending())
    memory, exists, values = stepper.begin(None), [], []
    for at in range(5):
        memory, tokens = stepper.advance(memory, jnp.int32(at))
        exists.append(tokens.only.exists[:, 0])
        values.append(tokens.only.values[:, 0, :, 0])
    np.testing.assert_array_equal(np.stack(exists)[:, 0], True)
    np.testing.assert_array_equal(np.stack(exists)[:, 1].all(-1), [True, True, False, False, False])
    np.testing.assert_array_equal(np.stack(values)[2:, 1], 0)
    assert Ending.calls == 5


def test_replacement_noise_is_at_the_input_in_training_only(model, said):
    """Property 6: of 40,000 tokens 40 % are replaced (6/7 of these by another id); targets and evaluation are clean."""
    many = jax.random.randint(jax.random.key(8), (400, 34, LEVELS), 0, CODES)
    replaced = model.replaced(many, jax.random.key(9), MicroBatch())
    share = float((replaced != many).mean())
    assert abs(share - 0.4 * 6 / 7) < 0.01
    assert replaced.min() >= 0 and replaced.max() < CODES
    clean = make(token_drop=0.0)
    ids = many[:2, :FRAMES]
    run = jax.jit(
        lambda ids, key, train: model.loss(tokens_of(ids), said, key, train=train)[0], static_argnames="train"
    )
    still = jax.jit(lambda ids: clean.loss(tokens_of(ids), said, jax.random.key(0), train=True)[0])
    off = [float(run(ids, jax.random.key(i), train=False)) for i in range(2)]
    on = [float(run(ids, jax.random.key(i), train=True)) for i in range(2)]
    assert off[0] == off[1] and on[0] != on[1]
    # The same network without noise has the loss of evaluation: targets were not touched.
    np.testing.assert_allclose(still(ids), off[0], rtol=1e-6)


def test_a_gradient_reaches_every_parameter(model, ids, said):
    both = said.drop(jnp.array([False, True]))
    grads = jax.jit(nnx.grad(lambda m: m.loss(tokens_of(ids), both, jax.random.key(0), train=False)[0]))(model)
    missing = [k for k, v in nnx.to_flat_state(grads) if not float(jnp.abs(v[...]).max()) > 0]
    assert not missing


def test_a_draw_does_not_depend_on_its_neighbours(model, said):
    sampler = BlockSampler(temperature=1.0)
    both = model.sample(layout(), said, keys(), sampler).only.values
    one = jax.tree.map(lambda x: x[1:], said)
    np.testing.assert_array_equal(model.sample(layout(), one, keys()[1:], sampler).only.values[0], both[1])


def test_what_does_not_fit_is_refused(model, ids, said):
    with pytest.raises(UserError, match="goes on from no given frames"):
        model.sample(layout(), said, keys(), GREEDY, tokens_of(ids[:, :2]))
    with pytest.raises(UserError, match="fixed positions of its own"):
        make(transformer={"width": 16, "layers": 1, "heads": 2, "mlp_width": 32, "rotary": True})

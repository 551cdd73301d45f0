"""Next-scale prediction over a residual tokenizer of numbers: 5 is 4 at a coarse scale and 1 at a finer one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import generators, heads
from videogen.conditioning import Conditioning
from videogen.errors import UserError
from videogen.generators import HEADS_OF
from videogen.generators.disturbance import disturbed
from videogen.generators.next_scale import NextScaleTransformer, ScaleSampler, centres
from videogen.nn import MicroBatch
from videogen.tokens import GRID, Layout, Segment, SegmentLayout, Tokens

SCALES, CODES = ((1, 1, 1), (1, 2, 2), (2, 2, 4)), 8
LAYOUT = Layout.of(**{
    f"scale_{i}": SegmentLayout(tuple(zip(GRID, sides, strict=True)), (CODES,)) for i, sides in enumerate(SCALES, 1)
})  # fmt: skip
LABELS = jnp.arange(3)


def stretched(x: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """Values on other sides, by nearest neighbours."""
    for axis, side in enumerate(sides, 1):
        x = jnp.take(x, jnp.arange(side) * x.shape[axis] // side, axis=axis)
    return x


def partial(tokens: Tokens, name: str, *, through: bool = False) -> jax.Array:
    """The sum of numbers, each of which is its id, and its square: two channels."""
    summed = LAYOUT.names[: LAYOUT.names.index(name) + through]
    total = sum(stretched(tokens[n].values.astype(jnp.float32), LAYOUT[name].shape) for n in summed)
    return jnp.concatenate([total, total**2], axis=-1) / 8


def relabel_for(clips: jax.Array):
    """Ids of what is left of numbers [batch, *finest sides, 1]."""

    def relabel(shown: Tokens, name: str) -> Segment:
        left = clips - sum(stretched(s.values, SCALES[-1]) for s in shown.segments)
        first = tuple(slice(None, None, whole // side) for whole, side in zip(SCALES[-1], LAYOUT[name].shape))  # noqa: B905
        return Segment(jnp.clip(left[:, *first], 0, CODES - 1), LAYOUT[name])

    return relabel


def tokens_of(seed: int, batch: int = 3) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens.of(**{
        name: Segment(jnp.asarray(rng.integers(0, CODES, (batch, *s.shape, 1)), jnp.int32), s)
        for name, s in LAYOUT.segments
    })  # fmt: skip


@pytest.fixture(scope="module")
def model() -> NextScaleTransformer:
    transformer = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32}
    config = {"name": "next_scale", "transformer": transformer, "token_drop": 0.5, "condition_drop": 0.0}
    shared = dict(context_width=8, classes=3, remat="none", dtype=jnp.float32, rngs=nnx.Rngs(0))
    model = generators.build(config, layout=LAYOUT, features=2, **shared)
    # Fresh logits hardly differ.
    kernel = model.head.logits_of.kernel
    kernel.set_value(100 * kernel.get_value())
    return model


def sums_of(tokens: Tokens) -> dict:
    return {name: partial(tokens, name) if i else None for i, name in enumerate(tokens.names)}


def test_a_scale_sees_itself_and_those_before_it(model):
    sums, said = sums_of(tokens_of(0)), Conditioning(label=LABELS)
    whole = model.features(sums, said)
    changed = model.features(sums | {"scale_3": sums["scale_3"] + 1.0}, said)
    np.testing.assert_array_equal(whole[:, :5], changed[:, :5])
    np.testing.assert_allclose(model.features({n: sums[n] for n in LAYOUT.names[:2]}, said), whole[:, :5], atol=1e-5)
    first_place = sums["scale_2"].at[:, 0, 0, 0].add(1.0)
    moved = model.features(sums | {"scale_2": first_place}, said)
    np.testing.assert_array_equal(whole[:, :1], moved[:, :1])
    # All places of its own scale and of the next ones see the change.
    assert (jnp.abs(whole - moved).max(-1)[:, 1:] > 1e-6).all()


def test_loss_is_the_mean_over_the_tokens_of_all_scales(model):
    tokens, said = tokens_of(1), Conditioning(label=LABELS)
    loss, metrics = model.loss(tokens, said, jax.random.key(0), train=False, partial=partial)
    (logits,) = model.head.logits(model.features(sums_of(tokens), said))
    ids = tokens.flat[..., 0]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)
    np.testing.assert_allclose(loss, nll.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == ids).mean(), rtol=1e-6)


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 2.5])
def test_cached_drawing_agrees_with_the_whole_at_every_scale(model, guidance):
    keys, said = jax.random.split(jax.random.key(3), 3), Conditioning(label=LABELS)
    sampler = ScaleSampler(temperature=1e-4, guidance_scale=guidance, guidance_schedule="linear")
    drawn = model.sample(LAYOUT, said, keys, sampler, partial=partial)
    assert drawn.layout == LAYOUT
    with_said, without = (
        model.head.logits(model.features(sums_of(drawn), c))[0] for c in (said, Conditioning(label=LABELS * 0 - 1))
    )
    scale = np.repeat([1.0, 1 + (guidance - 1) / 2, guidance], [1, 4, 16])[:, None]
    likeliest = (without + scale * (with_said - without)).argmax(-1)
    np.testing.assert_array_equal(drawn.flat[..., 0], likeliest)


def test_a_draw_does_not_depend_on_its_neighbours(model):
    keys, sampler = jax.random.split(jax.random.key(3), 3), ScaleSampler(top_k=4, guidance_scale=2.0)
    drawn = model.sample(LAYOUT, Conditioning(label=LABELS), keys, sampler, partial=partial)
    alone = model.sample(LAYOUT, Conditioning(label=LABELS[1:2]), keys[1:2], sampler, partial=partial)
    np.testing.assert_array_equal(alone.flat, drawn.flat[1:2])


def test_refinement_reads_what_the_pass_before_has_drawn(model):
    keys, said = jax.random.split(jax.random.key(4), 3), Conditioning(label=LABELS)
    plain = model.sample(LAYOUT, said, keys, ScaleSampler(), partial=partial)
    once = model.sample(LAYOUT, said, keys, ScaleSampler(refine=()), partial=partial)
    np.testing.assert_array_equal(plain.flat, once.flat)
    refined = model.sample(LAYOUT, said, keys, ScaleSampler(refine=((1, 1.0),)), partial=partial)
    # The last scale's second pass reads the sum with its own first draw, over the first pass's keys of the others.
    first = {n: refined[n] for n in LAYOUT.names[:2]}
    sums, firsts = sums_of(refined), []

    def noted(tokens: Tokens, name: str, **asked) -> jax.Array:
        firsts.append(tokens)
        return partial(tokens, name, **asked)

    model.sample(LAYOUT, said, keys, ScaleSampler(refine=((1, 1.0),)), partial=noted)
    assert [tuple(t.names) for t in firsts] == [
        ("scale_1",), ("scale_1", "scale_2"), ("scale_1", "scale_2"), LAYOUT.names
    ]  # fmt: skip
    drawn_first = firsts[-1]
    np.testing.assert_array_equal(drawn_first["scale_2"].values, first["scale_2"].values)
    own = {"scale_3": partial(drawn_first, "scale_3", through=True)}
    (logits,) = model.head.logits(model.features(sums | own, said))
    np.testing.assert_array_equal(refined["scale_3"].values.reshape(3, -1), logits[:, 5:].argmax(-1))


def test_after_replaced_ids_inputs_and_labels_still_sum_to_the_clip():
    clips = jnp.full((3, *SCALES[-1], 1), 7)
    relabel, layout = relabel_for(clips), LAYOUT
    none = Segment(jnp.full((3, 1, 1, 1, 1), 4), layout["scale_1"])
    tokens = Tokens.of(
        scale_1=none,
        scale_2=relabel(Tokens.of(scale_1=none), "scale_2"),
        scale_3=Segment(jnp.zeros((3, *SCALES[-1], 1), jnp.int32), layout["scale_3"]),
    )
    head = heads.build({"name": "categorical"}, vocabulary=(CODES,), width=8, rngs=nnx.Rngs(0))
    for share in (0.0, 1.0):
        shown, wanted = disturbed(tokens, relabel, share, head, jax.random.key(0), MicroBatch())
        if share == 0:
            np.testing.assert_array_equal(shown.flat, tokens.flat)
            np.testing.assert_array_equal(wanted.flat, tokens.flat)
        else:
            np.testing.assert_array_equal(wanted["scale_1"].values, tokens["scale_1"].values)
            assert (shown["scale_1"].values != 4).any()
            np.testing.assert_array_equal(wanted["scale_2"].values, jnp.broadcast_to(
                7 - shown["scale_1"].values, wanted["scale_2"].values.shape))  # fmt: skip
            before = shown["scale_1"].values + stretched(shown["scale_2"].values, SCALES[-1])
            np.testing.assert_array_equal(wanted["scale_3"].values, jnp.clip(7 - before, 0, 7))
    with pytest.raises(UserError, match="needs the clips"):
        disturbed(tokens, None, 1.0, head, jax.random.key(0), MicroBatch())


def test_micro_batches_replace_the_same_ids(model):
    tokens, key = tokens_of(2, batch=4), jax.random.key(5)
    clips = jnp.asarray(np.random.default_rng(0).integers(0, 8, (4, *SCALES[-1], 1)))
    whole, _ = disturbed(tokens, relabel_for(clips), 0.5, model.head, key, MicroBatch())
    for i in range(2):
        own = Tokens.of(**{n: Segment(s.values[i::2], s.layout) for n, s in tokens.items()})
        part, _ = disturbed(own, relabel_for(clips[i::2]), 0.5, model.head, key, MicroBatch(i, 2))
        np.testing.assert_array_equal(part.flat, whole.flat[i::2])


def test_tokens_over_one_place_share_their_coordinates():
    square = Layout.of(**{f"s{n}": SegmentLayout((("height", n), ("width", n)), (2,)) for n in (1, 2, 4)})
    found = centres(square)
    np.testing.assert_array_equal(found[0], [0, 1.5, 1.5])
    np.testing.assert_array_equal(found[1:5, 1:], [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]])
    np.testing.assert_array_equal(found[5:9, 1:], [[0, 0], [0, 1], [0, 2], [0, 3]])
    np.testing.assert_array_equal(found[5:, 1:].reshape(2, 2, 2, 2, 2).mean((1, 3)).reshape(4, 2), found[1:5, 1:])


def test_guidance_rises_from_scale_to_scale():
    cuts = dict(top_k=1200, top_p=0.8, refine=((100, 0.8), (1, 1.0)))
    sampler = ScaleSampler(guidance_scale=5.0, guidance_schedule="linear", **cuts)
    found = [[float(p.guidance_scale) for p in sampler.passes(at)] for at in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(found, [[1.0] * 3, [3.0] * 3, [5.0] * 3])
    assert [(p.top_k, p.top_p) for p in sampler.passes(0.0)] == [(1200, 0.8), (100, 0.8), (1, 1.0)]


def test_other_sizes_and_given_frames_are_refused(model):
    keys, said = jax.random.split(jax.random.key(3), 3), Conditioning(label=LABELS)
    other = Layout(LAYOUT.segments[:2])
    for layout, prefix in ((other, None), (LAYOUT, tokens_of(0))):
        with pytest.raises(UserError, match="size of training"):
            model.sample(layout, said, keys, ScaleSampler(), prefix, partial=partial)


@pytest.mark.parametrize("head", HEADS_OF["next_scale"])
def test_every_head_of_the_table_learns_and_draws_every_scale(head):
    settings = {"layers": 1, "heads": 2} if head == "depth" else {}
    transformer = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    config = {"name": "next_scale", "transformer": transformer, "head": {"name": head, **settings}}
    model = generators.build(config, layout=LAYOUT, features=2, context_width=None, classes=None, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tokens, said, key = tokens_of(0), Conditioning(), jax.random.key(0)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        model = nnx.merge(graph, params, rest)
        return model.loss(tokens, said, key, partial=partial)[0]

    # A step downhill lowers the loss, whose gradient reaches every parameter.
    before, gradient = loss(params)
    still = [path for path, g in nnx.to_flat_state(gradient) if not (jnp.abs(g.get_value()) > 0).any()]
    # The head in depth of one level has none before it to embed, and attends to one place: whatever it asks.
    idle = {"embedding", "query_norm", "key_norm"} if head == "depth" else set()
    assert all(idle.intersection(path) for path in still), still
    after, _ = loss(jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient))
    assert after < before
    drawn = model.sample(LAYOUT, said, jax.random.split(key, 3), ScaleSampler(), partial=partial)
    assert drawn.flat.shape == (3, LAYOUT.tokens, 1) and drawn.flat.min() >= 0 and drawn.flat.max() < CODES
    if not model.head.cuts:
        with pytest.raises(UserError, match="leave sampler.top_k at 0"):
            generators.check_sampler(model, ScaleSampler(refine=((2, 1.0),)))
    else:
        generators.check_sampler(model, ScaleSampler(refine=((2, 1.0),)))

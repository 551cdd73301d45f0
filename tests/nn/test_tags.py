"""Masks that compare tags: against loops over tokens, alone and composed, on every backend and on a mesh."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import (
    Attention,
    Block,
    BlockCausal,
    Causal,
    CausalWindow,
    Different,
    Equal,
    First,
    Full,
    Multiple,
    NotEqual,
    NotLater,
    PrefixLM,
    Same,
    Stack,
    Within,
    attend,
    mask_array,
)
from videogen.nn.masking import masking
from videogen.nn.masks import AllOf, AnyOf

LENGTH = 8
TAGS = {
    "sample": np.array([[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1]], np.int32),
    "frame": np.array([[0, 1, 2, 0, 1, 2, 0, 1], [3, 1, 0, 2, 2, 5, 4, 4]], np.int32),
    "kind": np.array([[1, 0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 1, 0]], np.int32),
}
"""Of two examples."""

DEFINITIONS = {
    Same("sample"): lambda q, k: q["sample"] == k["sample"],
    Different("sample"): lambda q, k: q["sample"] != k["sample"],
    NotLater("frame"): lambda q, k: k["frame"] <= q["frame"],
    Within("frame", before=1): lambda q, k: q["frame"] - 1 <= k["frame"] <= q["frame"],
    Within("frame", before=1, after=2): lambda q, k: -1 <= k["frame"] - q["frame"] <= 2,
    Multiple("frame", 2): lambda q, k: k["frame"] % 2 == 0,
    Equal("kind", 1): lambda q, k: k["kind"] == 1,
    NotEqual("kind", 1): lambda q, k: k["kind"] != 1,
    Equal("kind", 1, "query"): lambda q, k: q["kind"] == 1,
    NotEqual("kind", 1, "query"): lambda q, k: q["kind"] != 1,
    NotLater(): lambda q, k: k["index"] <= q["index"],
    First(3): lambda q, k: k["index"] < 3,
    Causal(): lambda q, k: k["index"] <= q["index"],
    CausalWindow(2): lambda q, k: 0 <= q["index"] - k["index"] < 2,
}


def written_out(definition, example: int) -> np.ndarray:
    """The mask as a loop over pairs of tokens."""

    def token(i: int) -> dict[str, int]:
        return {"index": i} | {tag: int(values[example, i]) for tag, values in TAGS.items()}

    return np.array([[definition(token(q), token(k)) for k in range(LENGTH)] for q in range(LENGTH)])


def dense(mask, tags) -> np.ndarray:
    """What ``masking`` makes of a mask: which of the keys that exist a query sees, of both examples."""
    given = masking(mask, 2, (LENGTH, LENGTH), tags, tags)
    allowed = mask_array(given.mask, LENGTH, LENGTH, given.query_tags, given.key_tags)
    exists = True if given.key_mask is None else np.asarray(given.key_mask)[:, None]
    return np.broadcast_to(np.asarray(allowed) & exists, (2, LENGTH, LENGTH))


def of_data() -> dict[str, jax.Array]:
    return {tag: jnp.asarray(values) for tag, values in TAGS.items()}


def static(example: int) -> dict[str, np.ndarray]:
    return {tag: values[example] for tag, values in TAGS.items()}


@pytest.mark.parametrize("mask", DEFINITIONS, ids=str)
def test_allowed_set(mask):
    for example in range(2):
        expected = written_out(DEFINITIONS[mask], example)
        np.testing.assert_array_equal(dense(mask, of_data())[example], expected)
        np.testing.assert_array_equal(dense(mask, static(example))[example], expected)


@pytest.mark.parametrize("kinds", ["data", "static", "mixed"])
def test_composition_is_and_and_or(kinds):
    tags = of_data() if kinds == "data" else static(1)
    if kinds == "mixed":
        tags |= {"frame": jnp.asarray(np.broadcast_to(TAGS["frame"][1], (2, LENGTH)))}
    for (a, in_a), (b, in_b) in itertools.product(DEFINITIONS.items(), DEFINITIONS.items()):
        both = written_out(lambda q, k, f=in_a, g=in_b: f(q, k) and g(q, k), 1)
        any_ = written_out(lambda q, k, f=in_a, g=in_b: f(q, k) or g(q, k), 1)
        np.testing.assert_array_equal(dense(a & b, tags)[1], both, err_msg=f"{a & b}")
        np.testing.assert_array_equal(dense(a | b, tags)[1], any_, err_msg=f"{a | b}")


def test_nested_compositions():
    mask = Same("sample") & (Equal("kind", 1) | Causal()) & (NotLater("frame") | Equal("kind", 0, "query"))

    def definition(q, k):
        own = q["sample"] == k["sample"]
        past = k["kind"] == 1 or k["index"] <= q["index"]
        return own and past and (k["frame"] <= q["frame"] or q["kind"] == 0)

    for example in range(2):
        np.testing.assert_array_equal(dense(mask, of_data())[example], written_out(definition, example))
        np.testing.assert_array_equal(dense(mask, static(example))[example], written_out(definition, example))


def test_compositions_are_values_and_everything_is_neutral():
    mask = Same("sample") & Causal()
    assert mask == AllOf((Same("sample"), Causal())) and hash(mask) == hash(Same("sample") & Causal())
    assert (Same("a") & Same("b")) & Causal() == Same("a") & (Same("b") & Causal())
    assert Full() & Causal() == Causal() & Full() == Causal() and Full() & Full() == Full()
    assert Full() | Causal() == Causal() | Full() == Full()
    assert Causal() | First(2) == AnyOf((Causal(), First(2)))
    assert mask.needs == {"sample", "index"} and Full().needs == set()


def test_a_tag_index_takes_the_place_of_the_position():
    index = {"index": jnp.array([[-2, -1, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0, 1, 2]])}
    for mask in (Causal(), CausalWindow(2), PrefixLM(3), NotLater(), BlockCausal(2)):
        for example in range(2):
            rows = np.asarray(index["index"][example])
            expected = mask.allowed(rows[:, None], rows[None, :])
            np.testing.assert_array_equal(dense(mask, index)[example], expected, err_msg=str(mask))
    # Static tags are looked up by token, not by the position that is given.
    tags = index | {"sample": TAGS["sample"][0]}
    expected = TAGS["sample"][0][:, None] == TAGS["sample"][0]
    np.testing.assert_array_equal(dense(Same("sample") & Within(before=9, after=9), tags)[0], expected)


def test_a_mask_of_a_tag_that_tokens_lack_is_refused():
    q = jnp.ones((1, 4, 1, 8))
    with pytest.raises(UserError, match=r"tag 'frames', which the tokens lack.*'frame'"):
        attend(q, q, q, mask=NotLater("frames"), tags={"frame": np.arange(4)})


def heads(length: int, batch: int = 2, heads: int = 2, width: int = 16, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(key, (batch, length, heads, width), dtype) / 2 for key in keys)


def test_prefix_lm_by_tags():
    q, k, v = heads(LENGTH)
    expected = attend(q, k, v, mask=PrefixLM(4))
    for kind in (np.arange(LENGTH) < 4, jnp.arange(LENGTH)[None] < jnp.array([[4], [4]])):
        tags = {"kind": kind.astype(np.int32)}
        actual = attend(q, k, v, mask=Equal("kind", 1) | Causal(), tags=tags)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    lengths = jnp.array([[2], [5]])
    tags = {"kind": (jnp.arange(LENGTH)[None] < lengths).astype(np.int32)}
    actual = attend(q, k, v, mask=Equal("kind", 1) | Causal(), tags=tags)
    for example in range(2):
        alone = attend(*(x[example : example + 1] for x in (q, k, v)), mask=PrefixLM(int(lengths[example, 0])))
        np.testing.assert_allclose(actual[example], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [Full(), Causal()], ids=str)
def test_packed_samples_attend_as_they_would_alone(mask):
    """Through a stack of blocks, with padding at the end of a row."""
    stack = Stack(lambda r: Block(16, {"heads": 2}, {"hidden": 32}, rngs=r), 2, rngs=nnx.Rngs(0))
    lengths = [[3, 4, 1], [5, 2]]
    x = jax.random.normal(jax.random.key(1), (2, 9, 16))
    sample = np.full((2, 9), -1)
    for row, parts in enumerate(lengths):
        sample[row, : sum(parts)] = np.repeat(np.arange(len(parts)), parts)
    packed = jax.jit(lambda x, s: stack(x, mask=Same("sample") & mask, tags={"sample": s}))(x, jnp.asarray(sample))
    for row, parts in enumerate(lengths):
        for number, length in enumerate(parts):
            start = sum(parts[:number])
            alone = stack(x[row : row + 1, start : start + length], mask=mask)[0]
            np.testing.assert_allclose(packed[row, start : start + length], alone, rtol=1e-5, atol=1e-5)


def test_tags_over_the_attended_axes_of_a_grid():
    """Attention along the last axis: tags, like padding, have a row for each sequence."""
    q, k, v = (x.reshape(2, 4, LENGTH, 2, 16) for x in heads(4 * LENGTH))
    sample = jnp.asarray(np.random.default_rng(0).integers(0, 3, (8, LENGTH)))
    actual = attend(q, k, v, mask=Same("sample"), tags={"sample": sample}, axes=("time", "width"))
    flat = [x.reshape(8, LENGTH, 2, 16) for x in (q, k, v)]
    expected = attend(*flat, mask=Same("sample"), tags={"sample": sample}).reshape(q.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_cross_attention_by_tags():
    """A token sees the texts of its own segment; queries and keys have their own tags."""
    attention = Attention(12, 3, context_width=7, rngs=nnx.Rngs(0))
    x, context = jax.random.normal(jax.random.key(0), (2, 4, 12)), jax.random.normal(jax.random.key(1), (2, 5, 7))
    own, theirs = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0, 1])
    out = attention(x, context, mask=Same("segment"), tags={"segment": own}, context_tags={"segment": theirs})
    for segment in range(2):
        expected = attention(x[:, own == segment], context[:, theirs == segment])
        np.testing.assert_allclose(out[:, own == segment], expected, rtol=1e-5, atol=1e-6)


def output_and_gradients(backend: str, arrays, **call) -> tuple[jax.Array, ...]:
    @jax.jit
    def run(*arrays):
        out, pull = jax.vjp(lambda *x: attend(*x, **call, backend=backend), *arrays)
        return out, *pull(jnp.cos(out))

    return run(*arrays)


PACKED = jnp.sort(jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 200))))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mask", [Same("sample"), Same("sample") & Causal()], ids=str)
def test_splash_packs_samples(mask, padded):
    # The first token of a sample stays, so that every query sees a key.
    first = jnp.pad(PACKED[:, 1:] != PACKED[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    call = dict(mask=mask, tags={"sample": PACKED}, key_mask=first | (jnp.arange(200) % 3 != 1) if padded else None)
    arrays = heads(200, width=48)
    actual, expected = (output_and_gradients(backend, arrays, **call) for backend in ("splash", "reference"))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()) * 10)


def test_splash_takes_tags_that_are_known():
    """Blocks that a kernel cannot compute by positions are given to it as tables."""
    tags = {"frame": np.random.default_rng(0).integers(0, 5, 200)}
    arrays, mask = heads(200, width=48), NotLater("frame") & (Causal() | First(9))
    actual, expected = (output_and_gradients(b, arrays, mask=mask, tags=tags) for b in ("splash", "reference"))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()) * 10)


@pytest.mark.parametrize(
    "mask", [NotLater("frame"), Same("sample") & Same("frame"), Same("sample") | Causal(), Same()], ids=str
)
def test_splash_refuses_other_tags_by_name(mask):
    tags = {"sample": PACKED, "frame": PACKED, "index": PACKED}
    arrays = heads(200)
    with pytest.raises(UserError, match=r"one Same of tags that depend on the data.*Same|NotLater"):
        attend(*arrays, mask=mask, tags=tags, backend="splash")


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_auto_chooses_a_backend_that_takes_the_mask(platform, monkeypatch):
    monkeypatch.setattr("videogen.nn.backends.target_platform", lambda: platform)
    chosen = []
    monkeypatch.setattr("videogen.nn.backends.BACKENDS", {n: functools.partial(_note, chosen, n) for n in BACKENDS})
    arrays, tags = heads(512, dtype=jnp.bfloat16), {"sample": jnp.zeros((2, 512), int)}
    for mask in (Full(), Same("sample") & Causal(), NotLater("sample"), Equal("sample", 0)):
        attend(*arrays, mask=mask, tags=tags)
    assert chosen == (["splash", "splash", "reference", "splash"] if platform == "tpu" else ["cudnn"] * 4)


BACKENDS = ("reference", "cudnn", "splash")


def _note(chosen: list[str], name: str, query, key, value, masking):
    chosen.append(name)
    return query


MESH = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from videogen.nn import Attention, Block, Causal, Equal, NotLater, Same
from videogen.parallel import make_mesh

x = jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 64))
sample = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 3, (2, 24))))
tags = {"sample": sample, "frame": np.repeat(np.arange(3), 8), "kind": sample % 2}
masks = Same("sample") & Causal(), NotLater("frame") & Same("sample"), Equal("kind", 1) | NotLater("frame")
block = Block(64, {"heads": 8}, {"hidden": 48}, rngs=nnx.Rngs(0))
cross = Attention(64, 8, context_width=24, rngs=nnx.Rngs(1))
text = jax.random.normal(jax.random.key(1), (2, 5, 24))
size = jnp.log(jnp.arange(1.0, 25))[None] * jnp.array([[1.0], [0.5]])

def both(x):
    out = [block(x, mask=mask, tags=tags, key_bias=size, attended_axes=3) for mask in masks]
    call = dict(tags={"kind": sample % 2}, context_tags={"kind": np.arange(5) % 2})
    axes = ("time", "height", "width")
    return *out, cross(x, text, mask=Same("kind"), **call, axes=axes, attended_axes=3)

expected = jax.jit(both)(x)
for sizes in ({"context": 4, "data": 2}, {"context": 2, "tensor": 4}, {"context": 8}, {"fsdp": 8}):
    with jax.set_mesh(make_mesh(sizes)):
        actual = jax.jit(both)(x)
    for number, (a, e) in enumerate(zip(actual, expected)):
        np.testing.assert_allclose(a, e, atol=1e-5, rtol=1e-5, err_msg=f"{number} {sizes}")
"""


@pytest.mark.slow
def test_tags_on_a_mesh_equal_one_device(run_python):
    done = run_python(MESH, devices=8)
    assert done.returncode == 0, done.stderr

"""Streams against a slow builder: ids, labels, tags and positions in one pass; packed rows; who sees whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.language.worlds import (
    BEGIN,
    BEGIN_VIDEO,
    CHANNELS,
    END,
    KINDS,
    LAYOUTS,
    TOKENS,
    VOCABULARY,
    layouts,
    slowly,
    table,
    tokens,
)
from videogen import data
from videogen.data.text import train_bpe
from videogen.errors import UserError
from videogen.language import (
    PACKED,
    Floats,
    Ids,
    Marker,
    StreamLayout,
    Vocabulary,
    build_stream,
    compile_layouts,
    dealt,
    existing,
    read_layouts,
)
from videogen.language.model import FloatPart
from videogen.nn import mask_array

NAMES = list(LAYOUTS)


def rows(name: str, samples: int = 4, **settings):
    clips = layouts(name)[0].clips
    ids, exists, floats = tokens(samples, clips)
    choice = jnp.zeros(samples, int)
    build = jax.jit(lambda ids, exists: build_stream(table(name), choice, KINDS, VOCABULARY, ids, exists, **settings))
    return *jax.tree.map(np.asarray, (*build(ids, exists), ids, exists)), floats


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_what_the_layout_says_and_labels_are_the_next_slots(name):
    stream, _, ids, exists, _ = rows(name)
    for row in range(4):
        slots = slowly(name, ids, exists, row)
        assert int(stream.exists[row].sum()) == len(slots)
        assert stream.exists[row, : len(slots)].all()
        for n, (what, value, _, query, block) in enumerate(slots):
            number = -1 if what == "word" else 1
            assert (stream.source[row, n] == number) or (what == "word" and stream.source[row, n] in (0, 2))
            assert (stream.ids if what == "word" else stream.place)[row, n] == value
            assert bool(stream.query[row, n]) == query and stream.block[row, n] == block
            assert stream.position[row, n] == n
            after = slots[n + 1] if n + 1 < len(slots) else (None, 0, False, False, 0)
            if query:
                assert stream.predicts[row, n] == 2 and stream.target_place[row, n] == value
            elif after[2]:
                assert stream.predicts[row, n] == (0 if after[0] == "word" else 2)
                assert (stream.target if after[0] == "word" else stream.target_place)[row, n] == after[1]
            else:
                assert stream.predicts[row, n] == -1
        assert (stream.predicts[row, len(slots) :] == -1).all()


def test_the_last_id_of_a_text_predicts_the_first_vector_whatever_its_length():
    stream, _, ids, exists, _ = rows("next", 12)
    lengths = np.asarray(exists["text"].sum(1))
    assert {0, 4} <= set(lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(np.flatnonzero(stream.predicts[row] == 2), length + np.arange(TOKENS))
        assert stream.target_place[row, length] == 0
        assert stream.ids[row, length] == (BEGIN if length == 0 else ids["text"][row, length - 1])


def test_losses_are_of_outputs_alone():
    """Of a caption its ids and the marker behind them; of a story no given text and no marker that always follows."""
    caption = rows("caption")[0]
    np.testing.assert_array_equal((caption.predicts == 0).sum(1), np.asarray(tokens(4)[1]["text"].sum(1)) + 1)
    assert (caption.predicts <= 0).all()
    stream, _, _, exists, _ = rows("story")
    drawn = np.asarray(exists["text"][:, 4:].sum(1))
    np.testing.assert_array_equal((stream.predicts == 0).sum(1), drawn + 1)
    np.testing.assert_array_equal((stream.predicts == 2).sum(1), 2 * TOKENS)
    targets = np.asarray(stream.target)[np.asarray(stream.predicts) == 0]
    assert (targets == BEGIN_VIDEO).sum() == 4 and END not in targets and not np.isin(targets, [BEGIN]).any()


@pytest.mark.parametrize(("name", "packed"), [("draw", 1), ("story", 2), ("codes", 2), ("caption", 3)])
def test_who_sees_whom(name, packed):
    """Text never sees queries; queries see what is before them and each other; a prefix sees itself both ways."""
    samples = 2 * packed
    stream, _, ids, exists, _ = rows(name, samples, packed=packed)
    seen = mask_array(PACKED, stream.ids.shape[1], stream.ids.shape[1], stream.tags, stream.tags)
    seen = np.asarray(seen & stream.exists[:, None, :])
    for row in range(2):
        slots = [
            (s, n, slot) for s in range(packed) for n, slot in enumerate(slowly(name, ids, exists, row * packed + s))
        ]
        expected = np.zeros((len(slots), len(slots)), bool)
        for i, (own, n, (_, _, _, _, block)) in enumerate(slots):
            for j, (other, m, (_, _, _, query, others)) in enumerate(slots):
                expected[i, j] = own == other and ((m <= n and not query) or (block > 0 and block == others))
        count = len(slots)
        np.testing.assert_array_equal(seen[row, :count, :count], expected)
        assert not seen[row, :, count:].any()


def test_samples_in_a_row_leave_no_padding_between_them_and_one_that_does_not_fit_is_left_out():
    stream, fits, _, exists, _ = rows("draw", 8, packed=4)
    lengths = np.asarray(exists["text"].sum(1)) + 2 + TOKENS
    assert fits.all()
    np.testing.assert_array_equal(stream.exists.sum(1), lengths.reshape(2, 4).sum(1))
    length = int(lengths[:3].sum())
    short, fits, *_ = rows("draw", 8, packed=4, length=length)
    filled = np.zeros(2, int)
    for i, own in enumerate(lengths):
        assert bool(fits[i]) == (filled[i // 4] + own <= length)
        filled[i // 4] += own if fits[i] else 0
    np.testing.assert_array_equal(short.exists.sum(1), filled)
    assert fits[:3].all() and float(short.padding()) < 0.2


def test_captions_of_shapes_are_packed_with_less_than_a_percent_of_padding():
    """VideoPoet, 11.6: both directions in one group, 8 samples to a row; the length is found in one batch."""
    source = data.build({"name": "shapes"}, clip=data.Clip(1, 16, 16, 8.0), seed=0, split="train")
    captions = [source.caption(i) for i in range(1024)]
    text = train_bpe(captions, 512, 24)
    kinds = {"text": Ids("text", 24, text=True), "video": Floats(1, 16, 4)}
    vocabulary = Vocabulary.of(text=512, markers=("begin", "begin_video", "end"))
    both = list(read_layouts({name: LAYOUTS[name] for name in ("draw", "caption")}, kinds).values())
    group = compile_layouts(both, kinds, vocabulary)

    @functools.partial(jax.jit, static_argnames="length")
    def fill(ids, exists, choice, length=None):
        order = dealt(existing(group, choice, kinds, {"text": exists}).sum(1), 8)
        arrays = ({"text": ids[order]}, {"text": exists[order]})
        stream, fits = build_stream(group, choice[order], kinds, vocabulary, *arrays, packed=8, length=length)
        return stream.exists.sum(1), fits

    length, rng = None, np.random.default_rng(0)
    for start in range(0, 1024, 256):
        ids, exists = text.encode(captions[start : start + 256])
        slots, fits = fill(ids, exists, rng.integers(0, 2, 256), length)
        if length is not None:
            assert 1 - float(slots.mean()) / length < 0.01 and fits.mean() > 0.98
        length = length or int(slots.max())


def test_questions_and_answers_share_the_words_and_features_have_no_head():
    """A video-language model: features of an encoder, a question, an answer that alone is learned."""
    kinds = {"features": Floats(2, 1, 8), "question": Ids("text", 3, text=True), "answer": Ids("text", 2, text=True)}
    items = ({"marker": "begin"}, {"input": "features"}, {"input": "question"}, {"marker": "end_video"})
    section = {"sequence": (*items, {"output": "answer"}, {"marker": "end"})}
    layout = StreamLayout.read(section, kinds)
    ids = {"question": jnp.array([[3, 4, 0]]), "answer": jnp.array([[7, 8]])}
    exists = {"question": jnp.array([[True, True, False]]), "answer": jnp.ones((1, 2), bool)}
    stream, _ = build_stream(
        compile_layouts([layout], kinds, VOCABULARY), jnp.zeros(1, int), kinds, VOCABULARY, ids, exists
    )
    np.testing.assert_array_equal(stream.ids[0, :9], [BEGIN, 0, 0, 3, 4, 20, 7, 8, END])
    np.testing.assert_array_equal(stream.target[0, :8] * (stream.predicts[0, :8] == 0), [0, 0, 0, 0, 0, 7, 8, END])
    part = FloatPart(kinds["features"], {"name": "none"}, 16, queries=False, rngs=nnx.Rngs(0))
    assert part.embed(jnp.ones((1, 2, 8)), jnp.arange(2)).shape == (1, 2, 16) and part.head is None


def test_layouts_of_one_length_group_share_a_table():
    both, choice = table("draw", "caption"), jnp.array([0, 1, 1, 0])
    ids, exists, _ = tokens(4)
    mixed, _ = build_stream(both, choice, KINDS, VOCABULARY, ids, exists)
    for number, name in enumerate(("draw", "caption")):
        alone, _ = build_stream(table(name), jnp.zeros(4, int), KINDS, VOCABULARY, ids, exists)
        own, width = np.flatnonzero(choice == number), alone.ids.shape[1]
        for field in ("ids", "exists", "predicts", "target", "query"):
            a, b = (np.asarray(getattr(s, field))[own][:, : int(s.exists[own].sum(1).max())] for s in (mixed, alone))
            np.testing.assert_array_equal(a, b, err_msg=f"{field} of {name}, {width}")


# The layouts of VideoPoet, section 2.3 ------------------------------------------------------------------------------


def poet(task: str, portrait: bool = False) -> list[str]:
    """The order of the special ids of a task, written as data."""
    text = ({"marker": "bot"}, {"input": "text"}, {"marker": "eot"})
    shape = ({"marker": "res"},) if portrait else ()
    drawn = {
        "image": ({"marker": "bov"}, {"output": "codes"}),
        "video": ({"marker": "bov"}, {"output": "codes"}, {"marker": "eov"}, {"marker": "eos"}),
    }[task]
    layout = StreamLayout.read({"sequence": ({"marker": "bos"}, *text, *shape, *drawn), "prefix": True}, KINDS)
    return [item.word for item in layout.items if isinstance(item, Marker)]


def test_the_layouts_of_videopoet_are_data():
    assert poet("video") == ["bos", "bot", "eot", "bov", "eov", "eos"]
    assert poet("image") == ["bos", "bot", "eot", "bov"]
    assert "res" in poet("video", portrait=True)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (({"input": "text"}, {"output": "video"}), "a layout begins with a marker"),
        (({"marker": "begin"}, {"input": "text"}), "without an output has nothing to learn"),
        (({"marker": "begin"}, {"output": "text"}), "drawn until a marker: put one behind it"),
        (({"marker": "begin"}, {"output": "text", "queries": True}, {"marker": "end"}), "queries predict floats"),
        (({"marker": "begin"}, {"input": "vidoe"}), "did you mean 'video'"),
        (({"marker": "begin"}, {"input": "video"}, {"output": "video"}), "of clip 0 twice"),
        (({"marker": "begin"}, {"given": "video"}), "has one of the keys marker, input, output"),
        (({"marker": "begin"}, {"input": "video", "queries": True}), "'input' has no 'queries'"),
        (({"marker": "begin"}, {"output": "video", "branch": 1}), "branch 1 begins with an output"),
        (({"marker": "begin", "branch": 1}, {"output": "video", "branch": 1}), "items of no branch first"),
        (({"marker": "begin"}, {"marker": "end", "branch": 2}, {"output": "video", "branch": 2}), "branch 1, 2, …"),
        (({"marker": "begin"}, {"marker": "end", "branch": 1}, {"output": "video"}), "got .0, 1, 0."),
    ],
)
def test_layouts_that_cannot_be_are_refused(items, message):
    with pytest.raises(UserError, match=message):
        read_layouts({"task": {"sequence": items}}, KINDS)


def test_building_compiles_and_its_floats_are_those_of_the_samples():
    ids, exists, floats = tokens(4)
    build = jax.jit(
        lambda ids, exists: build_stream(table("draw"), jnp.zeros(4, int), KINDS, VOCABULARY, ids, exists, packed=2)[0]
    )
    stream = build(ids, exists)
    values = floats.reshape(2, -1, CHANNELS)
    where = np.argwhere(np.asarray(stream.predicts[0]) == 2)[:, 0]
    found = values[0][stream.target_place[0, where]]
    np.testing.assert_array_equal(found, floats[:2].reshape(-1, CHANNELS))

"""Models of streams: rows and their targets, cached = full, memory of fixed size, eviction as a fresh start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import streams
from videogen.data.text import ByteTokenizer
from videogen.errors import UserError
from videogen.language import Vocabulary
from videogen.language.watching import FRAME, MARKERS, TURN, StreamShape, Turns, build_rows, frames_that_fit
from videogen.losses import streaming_loss, streaming_targets
from videogen.nn.linear import draw_by_name
from videogen.nn.masks import INDEX, mask_array
from videogen.tasks.watcher import RULES

FRAMES, EACH, LENGTH = 7, 10, 5


def tiny(**changes):
    """Streams of 7 frames of 12×12 pixels as ten tokens each, a transformer of two layers, one a mixture of depths."""
    config = streams.get_config("size=debug,layers=dense")
    config.data.clip.update({"frames": FRAMES, "height": 12, "width": 12})
    config.data.batch_size = config.data.eval_batch_size = 2
    network = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}
    config.model.vision.encoder = {"name": "patches", "patch": 4, "transformer": network, "temporal": 0}
    config.model.vision.reducers = ({"name": "grid_and_mean", "side": 3},)
    config.model.backbone.transformer.update({"width": 16, "layers": 2, "heads": 2, "mlp_width": 16})
    config.model.backbone.hooks = ({"name": "depth", "layer": 0, "share": 0.2},)
    config.text.tokenizer.update({"name": "bytes", "vocabulary_size": 257, "length": LENGTH})
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def built():
    """A task and its modules, whose parameters are all noisy."""
    task = tasks.build(tiny())
    task.texts = ByteTokenizer(LENGTH)
    modules = task.init(nnx.Rngs(0))
    draw_by_name(modules, jax.random.key(1))
    leaves, tree = jax.tree.flatten(nnx.state(modules, nnx.Param))
    noisy = [x + 0.1 * jnp.cos(7.0 * jnp.arange(x.size).reshape(x.shape)) for x in leaves]
    nnx.update(modules, jax.tree.unflatten(tree, noisy))
    return task, modules


@pytest.fixture(scope="module")
def batch():
    """Random frames, and in every stream three events, a question about the present and one about the future."""
    rng = np.random.default_rng(0)
    found = {"video": rng.integers(0, 256, (2, FRAMES, 12, 12, 3)).astype(np.uint8)}
    found["times"] = np.broadcast_to(np.arange(FRAMES, dtype=np.float32) / 2, (2, FRAMES))
    found["turn_frame"] = np.array([[1, 3, 6, 4, 2, 6, -1, -1], [0, 2, 5, 6, 0, 5, -1, -1]], np.int32)
    found["turn_kind"] = np.array([[0, 0, 0, 2, 4, 3, 0, 0]] * 2, np.int32)
    for i in range(8):
        there = {"asked": i in (3, 4, 5), "said": i in (0, 1, 2, 3, 5)}
        for name, own in there.items():
            mask = np.arange(LENGTH) < own * rng.integers(1, LENGTH + 1, (2, 1))
            found[f"{name}_{i}_ids"] = (rng.integers(1, 257, (2, LENGTH)) * mask).astype(np.int32)
            found[f"{name}_{i}_mask"] = mask
    return found


@pytest.fixture(scope="module")
def predicted(built, batch):
    task, modules = built
    return task.predictor(modules)(batch)


@pytest.fixture(scope="module")
def watcher(built):
    task, modules = built
    return task.watching(modules, frames=6, keep=0.5)


# Rows -----------------------------------------------------------------------------------------------------------------

VOCABULARY = Vocabulary.of(text=20, markers=MARKERS)
BEGIN, SEPARATOR, QUESTION, ANSWER, END = range(20, 25)
SHAPE = StreamShape(frames=3, each=2, turns=4, words=3)
# Behind frame 1 "4 5" is said; behind frame 0 "7" is asked and nothing said; behind frame 2 "8 9" asked, "6" said.
TURNS = Turns(
    jnp.array([[1, 0, 2, -1]]),
    jnp.array([[[0, 0, 0], [7, 0, 0], [8, 9, 0], [0, 0, 0]]]),
    jnp.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]], bool),
    jnp.array([[[4, 5, 0], [0, 0, 0], [6, 0, 0], [0, 0, 0]]]),
    jnp.array([[[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]], bool),
)


def test_the_capacity_of_published_numbers():
    """Users 20: 10 + 1 tokens a frame, 8,192 slots, 2 frames per second: 744 frames, 6.2 minutes."""
    assert frames_that_fit(8192, 10) == 744 and pytest.approx(6.2) == 744 / 2 / 60
    assert frames_that_fit(8192, 10, words=100) == 735 and frames_that_fit(10, 10) == 0 == frames_that_fit(5, 10, 9)
    assert frames_that_fit(11, 10) == 1
    config = streams.get_config("size=paper")
    assert config.data.clip.frames == 744 and config.data.clip.fps == 2.0


def test_rows_are_frames_with_separators_and_turns_beside_them():
    rows = build_rows(TURNS, SHAPE, VOCABULARY)
    assert rows.ids.shape == (1, 9 + 4 * 9) and SHAPE.main == 9 and SHAPE.turn == 9
    assert rows.ids[0, :9].tolist() == [BEGIN, 0, 0, SEPARATOR, 0, 0, SEPARATOR, 0, 0]
    assert rows.visual[:9].tolist() == [-1, 0, 1, -1, 2, 3, -1, 4, 5] and (rows.visual[9:] == -1).all()
    assert rows.exists[0, :9].all()
    turn = np.asarray(rows.ids[0, 9:]).reshape(4, 9)
    there = np.asarray(rows.exists[0, 9:]).reshape(4, 9)
    assert [turn[i][there[i]].tolist() for i in range(4)] == [
        [ANSWER, 4, 5],
        [QUESTION, 7, END],
        [QUESTION, 8, 9, END, ANSWER, 6],
        [],
    ]
    index = np.asarray(rows.tags[INDEX][0, 9:]).reshape(4, 9)
    # Positions go on behind the frame that a turn leaves.
    assert [index[i][there[i]].tolist() for i in range(3)] == [[6, 7, 8], [3, 4, 5], [9, 10, 11, 12, 13, 14]]
    assert rows.tags[INDEX][0, :9].tolist() == list(range(9))
    assert (np.asarray(rows.tags[TURN][0, 9:]).reshape(4, 9) == np.arange(1, 5)[:, None]).all()
    assert rows.tags[FRAME][0, :9].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    spans = rows.spans(SHAPE)
    assert spans.clip[0, :9].tolist() == [-1, 0, 0, -1, 1, 1, -1, 2, 2] and spans.token[0, :6].tolist() == [0, 0, 1] * 2
    assert spans.shape == (3, 2, 3 + 4 * 9, 2)


def test_frames_see_no_turn_and_turns_see_their_frames_alone():
    from videogen.language.watching import MASK

    rows = build_rows(TURNS, SHAPE, VOCABULARY)
    count = rows.ids.shape[1]
    seen = np.asarray(mask_array(MASK, count, count, rows.tags, rows.tags))[0] & np.asarray(rows.exists[0])[None]
    assert (seen[:9, :9] == np.tri(9, dtype=bool)).all() and not seen[:9, 9:].any()
    own = np.arange(count)
    for turn, frames in ((0, 2), (1, 1), (2, 3)):
        here = own[(own >= 9 + 9 * turn) & (own < 18 + 9 * turn) & np.asarray(rows.exists[0])]
        for i, slot in enumerate(here):
            expected = [*range(3 * frames), *here[: i + 1]]
            assert np.flatnonzero(seen[slot]).tolist() == expected


def test_targets_are_those_of_the_streaming_loss():
    """O11: answers, and silence behind the frames and questions after which nothing is said."""
    rows = build_rows(TURNS, SHAPE, VOCABULARY)
    assert rows.asks[0, :3].tolist() == [2, 5, 8]
    assert (rows.speaks & rows.silent).sum() == 0
    labelled = np.asarray(rows.silent | rows.speaks)[0]
    pairs = [
        (int(np.asarray(rows.asks)[0, i]), int(rows.target[0, i]), bool(rows.silent[0, i]))
        for i in np.flatnonzero(labelled)
    ]
    first = 9
    assert pairs == [
        *((2, SEPARATOR, True), (5, ANSWER, False), (8, SEPARATOR, True)),
        *((first + 5, 4, False), (first + 6, 5, False), (first + 7, END, False)),
        (first + 9 + 4, SEPARATOR, True),
        *((first + 18 + 4, ANSWER, False), (first + 18 + 5, 6, False), (first + 18 + 6, END, False)),
    ]
    # The same stream in one line, without questions: frames 0 … 2, and "4 5" behind frame 1.
    ids = jnp.array([[BEGIN, 0, 0, SEPARATOR, 0, 0, ANSWER, 4, 5, END, 0, 0]])
    frame = jnp.array([[-1, 0, 0, -1, 1, 1, -1, -1, -1, -1, 2, 2]])
    said = jnp.zeros((1, 12), bool).at[0, 6:10].set(True)
    targets, answer, silent = streaming_targets(ids, frame, said, SEPARATOR)
    line = sorted(np.asarray(targets)[np.asarray(answer | silent)].tolist())
    assert line == sorted(target for slot, target, _ in pairs if slot < 9 + 9)


def test_the_loss_is_the_streaming_loss_of_what_is_predicted(built, batch, predicted):
    task, modules = built
    loss, outcome = jax.jit(lambda b: task.loss(modules, b, jax.random.key(0), jnp.zeros((), int)))(batch)
    labelled = predicted["silent"] | predicted["speaks"]
    assert float(loss) == pytest.approx(predicted["nats"][labelled].mean(), rel=1e-5)
    assert set(outcome.metrics) == {"loss", "streaming", "streaming_answer_accuracy", "streaming_silence_accuracy"}
    rows = build_rows(task.turns(batch), task.stream, task.vocabulary)
    perfect = 40.0 * jax.nn.one_hot(rows.target, task.vocabulary.size)
    assert float(streaming_loss(perfect, rows.target, rows.speaks, rows.silent)) < 1e-6


def test_without_times_frames_are_those_of_the_rate(built, batch, predicted):
    task, modules = built
    without = {name: array for name, array in batch.items() if name != "times"}
    assert np.array_equal(task.frames(modules, without).seconds, task.frames(modules, batch).seconds)
    late = task.frames(modules, {**batch, "times": batch["times"] + 100})
    np.testing.assert_allclose(late.seconds, np.tile(np.arange(FRAMES) / 2, 2)[:, None])


@pytest.mark.slow
def test_every_parameter_learns(built, batch):
    task, modules = built
    graph, state = nnx.split(modules["language"])

    def run(state):
        return task.loss({"language": nnx.merge(graph, state)}, batch, jax.random.key(0), jnp.zeros((), int))[0]

    gradient = jax.jit(jax.grad(run, allow_int=True))(state)
    params = nnx.state(modules["language"], nnx.Param)
    found = [float(jnp.abs(x).max()) for x in jax.tree.leaves(nnx.filter_state(gradient, nnx.Param))]
    assert len(found) == len(jax.tree.leaves(params)) and min(found) > 0


# Sessions -------------------------------------------------------------------------------------------------------------


def watch(watcher, frames, times):
    memory, silence = watcher.begin(), []
    for frame, second in zip(frames, times, strict=True):
        memory, found = watcher.run("push", memory, frame, np.float32(second))
        silence.append(float(found.silence))
    return memory, np.array(silence)


def test_watching_frame_by_frame_is_the_row_as_a_whole(built, batch, predicted):
    """Cached = full, also with a mixture of depths."""
    task, modules = built
    whole = task.watching(modules)
    assert whole.frames == FRAMES and whole.context == FRAMES * (EACH + 1)
    memory, silence = watch(whole, batch["video"][0], batch["times"][0])
    np.testing.assert_allclose(silence, predicted["silence"][0, :FRAMES], rtol=1e-4)
    assert int(memory.count) == FRAMES and int(memory.state.position[0]) == task.stream.main
    # A question behind the last frame, as the row has it where such a turn is put there.
    turn = 3
    asked = {name: array.copy() for name, array in batch.items()}
    asked["turn_frame"][0, turn] = FRAMES - 1
    ids, mask = task.texts.encode(["how?"])
    asked[f"asked_{turn}_ids"][0], asked[f"asked_{turn}_mask"][0] = ids[0], mask[0]
    found = task.predictor(modules)(asked)["silence"][0, FRAMES + turn * (LENGTH + 2)]
    np.testing.assert_allclose(float(whole.run("asked", memory, ids[0], mask[0])[1]), found, rtol=1e-4)


@pytest.mark.parametrize("question", [None, "abcde"])
def test_what_is_said_is_the_likeliest_word_each_time(built, batch, question):
    """Greedy words, by the full row with these words in the place of what is said; also behind the longest question."""
    task, modules = built
    whole = task.watching(modules)
    memory, _ = watch(whole, batch["video"][0], batch["times"][0])
    asked, mask = task.texts.encode([question or ""])
    state = memory.state if question is None else whole.run("asked", memory, asked[0], mask[0])[0]
    ids, there = map(np.asarray, whole.run("say", state, memory.count))
    count = int(there.sum())
    assert there[:count].all() and (ids[count:] == 0).all() and count > 0
    said = {name: array.copy() for name, array in batch.items()}
    said["turn_frame"][0, 0], said["turn_kind"][0, 0] = FRAMES - 1, 0
    said["said_0_ids"][0], said["said_0_mask"][0] = ids, there
    said["asked_0_ids"][0], said["asked_0_mask"][0] = asked[0], mask[0] if question else False

    @jax.jit
    def scored(said):
        rows = build_rows(task.turns(said), task.stream, task.vocabulary)
        return task.logits(modules["language"], task.frames(modules, said), rows)[0]

    scores = scored(said)
    allowed = task.vocabulary.mask("text")
    allowed[task.vocabulary.word("end")] = True
    first = FRAMES + 1
    likeliest = np.where(allowed, np.asarray(scores), -np.inf)[first : first + count].argmax(-1)
    np.testing.assert_array_equal(likeliest, ids[:count] + task.vocabulary["text"].start)


def test_memory_and_programs_do_not_grow(watcher):
    """Users 20: bytes and compiled programs are the same however long a stream is."""
    from videogen.inference.eyes import size_of

    rng = np.random.default_rng(0)
    memory, held, sizes = watcher.begin(), 0, set()
    for number in range(20):
        if held == watcher.frames:
            index = np.asarray(watcher.run("choose", memory))
            memory, held = watcher.run("forget", memory, index, np.arange(len(index), dtype=np.float32) / 2), len(index)
        frame = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        memory, _ = watcher.run("push", memory, frame, np.float32(held / 2))
        held += 1
        sizes.add(size_of(memory))
        # Positions stay in the range of training.
        assert int(memory.count) == held <= 6 and int(memory.state.position[0]) == held * 11 <= FRAMES * 11, number
    assert len(sizes) == 1
    assert {name: watcher.programs[name]._cache_size() for name in ("push", "choose", "forget")} == dict.fromkeys(
        ("push", "choose", "forget"), 1
    )


def test_what_stays_after_an_eviction_is_a_fresh_start(watcher, batch):
    video, times = batch["video"][1], batch["times"][1]
    memory, _ = watch(watcher, video[:6], times[:6])
    index = np.asarray(watcher.run("choose", memory))
    assert index.tolist() == [3, 4, 5]
    memory = watcher.run("forget", memory, index, times[:3])
    memory, found = watcher.run("push", memory, video[6], times[3])
    fresh, silence = watch(watcher, video[3:7], times[:4])
    np.testing.assert_allclose(float(found.silence), silence[-1], rtol=1e-4)
    np.testing.assert_allclose(memory.state.features, fresh.state.features, rtol=1e-3, atol=1e-5)
    assert int(memory.state.position[0]) == int(fresh.state.position[0]) == 44


def test_question_b_after_a_is_b_alone(watcher, batch):
    """Users 11: nothing of a question or of what was said stays in memory."""
    text = ByteTokenizer(LENGTH)
    (a, b), masks = text.encode(["how?", "where"])
    memory, _ = watch(watcher, batch["video"][0][:4], batch["times"][0][:4])
    before = jax.tree.map(np.array, memory)
    alone = watcher.run("asked", memory, b, masks[1])
    state, _ = watcher.run("asked", memory, a, masks[0])
    watcher.run("say", state, memory.count)
    after = watcher.run("asked", memory, b, masks[1])
    assert float(alone[1]) == float(after[1])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, memory))


def test_rules_of_eviction():
    features = jnp.eye(6)[jnp.array([0, 0, 1, 2, 2, 3])] + 0.0
    dropped = jnp.array([0.0, 1.0, 0.2, 0.5, 1.0, 1.0])
    assert RULES["oldest"](features, dropped, 4).tolist() == [2, 3, 4, 5]
    # Frames 0 and 1 are alike, and 3 and 4: of each pair the earlier goes.
    assert RULES["alike"](features, dropped, 4).tolist() == [1, 2, 4, 5]
    # The newest stays, then those that changed most, of equal ones the newer.
    assert RULES["still"](features, dropped, 4).tolist() == [0, 2, 3, 5]
    assert RULES["still"](features, dropped, 5).tolist() == [0, 2, 3, 4, 5]


def test_the_share_of_dropped_tokens(watcher):
    memory = watcher.begin()
    frame = np.random.default_rng(3).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    found = []
    for _ in range(2):
        memory, glance = watcher.run("push", memory, frame, np.float32(0))
        found.append(float(glance.dropped))
    # The first frame is kept whole; the same frame again is dropped.
    assert found == [0.0, 1.0]
    # A token is dropped where its cosine with the one before is above a half.
    other = (frame // 2 + np.random.default_rng(4).integers(0, 128, frame.shape)).astype(np.uint8)
    before = np.asarray(memory.before)
    memory, glance = watcher.run("push", memory, other, np.float32(0))
    now = np.asarray(memory.before)
    alike = (now * before).sum(-1) / np.linalg.norm(now, axis=-1) / np.linalg.norm(before, axis=-1)
    assert float(glance.dropped) == pytest.approx((alike > 0.5).mean())
    np.testing.assert_allclose(glance.features, now.mean(0), atol=1e-6)


def test_settings_that_streams_cannot_have_are_refused(built):
    task, modules = built
    for frames in (1, FRAMES + 1):
        with pytest.raises(UserError, match=f"the memory holds 2 to {FRAMES} frames"):
            task.watching(modules, frames=frames)
    with pytest.raises(UserError, match="unknown rule of eviction 'newest'"):
        task.watching(modules, evict="newest")
    for changes, message in (
        ({"model.vision.reducers": ({"name": "tokens", "budget": 4, "rule": "score"},)}, "look at a question"),
        ({"model.backbone.hooks": ({"name": "beside", "layer": 0},)}, "take depth alone"),
        ({"model.backbone.hooks": ({"name": "bipartite", "layer": 0, "removed": 2},)}, "take depth alone"),
        ({"data.clip.fps": 0.0}, "a stream has a rate"),
        ({"session.evict": "newest"}, "newest"),
        ({"session.threshold": 1.5}, "threshold"),
    ):
        with pytest.raises(UserError, match=message):
            tasks.build(tiny(**changes))
    with pytest.raises(UserError, match="have no turns"):
        task.turns({"video": np.zeros((1, 2, 12, 12, 3), np.uint8)})


def test_kept_frames_are_at_least_one_and_leave_room(built):
    task, modules = built
    kept = [
        task.watching(modules, frames=frames, keep=keep).kept
        for frames, keep in ((6, 0.5), (6, 0.0), (6, 1.0), (7, 0.5))
    ]
    assert kept == [3, 1, 5, 3]

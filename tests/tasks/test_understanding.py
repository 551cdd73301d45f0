"""The task of questions about clips: what counts in the loss, packing, several clips, options, budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import understanding
from videogen.data.text import ByteTokenizer
from videogen.errors import UserError
from videogen.inference.programs import Asked
from videogen.language.asking import Seen
from videogen.nn import MicroBatch, Stream
from videogen.nn.linear import draw_by_name

LENGTH, TOKENS, VISUAL = 5, 16, 1
"""Ids of a text, tokens of a clip, the number of their segment among the kinds (behind question and answer): 2."""
PAD = 0


def tiny(clips: tuple[int, ...] = (1,), **changes):
    """Clips of 4×8×8 as 4 frames of 2×2 tokens, texts of at most 5 bytes, a transformer of two layers."""
    config = understanding.get_config("size=debug")
    config.data.clip.update({"frames": 4, "height": 8, "width": 8, "fps": 4.0})
    config.data.batch_size = config.data.eval_batch_size = 4
    network = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}
    with config.unlocked():
        del config.parts["encoder"], config.data.source["kinds"], config.data.source["needle"]
    config.data.source.questions_per_clip = 1
    config.model.vision.encoder = {"name": "patches", "patch": 4, "transformer": network, "temporal": 0}
    config.model.backbone.transformer.update({"width": 16, "layers": 2, "heads": 2, "mlp_width": 16})
    config.text.tokenizer.update({"name": "bytes", "vocabulary_size": 257, "length": LENGTH})
    config.layouts = {f"of_{count}": understanding.layouts(count) for count in clips}
    config.update_from_flattened_dict(changes)
    return config


MERGED = ({"name": "bipartite", "removed": 7},)
REDUCED = {"model.vision.reducers": ({"name": "grid", "side": 2},)}


BUILT: dict[str, tuple] = {}


def built(clips: tuple[int, ...] = (1,), **changes):
    """The task and its modules; weights depend on names alone, so that tasks share them."""
    if (name := repr((clips, sorted(changes.items())))) not in BUILT:
        BUILT[name] = _build(clips, changes)
    return BUILT[name]


def _build(clips: tuple[int, ...], changes: dict):
    task = tasks.build(tiny(clips, **changes))
    task.texts = ByteTokenizer(LENGTH)
    modules = task.init(nnx.Rngs(0))
    draw_by_name(modules, jax.random.key(1))
    leaves, tree = jax.tree.flatten(nnx.state(modules, nnx.Param))
    noisy = [x + 0.1 * jnp.cos(7.0 * jnp.arange(x.size).reshape(x.shape)) for x in leaves]
    nnx.update(modules, jax.tree.unflatten(tree, noisy))
    return task, modules


def batch(count: int = 4, seed: int = 0, clips: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for name, least in (("question", 0), ("answer", 1), ("wrong", 1)):
        lengths = rng.integers(least, LENGTH + 1, count)
        found[f"{name}_mask"] = np.arange(LENGTH) < lengths[:, None]
        found[f"{name}_ids"] = (rng.integers(1, 257, (count, LENGTH)) * found[f"{name}_mask"]).astype(np.int32)
    sides = (count,) if clips is None else (count, clips)
    found["video"] = rng.integers(0, 256, (*sides, 4, 8, 8, 3)).astype(np.uint8)
    found["times"] = np.broadcast_to(np.sort(rng.uniform(0, 4, 4)).astype(np.float32), (*sides, 4))
    return found


def few(examples, rows):
    return {name: array[rows] for name, array in examples.items()}


def scored(task, modules, examples, packed=1, view=None):
    """Rows of a batch, nats of every slot and which of them count."""
    graph, state = nnx.split(modules["language"])

    @jax.jit
    def run(state, examples):
        live = nnx.merge(graph, state)
        clips = task.reader.clips({}, examples)
        stream, scores, hits, said = task.scored(live, examples, clips, view or task.view, packed=packed)
        return stream, scores.values, scores.counted, hits

    return jax.tree.map(np.asarray, run(state, examples))


def loss(task, modules, examples, key=0, gradient=False, group="language"):
    graphs, states = {}, {}
    for name, module in modules.items():
        graphs[name], states[name] = nnx.split(module)

    def run(own, states):
        live = {name: nnx.merge(graphs[name], {**states, group: own}[name]) for name in graphs}
        value, outcome = task.loss(live, examples, jax.random.key(key), jnp.zeros((), int))
        return value, outcome.metrics

    run = jax.jit(jax.value_and_grad(run, has_aux=True, allow_int=True) if gradient else run)
    return run(states[group], states)


def asked(count: int, examples):
    """The batch with so many questions about each clip, those of samples behind it."""
    names = [name for name in examples if name.split("_")[0] in ("question", "answer", "wrong")]
    turned = {n: np.stack([np.roll(examples[n], -i, axis=0) for i in range(count)], axis=1) for n in names}
    return {**examples, **turned}


def test_several_questions_about_a_clip_are_as_many_samples():
    three = {"ask": understanding.layouts(questions=3)}
    task, modules = built(**{"layouts": three, "model.packed": 2})
    alone, _ = built()
    examples = batch()
    several = asked(3, examples)
    stream, nats, counted, _ = scored(task, modules, several, packed=1)
    assert stream.branch.max() == 3
    for number in range(3):
        own = {n: x[:, number] if n.startswith(("question", "answer")) else x for n, x in several.items()}
        other, expected, there, _ = scored(alone, modules, own)
        for row in range(4):
            mine = counted[row] & (stream.branch[row] == number + 1)
            np.testing.assert_allclose(nats[row][mine], expected[row][there[row]], rtol=2e-5, atol=1e-6)
            np.testing.assert_array_equal(stream.position[row][mine], other.position[row][there[row]])
    # Rows of two samples have the same losses.
    both, packed, there, _ = scored(task, modules, several, packed=2)
    np.testing.assert_allclose(np.sort(packed[there]), np.sort(nats[counted]), rtol=2e-5, atol=1e-6)
    # Who is asked afterwards is asked one question.
    found = task.answering(modules).measured(examples)
    expected = alone.answering(modules).measured(examples)
    np.testing.assert_allclose(found["nats"], expected["nats"], rtol=1e-5)


def test_samples_and_layouts_have_equally_many_questions():
    task, modules = built(layouts={"ask": understanding.layouts(questions=3)})
    with pytest.raises(UserError, match="3 answers and the samples of the data 2: set data.source.questions_per_clip"):
        loss(task, modules, asked(2, batch()))
    with pytest.raises(UserError, match="3 answers and the samples of the data 1"):
        loss(task, modules, batch())
    differing = {"one": understanding.layouts(1, 2), "two": understanding.layouts(2)}
    with pytest.raises(UserError, match="equally many answers, got one: 2, two: 1"):
        tasks.build(tiny(layouts=differing))


def test_reducers_that_look_at_the_question_have_the_first_alone():
    changes = {"model.vision.reducers": ({"name": "question_pooling", "window": (1, 2, 2)},)}
    task, modules = built(layouts={"ask": understanding.layouts(questions=2)}, **changes)
    alone, same = built(**changes)
    examples = batch()
    assert loss(task, modules, asked(2, examples))[0] == loss(alone, same, examples)[0]


def test_losses_are_of_answers_and_the_marker_behind_them_alone():
    task, modules = built()
    examples = batch()
    stream, nats, counted, hits = scored(task, modules, examples)
    end = task.vocabulary.word("end")
    for row in range(4):
        length = int(examples["answer_mask"][row].sum())
        targets = stream.target[row][counted[row]]
        np.testing.assert_array_equal(targets, [*examples["answer_ids"][row, :length], end])
    assert not counted[stream.source == 2].any()
    value, metrics = loss(task, modules, examples)
    np.testing.assert_allclose(value, nats[counted].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], hits[counted].mean(), rtol=1e-5)
    assert metrics["targets"] == counted.sum() / 4 and metrics["visual_kept"] == TOKENS


@pytest.mark.slow
def test_the_end_is_a_target_whatever_the_padding_and_an_unanswered_sample_has_none():
    """Masks come from lengths, not from ids (users 12)."""
    task, modules = built()
    examples = batch()
    end = task.vocabulary.word("end")
    padded = {**examples, "answer_ids": np.where(examples["answer_mask"], examples["answer_ids"], end % 257)}
    for name in ("values", "counted"):
        a, b = (scored(task, modules, own)[1 if name == "values" else 2] for own in (examples, padded))
        np.testing.assert_array_equal(a[scored(task, modules, examples)[2]], b[scored(task, modules, padded)[2]])
    silent = {**examples, "answer_mask": examples["answer_mask"] & (np.arange(4) != 2)[:, None]}
    counted = scored(task, modules, silent)[2]
    assert not counted[2].any() and counted[[0, 1, 3]].any(1).all()
    nothing = {**examples, "answer_mask": np.zeros_like(examples["answer_mask"])}
    (value, metrics), gradient = loss(task, modules, nothing, gradient=True)
    assert value == 0 and metrics["targets"] == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_every_parameter_learns_from_the_answers():
    task, modules = built()
    (_, _), gradient = loss(task, modules, batch(), gradient=True)
    params = nnx.to_flat_state(nnx.state(gradient, nnx.Param))
    still = ["/".join(map(str, path)) for path, value in params if not np.any(value.get_value())]
    assert still == []


@pytest.mark.parametrize("packed", [2, 4])
def test_samples_of_a_row_are_as_alone(packed):
    """Users 13: packed samples, with positions that restart and clips of their own."""
    task, modules = built()
    examples = batch(4, seed=3)
    stream, nats, counted, _ = scored(task, modules, examples)
    other, packed_nats, also, _ = scored(task, modules, examples, packed=packed)
    alone = {tuple(stream.target[row][counted[row]]): nats[row][counted[row]] for row in range(4)}
    for row in range(4 // packed):
        for sample in range(packed):
            here = also[row] & (other.sample[row] == sample)
            np.testing.assert_allclose(packed_nats[row][here], alone[tuple(other.target[row][here])], rtol=2e-5)


@pytest.mark.slow
def test_no_clip_one_clip_and_three_are_as_one_at_a_time():
    task, modules = built((0, 1, 2, 3))
    examples = batch(3, clips=3)
    examples["video_mask"] = np.arange(3) < np.array([[0], [1], [3]])
    stream, nats, counted, _ = scored(task, modules, examples)
    assert [int((stream.source[row] == 2).sum()) for row in range(3)] == [0, TOKENS, 3 * TOKENS]
    for row, clips in enumerate((0, 1, 3)):
        own = few(examples, [row])
        del own["video_mask"]
        own |= {name: own[name][:, :clips] for name in ("video", "times")}
        own = {name: array for name, array in own.items() if clips or name not in ("video", "times")}
        _, alone, also, _ = scored(task, modules, own)
        np.testing.assert_allclose(nats[row][counted[row]], alone[0][also[0]], rtol=2e-5)
    with pytest.raises(UserError, match="no layout shows 2 clips, only 0, 1"):
        scored(built((0, 1))[0], modules, few(batch(2, clips=2), [0]))


@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_other_samples_of_a_batch():
    task, modules = built()
    examples = batch()
    whole = scored(task, modules, examples)
    for row in range(4):
        _, alone, counted, _ = scored(task, modules, few(examples, [row]))
        np.testing.assert_allclose(whole[1][row][whole[2][row]], alone[0][counted[0]], rtol=2e-5)


def test_prompt_programs_ask_a_model_of_parts_of_a_video():
    quota = ({"name": "budgeted_grids", "budget": 8, "ladder": (0, 1, 2)},)
    task, modules = built(**{"model.vision.reducers": quota})
    answerer, text = task.answering(modules), ByteTokenizer(LENGTH)
    asked = Asked(answerer, text, lambda prompt: ("yes", "no") if prompt == "b?" else (), evenly=True)
    examples = batch(1)
    video = {"video": examples["video"][0], "times": np.arange(4, dtype=np.float32) / 4}
    np.testing.assert_allclose(asked.times(video), [0, 0.25, 0.5, 0.75])

    def alone(prompt, there=(1, 1, 1, 1), weights=(1, 1, 1, 1), **more):
        ids, mask = text.encode([prompt])
        own = {"video": examples["video"], "times": video["times"][None], "frame_mask": np.array([there], bool)}
        own |= {"question_ids": ids, "question_mask": mask, "weights": np.array([weights], np.float32)}
        return answerer.run({**own, **more})

    whole = asked(Seen(video, 0.0, 0.75), "a?", 9)
    expected = alone("a?")
    assert whole.text == text.decode(expected["ids"][0][expected["exists"][0]]) and whole.yes is None
    assert whole.tokens == expected["exists"].sum() and whole.seconds > 0
    ids, mask = text.encode(["yes", "no", *[""] * 6])
    options = {"options_ids": ids[None], "options_mask": mask[None]}
    for seen, there, weights in (
        (Seen(video, 0.5, 0.5), (0, 0, 1, 0), (1, 1, 1, 1)),
        (Seen(video, 0.25, 0.5), (0, 1, 1, 0), (1, 1, 1, 1)),
        (Seen(video, 0.0, 0.75, (0.1, 0.9, 0.0, 0.0)), (1, 1, 1, 1), (0.1, 0.9, 0.0, 0.0)),
    ):
        scores = alone("b?", there, weights, **options)["scores"][0, :2]
        found = asked(seen, "b?", 1)
        assert found.yes == pytest.approx(1 / (1 + np.exp(scores[1] - scores[0])), rel=1e-5)
        assert found.text == ("yes", "no")[int(scores[1] > scores[0])] and found.tokens == len(found.text)
    with pytest.raises(UserError, match="more than 5 tokens"):
        asked(Seen(video, 0.0, 1.0), "a long one?", 1)
    many = Asked(answerer, text, lambda prompt: ("a", "b", "c"), most=2)
    with pytest.raises(UserError, match="3 options, and at most 2"):
        many(Seen(video, 0.0, 1.0), "b?", 1)


def test_options_are_as_likely_as_answers_and_answers_are_the_likeliest_ids():
    task, modules = built()
    examples = batch()
    options = np.stack([examples["answer_ids"], examples["wrong_ids"], np.zeros_like(examples["wrong_ids"])], axis=1)
    masks = np.stack([examples["answer_mask"], examples["wrong_mask"], np.zeros_like(examples["wrong_mask"])], axis=1)
    answerer = task.answering(modules)
    said = answerer.run({**examples, "options_ids": options, "options_mask": masks})
    found, ids, exists = said["scores"], said["ids"], said["exists"]
    assert np.isneginf(found[:, 2]).all()
    np.testing.assert_allclose(said["nats"], -found[:, 0], rtol=1e-6)
    for number, name in enumerate(("answer", "wrong")):
        own = {**examples, "answer_ids": examples[f"{name}_ids"], "answer_mask": examples[f"{name}_mask"]}
        _, nats, counted, _ = scored(task, modules, own)
        np.testing.assert_allclose(found[:, number], -np.where(counted, nats, 0).sum(1), rtol=2e-5)
    alone = answerer.run({name: array for name, array in examples.items() if "answer" not in name})
    np.testing.assert_array_equal(alone["ids"], ids)
    for row in range(4):
        # What is written has itself as the likeliest ids.
        own = {**few(examples, [row]), "answer_ids": ids[[row]], "answer_mask": exists[[row]]}
        _, _, counted, hits = scored(task, modules, own)
        # At the longest answer the marker is put there.
        assert hits[0][counted[0]][: int(exists[row].sum())].all()


def test_the_summary_has_accuracies_by_kind_and_that_of_chance():
    task, modules = built()
    examples = batch()
    options = np.stack([examples["wrong_ids"], examples["answer_ids"]], axis=1)
    masks = np.stack([examples["wrong_mask"], examples["answer_mask"]], axis=1)
    masks[3] = False
    asked = {**examples, "options_ids": options, "options_mask": masks, "answer_index": np.array([1, 1, 1, -1])}
    kinds = [kind.encode().ljust(32, b"\0") for kind in ("colour", "colour", "form", "reading")]
    asked["kind"] = np.stack([np.frombuffer(kind, np.uint8) for kind in kinds])
    measured = task.answering(modules).measured(asked)
    assert measured["options"].tolist() == [2, 2, 2, 0] and measured["kind"].tolist()[2] == "form"
    known = {**measured, "right": np.array([True, False, True, False]), "open": np.array([True, False, False, True])}
    found = task.answering(modules).summary([known])
    assert found["chosen"] == pytest.approx(2 / 3) and found["chance"] == 0.5
    assert (found["chosen/colour"], found["chosen/form"], found["written"]) == (0.5, 1.0, 0.5)
    assert "chosen/reading" not in found and found["written/reading"] == 1.0
    value, metrics = loss(task, modules, examples)
    np.testing.assert_allclose(found["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(found["targets"], metrics["targets"], rtol=1e-6)


@pytest.mark.slow
def test_the_mean_over_budgets_is_that_of_the_losses_in_any_order():
    """O5: one scale is the plain loss; the order of scales does not matter."""
    plain, modules = built(**REDUCED)
    examples = batch()
    each = []
    for budget in (16, 4):
        one, _ = built(**REDUCED, **{"model.vision.budgets": (budget,)})
        each.append(float(loss(one, modules, examples)[0]))
    np.testing.assert_allclose(each[0], loss(plain, modules, examples)[0], rtol=1e-6)
    assert abs(each[0] - each[1]) > 1e-4
    for budgets in ((16, 4), (4, 16)):
        nest, _ = built(**REDUCED, **{"model.vision.budgets": budgets, "model.vision.over_budgets": "mean"})
        np.testing.assert_allclose(loss(nest, modules, examples)[0], np.mean(each), rtol=1e-6)
    drawn, _ = built(**REDUCED, **{"model.vision.budgets": (16, 4)})
    found = [loss(drawn, modules, examples, key) for key in range(6)]
    kept = [int(metrics["visual_kept"]) for _, metrics in found]
    assert set(kept) == {16, 4}
    np.testing.assert_allclose([value for value, _ in found], [each[(16, 4).index(n)] for n in kept], rtol=1e-6)


@pytest.mark.slow
def test_micro_batches_with_drawn_budgets_sum_to_the_whole():
    task, modules = built(**REDUCED, **{"model.vision.budgets": (16, 4)})
    examples = batch(4)
    value, _ = loss(task, modules, examples, 1)
    graph, state = nnx.split(modules["language"])

    @jax.jit
    def part(number, known):
        own = jax.tree.map(lambda x: jnp.asarray(x)[jnp.arange(2) * 2 + number], examples)
        micro = MicroBatch(number, 2, known)
        live = {"language": nnx.merge(graph, state)}
        return task.loss(live, own, jax.random.key(1), jnp.zeros((), int), micro)[0], micro.means

    means = [part(number, None)[1] for number in (0, 1)]
    known = jax.tree.map(lambda a, b: (a + b) / 2, *means)
    np.testing.assert_allclose(np.mean([part(number, known)[0] for number in (0, 1)]), value, rtol=1e-5)


@pytest.mark.slow
def test_words_have_one_position_however_many_tokens_a_clip_has():
    """The tokens of a clip are together: with all of them and with 4 the question begins at the same position."""
    task, modules = built(**REDUCED, **{"model.vision.budgets": (16, 4)})
    examples = batch()
    found = []
    for view in task.shapes:
        for packed in (1, 2):
            stream, *_ = scored(task, modules, examples, packed=packed, view=view)
            words = stream.exists & (stream.source != 2)
            for row, sample in np.ndindex(4 // packed, packed):
                own = words[row] & (stream.sample[row] == sample)
                kinds = stream.source[row][own]
                position = stream.position[row][own]
                # begin, begin_clip, the clip, end_clip, the question, ….
                np.testing.assert_array_equal(position, [0, 1, *range(3, 1 + len(position))])
                found.append((tuple(kinds), tuple(position)))
            clip = stream.exists & (stream.source == 2)
            assert (stream.position[clip] == 2).all() and clip.sum() == 4 * task.shapes[view].tokens
    assert len(set(found)) == len(set(found[:4]))
    counted, _ = built(**REDUCED, **{"model.vision.together": False})
    stream, *_ = scored(counted, modules, examples)
    assert stream.position[0].max() == stream.exists[0].sum() - 1


def test_a_token_of_size_two_is_a_token_twice():
    """Proportional attention, with a cache and without."""
    _, modules = built()
    tower = modules["language"].stream.backbone
    x = jax.random.normal(jax.random.key(0), (1, 4, 16))
    once, twice = jnp.array([[0, 1, 1, 2]]), jnp.array([[0, 1, 1, 1, 1, 2]])
    bias = jnp.log(jnp.array([[1.0, 2.0, 2.0, 1.0]]))

    @jax.jit
    def run(x, index, bias=None):
        tags = {"index": index, "block": 0 * index, "query": 0 * index}
        exists = jnp.ones(index.shape, bool)
        stream = Stream(tower.begin(1, index.shape[1], ("block", "query")))
        call = dict(key_bias=bias)
        return tower(x, exists, tags=tags, **call)[:, -1], tower(x, exists, tags=tags, stream=stream, **call)[:, -1]

    expected = run(x[:, jnp.array([0, 1, 1, 2, 2, 3])], twice)
    for found in run(x, once, bias):
        np.testing.assert_allclose(found, expected[0], atol=1e-5)
    np.testing.assert_allclose(expected[1], expected[0], atol=1e-5)


def test_a_prompt_that_does_not_fit_is_one_line():
    """Users 4: nothing is cut; the line names lengths, frames and budget."""
    with pytest.raises(
        UserError, match=r"may take 31 > 24 slots \(model.length\): 16 of 1 clips \(4 frames each\) and 15"
    ):
        built(**{"model.length": 24})
    with pytest.raises(UserError, match="4 frames each, budget 16"):
        built(**REDUCED, **{"model.length": 24, "model.vision.budgets": (16, 4)})
    built(**{"model.length": 31})


def test_budgets_are_lowered_to_what_a_row_has_room_for(caplog):
    # 15 slots are of texts and markers.
    fit = {"model.vision.fit": True}
    task = tasks.build(tiny(**fit, **{"model.length": 21, "model.vision.reducers": MERGED}))
    assert task.view.budget == 6 and task.shapes[task.view].tokens == 6
    assert "room for 6 of 9 tokens" in caplog.text
    assert task.init(nnx.Rngs(0))["language"].vision.shapes == ((task.view, task.shapes[task.view]),)
    several = {"model.vision.reducers": MERGED, "model.vision.budgets": (9, 4)}
    assert tasks.build(tiny(**fit, **several, **{"model.length": 21})).section.budgets == (6, 4)
    assert tasks.build(tiny(**fit, **several, **{"model.length": 24})).section.budgets == (9, 4)
    # Beside two clips 17 slots are of texts and markers.
    two = tasks.build(tiny((1, 2), **fit, **several, **{"model.length": 31}))
    assert two.section.budgets == (7, 4)
    with pytest.raises(UserError, match="model.length=15 has no room for a clip"):
        tasks.build(tiny(**fit, **several, **{"model.length": 15}))
    with pytest.raises(UserError, match="fits into model.length: set it"):
        tasks.build(tiny(**fit, **several))


def test_bad_settings_are_one_line():
    for changes, message in (
        ({"data.clip.fps": 0.0}, None),
        ({"data.batch_size": 6, "model.packed": 4}, "does not divide into rows"),
        ({"data.image_batch_size": 4}, "clips of one shape"),
        ({"model.vision.encoder": {"name": "patch", "patch": 4}}, "unknown vision encoder"),
        ({"losses.answers.weight": -1.0}, "weight of loss of answers"),
    ):
        if message:
            with pytest.raises(UserError, match=message):
                tasks.build(tiny(**changes))
    task, modules = built(**{"data.clip.fps": 0.0})
    with pytest.raises(UserError, match="nothing says when the frames are shown"):
        loss(task, modules, {name: array for name, array in batch().items() if name != "times"})
    with pytest.raises(UserError, match="names the text 'question', and the samples"):
        loss(task, modules, {name: array for name, array in batch().items() if "question" not in name})

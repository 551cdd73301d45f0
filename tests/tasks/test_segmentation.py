"""Masks from a marker: its place, losses and their weights, what is shown where none is written, sizes, a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import videolisa
from videogen.errors import UserError
from videogen.losses.masks import pixel_cross_entropy, soft_dice
from videogen.perception import MaskHead, at_marker
from videogen.runs.records import FILE, read_metrics
from videogen.shapes import VideoShape
from videogen.tasks.segmentation import MARK, TRACK, marks
from videogen.training.loop import train

CLIPS = {"none": 0, "one": 1, "three": 3}


def sequence(clips):
    shown = []
    for clip in range(clips):
        shown += [{"marker": "begin_clip"}, {"input": "video", "clip": clip}, {"marker": "end_clip"}]
    return ({"marker": "begin"}, *shown, *videolisa.SEQUENCE[4:])


def tiny(reducers=({"name": "sparse_dense", "frames": 1},), **layouts):
    config = videolisa.get_config("size=debug")
    config.data.clip.update({"frames": 8, "height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 2
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    config.model.vision.encoder.update({"patch": 4, "transformer": sizes, "temporal": 0})
    config.model.vision.reducers = reducers
    config.model.backbone.transformer.update(sizes)
    config.model.masks.decoder.update({"width": 16, "hidden": 16, "layers": 1, "heads": 2})
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 8, "vocabulary_size": 257}
    config.optimizer.language.update({"name": "adamw", "learning_rate": 1e-2, "warmup": 0})
    if layouts:
        config.layouts = {name: {"sequence": s, "prefix": False, "share": 1.0} for name, s in layouts.items()}
    return config


def batch(marked=(True, False), clips=None):
    random, size = np.random.default_rng(0), len(marked)
    shape = (size, 8, 8, 8, 3) if clips is None else (size, clips, 8, 8, 8, 3)
    found = {"video": random.integers(0, 256, shape, np.uint8)} if clips != 0 else {}
    for name, lengths in (("question", (8, 5)), ("answer", (3, 4))):
        found[f"{name}_ids"] = random.integers(1, 257, (size, 8)).astype(np.int32)
        found[f"{name}_mask"] = np.arange(8)[None] < np.resize(lengths, size)[:, None]
    marked = np.array(marked)
    masks = random.random((size, 8, 8, 8)) < 0.3
    return {**found, "masks": masks & marked[:, None, None, None], "marked": marked}


def live(task):
    return task.init(nnx.Rngs(0))


def test_the_marker_is_one_id_of_its_own():
    task = tasks.build(tiny())
    vocabulary = task.vocabulary
    assert vocabulary[TRACK].size == 1 and vocabulary[TRACK].start == 257 == vocabulary.word("trk")
    others = [vocabulary.word(word) for word in task.model.markers]
    assert len({*others, 257}) == 7 and min(others) > 257
    for words in (("begin", "begin_clip", "end_clip", "answer", "stop", "end", "trk"),):
        config = tiny()
        config.model.markers = words
        with pytest.raises(UserError, match="two markers of the vocabulary have one name"):
            tasks.build(config)


@pytest.mark.slow
@pytest.mark.parametrize("reducers", [(), ({"name": "sparse_dense", "frames": 1},)], ids=["all", "reduced"])
@pytest.mark.parametrize("layout", CLIPS)
def test_a_vector_at_the_marker_is_found_behind_any_clips(layout, reducers):
    """Users 14: the place is found after clips are inserted and after every reducer."""
    task = tasks.build(tiny(reducers, **{layout: sequence(CLIPS[layout])}))
    modules, given = live(task), batch((True, False, True), CLIPS[layout])
    given |= marks(given["marked"][:, None])
    clips = task.reader.clips(modules, given) if CLIPS[layout] else None
    stream = task.read_rows(modules["language"], given, clips, task.view)[0]
    ids = np.asarray(stream.ids)
    x = jax.random.normal(jax.random.key(0), (*ids.shape, 5))
    found, there = at_marker(stream, x, [*task.kinds].index(MARK))
    assert there.tolist() == [True, False, True]
    for row in (0, 2):
        (slot,) = np.flatnonzero((ids[row] == 257) & np.asarray(stream.exists[row]))
        np.testing.assert_array_equal(found[row], x[row, slot])
        # It stands behind the marker that ends the answer, and before the end.
        around = [task.vocabulary.word(word) for word in ("stop", "trk", "end")]
        assert ids[row, slot - 1 : slot + 2].tolist() == around
    assert not ((ids[1] == 257) & np.asarray(stream.exists[1])).any()


@pytest.mark.slow
def test_the_loss_is_the_weighted_sum_of_words_pixels_and_dice():
    task = tasks.build(tiny())
    modules, given = live(task), batch()
    said = {**given, **marks(given["marked"][:, None])}
    loss, outcome = jax.jit(lambda given: task.loss(modules, given, jax.random.key(0), 0))(given)
    clips = task.reader.clips(modules, said)
    _, _, _, logits, there, _ = task.masks_of(modules, said, clips, task.view)
    assert there.tolist() == [True, False] and logits.shape == (2, 8, 8, 8)
    metrics = {name: float(value) for name, value in outcome.metrics.items()}
    # Only the clip with a marker counts.
    assert metrics["pixel_cross_entropy"] == pytest.approx(
        float(pixel_cross_entropy(logits[0], given["masks"][0]).mean()), rel=1e-4
    )
    assert metrics["dice"] == pytest.approx(float(soft_dice(logits[0], given["masks"][0]).mean()), rel=1e-4)
    expected = metrics["words"] + 2 * metrics["pixel_cross_entropy"] + 0.5 * metrics["dice"]
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # 3 + 4 ids of answers, each with its stop and its end, and one marker.
    assert metrics["targets"] == pytest.approx((7 + 4 + 1) / 2)


@pytest.mark.slow
def test_without_a_marker_masks_cost_nothing_and_are_empty():
    task = tasks.build(tiny())
    modules, given = live(task), batch((False, False))
    graph, state = nnx.split(modules["language"])

    def loss(state):
        return task.loss({"language": nnx.merge(graph, state)}, given, jax.random.key(0), 0)

    (_, outcome), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert float(outcome.metrics["pixel_cross_entropy"]) == float(outcome.metrics["dice"]) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(slope))
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(nnx.to_pure_dict(slope)["masks"]))
    # The end is likelier than the marker: nothing is shown, and an empty mask is right.
    segmenter = task.answering(modules)
    read = {**given, **marks(given["marked"][:, None])}
    found = segmenter.segments(read)
    for row, marked in zip(found["masks"], found["marked"], strict=True):
        assert marked or not row.any()
    compared = segmenter.compared_masks(read)
    for j, marked in zip(compared["j"], found["marked"], strict=True):
        assert marked or j == 1.0


def test_masks_follow_the_order_of_the_frames():
    head = MaskHead(
        VideoShape(3, 8, 8), 6, 5, decoder={"width": 16, "hidden": 8, "layers": 1, "heads": 2}, rngs=nnx.Rngs(0)
    )
    grid, state = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 5)), jax.random.normal(jax.random.key(1), (2, 6))
    graph, weights = nnx.split(head)
    run = jax.jit(lambda grid, state: nnx.merge(graph, weights)(grid, state))
    found, order = run(grid, state), jnp.array([2, 0, 1])
    assert found.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(run(grid[:, order], state), found[:, order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(grid[1:], state[1:]), found[1:], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(run(grid, state + 1) - found).max()) > 1e-4


def test_what_cannot_be_is_refused():
    config = tiny()
    config.layouts.ask.sequence = (*videolisa.SEQUENCE[:8],)
    with pytest.raises(UserError, match="the layouts need the output 'mark'"):
        tasks.build(config)
    config = tiny()
    config.model.packed = 2
    with pytest.raises(UserError, match="masks are of one sample of a row"):
        tasks.build(config)
    config = tiny()
    config.model.masks = {"decoder": {}, "head": 1}
    with pytest.raises(UserError, match="model.masks has decoder and encoder"):
        tasks.build(config)
    task = tasks.build(tiny())
    for name in ("masks", "marked"):
        given = batch()
        del given[name]
        with pytest.raises(UserError, match=f"no '{name}'"):
            task.loss(live(task), given, jax.random.key(0), 0)


def test_published_settings():
    config = videolisa.get_config("size=paper")
    assert config.model.vision.reducers == ({"name": "sparse_dense", "frames": 4},) and config.data.clip.frames == 32
    assert [config.losses[name].weight for name in ("answers", "pixel_cross_entropy", "dice")] == [1.0, 2.0, 0.5]
    assert config.model.backbone.lora.to_dict() == {"rank": 8, "alpha": 16, "only": ("query", "value")}
    assert (config.data.batch_size, config.steps, config.optimizer.language.learning_rate) == (128, 6000, 3e-4)
    task = tasks.build(config)
    # 32 frames as one token each and 4 of 729.
    assert task.shapes[task.view].tokens == 32 + 4 * 729
    assert set(task.parts_of(config)) == {"language_model", "encoder", "mask_decoder"}


@pytest.mark.slow
def test_a_run_learns_and_is_evaluated(tmp_path):
    config = tiny()
    config.steps = config.eval_every = config.checkpoint_every = 6
    config.log_every = 1
    config.data.eval_batch_size = 4
    # As many bytes as the longest expression has.
    config.text.tokenizer.length = 48
    train(config, tmp_path)
    records = read_metrics(tmp_path / FILE)
    found = next(r for r in records if "eval/j_and_f" in r)
    assert found["eval/j_and_f"] == pytest.approx((found["eval/j"] + found["eval/f"]) / 2)
    assert {f"eval/j_and_f/{kind}" for kind in ("colour", "form", "twice", "hidden", "absent")} <= set(found)
    assert 0 <= found["eval/marked"] <= 1

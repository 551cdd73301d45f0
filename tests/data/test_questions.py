"""Questions about shapes: their grammar, their answers, and that the text alone tells nothing."""

import collections
import re

import jax
import numpy as np
import pytest

from tests.data.test_inputs import text_config
from tests.processes import REPOSITORY
from videogen import data
from videogen.configs import phenaki
from videogen.data.clip import Clip, spread
from videogen.data.inputs import HeldOut, abstract_batch, build_pipeline, build_source, held_out, new_text_tokenizer
from videogen.data.pipeline import Pipeline
from videogen.data.question_frames import render
from videogen.data.question_scenes import MOTIONLESS
from videogen.data.questions import (
    KINDS,
    OPEN,
    PER_FRAME,
    VALUES,
    answer_of,
    chances,
    objects_of,
    parse_question,
    parts_of,
)
from videogen.data.questions_source import CLOSED, LONGEST_READING, QuestionsSource
from videogen.data.shapes_source import COLOURS, held_out_together, split_of
from videogen.data.text import ByteTokenizer
from videogen.errors import UserError
from videogen.parallel import make_mesh

CLIP = Clip(9, 24, 24)


def source(clip=CLIP, seed=0, split="train", **settings):
    return QuestionsSource(clip=clip, seed=seed, split=split, **settings)


def of_kind(kind, count=40, **settings):
    return [source(kinds=(kind,), distractors=2, **settings)[i] for i in range(count)]


def colour_at(frame, y, x):
    """The name of the colour of a pixel."""
    return min(COLOURS, key=lambda name: np.abs(np.subtract(COLOURS[name], frame[y, x].astype(int))).sum())


def colours_in(frame):
    """The colours that some pixel has exactly."""
    return {name for name, colour in COLOURS.items() if (frame == colour).all(-1).any()}


def test_a_sample_depends_on_seed_and_index_only():
    first, again = source(kinds=tuple(KINDS)), source(kinds=tuple(KINDS))
    for i in (12, 3, 7, 0):
        a, b = first[i], again.sample(i, np.random.default_rng(9))
        np.testing.assert_array_equal(a["video"], b["video"])
        assert all(a[name] == b[name] for name in (*first.texts, "options", "kind", "attributes"))
        assert first.caption(i) == a["caption"] and set(first.texts_at(i)) >= {a[name] for name in first.texts}
    assert any(first[i]["question"] != source(seed=1, kinds=tuple(KINDS))[i]["question"] for i in range(12))


@pytest.mark.parametrize("split", ["train", "eval", "composition"])
def test_questions_read_back_and_are_answered_from_the_scene(split):
    kinds = tuple(kind for kind in KINDS if split != "composition" or kind not in MOTIONLESS)
    for i in range(10 * len(kinds)):
        sample = source(split=split, kinds=kinds, distractors=2)[i]
        question = parse_question(sample["question"])
        assert str(question) == sample["question"] and question.kind == sample["kind"] == kinds[i % len(kinds)]
        assert answer_of(sample["question"], sample["attributes"]) == sample["answer"] != sample["wrong"]
        wrong = [a != b for a, b in zip(sample["answer"].split(), sample["wrong"].split(), strict=True)]
        assert sum(wrong) == 1
        if sample["kind"] in OPEN:
            assert sample["options"] == () and (len(wrong) == 9) == (sample["kind"] in PER_FRAME)
            assert sample["kind"] != "describe" or sample["answer"] == sample["caption"]
        else:
            assert {sample["answer"], sample["wrong"]} <= set(sample["options"]) and sample[
                "options"
            ] == question.options


def test_every_example_of_the_grammar_is_read():
    assert {kind: parse_question(text).kind for kind, text in KINDS.items()} == {kind: kind for kind in KINDS}
    assert parse_question("where does the red shape move at second 2.125?").second == 2.125


@pytest.mark.parametrize("text", ["", "which colour is the dog?", "which colour is the circle", "a red circle"])
def test_other_text_is_no_question(text):
    with pytest.raises(UserError, match="is no question about shapes; write it like 'which colour is"):
        parse_question(text)


def test_a_scene_without_what_is_asked_for_is_named():
    with pytest.raises(UserError, match="the scene has nothing to answer 'which colour is the flash"):
        answer_of("which colour is the flash?", source(kinds=("count",))[0]["attributes"])


def test_objects_and_parts_of_questions():
    objects = {text: objects_of(text) for text in KINDS.values()}
    assert objects[KINDS["form"]] == ("red shape",) and objects[KINDS["direction"]] == ("circle",)
    assert objects[KINDS["detail"]] == ("dot", "circle") and objects[KINDS["background"]] == ()
    assert objects[KINDS["needle"]] == ("flash",) and objects[KINDS["colour"]] == ("shape",)
    assert parts_of(KINDS["moment"]) == ("where does the red shape move at second 0?",)
    assert parts_of(KINDS["order"]) == ("how many shapes are there?", "which colour is the shape that turns last?")
    assert parts_of(KINDS["symbols"]) == ("which colours are the symbols, one after another?",)
    assert all(parse_question(part) for text in KINDS.values() for part in parts_of(text))
    assert {kind for kind, text in KINDS.items() if parts_of(text)} == {"moment", "order", "symbols"}


def test_chance_is_one_over_the_number_of_answers():
    expected = {"colour": 1 / 6, "form": 1 / 4, "direction": 1 / 4, "count": 1 / 3, "order": (1 / 6 + 1 / 4) / 2}
    expected |= {"moment": 1 / 4, "background": 1 / 3, "needle": (1 / 6 + 1 / 4) / 2, "symbols": (1 / 6 + 1 / 4) / 2}
    assert chances(tuple(KINDS)) == pytest.approx(
        expected | {"detail": 1 / 6, "presence": 1 / 2, "reading": 0, "cells": 0, "describe": 0}
    )


@pytest.mark.parametrize(
    "split, many", [("train", 1600), *(pytest.param(name, 4000, marks=pytest.mark.slow) for name in ("train", "eval"))]
)
def test_the_text_of_a_question_tells_nothing_of_its_answer(split, many):
    """One who learned the likeliest answer to each question by heart is right by chance on other samples."""
    asked = source(split=split, distractors=2)
    pairs = []
    for i in range(many):
        question, scene = asked.asked(i)
        pairs.append((question.kind, f"{question.what} {question.by} {question.value}", answer_of(question, scene)))
    learned = collections.defaultdict(collections.Counter)
    for kind, text, answer in pairs[: 3 * many // 4]:
        learned[kind, text][answer] += 1
    rest = pairs[3 * many // 4 :]
    right = np.mean([learned[kind, text].most_common(1)[0][0] == answer for kind, text, answer in rest])
    chance = np.mean(list(chances(CLOSED).values()))
    assert right == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / len(rest)))
    # Nor is one answer likelier than the others.
    for what, words in VALUES.items():
        counts = collections.Counter(answer for kind, text, answer in pairs if text.startswith(what))
        share, total = 1 / len(words), counts.total()
        assert set(counts) == set(words)
        assert max(counts.values()) / total < share + 4 * np.sqrt(share * (1 - share) / total)


def test_splits_are_those_of_captions():
    for split in ("train", "eval", "composition"):
        moving = source(split=split, kinds=("colour", "moment", "needle"), distractors=1)
        assert {split_of(moving.asked(i)[1]) for i in range(30)} == {split}
    shapes = [s for i in range(30) for s in source(split="composition").asked(i)[1]["shapes"]]
    apart = [held_out_together(s["colour"], s["form"], way) for s in shapes for way in s["directions"]]
    assert any(apart)
    streams = [
        {
            str(source(split=split, kinds=("symbols",), seed=seed).asked(i)[1]["symbols"])
            for i in range(50)
            for seed in (0, 1)
        }
        for split in ("train", "eval")
    ]
    assert not streams[0] & streams[1]


def test_the_flash_is_where_it_is_said_to_be_and_shows_its_symbol():
    for sample in of_kind("needle", 20):
        flash, video = sample["attributes"]["flash"], sample["video"].astype(int)
        middle = [colour_at(frame, 12, 12) for frame in sample["video"]]
        assert middle[flash["first"]] == flash["colour"] and sample["answer"] in (flash["colour"], flash["form"])
        without = render({**sample["attributes"], "flash": None}, np.arange(9), 24, 24).astype(int)
        assert np.flatnonzero(np.abs(video - without).max((1, 2, 3))).tolist() == [flash["first"]]


@pytest.mark.parametrize("depth, first", [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_the_depth_of_a_flash(depth, first):
    sample = source(kinds=("needle",), depth=depth, needle=3)[0]
    assert sample["attributes"]["flash"]["first"] == first and sample["attributes"]["flash"]["count"] == 3


def test_every_frame_shows_its_symbol():
    for sample in of_kind("symbols", 10) + of_kind("reading", 5):
        symbols = sample["attributes"]["symbols"]
        assert [colour_at(frame, 12, 12) for frame in sample["video"]] == [symbol["colour"] for symbol in symbols]
        assert all(a[name] != b[name] for a, b in zip(symbols, symbols[1:], strict=False) for name in a)
        if sample["kind"] == "reading":
            assert sample["answer"] == " ".join(symbol["colour"] for symbol in symbols)


def test_presence_is_yes_where_a_shape_or_a_flash_is_there():
    said = collections.Counter()
    for sample in of_kind("presence", 80):
        by, scene = parse_question(sample["question"]).by, sample["attributes"]
        said[by, sample["answer"]] += 1
        if by == "flash":
            assert (sample["answer"] == "yes") == ("flash" in scene)
            continue
        shown = {shape["directions"][0] if by == "direction" else shape[by] for shape in scene["shapes"]}
        assert (sample["answer"] == "yes") == (parse_question(sample["question"]).value in shown)
        assert sample["options"] == ("yes", "no")
    assert len(said) == 8
    assert objects_of("is there a red shape?") == ("red shape",)
    assert objects_of("is there a flash?") == ("flash",)
    assert parse_question("is there a shape that moves left?").by == "direction"


def test_dots_have_their_colour_in_the_middle_of_their_shape():
    for sample in of_kind("detail", 20, clip=Clip(9, 36, 36)):
        for shape in sample["attributes"]["shapes"]:
            y, x = (int(v * 36) for v in shape["start"])
            assert shape["dot"] == colour_at(sample["video"][0], y, x) != shape["colour"]
        dots = [shape["dot"] for shape in sample["attributes"]["shapes"]]
        assert len(set(dots)) == len(dots)


def test_what_comes_first_is_seen_first():
    for sample in of_kind("order"):
        question, shapes = parse_question(sample["question"]), sample["attributes"]["shapes"]
        assert 2 <= len(shapes) <= 3
        if question.by == "comes":
            there = [colours_in(frame) for frame in sample["video"]]
            ordered = sorted(shapes, key=lambda shape: shape["enters"])
            assert not there[0]
            for i, shape in enumerate(ordered):
                seen = {s["colour"] for s in ordered[: i + 1]}
                assert seen == next(colours for colours in there if shape["colour"] in colours)
            assert sample["answer"] == ordered[0 if question.value == "first" else -1][question.what]


def test_a_moment_is_clear_of_the_turn_and_both_halves_are_asked_about():
    sides = []
    for sample in of_kind("moment"):
        question = parse_question(sample["question"])
        shape = next(s for s in sample["attributes"]["shapes"] if s[question.by] == question.value)
        progress = question.second * 8 / 8
        assert abs(progress - shape["turn"]) > 0.1 and progress < 1
        assert sample["answer"] == shape["directions"][int(progress > shape["turn"])]
        sides.append(progress > shape["turn"])
    assert 0.25 < np.mean(sides) < 0.75


def test_cells_are_where_the_shape_is():
    for sample in of_kind("cells", 10):
        for cell, frame in zip(sample["answer"].split(), sample["video"].astype(int), strict=True):
            y, x = np.argwhere(np.ptp(frame, -1) > 80).mean(0)
            assert int(y // 8) * 3 + int(x // 8) == int(cell) - 1


def test_cells_are_thirds_of_both_sides():
    wide = QuestionsSource(clip=Clip(9, 24, 48, 8.0), seed=0, split="train", kinds=("cells",))
    for i in range(8):
        sample = wide[i]
        for cell, frame in zip(sample["answer"].split(), sample["video"].astype(int), strict=True):
            y, x = np.argwhere(np.ptp(frame, -1) > 80).mean(0)
            assert int(y // 8) * 3 + int(x // 16) == int(cell) - 1


@pytest.mark.parametrize("frames, side", [(32, 24), (32, 36), (17, 48)])
def test_longer_and_larger_clips(frames, side):
    clip = Clip(frames, side, side, 4.0)
    for i in range(len(KINDS)):
        sample = source(clip=clip, kinds=tuple(KINDS), distractors=2)[i]
        assert sample["video"].shape == (frames, side, side, 3) and sample["video"].dtype == np.uint8
        np.testing.assert_allclose(sample["times"], np.arange(frames) / 4, rtol=1e-6)


def test_a_long_video_is_drawn_only_where_it_is_looked_at():
    haystack = source(clip=Clip(32, 24, 24, 1.0), kinds=("needle",), seconds=320.0, needle=20, depth=0.5)
    sample = haystack[0]
    np.testing.assert_array_equal(sample["times"], spread(320, 32).astype(np.float32))
    assert sample["video"].shape[0] == 32 and haystack.fps == pytest.approx(31 / 319)
    assert sample["attributes"]["flash"]["first"] == 150
    np.testing.assert_array_equal(haystack.frames(0, spread(320, 32)[3:5]), sample["video"][3:5])
    assert colour_at(haystack.frames(0, np.array([155]))[0], 12, 12) == sample["attributes"]["flash"]["colour"]
    assert len(source(clip=Clip(8, 24, 24, 8.0), kinds=("symbols",), seconds=320.0)[0]["attributes"]["symbols"]) == 2560


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kinds": ("color",)}, "unknown kind of question 'color'.*colour"),
        ({"kinds": ()}, "kinds names no kind"),
        ({"distractors": 3}, "distractors must be 0, 1 or 2, got 3"),
        ({"needle": 9}, "needle must be from 1 to 8 frames"),
        ({"depth": 1.5}, "depth is a place from 0"),
        ({"seconds": 0.5}, "a video of 4 frames cannot give 9"),
        ({"clip": Clip(1, 24, 24)}, "of the kind 'colour' need clips of at least 2 frames, got 1"),
        ({"split": "composition", "kinds": ("symbols",)}, "no kind of question that the split 'composition' has"),
        ({"kinds": ("reading",), "seconds": 20.0}, f"160 words, one a frame; use {LONGEST_READING} or fewer"),
        ({"split": "test"}, "unknown split 'test'"),
    ],
)
def test_impossible_settings_are_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        source(**settings)


def test_frames_are_spread_over_all():
    assert spread(300, 8).tolist() == [0, 43, 85, 128, 171, 214, 256, 299]
    assert (
        spread(300, 1).tolist() == [150] and spread(9, 1).tolist() == [4] and spread(5, 5).tolist() == [0, 1, 2, 3, 4]
    )
    with pytest.raises(UserError, match="9 different frames cannot be had of 8"):
        spread(8, 9)


def test_batches_have_the_ids_of_every_text():
    questions, text = source(), ByteTokenizer(160)
    pipeline = Pipeline(questions, batch_size=4, seed=0, workers=0, text=text, shuffle=False)
    batch = next(pipeline)
    pipeline.close()
    named = {f"{name}_{part}" for name in ("text", "question", "answer", "wrong") for part in ("ids", "mask")}
    assert set(batch) == {"video", "times"} | named
    for field, name in (("text", "caption"), ("question", "question"), ("answer", "answer"), ("wrong", "wrong")):
        assert batch[f"{field}_ids"].shape == batch[f"{field}_mask"].shape == (4, 160)
        rows = zip(batch[f"{field}_ids"], batch[f"{field}_mask"], strict=True)
        assert [text.decode(ids[mask]) for ids, mask in rows] == [questions[i][name] for i in range(4)]


def test_questions_that_are_too_long_are_skipped_and_named_and_never_cut():
    """The cut removed the question itself, and the model answered without it."""
    questions, text = source(kinds=("count", "direction")), ByteTokenizer(30)
    pipeline = Pipeline(questions, batch_size=8, seed=0, workers=0, text=text)
    batches = [next(pipeline) for _ in range(3)]
    pipeline.close()
    said = {
        text.decode(ids[mask]) for b in batches for ids, mask in zip(b["question_ids"], b["question_mask"], strict=True)
    }
    assert "how many shapes are there?" in said and max(map(len, said)) <= 30
    name, reason = next(iter(pipeline.skipped.items()))
    assert name.startswith("question ") and reason.startswith("its question has more tokens than text.tokenizer.length")
    evaluated = held_out(source(split="eval", kinds=("count", "moment")), 3, text)
    assert [sample["kind"] for sample in evaluated.samples] == ["count"] * 3 and len(evaluated.skipped) == 2
    # Captions are cut as ever, and counted.
    assert pipeline.cut == 24


def test_held_out_batches_have_the_options():
    evaluated = held_out(source(split="eval", kinds=("colour", "reading", "count")), 6)
    batches = evaluated.batches(4, ByteTokenizer(80))
    assert [batch["options_ids"].shape for batch in batches] == [(4, 6, 80), (2, 6, 80)]
    text = ByteTokenizer(80)
    for place, sample in enumerate(evaluated.samples):
        batch, row = batches[place // 4], place % 4
        ids, mask = batch["options_ids"][row], batch["options_mask"][row]
        assert tuple(text.decode(i[m]) for i, m in zip(ids, mask, strict=True) if m.any()) == sample["options"]
        index = batch["answer_index"][row]
        assert index == (-1 if sample["kind"] == "reading" else sample["options"].index(sample["answer"]))
        assert not ids[len(sample["options"]) :].any()
        # Every byte of an option, and no padding behind it.
        assert mask.sum(1).tolist() == [*map(len, sample["options"]), *[0] * (6 - len(sample["options"]))]
    plain = HeldOut([data.build({"name": "shapes"}, clip=CLIP, seed=0, split="eval")[0]], 1, {})
    assert not {"options_ids", "answer_index"} & set(plain.batches(1, text)[0])


def test_a_vocabulary_is_learned_from_all_texts():
    config = text_config(name="bpe", vocabulary_size=400, length=32)
    tokenizer = new_text_tokenizer(config, source(length=300, kinds=("count", "direction")))
    for words in ("how many shapes are there?", "where does the circle move?", "left", "three"):
        ids, mask = tokenizer.encode([words])
        assert mask.sum() <= len(words.split()) + 1 and tokenizer.decode(ids[0][mask[0]]) == words


def test_texts_are_known_of_a_config_and_of_a_mixture():
    part = {"name": "shapes_questions", "weight": 1}
    assert data.texts_of({"name": "shapes"}) == ("caption",)
    mixed = {"name": "mixture", "parts": (part, {**part, "kinds": ("count",)})}
    built = data.build(mixed, clip=CLIP, seed=0, split="train")
    assert data.texts_of(mixed) == built.texts == QuestionsSource.texts
    kinds = {built.name_of(i) for i in range(2)}
    assert kinds == {f"question 0 of shapes_questions ({kind})" for kind in ("colour", "count")}
    assert built.texts_at(0) and built.caption(0) == built[0]["caption"]
    with pytest.raises(UserError, match="cannot join sources with questions and without"):
        parts = (part, {"name": "shapes", "weight": 1})
        data.build({"name": "mixture", "parts": parts}, clip=CLIP, seed=0, split="train")


def test_the_examples_of_the_guide_run(capsys):
    page = (REPOSITORY / "docs" / "questions.md").read_text()
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        names = {}
        exec(example, names)
        if "score" in names:
            row = names["rows"]["direction"]
            assert (row.accuracy, row.unparsed, row.chance, row.count) == (0.5, 1, 0.25, 2)
            assert row.standard_error == pytest.approx(0.354, abs=5e-4)
    for kind, example in KINDS.items():
        assert f"`{kind}`" in page and parse_question(example).kind == kind


@pytest.mark.parametrize(("images", "asked"), [(0, 1), (2, 1), (0, 3)])
def test_the_batches_of_a_stage_are_those_it_is_compiled_for(images, asked):
    config = phenaki.get_config("stage=generator,size=debug")
    config.data.source = {"name": "shapes_questions", "kinds": ("count", "moment"), "questions_per_clip": asked}
    config.data.clip.update({"frames": 8, "height": 24, "width": 24})
    config.data.update({"batch_size": 4, "image_batch_size": images})
    config.text.tokenizer.update({"name": "bytes", "length": 120})
    questions, mesh = build_source(config, "train"), make_mesh(config.parallel.mesh)
    pipeline = build_pipeline(config, questions, ByteTokenizer(120), 0, mesh)
    batch = next(pipeline)
    pipeline.close()
    assert batch["question_ids"].shape == ((4, 120) if asked == 1 else (4, asked, 120))
    assert batch["text_ids"].shape == (4, 120)
    made = jax.tree.map(lambda array: (array.shape, array.dtype), batch)
    for source_of in (questions, None):
        wanted = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_batch(config, None, source_of))
        if source_of is None:
            wanted = {name: part for name, part in wanted.items() if name != "label"}
            wanted.get("image", {}).pop("label", None)
        assert made == wanted

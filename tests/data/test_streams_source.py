"""Streams of shapes: events at known frames, what is told of them, questions of three kinds, deterministic by index."""

import collections

import numpy as np
import pytest

from videogen import data
from videogen.data.shapes_source import COLOURS, FORMS
from videogen.data.stream_scenes import (
    EVENTS,
    NUMBERS,
    StreamQuestion,
    asked_of,
    render_stream,
    split_of_stream,
    told,
)
from videogen.data.streams_source import KINDS, TURNS, StreamsSource
from videogen.errors import UserError

CLIP = data.Clip(24, 24, 24, 2.0)


def source(split="train", seed=0, **settings):
    return data.build({"name": "shapes_streams", **settings}, clip=CLIP, seed=seed, split=split)


def event(frame, kind, colour="red", form="circle", to=""):
    return {"frame": frame, "kind": kind, "colour": colour, "form": form, "to": to}


def shape(colour="red", form="circle", side="left", place="up"):
    return {"colour": colour, "form": form, "side": side, "place": place}


SCENE = {
    **{"tone": "dark", "texture": "plain", "frames": 6, "fps": 2.0},
    "events": [
        *(event(1, "appears"), event(2, "flashes", "blue", "cross"), event(3, "turns", to="green")),
        *(event(4, "moves", "green", to="down"), event(5, "leaves", "green")),
    ],
    "shown": [[], [shape()], [], [shape("green")], [shape("green", place="down")], []],
}


def test_what_is_told_of_events():
    assert [told(each) for each in SCENE["events"]] == [
        *("a red circle appears", "a blue cross flashes", "the red circle turns green"),
        *("the green circle moves down", "the green circle leaves"),
    ]


@pytest.mark.parametrize(
    ("question", "frame", "text", "answer"),
    [
        (StreamQuestion("backward", "colour", "flashes"), 2, "which colour flashed last?", "blue"),
        (StreamQuestion("backward", "form", "appears"), 5, "which form appeared last?", "circle"),
        (StreamQuestion("backward", "form", "turns"), 3, "which form turned last?", "circle"),
        (StreamQuestion("future", "colour", "flashes"), 1, "which colour flashes next?", "blue"),
        (StreamQuestion("future", "form", "leaves"), 0, "which form leaves next?", "circle"),
        (StreamQuestion("current", "count"), 0, "how many shapes are there?", "zero"),
        (StreamQuestion("current", "count"), 4, "how many shapes are there?", "one"),
        (StreamQuestion("current", "colour", "form", "circle"), 3, "which colour is the circle?", "green"),
        (StreamQuestion("current", "form", "colour", "red"), 1, "which form is the red shape?", "circle"),
    ],
)
def test_questions_and_their_answers(question, frame, text, answer):
    assert str(question) == text and question.answer(SCENE, frame) == answer and answer in question.options


@pytest.mark.parametrize(
    ("question", "frame"),
    [
        (StreamQuestion("backward", "colour", "flashes"), 1),
        (StreamQuestion("future", "colour", "flashes"), 2),
        (StreamQuestion("current", "colour", "form", "circle"), 2),
        (StreamQuestion("current", "form", "colour", "red"), 3),
    ],
)
def test_questions_without_an_answer_are_one_line(question, frame):
    with pytest.raises(UserError, match=f"nothing in this stream answers .* behind frame {frame}"):
        question.answer(SCENE, frame)


def test_questions_that_are_drawn_have_an_answer():
    rng = np.random.default_rng(0)
    assert asked_of("backward", SCENE, 0, rng) is None and asked_of("future", SCENE, 5, rng) is None
    for kind in ("backward", "current", "future"):
        for _ in range(20):
            frame = int(rng.integers(1, 5))
            question = asked_of(kind, SCENE, frame, rng)
            assert question.kind == kind and question.answer(SCENE, frame) in question.options
    assert StreamQuestion("current", "count").options == NUMBERS
    assert not any(str(asked_of("backward", SCENE, 3, rng)) == "which colour turned last?" for _ in range(50))


def test_frames_show_the_scene():
    video = render_stream(SCENE, range(6), 24, 24)
    ground = video[0, 0, 0]
    assert (video[0] == ground).all() and (video[5] == ground).all()
    # The red circle stands in the upper left, a flash alone in the middle, then it is green, and below.
    assert (video[1, 7, 6] == COLOURS["red"]).all() and (video[1, 17:, :] == ground).all()
    assert (video[2, 12, 12] == COLOURS["blue"]).all() and (video[2, 7, 2] == ground).all()
    assert (video[3, 7, 6] == COLOURS["green"]).all() and (video[4, 16, 6] == COLOURS["green"]).all()
    assert (video[4, 2:10, 6] == ground).all() and (video[1, :, 12:] == ground).all()
    np.testing.assert_array_equal(render_stream(SCENE, [4, 1], 24, 24), video[[4, 1]])


def test_samples_depend_on_seed_and_index_alone():
    a, b = source(), source()
    for i in (3, 0, 17):
        first, second = a[i], b[i]
        np.testing.assert_array_equal(first["video"], second["video"])
        assert first["attributes"] == second["attributes"] and a.texts_at(i) == b.texts_at(i)
    assert source(seed=1)[0]["attributes"] != a[0]["attributes"]
    assert a[0]["video"].shape == (24, 24, 24, 3) and a.fps == 2.0
    assert data.build({"name": "shapes_streams"}, clip=data.Clip(24, 8, 8, None), seed=0, split="eval").fps == 2.0
    np.testing.assert_allclose(a[0]["times"], np.arange(24) / 2)


def test_turns_are_events_then_questions():
    kinds = collections.Counter()
    for i in range(150):
        sample, scene = source()[i], source().scene(i)
        turns = source().turns(i)
        assert len(turns) <= TURNS and 3 <= len(scene["events"]) <= 5
        for k, each in enumerate(scene["events"]):
            assert turns[k] == (each["frame"], "told", "", told(each))
        frames = [each["frame"] for each in scene["events"]]
        assert min(np.diff(frames), default=3) >= 3 and frames[0] >= 2 and frames[-1] < 24
        for k, (frame, kind, asked, said) in enumerate(turns):
            assert (sample["turn_frame"][k], sample["turn_kind"][k]) == (frame, KINDS.index(kind))
            assert (sample[f"asked_{k}"], sample[f"said_{k}"]) == (asked, said)
            kinds[kind] += 1
        assert (sample["turn_frame"][len(turns) :] == -1).all() and sample[f"said_{TURNS - 1}"] in ("", turns[-1][3])
        ((event_frame, asked),) = [(frame, asked) for frame, kind, asked, _ in turns if kind == "future"]
        word = asked.split()[2]
        own = [each["frame"] for each in scene["events"] if each["kind"] == word]
        assert event_frame in own
        for frame, kind, question, said in turns:
            if kind == "not yet":
                # Too early, and no such event at the frame itself.
                assert question == asked and said == "" and frame < event_frame and frame not in own
                assert not any(frame < each < event_frame for each in own)
    assert kinds["told"] > 400 and min(kinds[kind] for kind in KINDS[1:]) > 50


def test_no_stream_of_eval_occurs_in_training():
    assert all(split_of_stream(source("train").scene(i)) == "train" for i in range(30))
    assert all(split_of_stream(source("eval").scene(i)) == "eval" for i in range(30))


def test_states_follow_the_events():
    for i in range(60):
        scene = source().scene(i)
        for each in scene["events"]:
            before, after = scene["shown"][each["frame"] - 1], scene["shown"][each["frame"]]
            own = [s for s in after if s["form"] == each["form"]]
            if each["kind"] == "flashes":
                assert after == []
            elif each["kind"] == "leaves":
                assert own == [] and len(after) == len(before) - 1
            elif each["kind"] == "appears":
                assert len(after) == len(before) + 1 and own[0]["colour"] == each["colour"]
            else:
                assert own[0]["place" if each["kind"] == "moves" else "colour"] == each["to"]
        for shown in scene["shown"]:
            assert len({s["colour"] for s in shown}) == len({s["form"] for s in shown}) == len(shown) <= 2


def test_settings_out_of_range_are_one_line():
    assert {each["kind"] for i in range(40) for each in source(kinds=("flashes",)).scene(i)["events"]} == {"flashes"}
    for settings, message in (
        ({"kinds": ("vanishes",)}, "unknown kind of event 'vanishes'"),
        ({"kinds": ()}, "kinds names no event"),
    ):
        with pytest.raises(UserError, match=message):
            source(**settings)
    with pytest.raises(UserError, match="at least 17 frames, got 16"):
        data.build({"name": "shapes_streams"}, clip=data.Clip(16, 24, 24, 2.0), seed=0, split="train")
    assert set(EVENTS) == {each["kind"] for i in range(40) for each in source().scene(i)["events"]}
    assert len(StreamsSource.texts) == 1 + 2 * TURNS and FORMS


@pytest.mark.parametrize("kinds", [("moves",), ("leaves",), ("turns", "leaves")])
def test_every_kind_can_be_alone(kinds):
    scenes = [source(kinds=kinds).scene(i) for i in range(10)]
    assert all(scene["events"] for scene in scenes)

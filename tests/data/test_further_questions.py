"""Several questions about one scene: which can be asked, and that each has its answer."""

import numpy as np
import pytest

from videogen.data import further_questions
from videogen.data.clip import Clip
from videogen.data.further_questions import askable, further
from videogen.data.questions import KINDS, VALUES, Question, answer_of, parse_question
from videogen.data.questions_source import CLOSED, QuestionsSource

CLIP = Clip(frames=12, height=24, width=24, fps=8.0)


def source(kinds, split="train", **settings):
    return QuestionsSource(clip=CLIP, seed=3, split=split, kinds=kinds, **settings)


def shape(colour, form, *directions, **more):
    return {"colour": colour, "form": form, "directions": list(directions), "size": "small", "speed": "slowly", **more}


def scene(*shapes, **more):
    return {"shapes": list(shapes), "tone": "pale", "texture": "plain", "frames": 12, "fps": 8.0, **more}


def test_all_questions_about_a_shape():
    found = askable(scene(shape("red", "circle", "up")), KINDS)
    assert {kind: [str(question) for question in questions] for kind, questions in found.items()} == {
        "colour": ["which colour is the circle?", "which colour is the shape that moves up?"],
        "form": ["which form is the red shape?", "which form is the shape that moves up?"],
        "direction": ["where does the red shape move?", "where does the circle move?"],
        "count": ["how many shapes are there?"],
        "background": ["which tone is the background?", "which texture is the background?"],
        "describe": ["what is there to see?"],
        "presence": [
            *(f"is there a {colour} shape?" for colour in VALUES["colour"]),
            *(f"is there a {form}?" for form in VALUES["form"]),
            *(f"is there a shape that moves {way}?" for way in VALUES["direction"]),
            "is there a flash?",
        ],
    }
    assert list(askable(scene(shape("red", "circle", "up")), ("count", "needle"))) == ["count"]


def test_a_shape_that_turns_has_no_direction_but_at_a_moment():
    two = scene(shape("red", "circle", "up", "left", turn=0.5), shape("blue", "cross", "left", "up", turn=0.4))
    found = askable(two, KINDS)
    assert found.keys() == {"colour", "form", "count", "background", "describe", "moment", "order", "presence"}
    assert {question.by for question in found["presence"]} == {"colour", "form", "flash"}
    assert found["colour"] == [Question("colour", "colour", "form", form) for form in ("circle", "cross")]
    # Frames 0 … 10 of 11 steps; none within 0.1 of the turn, and none of the last frame.
    seconds = {q.second for q in found["moment"] if q.value == "circle"}
    assert seconds == {round(n / 8, 3) for n in range(11) if abs(n / 11 - 0.5) > 0.1} and len(seconds) == 9
    assert len(found["moment"]) == 2 * (9 + 9)
    asked = [str(question) for question in found["order"]]
    assert asked[0] == "which colour is the shape that turns first?" and len(asked) == 4
    assert answer_of(asked[0], two) == "blue"


def test_what_scenes_show_alone_is_asked_of_them_alone():
    flash = askable(scene(shape("red", "circle", "up"), flash={"colour": "blue", "form": "cross"}), KINDS)
    assert [question.what for question in flash["needle"]] == ["colour", "form"]
    dots = askable(scene(shape("red", "circle", "up", dot="blue")), KINDS)["detail"]
    assert [question.by for question in dots] == ["form", "direction"]
    symbols = {"shapes": [], "symbols": [{"colour": "red", "form": "circle"}] * 12}
    found = askable(scene() | symbols, KINDS)
    assert found.keys() == {"background", "reading", "symbols"} and len(found["symbols"]) == 24
    assert found["symbols"][3].second == 0.125
    entering = [shape("red", "circle", "up", enters=0.2), shape("blue", "cross", "left", enters=0.4)]
    assert [str(q) for q in askable(scene(*entering), ("order",))["order"]][3] == (
        "which form is the shape that comes last?"
    )
    assert "order" not in askable(scene(entering[0]), KINDS)
    jumping = askable(scene(shape("red", "circle", "up", cells=[0] * 12)), KINDS)
    assert [question.by for question in jumping["cells"]] == ["colour", "form"] and "direction" not in jumping


def test_questions_of_a_sample_are_all_different_and_have_their_answers():
    kinds = (*CLOSED, "describe")
    several, first = source(kinds, questions_per_clip=5), source(kinds)
    for index in range(3 * len(kinds)):
        sample, alone = several[index], first[index]
        assert (sample["question"][0], sample["answer"][0]) == (alone["question"], alone["answer"])
        assert (sample["wrong"][0], sample["caption"], sample["kind"]) == (
            alone["wrong"],
            alone["caption"],
            alone["kind"],
        )
        assert len({*sample["question"]}) == len(sample["answer"]) == len(sample["wrong"]) == 5
        for asked, answer, wrong in zip(sample["question"], sample["answer"], sample["wrong"], strict=True):
            assert answer_of(asked, sample["attributes"]) == answer != wrong
            assert parse_question(asked).kind in kinds


def test_kinds_are_asked_alike_and_a_question_twice_only_when_all_were():
    one = scene(shape("red", "circle", "up"))
    first = Question("count", "count")
    asked = further(one, first, ("count", "background"), 7, np.random.default_rng(0))
    assert {str(question) for question in asked[:3]} == {
        "how many shapes are there?",
        "which tone is the background?",
        "which texture is the background?",
    }
    assert len(asked) == 7
    kinds = [further(one, first, ("colour", "background"), 2, np.random.default_rng(i))[1].kind for i in range(400)]
    assert kinds.count("colour") == pytest.approx(200, abs=40)
    # Of the 15 questions of presence 3 are answered yes.
    asked = [further(one, first, ("presence",), 2, np.random.default_rng(i))[1] for i in range(400)]
    assert [answer_of(question, one) for question in asked].count("yes") == pytest.approx(200, abs=40)


@pytest.mark.parametrize("split", ["eval", "composition"])
def test_held_out_clips_have_one_question(split):
    sample = source(("colour",), split, questions_per_clip=4)[0]
    assert isinstance(sample["question"], str) and isinstance(sample["answer"], str)


def test_names_of_shapes_are_the_attributes_that_no_two_share():
    assert further_questions.NAMES == ("colour", "form", "direction")

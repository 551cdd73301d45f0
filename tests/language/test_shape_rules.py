"""The rule that stands in for a language model in prompt programs about shapes."""

import json

import pytest

from videogen.errors import UserError
from videogen.language.asking import Answer, run
from videogen.language.programs import CONCRETE, build_program
from videogen.language.shape_rules import decouple_shapes, shape_rules

MOMENT = "where does the red shape move at second 3?"


class Watching:
    """Says what it is asked about; yes with the probability of the second."""

    def __init__(self):
        self.asked = []

    def __call__(self, seen, prompt, longest):
        self.asked.append((seen.start, seen.stop, prompt))
        return Answer("left", 1, 0.0, seen.start / 10)


def test_parts_of_a_question_about_time_are_asked_before_it():
    watching = Watching()
    found = run(build_program({"name": "decompose"}), watching, shape_rules, None, MOMENT, duration=4.0)
    assert [prompt for *_, prompt in watching.asked] == [
        "where does the red shape move at second 0?",
        f"left {MOMENT}",
    ]
    assert (found.unread, len(found.exchanges), found.results["parts"]) == (0, 3, [watching.asked[0][2]])
    # A question of one part is asked as it is.
    alone = run(
        build_program({"name": "decompose"}), watching, shape_rules, None, "how many shapes are there?", duration=4
    )
    assert alone.exchanges[-1].prompt == "how many shapes are there?" and alone.results["parts"] == []


def test_frames_are_asked_for_the_object_of_the_question():
    watching = Watching()
    found = run(decouple_shapes(), watching, shape_rules, None, MOMENT, duration=4.0, times=(1.0, 3.0))
    assert watching.asked == [
        (1.0, 1.0, "is there a red shape?"),
        (3.0, 3.0, "is there a red shape?"),
        (0.0, 4.0, MOMENT),
    ]
    assert found.weights == (0.1, 0.3)
    needle = run(decouple_shapes(), watching, shape_rules, None, "which form is the flash?", duration=4, times=(2.0,))
    assert needle.exchanges[-2].prompt == "is there a flash?"


@pytest.mark.parametrize("question", ["how many shapes are there?", "which colour is the shape that turns first?"])
def test_frames_are_not_asked_where_no_object_is_named(question):
    watching = Watching()
    found = run(decouple_shapes(), watching, shape_rules, None, question, duration=4.0, times=(1.0, 3.0))
    assert [prompt for *_, prompt in watching.asked] == [question] and not found.weights


def test_lists_lose_what_is_no_object():
    assert json.loads(shape_rules(CONCRETE.format(named="dot, circle, shape"))) == ["dot", "circle"]
    assert json.loads(shape_rules(CONCRETE.format(named=""))) == []


def test_other_prompts_are_refused():
    with pytest.raises(UserError, match="answers prompts of decompose and decouple, not 'Summarise"):
        shape_rules("Summarise this")

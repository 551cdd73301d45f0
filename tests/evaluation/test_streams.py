"""The protocol ``streams``: what is said in sessions, judged by hand."""

import numpy as np
import pytest

from videogen.data.streams_source import KINDS, TURNS
from videogen.evaluation.streams import _of_sessions, _watched
from videogen.inference.eyes import Eye, Glance, Limit
from videogen.inference.streaming import Session


def sample(*turns):
    """A stream of ten frames with turns ``(frame, kind, asked, said)``."""
    turns = [*turns, *[(-1, "told", "", "")] * (TURNS - len(turns))]
    found = {"video": np.zeros((10, 4, 4, 3), np.uint8), "times": np.arange(10) / 2}
    found["turn_frame"] = np.array([turn[0] for turn in turns])
    found["turn_kind"] = np.array([KINDS.index(turn[1]) for turn in turns])
    for i, turn in enumerate(turns):
        found |= {f"asked_{i}": turn[2], f"said_{i}": turn[3]}
    return found


STREAM = sample(
    (2, "told", "", "a red circle appears"),
    (7, "told", "", "the red circle leaves"),
    (1, "not yet", "which form leaves next?", ""),
    (7, "future", "which form leaves next?", "circle"),
)


class Scripted(Eye):
    """Speaks behind some frames; answers from a frame on."""

    knows_silence = True
    limit = Limit(10, 2, 2.0, "", 5)

    def __init__(self, says, answers_at, answer="circle"):
        self.says, self.answers_at, self.answer, self.number = says, answers_at, answer, -1

    def push(self, frame, second):
        self.number += 1
        return Glance(0.0 if self.number in self.says else 1.0, 1.0, np.ones(2))

    def ids(self, question):
        assert question == "which form leaves next?"

    def ask(self, question, threshold):
        return self.answer if self.number >= self.answers_at else None

    def tell(self):
        return self.says[self.number]


def measured(says, answers_at, answer="circle", stream=STREAM):
    said = _watched(Session(Scripted(says, answers_at, answer), "silence", 0.8), stream)
    return _of_sessions([stream], [said])


@pytest.mark.parametrize(
    ("says", "answers_at", "answer", "told", "awaited"),
    [
        ({2: "a red circle appears", 9: "the red circle leaves"}, 7, "circle", 1.0, 1.0),
        # Too late, and in other words.
        ({5: "a red circle appears", 7: "the red circle appears"}, 9, "circle", 0.0, 1.0),
        ({2: "a red circle appears"}, 10, "circle", 0.5, 0.0),
        # Answered before the event, or wrongly.
        ({}, 4, "circle", 0.0, 0.0),
        ({1: "a red circle appears"}, 7, "square", 0.0, 0.0),
        # At once, where it is asked.
        ({}, 0, "circle", 0.0, 0.0),
    ],
)
def test_events_told_and_questions_awaited(says, answers_at, answer, told, awaited):
    assert measured(says, answers_at, answer) == {"told_right": told, "awaited_right": awaited}


def test_streams_without_a_question_about_the_future():
    stream = sample((2, "told", "", "a red circle appears"))
    assert measured({3: "a red circle appears"}, 0, stream=stream) == {"told_right": 1.0}

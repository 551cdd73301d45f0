"""The protocol of video-language models: what is found of held-out questions, by kind, and the pictures of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from videogen.evaluation.questions import questions
from videogen.tasks.answering import Answerer


class Answering:
    """Answers known before."""

    summary = staticmethod(Answerer.summary)

    def measured(self, batch):
        return batch

    def costs(self):
        return {"visual_tokens": 72.0}


def part(kinds, right, written, options):
    count = len(kinds)
    said = np.array([f"answer {i}" for i in range(count)])
    return {
        "nats": np.full(count, 2.0),
        "targets": np.full(count, 2),
        "open": np.array(written),
        "said": said,
        "options": np.array(options),
        "right": np.array(right),
        "kind": np.array(kinds),
    }


def test_answers_are_counted_by_kind_and_shown():
    parts = [
        part(["colour", "count"], [True, False], [True, False], [4, 2]),
        part(["colour"], [True], [False], [4]),
    ]
    samples = [{"question": f"question {i}?", "answer": f"true {i}"} for i in range(3)]
    clips = SimpleNamespace(samples=samples, batches=lambda size, text: parts)
    task = SimpleNamespace(answering=lambda modules: Answering(), texts=None)
    evaluation = SimpleNamespace(
        loaded=SimpleNamespace(task=task, modules={}, text="text"),
        clips=clips,
        batch_size=2,
        keep=lambda name, compute: compute(),
        videos=np.zeros((3, 2, 4, 4, 3), np.uint8),
    )
    metrics, pictures = questions(evaluation)
    found = metrics["answers"]
    assert metrics["clips"] == 3 and task.texts == "text"
    assert found["chosen"] == pytest.approx(2 / 3) and found["written"] == pytest.approx(1 / 3)
    assert found["chance"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 4) / 3) and found["loss"] == 1.0
    assert found["kinds"] == {"colour": {"chosen": 1.0, "written": 0.5}, "count": {"chosen": 0.0, "written": 0.0}}
    assert found["visual_tokens"] == 72.0
    assert pictures["prompts"].tolist() == ["question 0? answer 0", "question 1? answer 1", "question 2? answer 0"]
    assert pictures["readings"].tolist() == ["true: true 0", "true: true 1", "true: true 2"]
    assert pictures["correct"].tolist() == [[True], [False], [False]]

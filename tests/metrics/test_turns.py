"""Turns of a stream: perplexity, difference of time, correctness and fluency by hand."""

import numpy as np
import pytest

from videogen.errors import UserError
from videogen.metrics.turns import Turn, answer_perplexity, leading_share, mean_of_turns, spoken_events

LOG = np.log(np.array([0.5, 0.25, 0.5, 1.0]))


def turn(separator, right, speaks=3, log_probabilities=LOG):
    return Turn(np.array(separator), speaks, np.array(right, bool), log_probabilities, fps=2.0)


def test_perplexity_and_the_share_before_the_first_mistake():
    assert answer_perplexity(LOG) == pytest.approx(16 ** (1 / 4))
    assert [leading_share(r) for r in ([1, 1, 0, 1], [0, 1], [1, 1])] == [0.5, 0.0, 1.0]
    with pytest.raises(UserError, match="without tokens"):
        answer_perplexity(np.zeros(0))


def test_a_perfect_model_is_on_time_correct_and_fluent():
    found = turn([1, 1, 1, 0, 0], [1] * 4, log_probabilities=np.zeros(4)).describe()
    assert found == {"perplexity": 1.0, "time_difference": 0.0, "correctness": 1.0, "fluency": 1.0}


def test_a_model_that_never_speaks_is_late_by_all_that_was_looked_at():
    found = turn([1.0] * 8, [1] * 4).describe()
    # Three silent frames are right, and the answer is never begun.
    assert found["time_difference"] == 4.0 and found["fluency"] == pytest.approx(3 / 7)
    assert found["correctness"] == 1.0


def test_a_model_that_speaks_too_early_or_errs_within_the_answer():
    early = turn([0.9, 0.3, 0.9, 0.1], [1, 1, 0, 1]).describe()
    assert early["time_difference"] == 1.0 and early["fluency"] == pytest.approx(1 / 7)
    assert early["correctness"] == 0.5
    late = turn([0.9, 0.9, 0.9, 0.8, 0.9, 0.2], [1, 1, 0, 1]).describe()
    assert late["time_difference"] == 1.0 and late["fluency"] == pytest.approx(3 / 7)
    wrong = turn([0.9, 0.9, 0.9, 0.1], [1, 1, 0, 1]).describe()
    assert wrong["time_difference"] == 0.0 and wrong["fluency"] == pytest.approx(5 / 7)


def test_turns_are_averaged_and_the_answer_stands_behind_a_frame_that_was_seen():
    perfect = turn([1, 1, 1, 0], [1] * 4, log_probabilities=np.zeros(4))
    found = mean_of_turns([perfect, turn([1.0] * 8, [0, 1, 1, 1])])
    assert found["time_difference"] == 2.0 and found["correctness"] == 0.5
    assert found["fluency"] == pytest.approx((1 + 3 / 7) / 2)
    with pytest.raises(UserError, match="behind frame 3 of the 2 looked at"):
        turn([1, 0], [1] * 4).describe()
    with pytest.raises(UserError, match="no turn"):
        mean_of_turns([])


def test_events_are_spoken_about_at_their_frame_or_soon_after():
    assert spoken_events([3, 9, 20], [3, 8, 15], 2) == (2, 1)
    # Too late, and too early: nobody can speak of an event before it.
    assert spoken_events([6, 7], [3, 8], 2) == (0, 2)
    # Whatever is said belongs to one event, the earliest that is left.
    assert spoken_events([5], [4, 5], 2) == (1, 0) and spoken_events([4, 5, 5], [4, 5], 2) == (2, 1)
    assert spoken_events([], [1], 2) == (0, 0) and spoken_events([1, 2], [], 2) == (0, 2)
    assert spoken_events([5], [3], 1) == (0, 1) and spoken_events([3], [3], 0) == (1, 0)

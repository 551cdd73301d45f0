"""What a model of streams predicts, judged: golden numbers by hand, a perfect model, and one that never speaks."""

import numpy as np
import pytest

from videogen.metrics.streams import judged

FRAMES, WORDS, TURNS = 8, 2, 4
TOLD, BACKWARD, CURRENT, FUTURE, NOT_YET = range(5)


def found(silence, right=True, nats=0.0, asked=(0.0, 0.0, 0.0)):
    """One stream of 8 frames: events at 2 ("a b") and 6 ("c"); a question about the past at 7 ("d"), and one about the
    future at 3, where nothing is said yet."""
    behind = np.zeros((TURNS, WORDS + 2), bool)
    speaks, silent = behind.copy(), behind.copy()
    speaks[0, 1:4] = True  # a, b, end
    speaks[1, 1:3] = True  # c, end
    speaks[2, :3] = True  # answer, d, end
    silent[3, 0] = True
    frames = np.zeros(FRAMES, bool)
    frames[[2, 6]] = True
    whole = {
        "speaks": np.concatenate([frames, speaks.reshape(-1)]),
        "silent": np.concatenate([~frames, silent.reshape(-1)]),
        "silence": np.concatenate([silence, np.repeat(np.array([0.0, 0.0, *asked[:2]]), WORDS + 2)]),
    }
    whole |= {"right": np.full(whole["speaks"].shape, right), "nats": np.full(whole["speaks"].shape, nats)}
    whole |= {"turn_frame": np.array([2, 6, 7, 3]), "turn_kind": np.array([TOLD, TOLD, BACKWARD, NOT_YET])}
    return {name: array[None] for name, array in whole.items()}


PERFECT = np.array([1, 1, 0, 1, 1, 1, 0, 1.0])


def test_a_perfect_model():
    """O11: perfect logits give TimeDiff 0, correctness 1, fluency 1."""
    metrics = judged(found(PERFECT, asked=(0.0, 1.0)), FRAMES, 2.0, 0.8)
    assert metrics == {
        **{"loss": 0.0, "perplexity": 1.0, "time_difference": 0.0, "correctness": 1.0, "fluency": 1.0},
        **{"spoken": 1.0, "false_per_minute": 0.0, "not_yet": 1.0, "right/backward": 1.0},
    }


def test_a_model_that_never_speaks():
    """O11: fluency below 1, and TimeDiff the length looked at: frames 0 … 5 of the first turn, 3 … 7 of the second."""
    metrics = judged(found(np.ones(FRAMES), asked=(1.0, 1.0)), FRAMES, 2.0, 0.8)
    assert metrics["time_difference"] == pytest.approx((6 / 2 + 5 / 2) / 2)
    # Silent frames 0 and 1, then "answer a b end" is never begun; frames 3, 4, 5, then "answer c end".
    assert metrics["fluency"] == pytest.approx((2 / 6 + 3 / 6) / 2)
    assert metrics["spoken"] == 0.0 and metrics["false_per_minute"] == 0.0
    assert metrics["right/backward"] == 0.0 and metrics["not_yet"] == 1.0


def test_a_model_that_speaks_late_and_without_a_reason():
    silence = np.array([1, 0.1, 1, 0.5, 1, 1, 1, 0.79])
    metrics = judged(found(silence, asked=(0.0, 0.1)), FRAMES, 2.0, 0.8)
    # Of the first turn it speaks a frame too early, of the second at frame 3: 3 frames before 6.
    assert metrics["time_difference"] == pytest.approx((0.5 + 1.5) / 2)
    # Frames 3 and 7 are soon enough behind the events at 2 and 6; frame 1 is false: one in 4 seconds.
    assert metrics["spoken"] == 1.0 and metrics["false_per_minute"] == pytest.approx(15.0)
    assert metrics["not_yet"] == 0.0
    assert judged(found(silence), FRAMES, 2.0, 0.79)["spoken"] == 0.5


@pytest.mark.parametrize(("frame", "spoken"), [(2, 0.5), (4, 0.5), (5, 0.0), (1, 0.0)])
def test_an_event_is_spoken_about_within_two_frames(frame, spoken):
    silence = np.ones(FRAMES)
    silence[frame] = 0.0
    assert judged(found(silence), FRAMES, 2.0, 0.8)["spoken"] == spoken


def test_wrong_words_and_their_likelihood():
    stream = found(PERFECT, nats=np.log(2.0), asked=(0.0, 1.0))
    metrics = judged(stream, FRAMES, 2.0, 0.8)
    assert metrics["loss"] == pytest.approx(np.log(2)) and metrics["perplexity"] == pytest.approx(2.0)
    # "b", the second word of the first event, and "d" are not the likeliest.
    wrong = {name: array.copy() for name, array in stream.items()}
    wrong["right"][0, FRAMES + 2] = wrong["right"][0, FRAMES + 2 * (WORDS + 2) + 1] = False
    metrics = judged(wrong, FRAMES, 2.0, 0.8)
    assert metrics["correctness"] == pytest.approx((2 / 4 + 1) / 2)
    assert metrics["fluency"] == pytest.approx((4 / 6 + 1) / 2) and metrics["right/backward"] == 0.0
    # What is no label does not count.
    wrong["right"][0, FRAMES + WORDS + 2 + 3] = wrong["right"][0, FRAMES + 2] = True
    wrong["nats"][0, FRAMES + WORDS + 2 + 3] = 100.0
    assert judged(wrong, FRAMES, 2.0, 0.8)["loss"] == pytest.approx(np.log(2))


def test_streams_are_averaged():
    two = [found(PERFECT, asked=(0.0, 1.0)), found(np.ones(FRAMES), asked=(1.0, 1.0))]
    both = {name: np.concatenate([one[name] for one in two]) for name in two[0]}
    metrics = judged(both, FRAMES, 2.0, 0.8)
    assert metrics["spoken"] == 0.5 and metrics["right/backward"] == 0.5 and metrics["not_yet"] == 1.0
    assert metrics["time_difference"] == pytest.approx((6 / 2 + 5 / 2) / 4)

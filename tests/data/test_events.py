"""Events far apart in a clip: where they are, what the label is, and that short windows are at chance."""

import collections

import numpy as np
import pytest

from videogen import data
from videogen.data.events_source import APART, EVENTS, EventsSource, lasting, spaced
from videogen.data.shapes_source import COLOURS
from videogen.errors import UserError

CLIP = data.Clip(40, 16, 16, 8.0)


def source(**settings):
    return EventsSource(clip=CLIP, seed=0, split="train", **settings)


def shown(video):
    """The event in each frame, -1 for none: pixels of exactly its colour."""
    found = np.full(len(video), -1)
    for number, name in enumerate(EVENTS):
        found[(video == np.array(COLOURS[name], np.uint8)).all(-1).any((1, 2))] = number
    return found


def test_the_label_is_the_ordered_pair_of_what_flashes_up():
    for i in range(12):
        sample = source()[i]
        found = shown(sample["video"])
        first, second = sample["attributes"]["starts"]
        events = found[found >= 0]
        assert len(events) == 2 and sample["label"] == 4 * events[0] + events[1]
        assert np.flatnonzero(found >= 0).tolist() == [first, second]
        assert source().classes[sample["label"]] == f"{EVENTS[events[0]]} then {EVENTS[events[1]]}"
        assert source().label(i) == sample["label"]
        # More than 60 % of the clip lies between them.
        assert second - first - 1 >= APART * 40


def test_a_shorter_window_shows_one_event_at_most_and_says_nothing_of_the_other():
    counts = collections.Counter()
    for i in range(800):
        drawn, _ = source()._drawn(i)
        first, second = drawn["starts"]
        width = 24  # 60 % of 40 frames
        assert not any(s <= first and second < s + width for s in range(40 - width + 1))
        counts[tuple(drawn["events"])] += 1
    # All pairs are alike: 50 of each are expected, with a deviation of 7.
    assert len(counts) == 16 and max(abs(n - 50) for n in counts.values()) < 28


def test_places_of_events():
    rng = np.random.default_rng(0)
    assert (lasting(40), lasting(64), lasting(320), lasting(5)) == (1, 2, 10, 1)
    # 10 frames, one each and six between: 0 to 2 before and behind.
    found = {spaced(10, 1, 6, rng) for _ in range(200)}
    assert found == {(0, 7), (0, 8), (0, 9), (1, 8), (1, 9), (2, 9)}
    sample = EventsSource(clip=data.Clip(64, 8, 8), seed=3, split="eval")[0]
    assert (shown(sample["video"]) >= 0).sum() == 4 and sample["video"].shape == (64, 8, 8, 3)


def test_samples_are_functions_of_seed_and_number():
    np.testing.assert_array_equal(source()[5]["video"], source()[5]["video"])
    assert (source()[5]["video"] != EventsSource(clip=CLIP, seed=1, split="train")[5]["video"]).any()
    assert len(source(length=3)) == 3 and source()[0]["fps"] == 8.0
    with pytest.raises(UserError, match="two events 60% of a clip apart need more than 4 frames"):
        EventsSource(clip=data.Clip(4, 8, 8), seed=0, split="train")
    assert EventsSource(clip=data.Clip(5, 8, 8), seed=0, split="train")[0]["attributes"]["starts"] == (0, 4)


def test_golden_clips():
    found = [(source().label(i), source()[i]["attributes"]["starts"]) for i in range(3)]
    assert found == [(14, (4, 36)), (11, (14, 39)), (12, (2, 32))]
    sums = [source()[i]["video"].sum(dtype=np.int64) for i in range(3)]
    np.testing.assert_allclose(sums, [1_564_711, 3_821_599, 3_822_382], rtol=1e-5)

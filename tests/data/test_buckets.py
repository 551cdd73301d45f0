import numpy as np
import pytest
from ml_collections import ConfigDict

from videogen.data.buckets import BucketSchedule, read_buckets, read_phases
from videogen.data.clip import Clip
from videogen.errors import UserError


def test_shares_are_exact_over_whole_periods_in_an_order_of_their_own():
    schedule = BucketSchedule([8, 4, 2], [0.5, 0.3, 0.2], seed=0)
    steps = np.array([schedule.bucket(step) for step in range(1000)])
    for start in range(0, 1000, 10):
        np.testing.assert_array_equal(np.bincount(steps[start : start + 10]), [5, 3, 2])
    assert len({tuple(steps[start : start + 10]) for start in range(0, 1000, 10)}) > 50


def test_position_is_the_videos_of_all_steps_before_and_names_its_step():
    sizes = [8, 4, 2]
    schedule = BucketSchedule(sizes, [3, 2, 2], seed=1)
    position = 0
    for step in range(50):
        assert schedule.position(step) == position and schedule.step(position) == step
        position += sizes[schedule.bucket(step)]
    with pytest.raises(UserError, match="no batch begins after 1 videos"):
        schedule.step(1)


def test_the_order_is_that_of_the_seed():
    def order(seed):
        schedule = BucketSchedule([1, 1], [1, 1], seed)
        return [schedule.bucket(step) for step in range(64)]

    assert order(0) == order(0) != order(1)


def test_far_steps_cost_no_more_than_near_ones():
    schedule = BucketSchedule([8, 4], [1, 2], seed=0)
    assert schedule.position(3 * 10**15) == 16 * 10**15
    assert schedule.step(16 * 10**15) == 3 * 10**15


def test_shares_change_at_named_steps_and_the_position_stays_a_function_of_the_step():
    """VideoPoet, section 5: 90 % images in the first quarter of 400 steps, 10 % after it (11.7)."""
    schedule = BucketSchedule([8, 2], [9, 1], seed=0, phases=[(100, [1, 9]), (300, [0, 1])])
    steps = np.array([schedule.bucket(step) for step in range(400)])
    np.testing.assert_array_equal(np.bincount(steps[:100]), [90, 10])
    np.testing.assert_array_equal(np.bincount(steps[100:300]), [20, 180])
    assert (steps[300:] == 1).all()
    for step in (0, 1, 99, 100, 101, 250, 299, 300, 399):
        assert schedule.position(step) == np.array([8, 2])[steps[:step]].sum()
        assert schedule.step(schedule.position(step)) == step
    plain = BucketSchedule([8, 2], [9, 1], seed=0)
    assert [plain.bucket(step) for step in range(100)] == steps[:100].tolist()


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (((5, (1,)),), "shares of the 2 buckets"),
        (((5, (1, 1)), (5, (1, 2))), "must be above 0 and rise"),
        (((0, (1, 1)),), "must be above 0 and rise"),
    ],
)
def test_phases_that_cannot_be_are_refused(phases, message):
    with pytest.raises(UserError, match=message):
        read_phases({"phases": phases}, 2)


def section(*buckets):
    clip = {"frames": 5, "height": 16, "width": 16, "fps": 0.0}
    return ConfigDict({"clip": clip, "batch_size": 8, "buckets": buckets})


def test_without_buckets_there_is_the_clip():
    (only,) = read_buckets(section())
    assert (only.clip, only.batch_size) == (Clip(5, 16, 16), 8)


def test_buckets_are_read_from_tuples_and_from_the_lists_of_a_saved_config():
    buckets = read_buckets(section((9, 32, 24, 4, 0.5), [5, 16, 16, 8, 1]))
    assert [(b.clip, b.batch_size, b.share) for b in buckets] == [(Clip(9, 32, 24), 4, 0.5), (Clip(5, 16, 16), 8, 1)]


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([9, 32, 24, 4, 1], "must be .frames, height, width, batch_size, share."),
        ([(9, 32, 24, 4)], r"data.buckets\[0\]"),
        ([(9, 32, 24, 0, 1)], "positive whole"),
        ([(9, 32, 24.5, 4, 1)], "positive whole"),
        ([(9, 0, 24, 4, 1)], "clip.height must be at least 1"),
        ([(9, 32, 24, 4, 1), (9, 32, 24, 8, 1)], "two buckets of one clip size"),
    ],
)
def test_entries_that_are_no_buckets_are_refused(buckets, message):
    with pytest.raises(UserError, match=message):
        read_buckets(section(*buckets))


@pytest.mark.parametrize(("shares", "message"), [([1, 0], "positive share"), ([1, 0.1234567], "round")])
def test_shares_that_cannot_be_kept_are_refused(shares, message):
    with pytest.raises(UserError, match=message):
        BucketSchedule([1, 1], shares, seed=0)

"""What a killed command has finished is there at its next start, and nothing of another command is."""

import logging

import numpy as np
import pytest

from videogen.runs.finished import FinishedBatches

KEY = {"protocol": "reconstruction", "count": 4, "seed": 0}


def batch(number: int) -> dict:
    return {"videos": np.full((2, 3), number, np.uint8), "psnr": np.float32(number) / 3}


def test_finished_batches_are_read_again_and_removed_at_the_end(tmp_path):
    out, computed = tmp_path / "x.json", []

    def compute(number):
        computed.append(number)
        return batch(number)

    parts = FinishedBatches(out, KEY)
    first = [parts(f"batch_{i}", lambda i=i: compute(i)) for i in range(2)]
    parts = FinishedBatches(out, KEY)
    again = [parts(f"batch_{i}", lambda i=i: compute(i)) for i in range(3)]
    assert computed == [0, 1, 2] and parts.read == 2
    for number, (one, other) in enumerate(zip([*first, batch(2)], again, strict=True)):
        for name, array in batch(number).items():
            np.testing.assert_array_equal(one[name], array)
            np.testing.assert_array_equal(other[name], array)
            assert other[name].dtype == array.dtype
    parts.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, value", [("count", 5), ("seed", 1), ("protocol", "tasks")])
def test_what_another_command_left_is_not_used_with_a_word(tmp_path, caplog, name, value):
    FinishedBatches(tmp_path / "x.json", KEY)("batch_0", lambda: batch(7))
    with caplog.at_level(logging.WARNING, logger="absl"):
        parts = FinishedBatches(tmp_path / "x.json", KEY | {name: value})
    assert f"x.json.parts was left by a command with another {name}" in caplog.text
    for _ in range(2):
        np.testing.assert_array_equal(parts("batch_0", lambda: batch(1))["videos"], batch(1)["videos"])
    assert parts.read == 1


def test_a_command_that_is_refused_leaves_nothing(tmp_path):
    FinishedBatches(tmp_path / "x.json", KEY).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_batch_is_computed_again_and_one_that_fails_leaves_nothing(tmp_path):
    parts = FinishedBatches(tmp_path / "x.json", KEY)
    parts("batch_0", lambda: batch(1))
    path = tmp_path / "x.json.parts" / "batch_0.npz"
    path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(parts("batch_0", lambda: batch(2))["videos"], batch(2)["videos"])
    with pytest.raises(ZeroDivisionError):
        parts("batch_1", lambda: {"x": 1 / 0})
    np.testing.assert_array_equal(parts("batch_1", lambda: batch(3))["videos"], batch(3)["videos"])

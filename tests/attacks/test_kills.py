"""A run that is killed twenty times, at any moment, ends where the run that was never killed does."""

import random
import signal
import time

import numpy as np
import pytest

from tests.training.test_resume import finish, losses, start, weights

KILLS = 20
SETTINGS = (
    *("--config.steps=60", "--config.eval_every=20", "--config.checkpoint_every=2", "--config.ema.decay=0.9"),
    "--config.data.workers=2",
)


@pytest.mark.attack
def test_twenty_kills_change_nothing(tmp_path):
    straight = start(tmp_path / "straight", *SETTINGS)
    message = finish(straight)
    assert straight.returncode == 0, message
    draw, kills = random.Random(0), 0
    while kills < KILLS:
        killed = start(tmp_path / "killed", *SETTINGS)
        # From before the imports to the middle of a save: a start takes about eight seconds.
        time.sleep(draw.uniform(0.5, 14.0))
        if killed.poll() is not None:
            break
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        kills += 1
    last = start(tmp_path / "killed", *SETTINGS)
    message = finish(last)
    assert last.returncode == 0 and kills >= 5, message
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    for a, b in zip(weights(tmp_path / "killed"), weights(tmp_path / "straight"), strict=True):
        np.testing.assert_array_equal(a, b)

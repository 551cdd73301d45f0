"""Decisions while frames arrive: equal to those over the whole stream, from the past alone, and with bounded memory."""

import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.reducers.online import ChangeTrigger, SceneCutter
from videogen.reducers.segmenters import transitions


@pytest.mark.parametrize("window", [4, 32])
@pytest.mark.parametrize("seed", range(3))
def test_the_trigger_is_that_of_the_whole_stream(seed, window):
    rng = np.random.default_rng(seed)
    dropped = np.round(rng.uniform(0.5, 1.0, 60), 1).astype(np.float32)
    dropped[rng.integers(5, 60, 6)] = 0.0
    trigger = ChangeTrigger(window)
    found = [trigger.push(float(value)) for value in dropped]
    assert found == np.asarray(transitions(jnp.asarray(dropped), window)).tolist() and any(found)


def test_a_still_stream_triggers_never_and_a_hard_cut_once_one_frame_later():
    still = [0.0, *[1.0] * 40]
    assert not any(map(ChangeTrigger().push, still))
    cut = [0.0, *[1.0] * 10, 0.1, *[1.0] * 10]
    assert np.flatnonzero([*map(ChangeTrigger().push, cut)]).tolist() == [12]


def frames(*lengths: int, seed: int = 0):
    """Unit vectors that stay the same within each of some scenes."""
    return [np.eye(8, dtype=np.float32)[i % 8] for i, length in enumerate(lengths) for _ in range(length)]


def test_scenes_end_at_hard_cuts_one_frame_later():
    cutter = SceneCutter()
    found = {}
    for number, features in enumerate(frames(5, 7, 4)):
        if scene := cutter.push(features):
            found[number] = scene
    # Frame 5 begins the second scene, which is known at frame 6.
    assert found == {6: (0, 5), 13: (5, 12)} and cutter.begin == 12
    assert cutter.finish() == (12, 16) and cutter.finish() is None


def test_scenes_cover_the_stream_once_and_are_no_longer_than_allowed():
    rng = np.random.default_rng(0)
    cutter, scenes = SceneCutter(window=8, longest=6), []
    for _ in range(100):
        scenes += filter(None, [cutter.push(rng.normal(size=5))])
    scenes.append(cutter.finish())
    assert scenes[0][0] == 0 and scenes[-1][1] == 100
    assert all(a[1] == b[0] for a, b in zip(scenes, scenes[1:], strict=False))
    assert all(1 <= stop - start <= 6 for start, stop in scenes) and min(b - a for a, b in scenes[:-1]) >= 2


def test_a_still_stream_is_one_scene_and_noise_below_the_floor_is_no_cut():
    cutter = SceneCutter()
    assert [cutter.push(np.ones(4)) for _ in range(60)] == [None] * 60 and cutter.finish() == (0, 60)
    rng = np.random.default_rng(1)
    cutter = SceneCutter()
    noisy = [np.ones(4) + 0.01 * rng.normal(size=4) for _ in range(60)]
    assert [cutter.push(each) for each in noisy] == [None] * 60
    without = SceneCutter(floor=0.0)
    assert any(without.push(each) for each in noisy)
    with pytest.raises(UserError, match="1 … longest"):
        SceneCutter(shortest=0)

"""Streams through recurrent reducers: up to a clip of training exactly the clip, then memory of one size."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.tasks.test_understanding import LENGTH, built
from videogen.data.text import ByteTokenizer
from videogen.inference.carried import CarriedEye, carries
from videogen.inference.eyes import ClipEye, size_of
from videogen.inference.streaming import Settings, open_session

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
CHAINS = {
    "bridge": ({"name": "bridge", "memory": 3, "frames": 2, "heads": 2},),
    "summaries": ({"name": "summaries", "frames": 2, "each": 1, "heads": 2, "layers": 1},),
}


def loaded(chain, **changes):
    """A model of clips of four frames with random weights."""
    task, modules = built(**{"model.vision.reducers": chain, **changes})
    return SimpleNamespace(task=task, modules=modules, config=task.config, text=ByteTokenizer(LENGTH), directory="run")


@pytest.fixture(scope="module", params=CHAINS)
def eyes(request):
    model = loaded(CHAINS[request.param])
    return CarriedEye(model), ClipEye(model)


def words(eye):
    return [eye.ask(question, 0.0) for question in ("how?", "why", "x")]


@pytest.mark.slow
def test_up_to_the_length_of_training_it_is_the_clip(eyes):
    """Also where a segment is not whole yet."""
    carried, whole = (eye.fresh() for eye in eyes)
    for k in range(4):
        one, other = carried.push(PIXELS[k], 3 + k / 4), whole.push(PIXELS[k], 3 + k / 4)
        assert one.dropped == other.dropped, k
        assert words(carried) == words(whole), k


@pytest.mark.slow
def test_memory_is_of_one_size_and_what_was_long_ago_counts(eyes):
    carried, size = eyes[0].fresh(), eyes[0].limit.size
    assert size == size_of(carried.carry) + carried.pending.nbytes
    other = carried.fresh()
    for k in range(40):
        carried.push(PIXELS[k], k / 4)
        other.push(PIXELS[k] if k >= 2 else 255 - PIXELS[k], k / 4)
        assert size_of(carried.carry) + carried.pending.nbytes == size and len(carried.times) <= carried.told
        if k == 5:
            # The first segment is not among those that are told apart any more, and yet it counts.
            leaves = map(jax.tree.leaves, (carried.carry, other.carry))
            assert not all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    assert carried._fold._cache_size() == 1


def test_limits_are_said_and_times_stay_in_range(eyes):
    carried = eyes[0].fresh()
    told = {1: 2, 2: 4}[carried.told]
    assert (carried.limit.frames, carried.limit.kept, carried.segment) == (told, told - 2, 2)
    assert "count through the memory of the reducer alone" in carried.limit.lines()[1] and carried.trained == 0.75


def test_models_that_go_on_with_a_stream():
    bridge = loaded(CHAINS["bridge"])
    assert carries(bridge) and isinstance(open_session(bridge).eye, CarriedEye)
    assert isinstance(open_session(bridge, Settings(speaks="scenes")).eye, ClipEye)
    assert isinstance(open_session(bridge, Settings(frames=3)).eye, ClipEye)
    assert not carries(loaded(({"name": "grid", "side": 1},))) and not carries(loaded(()))
    over_time = {"name": "patches", "patch": 4, "transformer": {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}}
    assert not carries(loaded(CHAINS["bridge"], **{"model.vision.encoder": {**over_time, "temporal": 1}}))
    hooks = ({"name": "beside", "layer": 0},)
    assert not carries(loaded(CHAINS["bridge"], **{"model.backbone.hooks": hooks}))
    pooled = ({"name": "grid", "side": 1}, *CHAINS["bridge"])
    assert carries(loaded(pooled))
    over_frames = ({"name": "windows", "window": (2, 1, 1)}, {**CHAINS["bridge"][0], "frames": 1})
    assert not carries(loaded(over_frames))
    guided = ({"name": "summaries", "frames": 2, "each": 1, "heads": 2, "layers": 1, "clips": 1},)
    assert not carries(loaded(guided))

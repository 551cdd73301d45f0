import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import logging as absl_logging
from jax._src import xla_bridge

from videogen import data
from videogen.data.clip import Clip
from videogen.data.pipeline import Pipeline, candidates
from videogen.data.source import SampleError, Source
from videogen.errors import UserError

CLIP = Clip(3, 8, 8)


class Numbers(Source):
    """Sample i is a clip of value i, its caption str(i), its label i % 3; ``broken`` samples cannot be read.

    ``audio`` carries a draw of the generator handed to ``sample``.
    """

    classes = ("a", "b", "c")

    def __init__(self, count, broken=(), clip=CLIP):
        super().__init__(clip=clip, seed=0, split="train")
        self._count = count
        self._broken = set(broken)

    def __len__(self):
        return self._count

    def sample(self, index, rng):
        if index in self._broken:
            raise SampleError(f"file{index}", "broken")
        clip = self.clip
        times = np.arange(clip.frames, dtype=np.uint8)[:, None, None, None] * 100
        video = np.full((clip.frames, clip.height, clip.width, 3), index, np.uint8) + times
        audio = np.array([[rng.random()]], np.float32)
        return {"video": video, "caption": str(index), "label": index % 3, "fps": 8.0, "audio": audio}


class Length:
    """A text tokenizer that encodes a caption as its number."""

    def encode(self, captions):
        ids = np.array([[int(c)] for c in captions], np.int32)
        return ids, np.ones_like(ids, bool)

    def is_cut(self, caption):
        return int(caption) > 7


def make(source=None, **settings):
    settings = {"batch_size": 4, "seed": 3, "workers": 0, "text": Length()} | settings
    return Pipeline(Numbers(10) if source is None else source, **settings)


BUCKETS = {
    "source": [Numbers(10, clip=clip) for clip in (CLIP, Clip(1, 16, 8), Clip(2, 8, 24))],
    "batch_size": [4, 8, 2],
    "shares": [3, 1, 2],
}


def take(pipeline, count):
    batches = [next(pipeline) for _ in range(count)]
    pipeline.close()
    return batches


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], dict):
                assert_equal([a[key]], [b[key]])
            else:
                np.testing.assert_array_equal(a[key], b[key])


def ids(batches):
    return [int(v) for batch in batches for v in batch["text_ids"][:, 0]]


def test_batch_fields_shapes_and_types():
    batch = take(make(), 1)[0]
    assert set(batch) == {"video", "text_ids", "text_mask", "label", "audio"}
    assert batch["video"].shape == (4, 3, 8, 8, 3) and batch["video"].dtype == np.uint8
    assert batch["text_ids"].dtype == np.int32 and batch["text_mask"].dtype == bool
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], batch["text_ids"][:, 0] % 3)
    np.testing.assert_array_equal(batch["video"][:, 0, 0, 0, 0], batch["text_ids"][:, 0])


def test_every_epoch_sees_every_sample_once_in_a_new_order():
    order = ids(take(make(batch_size=5), 4))
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert order[:10] != list(range(10))


def test_without_shuffle_the_order_is_the_sources():
    assert ids(take(make(shuffle=False), 5)) == [*range(10)] * 2


def test_seed_changes_order():
    assert ids(take(make(seed=1), 3)) != ids(take(make(seed=2), 3))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_by_start_and_by_state_continue_identically(workers):
    images = {"image_batch_size": 2}
    straight = take(make(**images), 7)
    resumed = take(make(start=3 * 4, workers=workers, **images), 4)
    assert_equal(straight[3:], resumed)

    pipeline = make(workers=workers, **images)
    first = [next(pipeline) for _ in range(3)]
    state = pipeline.get_state()
    pipeline.close()
    again = make(workers=workers, start=state["position"], **images)
    assert_equal(straight, first + take(again, 4))


HALVES = [lambda size: (0, 2), lambda size: (1, 2)]


def test_two_processes_hold_the_halves_of_the_one_process_batches():
    whole = take(make(image_batch_size=2, start=8), 5)
    parts = [take(make(image_batch_size=2, start=8, share=half), 5) for half in HALVES]
    for k, batch in enumerate(whole):
        for key in ("video", "text_ids", "label", "audio"):
            np.testing.assert_array_equal(batch[key], np.concatenate([parts[p][k][key] for p in range(2)]))
            joined = np.concatenate([parts[p][k]["image"][key] for p in range(2)])
            np.testing.assert_array_equal(batch["image"][key], joined)


def test_resume_on_another_number_of_processes():
    whole = take(make(), 4)
    pipeline = make(share=HALVES[1])
    next(pipeline)
    state = pipeline.get_state()
    pipeline.close()
    assert_equal(whole[1:], take(make(start=state["position"]), 3))


def test_closing_ends_the_stream_and_may_happen_twice():
    pipeline = make()
    next(pipeline)
    pipeline.close()
    pipeline.close()
    assert list(pipeline) == []


def test_images_may_come_from_another_source():
    still = Clip(1, 8, 8)
    pictures = Numbers(100, clip=still)
    batches = take(make(image_batch_size=6, image_source=pictures), 6)
    own = take(make(image_batch_size=6), 6)
    for batch, other in zip(batches, own, strict=True):
        np.testing.assert_array_equal(batch["video"], other["video"])
        assert batch["image"]["video"].shape == (6, 1, 8, 8, 3)
    seen = np.concatenate([batch["image"]["video"][:, 0, 0, 0, 0] for batch in batches])
    assert len(set(seen.tolist())) == 36 and seen.max() > 9
    with pytest.raises(UserError, match="images is empty; check data.image_source.path"):
        make(image_batch_size=6, image_source=Numbers(0, clip=still))
    unlabelled = Numbers(10, clip=still)
    unlabelled.classes = ()
    with pytest.raises(UserError, match="images and videos have other classes"):
        make(image_batch_size=6, image_source=unlabelled)


def test_images_are_single_frames_of_random_times():
    batches = take(make(image_batch_size=6), 4)
    images = np.concatenate([b["image"]["video"] for b in batches])
    assert images.shape == (24, 1, 8, 8, 3)
    assert len(set(images[:, 0, 0, 0, 0] // 100)) > 1
    assert batches[0]["image"]["text_ids"].shape == (6, 1)


def test_a_bad_sample_is_replaced_without_moving_the_others(caplog):
    absl_logging.get_absl_logger().propagate = True
    clean = ids(take(make(shuffle=False), 5))
    pipeline = make(Numbers(10, broken=(2, 3, 9)), shuffle=False)
    dirty = ids([next(pipeline) for _ in range(5)])
    pipeline.close()
    assert all(new == old for new, old in zip(dirty, clean, strict=True) if old not in (2, 3, 9))
    assert not {2, 3, 9} & set(dirty)
    assert pipeline.skipped == {"file2": "broken", "file3": "broken", "file9": "broken"}
    assert sum("skipped file2: broken" in r.getMessage() for r in caplog.records) == 1


def test_replacements_are_drawn_from_all_samples():
    """The neighbour of a broken file took its whole share: it came four times an epoch where three were broken."""
    source = Numbers(40, broken=(3, 4, 5))
    epochs = 60
    order = np.array(ids(take(make(source, batch_size=40), epochs)))
    counts = np.bincount(order, minlength=40)
    assert (counts[[3, 4, 5]] == 0).all()
    replaced = np.delete(counts, [3, 4, 5]) - epochs
    assert replaced.sum() == 3 * epochs and replaced.min() >= 0 and replaced.max() < 18
    np.testing.assert_array_equal(order, ids(take(make(source, batch_size=20), 2 * epochs)))


def test_every_sample_is_tried_before_giving_up():
    for count in (1, 2, 7, 12):
        for seed in range(5):
            tried = [*candidates(count // 2, count, np.random.default_rng(seed))]
            assert tried[0] == count // 2 and sorted(tried) == [*range(count)]
    order = ids(take(make(Numbers(12, broken=range(11))), 3))
    assert order == [11] * 12


def test_cut_captions_are_counted_and_said_once(caplog):
    absl_logging.get_absl_logger().propagate = True
    pipeline = make(image_batch_size=10, batch_size=10)
    batches = [next(pipeline) for _ in range(3)]
    pipeline.close()
    assert pipeline.cut == 3 * 2 * 2 and "cut" not in batches[0] and "cut" not in batches[0]["image"]
    assert sum("captions with more tokens" in r.getMessage() for r in caplog.records) == 1


def workers_of(pipeline):
    return [child for child in multiprocessing.active_children() if "grain" in child.name]


@pytest.mark.slow
def test_a_dead_worker_is_started_again_once(caplog):
    absl_logging.get_absl_logger().propagate = True
    straight = take(make(), 40)
    pipeline = make(workers=2)
    batches = [next(pipeline) for _ in range(3)]
    os.kill(workers_of(pipeline)[0].pid, signal.SIGKILL)
    batches += [next(pipeline) for _ in range(37)]
    assert_equal(straight, batches)
    assert sum("a data worker died, with exit code -9" in r.getMessage() for r in caplog.records) == 1
    os.kill(workers_of(pipeline)[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match="died again, with exit code -9; .* use fewer"):
        for _ in range(40):
            next(pipeline)
    pipeline.close()


@pytest.mark.slow
def test_workers_end_with_their_parent(run_python, tmp_path):
    """After ``kill -9`` they lived on."""
    code = f"""
import multiprocessing, os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_pipeline import make, workers_of
if __name__ == "__main__":
    pipeline = make(workers=2)
    next(pipeline)
    print(*(child.pid for child in workers_of(pipeline)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "killed.py").write_text(code)
    result = run_python([tmp_path / "killed.py"], devices=1)
    assert result.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    except OSError:
        return "Z"


def test_skipped_names_come_back_from_worker_processes():
    pipeline = make(Numbers(10, broken=(2,)), workers=1)
    take(pipeline, 3)
    assert pipeline.skipped == {"file2": "broken"}


def test_all_buckets_share_one_order_of_samples():
    pipeline = make(**BUCKETS)
    batches, buckets = [], []
    for _ in range(12):
        batches.append(next(pipeline))
        buckets.append(pipeline.bucket)
    pipeline.close()
    np.testing.assert_array_equal(np.bincount(buckets), [6, 2, 4])
    for batch, bucket in zip(batches, buckets, strict=True):
        clip = BUCKETS["source"][bucket].clip
        assert batch["video"].shape == (BUCKETS["batch_size"][bucket], clip.frames, clip.height, clip.width, 3)
    order = ids(batches)
    assert order == ids(take(make(batch_size=len(order)), 1))
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_with_buckets_goes_on_where_it_stopped(workers):
    settings = BUCKETS | {"image_batch_size": 2}
    straight = take(make(**settings), 9)
    pipeline = make(workers=workers, **settings)
    first = [next(pipeline) for _ in range(4)]
    state = pipeline.get_state()
    pipeline.close()
    assert state == {"position": sum(len(batch["video"]) for batch in first)}
    assert_equal(straight, first + take(make(workers=workers, start=state["position"], **settings), 5))


def test_two_processes_hold_the_halves_of_every_bucket():
    settings = BUCKETS | {"image_batch_size": 2}
    whole = take(make(**settings), 6)
    parts = [take(make(share=half, **settings), 6) for half in HALVES]
    for k, batch in enumerate(whole):
        for key in ("video", "text_ids", "audio"):
            np.testing.assert_array_equal(batch[key], np.concatenate([parts[p][k][key] for p in range(2)]))
        joined = np.concatenate([parts[p][k]["image"]["video"] for p in range(2)])
        np.testing.assert_array_equal(batch["image"]["video"], joined)


def test_buckets_of_different_data_and_uneven_ones_are_refused():
    with pytest.raises(UserError, match="another number of samples"):
        make([Numbers(10), Numbers(9)], batch_size=[2, 2], shares=[1, 1])
    with pytest.raises(UserError, match="batch size 2 is no multiple of the 4 shares"):
        make(**BUCKETS, share=lambda size: (0, 4))
    with pytest.raises(UserError, match="no batch begins after 1 videos"):
        make(**BUCKETS, start=1)


class Watchful(Numbers):
    """Cannot be read where devices are initialised or TensorFlow is loaded."""

    def sample(self, index, rng):
        if xla_bridge.backends_are_initialized() or "tensorflow" in sys.modules:
            raise SampleError("worker", "has devices or TensorFlow")
        return super().sample(index, rng)


def test_worker_processes_leave_devices_and_tensorflow_alone():
    pipeline = make(Watchful(10), workers=1)
    take(pipeline, 2)
    assert not pipeline.skipped


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_clear_error(workers):
    with pytest.raises(UserError, match="no sample of the 3 .* file. ?: broken|file.: broken"):
        take(make(Numbers(3, broken=(0, 1, 2)), workers=workers), 1)


def test_empty_source_and_uneven_batches_are_refused():
    with pytest.raises(UserError, match="empty"):
        make(Numbers(0))
    with pytest.raises(UserError, match="multiple of the 3 shares"):
        make(share=lambda size: (0, 3))


def test_shapes_go_through_whole_pipeline():
    source = data.build({"name": "shapes", "path": ""}, clip=Clip(5, 16, 16), seed=0, split="train")
    batch = take(Pipeline(source, batch_size=2, seed=0, workers=0, text=None), 1)[0]
    assert set(batch) == {"video", "label"}
    assert batch["video"].shape == (2, 5, 16, 16, 3)


def test_build_names_near_matches():
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        data.build({"name": "shape"}, clip=CLIP, seed=0, split="train")
    with pytest.raises(UserError, match="did you mean 'second_shape'"):
        data.build({"name": "shapes", "second_shap": 1.0}, clip=CLIP, seed=0, split="train")
    with pytest.raises(UserError, match="did you mean 'train'"):
        data.build({"name": "shapes"}, clip=CLIP, seed=0, split="trian")

import numpy as np
import pytest

from videogen import data
from videogen.data import Pipeline
from videogen.data.clip import Clip
from videogen.data.tokens import TokenWriter
from videogen.errors import UserError

CLIP = Clip(9, 32, 32, fps=8.0)
META = {
    "tokenizer_hash": "a" * 64,
    "vocabulary": [512],
    "frames": 9,
    "height": 32,
    "width": 32,
    "fps": 8.0,
    "classes": ["x", "y"],
}


def codes(count, vocabulary=512):
    return np.random.default_rng(0).integers(0, vocabulary, (count, 3, 4, 4, 1), dtype=np.int32)


@pytest.fixture
def cache(tmp_path):
    def make(count=6, **meta):
        meta = META | meta
        path = tmp_path / "cache"
        with TokenWriter(path, meta) as writer:
            for i, indices in enumerate(codes(count, meta["vocabulary"][0])):
                writer.write(indices, f"clip {i}", i % 2)
        return path

    return make


def build(path, clip=CLIP, split="train", **settings):
    return data.build({"name": "tokens", "path": str(path), **settings}, clip=clip, seed=0, split=split)


@pytest.mark.parametrize("vocabulary, dtype", [(512, "<u2"), (2**16, "<u2"), (2**18, "<i4")])
def test_codes_come_back_exactly(cache, vocabulary, dtype):
    source = build(cache(vocabulary=[vocabulary]), tokenizer_hash="a" * 64)
    assert source.meta["grid"] == [3, 4, 4, 1] and source.meta["dtype"] == dtype and source.meta["count"] == 6
    for i, indices in enumerate(codes(6, vocabulary)):
        sample = source[i]
        np.testing.assert_array_equal(sample["indices"], indices)
        assert sample["indices"].dtype == np.int32
        assert (sample["caption"], sample["label"], sample["fps"]) == (f"clip {i}", i % 2, 8.0)
        assert source.caption(i) == f"clip {i}"


def test_another_tokenizer_or_clip_is_refused(cache):
    path = cache()
    with pytest.raises(UserError, match="made by tokenizer aaaaaaaaaaaa, the generator has bbb"):
        build(path, tokenizer_hash="b" * 64)
    with pytest.raises(UserError, match="holds clips of 9x32x32, data.clip asks for 9x64x32"):
        build(path, clip=Clip(9, 64, 32))


def test_interrupted_writing_leaves_no_cache(tmp_path):
    with pytest.raises(KeyboardInterrupt), TokenWriter(tmp_path / "cache", META) as writer:
        writer.write(codes(1)[0])
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="no complete directory of tokens"):
        build(tmp_path / "cache")


def test_wrong_codes_are_refused(tmp_path):
    with pytest.raises(UserError, match="one grid"), TokenWriter(tmp_path / "a", META) as writer:
        writer.write(codes(1)[0])
        writer.write(codes(1)[0][:2])
    for value in (-1, 512):
        with pytest.raises(UserError, match="vocabulary"), TokenWriter(tmp_path / f"{value}", META) as writer:
            writer.write(np.full((3, 4, 4, 1), value))


def test_vocabulary_is_checked_level_by_level(tmp_path):
    with TokenWriter(tmp_path / "cache", META | {"vocabulary": [4, 9]}) as writer:
        writer.write(np.array([[[[3, 8]]]]))
        with pytest.raises(UserError, match="vocabulary"):
            writer.write(np.array([[[[4, 8]]]]))


def test_holdout_divides_by_caption(tmp_path):
    with TokenWriter(tmp_path / "cache", META) as writer:
        for i, indices in enumerate(codes(60)):
            writer.write(indices, f"caption {i % 20}", 0)
    train = build(tmp_path / "cache", holdout=0.3)
    held_out = build(tmp_path / "cache", split="eval", holdout=0.3)
    captions = [{source.caption(i) for i in range(len(source))} for source in (train, held_out)]
    assert not captions[0] & captions[1] and len(captions[0] | captions[1]) == 20
    assert len(train) + len(held_out) == 60 and len(held_out) % 3 == 0 and captions[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_indices_instead_of_video(cache, workers):
    pipeline = Pipeline(build(cache()), batch_size=3, seed=0, workers=workers, text=None)
    batches = [next(pipeline) for _ in range(2)]
    pipeline.close()
    assert set(batches[0]) == {"indices", "label"}
    seen = np.concatenate([b["indices"] for b in batches])
    assert seen.shape == (6, 3, 4, 4, 1)
    assert {s.tobytes() for s in seen} == {s.tobytes() for s in codes(6)}


def test_images_cannot_be_had_from_tokens(cache):
    pipeline = Pipeline(build(cache()), batch_size=3, seed=0, workers=0, text=None, image_batch_size=1)
    with pytest.raises(UserError, match="image_batch_size=0"):
        next(pipeline)

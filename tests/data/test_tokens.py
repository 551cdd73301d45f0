import json
import mmap
import pickle

import numpy as np
import pytest

from videogen import data
from videogen.data import Pipeline
from videogen.data.clip import Clip
from videogen.data.source import SampleError
from videogen.data.tokens import TokenWriter
from videogen.errors import UserError
from videogen.tokens import Layout, SegmentLayout

GRID = (("time", 3), ("height", 4), ("width", 4))
CLIP = Clip(9, 32, 32, fps=8.0)
META = {
    "tokenizer_hash": "a" * 64,
    "frames": 9,
    "height": 32,
    "width": 32,
    "fps": 8.0,
    "classes": ["x", "y"],
}


def layout(*vocabulary, sides=GRID) -> Layout:
    return Layout.of(video=SegmentLayout(sides, vocabulary))


def codes(count, vocabulary=512):
    return np.random.default_rng(0).integers(0, vocabulary, (count, 3, 4, 4, 1), dtype=np.int32)


@pytest.fixture
def cache(tmp_path):
    def make(count=6, vocabulary=512, **meta):
        path = tmp_path / "cache"
        with TokenWriter(path, layout(vocabulary), META | meta) as writer:
            for i, indices in enumerate(codes(count, vocabulary)):
                writer.write({"video": indices}, f"clip {i}", i % 2)
        return path

    return make


def build(path, clip=CLIP, split="train", **settings):
    return data.build({"name": "tokens", "path": str(path), **settings}, clip=clip, seed=0, split=split)


@pytest.mark.parametrize("vocabulary, dtype", [(2, "bits"), (256, "|u1"), (512, "<u2"), (2**16, "<u2"), (2**18, "<i4")])
def test_codes_come_back_exactly(cache, vocabulary, dtype):
    source = build(cache(vocabulary=vocabulary), tokenizer_hash="a" * 64)
    assert source.layout == layout(vocabulary) and source.meta["count"] == 6
    assert source.meta["segments"]["video"]["dtype"] == dtype and source.meta["space"] == "raw"
    for i, indices in enumerate(codes(6, vocabulary)):
        sample = source[i]
        np.testing.assert_array_equal(sample["tokens/video"], indices)
        assert sample["tokens/video"].dtype == np.int32
        assert (sample["caption"], sample["label"], sample["fps"]) == (f"clip {i}", i % 2, 8.0)
        assert source.caption(i) == f"clip {i}"


def test_another_tokenizer_or_clip_is_refused(cache):
    path = cache()
    with pytest.raises(UserError, match="made by tokenizer aaaaaaaaaaaa, the generator has bbb"):
        build(path, tokenizer_hash="b" * 64)
    with pytest.raises(UserError, match="holds clips of 9x32x32, data.clip asks for 9x64x32"):
        build(path, clip=Clip(9, 64, 32))


def test_interrupted_writing_leaves_no_cache(tmp_path):
    with pytest.raises(KeyboardInterrupt), TokenWriter(tmp_path / "cache", layout(512), META) as writer:
        writer.write({"video": codes(1)[0]}, label=0)
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="no complete token cache"):
        build(tmp_path / "cache")


def test_existing_directories_are_left_alone(cache):
    path = cache()
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        TokenWriter(path, layout(512), META)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_cache_without_clips_is_not_completed(tmp_path):
    with pytest.raises(UserError, match="no clip was written"), TokenWriter(tmp_path / "cache", layout(512), META):
        pass
    assert not (tmp_path / "cache" / "meta.json").exists()


@pytest.mark.parametrize("file", ["video.bin", "captions.bin", "caption_ends.bin", "labels.bin"])
def test_lost_and_cut_files_are_noticed(cache, file):
    path = cache() / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{file} has .* bytes; write the token cache again"):
        build(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=f"{file} has 0 of"):
        build(path.parent)


@pytest.mark.parametrize("meta, message", [("{", "cannot be read"), ("{}", "its meta.json has no count")])
def test_foreign_directories_are_refused(cache, tmp_path, meta, message):
    path = cache()
    (path / "meta.json").write_text(meta)
    with pytest.raises(UserError, match=message):
        build(path)
    with pytest.raises(UserError, match="no directory"):
        build(tmp_path / "none")


def test_captions_of_any_script_and_none(tmp_path):
    captions = ["", "süß 漢字 🙂", "", "a\nb", ""]
    with TokenWriter(tmp_path / "cache", layout(512), META | {"classes": []}) as writer:
        for indices, caption in zip(codes(5), captions, strict=True):
            writer.write({"video": indices}, caption)
    source = build(tmp_path / "cache")
    assert [source.caption(i) for i in range(5)] == captions and "label" not in source[0]
    with TokenWriter(tmp_path / "silent", layout(512), META | {"classes": [], "fps": None}) as writer:
        writer.write({"video": codes(1)[0]})
    sample = build(tmp_path / "silent")[0]
    assert set(sample) == {"tokens/video", "caption"} and sample["caption"] == ""


def test_files_are_mapped_not_read_and_not_sent_to_workers(tmp_path):
    with TokenWriter(tmp_path / "cache", layout(512), META) as writer:
        for i, indices in enumerate(codes(500)):
            writer.write({"video": indices}, f"clip {i}", 0)
    source = build(tmp_path / "cache")
    for array in (source._tokens["video"], source._text, source._ends, source._labels):
        owner = array.values
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap.mmap)
    pickled = pickle.dumps(source)
    assert len(pickled) < 3000 < (tmp_path / "cache" / "video.bin").stat().st_size
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again[499]["tokens/video"], source[499]["tokens/video"])
    # A sample is a copy: who changes it does not change the cache.
    source[0]["tokens/video"][:] = 7
    np.testing.assert_array_equal(again[0]["tokens/video"], codes(1)[0])


def test_wrong_codes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is \[3, 4, 4, 1\]"), TokenWriter(tmp_path / "a", layout(512), META) as writer:
        writer.write({"video": codes(1)[0]}, label=0)
        writer.write({"video": codes(1)[0][:2]}, label=0)
    with pytest.raises(UserError, match=r"got \[3, 4, 4\]"), TokenWriter(tmp_path / "b", layout(512), META) as writer:
        writer.write({"video": codes(1)[0, ..., 0]}, label=0)
    for value in (-1, 512):
        with (
            pytest.raises(UserError, match="vocabulary"),
            TokenWriter(tmp_path / f"{value}", layout(512), META) as writer,
        ):
            writer.write({"video": np.full((3, 4, 4, 1), value)}, label=0)
    for label in (None, -1, 2):
        with (
            pytest.raises(UserError, match="2 classes"),
            TokenWriter(tmp_path / f"l{label}", layout(512), META) as writer,
        ):
            writer.write({"video": codes(1)[0]}, "", label)


def test_vocabulary_is_checked_level_by_level(tmp_path):
    with TokenWriter(tmp_path / "cache", layout(4, 9, sides=(("time", 1),)), META) as writer:
        writer.write({"video": np.array([[3, 8]])}, label=0)
        with pytest.raises(UserError, match="vocabulary"):
            writer.write({"video": np.array([[4, 8]])}, label=0)


def test_holdout_divides_by_caption(tmp_path):
    with TokenWriter(tmp_path / "cache", layout(512), META) as writer:
        for i, indices in enumerate(codes(60)):
            writer.write({"video": indices}, f"caption {i % 20}", 0)
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
    assert set(batches[0]) == {"tokens/video", "label"}
    seen = np.concatenate([b["tokens/video"] for b in batches])
    assert seen.shape == (6, 3, 4, 4, 1)
    assert {s.tobytes() for s in seen} == {s.tobytes() for s in codes(6)}


def test_images_cannot_be_had_from_tokens(cache):
    pipeline = Pipeline(build(cache()), batch_size=3, seed=0, workers=0, text=None, image_batch_size=1)
    with pytest.raises(UserError, match="image_batch_size=0"):
        next(pipeline)


def damage(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name, place", [("video", 5), ("captions", 0), ("labels", 0), ("checksums", 2)])
def test_damaged_clips_are_named_and_skipped(cache, name, place):
    """Other codes were trained on without a word."""
    path = cache()
    damage(path / f"{name}.bin", place)
    source = build(path)
    with pytest.raises(SampleError, match="cache, clip 0: damaged: its checksum differs"):
        source[0]
    assert source[1]["caption"] == "clip 1"
    pipeline = Pipeline(source, batch_size=6, seed=0, workers=0, text=None)
    next(pipeline)
    pipeline.close()
    assert list(pipeline.skipped.values()) == ["damaged: its checksum differs"]


def test_codes_beyond_the_vocabulary_are_refused_where_a_cache_has_no_checksums(cache):
    path = cache()
    meta = json.loads((path / "meta.json").read_text())
    del meta["checksums"]
    (path / "meta.json").write_text(json.dumps(meta))
    np.testing.assert_array_equal(build(path)[3]["tokens/video"], codes(6)[3])
    content = np.frombuffer((path / "video.bin").read_bytes(), "<u2").copy()
    content[-1] = 512
    (path / "video.bin").write_bytes(content.tobytes())
    with pytest.raises(SampleError, match=r"clip 5: codes beyond the vocabulary \[512\]"):
        build(path)[5]
    (path / "labels.bin").write_bytes(np.full(6, 2, "<i4").tobytes())
    with pytest.raises(SampleError, match="clip 0: label 2 is none of the 2 classes"):
        build(path)[0]


SEGMENT = {"sides": [["time", 3]], "vocabulary": [512], "channels": 0, "dtype": "<u2", "masks": []}


@pytest.mark.parametrize(
    "name, value",
    [
        ("count", "6"),
        ("count", -6),
        ("count", True),
        ("space", "normal"),
        *(("segments", value) for value in ([], {}, {"../x": SEGMENT}, {"video": []})),
        *(("segments", {"video": SEGMENT | {"dtype": value}}) for value in ("|O", ["<u2"])),
        *(("segments", {"video": SEGMENT | {"sides": value}}) for value in ([], [3], [["time", -3]], [[3, 3]])),
        *(("segments", {"video": SEGMENT | {"vocabulary": value}}) for value in ([], 512, [0], ["x"])),
        *(("segments", {"video": SEGMENT | {"channels": value}}) for value in (4, -1, True)),
        *(("segments", {"video": SEGMENT | {"masks": value}}) for value in (["kept", "exists"], ["../x"], None)),
        ("frames", None),
        ("tokenizer_hash", 1),
        ("classes", "xy"),
        ("fps", "8"),
        ("made_from", []),
    ],
)
def test_wrong_values_of_meta_json_are_named(cache, name, value):
    path = cache()
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {name: value}))
    with pytest.raises(UserError, match=f"meta.json has a wrong {name}"):
        build(path)


def test_a_cache_tells_its_rate_its_captions_and_what_it_was_made_from(cache):
    made_from = {"source": {"name": "video_folder", "path": "clips"}, "split": "train"}
    source = build(cache(fps=24.0, made_from=made_from), clip=Clip(9, 32, 32, fps=8.0))
    assert source.fps == source[0]["fps"] == 24.0
    assert source.made_from == made_from and source.captioned == 6 and not source.uncaptioned


def test_captions_count_only_where_there_are_some(tmp_path):
    with TokenWriter(tmp_path / "cache", layout(512), META) as writer:
        for i, indices in enumerate(codes(4)):
            writer.write({"video": indices}, "" if i % 2 else "some", 0)
    assert build(tmp_path / "cache").captioned == 2
    with TokenWriter(tmp_path / "unlabelled", layout(512), META | {"classes": []}) as writer:
        writer.write({"video": codes(1)[0]})
        writer.write({"video": codes(1)[0].tolist()}, label=4)
    assert np.frombuffer((tmp_path / "unlabelled" / "labels.bin").read_bytes(), "<i4").tolist() == [-1, 4]
    assert build(tmp_path / "cache").made_from is None


def test_floats_masks_and_several_segments_come_back(tmp_path):
    audio = SegmentLayout((("time", 5),), channels=3)
    both = Layout.of(audio=audio, bits=SegmentLayout((("time", 3), ("query", 7)), (2, 2, 2)))
    rng = np.random.default_rng(0)
    clips = [
        {
            "audio": rng.standard_normal((5, 3)).astype(np.float32),
            "audio/exists": rng.random(5) < 0.5,
            "bits": rng.integers(0, 2, (3, 7, 3)),
            "bits/exists": rng.random((3, 7)) < 0.5,
            "bits/kept": rng.random((3, 7)) < 0.5,
        }
        for _ in range(3)
    ]
    with TokenWriter(tmp_path / "cache", both, META | {"classes": []}) as writer:
        for clip in clips:
            writer.write(clip)
        with pytest.raises(UserError, match="have audio, audio/exists, bits, bits/exists, bits/kept, got audio, bits"):
            writer.write({name: clips[0][name] for name in both.names})
        with pytest.raises(UserError, match="values that are not finite"):
            writer.write(clips[0] | {"audio": np.full((5, 3), np.nan)})
    source = build(tmp_path / "cache")
    assert source.layout == both
    for i, clip in enumerate(clips):
        sample = source[i]
        assert {f"tokens/{name}" for name in clip} | {"caption", "fps"} == set(sample)
        for name, array in clip.items():
            np.testing.assert_array_equal(sample[f"tokens/{name}"], array)
    assert {name: (a.shape, a.dtype) for name, a in source[0].items() if name.startswith("tokens/")} == source.fields
    # 63 bits and two masks of 21 bits are 8 and 3 bytes.
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "cache").glob("bits*.bin")}
    assert sizes == {"bits.bin": 3 * 8, "bits.exists.bin": 3 * 3, "bits.kept.bin": 3 * 3}
    damage(tmp_path / "cache" / "bits.kept.bin", 4)
    with pytest.raises(SampleError, match="clip 1: damaged"):
        build(tmp_path / "cache")[1]


def test_caches_of_the_first_format_are_read(cache):
    path = cache()
    meta = json.loads((path / "meta.json").read_text())
    old = {name: value for name, value in meta.items() if name not in ("format", "segments", "space")}
    (path / "meta.json").write_text(json.dumps(old | {"grid": [3, 4, 4, 1], "vocabulary": [512], "dtype": "<u2"}))
    (path / "video.bin").rename(path / "indices.bin")
    source = build(path)
    assert source.layout == layout(512) and source.fields == {"tokens/video": ((3, 4, 4, 1), np.int32)}
    for i, indices in enumerate(codes(6)):
        np.testing.assert_array_equal(source[i]["tokens/video"], indices)
    (path / "meta.json").write_text(json.dumps(meta | {"format": 3}))
    with pytest.raises(UserError, match="has format 3, and this videogen reads up to 2"):
        build(path)

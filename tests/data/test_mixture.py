from collections import Counter

import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict

from videogen import data
from videogen.data import Pipeline
from videogen.data.clip import Clip
from videogen.data.tokens import TokenWriter
from videogen.errors import UserError
from videogen.tokens import Layout, SegmentLayout

CLIP = Clip(2, 16, 16)


def build(parts, split="train", **settings):
    config = {"name": "mixture", "parts": parts, **settings}
    return data.build(config, clip=CLIP, seed=0, split=split)


def shapes(weight, **settings):
    return {"name": "shapes", "weight": weight, "length": 50, **settings}


def parts_of(mixture, indices):
    """Which part each index belongs to, and which sample of it."""
    located = [mixture.locate(i) for i in indices]
    return [part for part, _ in located], [at for _, at in located]


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1), (0.1, 0.2, 0.7), (5, 0.01, 2, 2), (1, 1e-6), (4,)])
def test_every_prefix_holds_the_shares(weights):
    mixture = build([shapes(w) for w in weights])
    parts, _ = parts_of(mixture, range(2000))
    counts = np.cumsum(np.eye(len(weights), dtype=int)[parts], axis=0)
    exact = np.arange(1, 2001)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - exact).max() < max(len(weights), 2) and (counts >= np.floor(exact - 1e-9)).all()


def test_shares_are_exact_over_whole_periods():
    parts, _ = parts_of(build([shapes(0.1), shapes(0.2), shapes(0.7)]), range(70_000, 70_100))
    assert Counter(parts) == {0: 10, 1: 20, 2: 70}
    # Far positions do not lose precision.
    parts, _ = parts_of(build([shapes(1), shapes(1), shapes(1)]), range(3 * 10**17, 3 * 10**17 + 9))
    assert Counter(parts) == {0: 3, 1: 3, 2: 3}


def test_every_sample_of_every_part_occurs_and_small_parts_repeat_in_turn():
    lengths = (100, 7, 30)
    mixture = build([shapes(w, length=n) for w, n in zip((3, 1, 0.7), lengths, strict=True)])
    parts, places = parts_of(mixture, range(len(mixture)))
    for number, length in enumerate(lengths):
        own = [at for part, at in zip(parts, places, strict=True) if part == number]
        assert own == [i % length for i in range(len(own))] and len(own) >= length
    # No longer than that takes.
    assert len(mixture) == -(-30 * 47 // 7)


def test_samples_and_captions_are_those_of_the_parts():
    mixture = build([shapes(1), shapes(2, second_shape=1.0)])
    for i in range(9):
        assert mixture.caption(i) == mixture[i]["caption"]
        assert len(mixture[i]["attributes"]["shapes"]) == 1 + parts_of(mixture, [i])[0][0]


def test_equal_parts_do_not_hold_equal_samples():
    mixture = build([shapes(1), shapes(1)])
    even, odd = ([mixture.caption(i) for i in range(begin, 40, 2)] for begin in (0, 1))
    assert sum(a == b for a, b in zip(even, odd, strict=True)) < 3


def test_labels_only_where_all_parts_have_the_same(tmp_path, make_video, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
    make_video("videos/x.mp4")
    folder = {"name": "video_folder", "path": str(tmp_path / "videos"), "holdout": 0.0, "weight": 1}
    labelled = build([shapes(1), shapes(2)])
    assert labelled.classes == data.SOURCES["shapes"].classes and "label" in labelled[0] and not warnings
    mixture = build([shapes(1), folder])
    assert mixture.classes == () and "labels are left out" in warnings[0]
    for i in range(4):
        assert mixture[i]["video"].shape == (2, 16, 16, 3) and "label" not in mixture[i]


def test_token_caches_mix_and_are_checked_against_the_tokenizer(tmp_path):
    meta = {"tokenizer_hash": "a", "vocabulary": [9], "frames": 2, "height": 16, "width": 16, "fps": None}
    layout = Layout.of(video=SegmentLayout((("time", 1), ("height", 2), ("width", 2)), (9,)))
    parts = []
    for number in range(2):
        path = tmp_path / f"{number}"
        with TokenWriter(path, layout, meta) as writer:
            for i in range(3):
                writer.write({"video": np.full((1, 2, 2, 1), 3 * number + i)}, f"{number} {i}")
        parts.append({"name": "tokens", "path": str(path), "weight": 1})
    mixture = build(parts, tokenizer_hash="a")
    pipeline = Pipeline(mixture, batch_size=6, seed=0, workers=0, text=None)
    codes = next(pipeline)["tokens/video"]
    pipeline.close()
    assert codes.shape == (6, 1, 2, 2, 1) and sorted(codes[:, 0, 0, 0, 0]) == [*range(6)]
    with pytest.raises(UserError, match="made by tokenizer a"):
        build(parts, tokenizer_hash="b")
    with pytest.raises(UserError, match="token caches and pixels"):
        build([*parts, shapes(1)])


def test_a_mixture_has_the_rate_and_the_captions_of_its_parts(make_video, tmp_path):
    for name, fps in (("a/x.mp4", 24), ("b/x.mp4", 10), ("b/y.mp4", 10)):
        make_video(name, fps=fps)
    (tmp_path / "b" / "captions.jsonl").write_text('{"file": "y.mp4", "caption": "grey"}')
    parts = [{"name": "video_folder", "path": str(tmp_path / name), "holdout": 0.0, "weight": 1} for name in ("a", "b")]
    mixture = build(parts)
    assert (mixture.captioned, mixture.uncaptioned, mixture.fps) == (1, False, 24)
    assert build([parts[0] | {"uncaptioned": True}, parts[1]]).uncaptioned
    assert build([*parts, shapes(1)]).captioned is None


def test_parts_follow_the_split_and_config_dicts_work():
    config = ConfigDict({"parts": [ConfigDict(shapes(1)), ConfigDict(shapes(1))]})
    train = build(config.parts)
    held_out = build(config.to_dict()["parts"], "eval")
    assert not {train.caption(i) for i in range(50)} & {held_out.caption(i) for i in range(50)}
    np.testing.assert_array_equal(train[1]["video"], build([shapes(1), shapes(1)])[1]["video"])


@pytest.mark.parametrize(
    "parts, message",
    [
        ([], "needs parts"),
        ("shapes", "parts .* must be"),
        (["shapes"], "parts .* must be"),
        ([{"name": "shapes"}], "positive weight"),
        ([shapes(-1)], "positive weight"),
        ([shapes("half")], "positive weight"),
        ([shapes(float("nan"))], "positive weight"),
        ([shapes(1, lenght=5)], "did you mean 'length'"),
        ([{"weight": 1}], "no 'name'"),
        ([shapes(1), shapes(1, length=0)], r"part 1 of the mixture \(shapes\) is empty"),
    ],
)
def test_bad_mixtures_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        build(parts)

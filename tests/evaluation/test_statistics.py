"""Statistics of real sides: kept in files, read from published ones, refused where they are not what they should be."""

import dataclasses

import numpy as np
import pytest

from tests.evaluation.networks import Colours
from videogen import encoders
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.evaluation import sides
from videogen.evaluation.folders import compare_folders
from videogen.evaluation.presets import PRESETS
from videogen.evaluation.statistics import Reference, Statistics, StatisticsFolder
from videogen.metrics.distributions import Gaussian, Moments, frechet_distance

RNG = np.random.default_rng(0)


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Two folders of four videos, and the preset ``few``."""
    monkeypatch.setattr(encoders, "load", lambda name, weights: Colours())
    few = dataclasses.replace(PRESETS["fvd.styleganv_2048"], frames=4, real=4, generated=4)
    monkeypatch.setitem(PRESETS, "few", few)
    for name in ("real", "generated"):
        (tmp_path / name).mkdir()
        for i in range(4):
            clip = RNG.integers(0, 255, (1, 1, 1, 3)) + np.zeros((5, 16, 16, 3))
            write_video(tmp_path / name / f"{i}.mp4", clip.astype(np.uint8), 8.0)
    return tmp_path


def run(folders, name="few", real=None, **settings):
    return compare_folders(name, real or folders / "real", folders / "generated", "stub", **settings)


@pytest.mark.parametrize("measure", ["frechet", "jedi"])
def test_the_real_side_is_read_once_and_gives_the_same_number(folders, monkeypatch, measure):
    monkeypatch.setitem(PRESETS, "few", dataclasses.replace(PRESETS["few"], measure=measure))
    expected, kept, seen = run(folders), folders / "statistics", []
    read = sides.FolderSide.clip
    monkeypatch.setattr(sides.FolderSide, "clip", lambda side, i: seen.append(side.name) or read(side, i))
    assert run(folders, statistics=kept)["metrics"] == expected["metrics"]
    assert seen.count("real") == 4
    seen.clear()
    assert run(folders, statistics=kept) == expected and set(seen) == {"generated"}
    (file,) = kept.iterdir()
    with np.load(file, allow_pickle=False) as arrays:
        assert set(arrays) == {
            "key",
            "count",
            "left_out",
            *({"mean", "scatter"} if measure == "frechet" else {"features"}),
        }


def test_another_seed_file_or_protocol_has_statistics_of_its_own(folders, monkeypatch):
    kept = folders / "statistics"
    run(folders, statistics=kept)
    run(folders, statistics=kept, seed=1)
    monkeypatch.setitem(PRESETS, "few", dataclasses.replace(PRESETS["few"], sides=(8, 8), resize="bilinear"))
    run(folders, statistics=kept)
    write_video(folders / "real" / "4.mp4", np.zeros((5, 16, 16, 3), np.uint8), 8.0)
    run(folders, statistics=kept)
    monkeypatch.setattr(Colours, "hash", "4567")
    run(folders, statistics=kept)
    assert len(list(kept.iterdir())) == 5
    # The covariance is divided by another number afterwards.
    monkeypatch.setitem(PRESETS, "few", dataclasses.replace(PRESETS["few"], biased=False))
    run(folders, statistics=kept)
    assert len(list(kept.iterdir())) == 5


def test_a_file_with_another_key_or_damage_is_named_and_replaced(tmp_path, caplog):
    kept = StatisticsFolder(tmp_path / "kept")
    one, two = (Statistics(3, 0, features=np.full((3, 2), value, np.float32)) for value in (1, 2))
    kept({"a": 1}, lambda: one)
    (file,) = (tmp_path / "kept").iterdir()
    kept({"a": 2}, lambda: two)
    other = next(path for path in (tmp_path / "kept").iterdir() if path != file)
    file.write_bytes(other.read_bytes())
    found = kept({"a": 1}, lambda: one)
    np.testing.assert_array_equal(found.features, one.features)
    assert f"{file} holds the statistics of another key than its name says" in caplog.text
    file.write_bytes(file.read_bytes()[:100])
    assert kept({"a": 1}, lambda: one).count == 3 and f"{file} is damaged" in caplog.text
    np.testing.assert_array_equal(kept({"a": 1}, lambda: two).features, one.features)


def test_moments_in_parts_are_those_of_the_whole():
    features = RNG.normal(size=(2500, 3)).astype(np.float32) + 5
    batches = [(features[i : i + 100], 1) for i in range(0, 2500, 100)]
    found = Statistics.of(iter(batches), whole=False)
    expected = Moments.of(features)
    assert (found.count, found.left_out, found.features) == (2500, 25, None)
    np.testing.assert_allclose(found.moments.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.moments.scatter, expected.scatter, rtol=1e-9)
    again = Statistics.from_arrays(found.arrays())
    np.testing.assert_array_equal(again.moments.scatter, found.moments.scatter)


def test_a_reference_file_is_used_for_its_moments_and_never_for_its_pictures(folders):
    """Case 11: the file of ADM also holds 10,000 pictures, of which mean and covariance are others."""
    mean, root = RNG.normal(size=6), RNG.normal(size=(6, 6))
    arrays = {"arr_0": RNG.integers(0, 255, (10, 8, 8, 3)).astype(np.uint8), "mu": mean, "sigma": root @ root.T}
    np.savez(folders / "VIRTUAL_imagenet.npz", **arrays)
    record = run(folders, real=folders / "VIRTUAL_imagenet.npz")
    side = sides.FolderSide("generated", tuple(sorted((folders / "generated").iterdir())), 4, PRESETS["few"])
    features = np.concatenate([np.asarray(Colours()(side.clip(i)[None])) for i in range(4)])
    expected = frechet_distance(Gaussian(mean, root @ root.T), Moments.of(features), biased=True)
    assert record["metrics"]["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    real = record["protocol"]["real"]
    assert real["statistics"] == "stored mean and covariance" and real["file"] == "VIRTUAL_imagenet.npz"
    assert real["unused"] == ["arr_0"] and record["protocol"]["counts"]["real"] == "stored"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros(3)}, "holds no mu and sigma, only arr_0"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"mu \[3\] and sigma \[2, 2\] are no mean and covariance"),
        ({"mu": np.full(2, np.nan), "sigma": np.zeros((2, 2))}, "NaN or infinity"),
        ({"mu": np.array([{}]), "sigma": np.zeros((1, 1))}, "is no .npz file of arrays mu and sigma"),
    ],
)
def test_files_that_are_no_reference_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        Reference.read(tmp_path / "x.npz")


def test_moments_are_not_enough_for_measures_of_features(folders, monkeypatch):
    np.savez(folders / "x.npz", mu=np.zeros(6), sigma=np.eye(6))
    monkeypatch.setitem(PRESETS, "few", dataclasses.replace(PRESETS["few"], measure="jedi"))
    with pytest.raises(UserError, match="x.npz holds a mean and a covariance, and few needs clips"):
        run(folders, real=folders / "x.npz")

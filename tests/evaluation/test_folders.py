"""Distances of folders: every clip counts once, and nothing but the preset decides the number."""

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.evaluation.networks import Colours
from videogen import encoders
from videogen.data.clip import WINDOWS
from videogen.data.crops import CROPS
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.evaluation import folders, measures, presets, sides
from videogen.evaluation.folders import compare_folders
from videogen.evaluation.measuring import resized
from videogen.evaluation.presets import PRESETS, GeneratedClips, Preset, RealClips, preset_of
from videogen.evaluation.statistics import Statistics
from videogen.metrics.distributions import Moments, frechet_distance
from videogen.runs.finished import FinishedBatches

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(encoders, "load", lambda name, weights: Colours())
    few = dataclasses.replace(PRESETS["fvd.styleganv_2048"], frames=4, real=5, generated=5)
    monkeypatch.setitem(PRESETS, "few", few)
    monkeypatch.setitem(PRESETS, "pictures", dataclasses.replace(PRESETS["fid.imagenet_50k"], generated=None))


def videos(folder, count, frames=6, brightness=0, side=16):
    folder.mkdir()
    for i in range(count):
        clip = RNG.integers(0, 200, (1, 1, 1, 3)) + RNG.integers(0, 30, (frames, side, side, 3)) + brightness
        write_video(folder / f"{i:02}.mp4", clip.astype(np.uint8), 8.0)
    return folder


def run(tmp_path, name="few", **settings):
    return compare_folders(name, tmp_path / "real", tmp_path / "generated", "stub", **settings)


def test_the_number_is_that_of_the_features_and_the_record_says_how(tmp_path):
    videos(tmp_path / "real", 8), videos(tmp_path / "generated", 5, frames=4, brightness=20)
    record = run(tmp_path)
    protocol = record["protocol"]
    assert protocol["counts"] == {"generated": 5, "real": 5}
    assert protocol["real"]["found"] == 8 and protocol["real"]["files"] == {".mp4": 8}
    assert protocol["network_hash"] == "0123" and protocol["biased"] and protocol["real_clips"]["rule"] == "random"
    taken = [folders.side_of(n, tmp_path / n, 5, PRESETS["few"], 0) for n in ("real", "generated")]
    both = [np.stack([Colours()(side.clip(i)[None])[0] for i in range(5)]) for side in taken]
    expected = frechet_distance(*map(Moments.of, both), biased=True)
    assert record["metrics"] == {"frechet_distance": pytest.approx(expected, rel=1e-4)}
    json.dumps(record)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_size_changes_nothing(tmp_path, batch_size):
    videos(tmp_path / "real", 5), videos(tmp_path / "generated", 5, brightness=20)
    expected = run(tmp_path, batch_size=2)["metrics"]["frechet_distance"]
    assert run(tmp_path, batch_size=batch_size)["metrics"]["frechet_distance"] == pytest.approx(expected, rel=1e-4)


def test_a_folder_against_itself_is_zero(tmp_path):
    videos(tmp_path / "real", 5, frames=4)
    record = compare_folders("few", tmp_path / "real", tmp_path / "real", "stub")
    assert record["metrics"]["frechet_distance"] == 0.0


def test_real_videos_that_are_too_short_are_left_out_and_counted(tmp_path):
    videos(tmp_path / "real", 7), videos(tmp_path / "generated", 5)
    write_video(tmp_path / "real" / "03.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8.0)
    (tmp_path / "real" / "04.mp4").write_bytes(b"broken")
    for batch_size in (1, 2):  # of one, a batch may be left out as a whole
        record = run(tmp_path, batch_size=batch_size)
        assert record["protocol"]["counts"] == {"generated": 5, "real": 5}
    with pytest.raises(UserError, match="only 5 of the 7 real clips can be used, not 6"):
        compare_folders("few", tmp_path / "real", videos(tmp_path / "more", 6), "stub", count=6)


def test_generated_clips_all_count(tmp_path):
    videos(tmp_path / "real", 5), videos(tmp_path / "generated", 5)
    write_video(tmp_path / "generated" / "02.mp4", np.zeros((3, 16, 16, 3), np.uint8), 8.0)
    with pytest.raises(UserError, match="02.mp4 has 3 frames, and 4 are needed"):
        run(tmp_path)


def test_too_few_clips_are_refused_and_none_is_read_twice(tmp_path):
    videos(tmp_path / "real", 5), videos(tmp_path / "generated", 4)
    with pytest.raises(UserError, match="generated has 4 videos, and 5 are needed"):
        run(tmp_path)
    assert run(tmp_path, count=4)["protocol"]["counts"] == {"generated": 4, "real": 4}
    with pytest.raises(UserError, match="is no folder"):
        compare_folders("few", tmp_path / "nowhere", tmp_path / "generated", "stub", count=4)
    with pytest.raises(UserError, match="--real is missing"):
        compare_folders("few", None, tmp_path / "generated", "stub", count=4)


def test_pictures_of_any_size_and_their_formats(tmp_path, caplog):
    for name, suffix in (("real", "png"), ("generated", "jpg")):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = RNG.integers(0, 255, (8 + i, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.{suffix}")
    record = run(tmp_path, "pictures")
    assert record["protocol"]["counts"] == {"generated": 4, "real": 4}
    assert "the generated side alone is compressed with losses (generated: .jpg and real: .png)" in caplog.text


def test_finished_batches_are_not_read_again(tmp_path, monkeypatch):
    videos(tmp_path / "real", 5), videos(tmp_path / "generated", 5)
    expected = run(tmp_path, batch_size=2)["metrics"]
    keep, seen = FinishedBatches(tmp_path / "out.json", {"a": 1}), []
    read = sides.FolderSide.clip

    def stop(side, index):
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen.append((side.name, index))
        return read(side, index)

    monkeypatch.setattr(sides.FolderSide, "clip", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batch_size=2, keep=keep)
    seen.clear()
    assert run(tmp_path, batch_size=2, keep=FinishedBatches(tmp_path / "out.json", {"a": 1}))["metrics"] == expected
    assert seen == [("real", 2), ("real", 3), ("real", 4)]


def stored(brightness, codec, path, fps=8):
    """A video of one grey level in a codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = 16, 16, {"ffv1": "bgr0"}.get(codec, "yuv420p")
        for _ in range(4):
            frame = np.full((16, 16, 3), brightness, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_how_files_are_stored_stands_beside_the_number(tmp_path, caplog):
    """Case 12: BAIR from mp4 files gave above 1000 where arrays gave 100."""
    for name, codec, suffix, fps in (("real", "ffv1", "avi", 8), ("generated", "libx264", "mp4", 4)):
        (tmp_path / name).mkdir()
        for i in range(5):
            stored(40 * i, codec, tmp_path / name / f"{i}.{suffix}", fps)
    protocol = run(tmp_path)["protocol"]
    assert {k: protocol["real"][k] for k in ("container", "codec", "size", "fps")} == {
        "container": ["avi"], "codec": ["ffv1"], "size": ["16x16"], "fps": [8.0]
    }  # fmt: skip
    assert protocol["generated"]["codec"] == ["h264"] and protocol["generated"]["fps"] == [4.0]
    assert "the generated side alone is compressed with losses" in caplog.text
    assert "other frames per second (generated: 4 and real: 8)" in caplog.text
    caplog.clear()
    compare_folders("few", tmp_path / "real", tmp_path / "real", "stub")
    assert not [r for r in caplog.records if "covariance" not in r.msg]


@pytest.mark.parametrize(("side", "name"), [("real_clips", "real"), ("generated_clips", "generated")])
def test_another_rate_than_the_protocols_is_refused(tmp_path, monkeypatch, side, name):
    videos(tmp_path / "real", 5), videos(tmp_path / "generated", 5)
    for fps in (8.0, 25.0):
        taken = dataclasses.replace(getattr(PRESETS["few"], side), fps=fps)
        monkeypatch.setitem(PRESETS, "few", dataclasses.replace(PRESETS["few"], **{side: taken}))
        if fps == 8:
            assert run(tmp_path)["protocol"][side]["fps"] == 8
    with pytest.raises(UserError, match=rf"{name}/\d\d.mp4 has 8 frames per second, and the protocol takes 25"):
        run(tmp_path)


def test_repeats_need_files_for_all_of_them(tmp_path, monkeypatch):
    twice = dataclasses.replace(PRESETS["few"], generated_clips=GeneratedClips(repeats=2))
    monkeypatch.setitem(PRESETS, "few", twice)
    videos(tmp_path / "real", 5), videos(tmp_path / "generated", 9, brightness=20)
    one = run(tmp_path)
    assert one["protocol"]["repeats"] == 1 and one["protocol"]["generated_clips"]["repeats"] == 2
    assert set(one["metrics"]) == {"frechet_distance"} and "repeats" not in one
    write_video(tmp_path / "generated" / "09.mp4", np.full((4, 16, 16, 3), 90, np.uint8), 8.0)
    two = run(tmp_path)
    found = [repeat["frechet_distance"] for repeat in two["repeats"]]
    assert two["protocol"]["repeats"] == 2 and found[0] == one["metrics"]["frechet_distance"] != found[1]
    assert two["metrics"]["frechet_distance"] == pytest.approx(np.mean(found))
    # Kept batches of one repeat are not those of another.
    assert run(tmp_path, keep=FinishedBatches(tmp_path / "out.json", {"a": 1})) == two
    # The second set are the files behind the first.
    for i in range(5):
        (tmp_path / "generated" / f"{i:02}.mp4").unlink()
    assert run(tmp_path)["metrics"]["frechet_distance"] == pytest.approx(found[1], rel=1e-6)


def test_numbers_of_clips_that_cannot_be_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    """Case 4."""
    videos(tmp_path / "real", 3), videos(tmp_path / "generated", 3)
    with pytest.raises(UserError, match="subsets of 1000 examples, and 876 clips are counted"):
        run(tmp_path, "kvd.styleganv_2048", count=876)
    with pytest.raises(UserError, match="at least 10 parts, and 5 clips are counted"):
        compare_folders("is.ucf_2048_10parts", None, tmp_path / "generated", "stub", count=5)
    with pytest.raises(UserError, match="at least 2 clips, and 1 clips are counted"):
        run(tmp_path, count=1)
    monkeypatch.setitem(PRESETS, "all", dataclasses.replace(PRESETS["few"], real=None, generated=None))
    videos(tmp_path / "more", 4)
    with pytest.raises(
        UserError, match="3 real and 4 generated clips are compared, and this protocol takes equally many"
    ):
        compare_folders("all", tmp_path / "real", tmp_path / "more", "stub")


def test_an_inception_score_over_parts_is_of_a_shuffled_set_and_beside_the_whole(monkeypatch):
    """Case 2: samples that are stored class by class gave 62 in the place of 298."""
    preset = PRESETS["is.ucf_2048_10parts"]
    assert (preset.parts, preset.generated) == (10, 2048)
    classes = 50 * np.repeat(np.eye(100, dtype=np.float32), 10, axis=0)
    found = measures.numbers(preset, None, Statistics(1000, 0, features=classes), 3)
    assert found["inception_score"] == pytest.approx(100, rel=1e-6)
    assert set(found) == {"inception_score", "inception_score_10parts", "inception_score_10parts_deviation"}
    # In the order of the files it would be 10; shuffled, a part shows about 63 classes.
    assert found["inception_score_10parts"] == pytest.approx(100 * (1 - 1 / np.e), rel=0.1)
    assert measures.numbers(preset, None, Statistics(1000, 0, features=classes), 3) == found
    assert measures.numbers(preset, None, Statistics(1000, 0, features=classes), 4) != found
    whole = measures.numbers(PRESETS["is.ucf_10k"], None, Statistics(1000, 0, features=classes), 3)
    assert set(whole) == {"inception_score"}


STEP = np.repeat(np.array([0, 255], np.uint8)[None, None, :, None], 3, axis=-1)
STEPS = {"tf1_bilinear": [0, 0.5, 1, 1], "bilinear": [0, 0.25, 0.75, 1], "bilinear_antialiased": [0, 0.25, 0.75, 1]}


@pytest.mark.parametrize(("rule", "expected"), STEPS.items())
def test_resizing_variants(rule, expected):
    preset = Preset("frechet", "i3d", "", 1, "", sides=(1, 4), resize=rule)
    np.testing.assert_allclose((resized(STEP, preset)[0, 0, :, 0] + 1) / 2, expected, atol=1e-6)


def test_antialiasing_averages():
    clip = np.tile(STEP, (1, 1, 4, 1))
    for rule, expected in (("bilinear_antialiased", 0.0), ("bilinear", 0.0), ("tf1_bilinear", -1.0)):
        preset = Preset("frechet", "i3d", "", 1, "", sides=(1, 2), resize=rule)
        assert resized(clip, preset)[0, 0, 1, 0] == pytest.approx(expected, abs=0.15)
    assert resized(clip, Preset("frechet", "i3d", "", 1, "")) is clip


def test_what_a_cubic_filter_overshoots_is_cut_off():
    preset = Preset("frechet", "i3d", "", 1, "", sides=(1, 8), resize="bicubic_antialiased")
    clip = np.repeat(STEP, 2, axis=2)
    found = resized(clip, preset)
    assert found.min() == -1 and found.max() == 1 and found.dtype == np.float32


@pytest.mark.parametrize(("rule", "stride", "expected"), [("first", 1, 0), ("centre", 1, 3), ("centre", 2, 1)])
def test_which_frames_of_a_real_video_count(tmp_path, rule, stride, expected):
    """Of ten frames that get brighter by 20 levels, four count."""
    levels = np.broadcast_to(20 * np.arange(10)[:, None, None, None], (10, 16, 16, 3))
    write_video(tmp_path / "a.mp4", levels.astype(np.uint8), 8.0)
    preset = Preset("frechet", "i3d", "", 4, "", real_clips=RealClips(rule=rule, stride=stride))
    for name, first, step in (("real", expected, stride), ("generated", 0, 1)):
        clip = sides.FolderSide(name, (tmp_path / "a.mp4",), 1, preset).clip(0)
        np.testing.assert_allclose(clip.mean((1, 2, 3)), 20 * (first + step * np.arange(4)), atol=4)


def test_counts_of_presets_are_those_of_their_names():
    for name, count in (("2048", 2048), ("10k", 10_000), ("50k", 50_000)):
        named = [preset for key, preset in PRESETS.items() if key.endswith(name)]
        assert named and all(p.generated == count and p.real in (None, count) for p in named)
    assert all(p.real == p.generated for key, p in PRESETS.items() if "styleganv" in key)


def test_presets_tell_readings_of_one_protocol_apart():
    """Two forms of BAIR, two crops of ImageNet, two splits behind one name: readers could not know which was meant."""
    one, many = PRESETS["fvd.bair_1f_25600"], PRESETS["fvd.bair_1f_100x256"]
    assert (one.real, one.generated, one.generated_clips.repeats) == (256, 25_600, 1)
    assert (many.real, many.generated, many.generated_clips.repeats) == (256, 256, 100)
    assert one.generated_clips.given == many.generated_clips.given == 1 and one.frames == many.frames == 16
    crops = {
        "fid.imagenet_50k": ("train", "adm"),
        "kid.imagenet_50k": ("train", "adm"),
        "rfid.imagenet_50k": ("eval", "adm"),
        "rfid.imagenet_50k_torchvision": ("eval", "torchvision"),
    }
    assert crops == {n: (p.real_clips.split, p.real_clips.crop) for n, p in PRESETS.items() if "imagenet" in n}
    assert all(PRESETS[name].real_clips.side == 256 for name in crops)
    split = {name: preset.real_clips.split for name, preset in PRESETS.items() if name.startswith("fvd.")}
    assert {name for name, found in split.items() if found == "eval"} == {
        "fvd.k600_5f_64px",
        "fvd.bair_1f_25600",
        "fvd.bair_1f_100x256",
    }


@pytest.mark.parametrize(("rule", "columns"), [("adm", (63, 127)), ("torchvision", (64, 128))])
def test_pictures_of_a_folder_are_cut_by_the_rule_of_their_preset(tmp_path, rule, columns):
    """At its own height nothing is resized, and the two rules cut at places that differ by one pixel."""
    pixels = RNG.integers(0, 256, (64, 191, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    preset = Preset("frechet", "inception", "", 1, "", real_clips=RealClips(crop=rule, side=64))
    clip = sides.FolderSide("real", (tmp_path / "a.png",), 1, preset).clip(0)
    np.testing.assert_array_equal(clip, pixels[None, :, slice(*columns)])
    whole = sides.FolderSide("generated", (tmp_path / "a.png",), 1, preset).clip(0)
    np.testing.assert_array_equal(whole, pixels[None])


def test_presets_name_networks_that_exist():
    for name, preset in PRESETS.items():
        assert preset.network in {**encoders.ENCODERS, **measures.NETWORKS}, name
        assert preset.measure in measures.MEASURES and preset.source, name
        assert preset.real_clips.rule in WINDOWS and preset.real_clips.crop in ("", *CROPS), name
        assert bool(preset.sides) == bool(preset.resize), name  # else the network resizes, and the record says so
    with pytest.raises(UserError, match="did you mean 'fvd.styleganv_2048'"):
        preset_of("fvd.stylegan_2048")
    assert preset_of("fid.clean_50k", 7).generated == 7 and presets.PRESETS["fid.clean_50k"].generated == 50_000


def test_the_weights_of_a_stand_in_come_with_the_package():
    shipped = measures.weights_of(PRESETS["frechet.shapes_stand_in"], None)
    assert (Path(shipped) / "model.safetensors").is_file()
    assert measures.weights_of(PRESETS["frechet.shapes_stand_in"], "mine") == "mine"
    with pytest.raises(UserError, match="--weights is missing"):
        measures.weights_of(PRESETS["fvd.styleganv_2048"], None)


def test_where_the_length_is_open_all_clips_have_that_of_the_first(tmp_path, monkeypatch):
    """A folder of longer or larger clips gave a distance without a word."""
    preset = dataclasses.replace(PRESETS["fvd.styleganv_2048"], frames=0, real=3, generated=3)
    monkeypatch.setitem(PRESETS, "open", preset)
    videos(tmp_path / "real", 3), videos(tmp_path / "generated", 3, brightness=20)
    assert run(tmp_path, "open")["protocol"]["clip"] == [6, 128, 128]
    for name, settings, shape in (("longer", {"frames": 7}, "7x128x128"), ("larger", {"side": 48}, "6x144x144")):
        videos(tmp_path / name, 3, **settings)
        with pytest.raises(UserError, match=f"there are 6x128x128 and, of the real side, {shape}"):
            compare_folders("open", tmp_path / name, tmp_path / "generated", "stub")
    # Statistics of the real side that are kept are of its size, too.
    kept = {"statistics": tmp_path / "kept"}
    compare_folders("open", tmp_path / "real", tmp_path / "generated", "stub", **kept)
    with pytest.raises(UserError, match="there are 6x144x144 and, of the real side, 6x128x128"):
        compare_folders("open", tmp_path / "real", tmp_path / "larger", "stub", **kept)


def test_fewer_clips_than_features_are_warned_of(tmp_path, caplog):
    """Six features: their covariance needs more than six clips."""
    for count, warned in ((6, True), (7, False)):
        monkeypatch = pytest.MonkeyPatch()
        few = dataclasses.replace(PRESETS["fvd.styleganv_2048"], frames=4, real=count, generated=count)
        monkeypatch.setitem(PRESETS, "few", few)
        root = tmp_path / str(count)
        root.mkdir()
        videos(root / "real", count), videos(root / "generated", count, brightness=20)
        caplog.clear()
        with caplog.at_level("WARNING", logger="absl"):
            run(root)
        monkeypatch.undo()
        assert (f"{count} real clips say little of a covariance of 6 features" in caplog.text) == warned


@pytest.mark.slow
def test_devices_share_the_batches(run_python, tmp_path):
    videos(tmp_path / "real", 5), videos(tmp_path / "generated", 5, brightness=20)
    expected = run(tmp_path, batch_size=2)["metrics"]["frechet_distance"]
    code = f"""
import json
from pathlib import Path
import jax
from tests.evaluation import test_folders as here
encoders, PRESETS = here.encoders, here.PRESETS
encoders.load = lambda name, weights: here.Colours()
PRESETS["few"] = here.dataclasses.replace(PRESETS["fvd.styleganv_2048"], frames=4, real=5, generated=5)
seen = []
from videogen.evaluation import measuring
spread = measuring.spread
measuring.spread = lambda tree, mesh: seen.append(mesh.size) or spread(tree, mesh)
print(json.dumps([here.run(Path({str(tmp_path)!r}), batch_size=2)["metrics"], seen]))
"""
    done = run_python(code, devices=4)
    assert done.returncode == 0, done.stderr
    metrics, seen = json.loads(done.stdout.splitlines()[-1])
    assert metrics["frechet_distance"] == pytest.approx(expected, rel=1e-4) and set(seen) == {4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--protocol=fvd.styleganv_2048"], "name what to evaluate"),
        (["--protocol=reconstruction"], "name what to evaluate"),
        (["--protocol=fvd.styleganv_2048", "--real=a", "--generated=b"], "--weights is missing"),
        (["--protocol=fvd.styleganv_2048", "--real=a", "--steps=3"], "--steps is for a checkpoint"),
        (["--protocol=fvd.styleganv_2048", "--real=a", "--checkpoint=c"], "do not go together"),
        (
            ["--protocol=fvd.styleganv_2048", "--real=a", "--codec=jpeg:9"],
            "--codec is for tokbench protocols, and this is",
        ),
        (
            ["--protocol=reconstruction", "--checkpoint=a", "--lpips=b,c"],
            "--lpips is for tokbench protocols, and this is",
        ),
        (["--protocol=tokbench.256.ppocr", "--codec=identity"], "did you mean 'tokbench.256.ppocrv6'"),
        (["--protocol=tokbench.256.ppocrv6"], "name what to judge: --checkpoint=TOKENIZER or --codec"),
        (["--protocol=tokbench.256.ppocrv6", "--codec=jpeg"], "--codec=jpeg: write jpeg:N with N from 1 to 95"),
        (["--protocol=tokbench.256.ppocrv6", "--codec=jpeg:9", "--steps=3"], "--steps means nothing to tokbench"),
    ],
)
def test_flags_that_do_not_go_together_are_named(run_command, tmp_path, flags, words):
    done = run_command("evaluate", f"--out={tmp_path / 'out.json'}", *flags)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1

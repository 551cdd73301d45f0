"""Presets on runs: the other side is drawn, or made of exactly the real clips, and the record says how."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from tests.evaluation.networks import Colours
from tests.training_configs import tiny
from tests.untrained import save_untrained
from videogen import data, encoders, tasks
from videogen.configs import nbp
from videogen.data.inputs import clip_of
from videogen.data.shapes_source import ShapesSource
from videogen.data.text import ByteTokenizer
from videogen.encoders.vgg import AlexNet
from videogen.errors import UserError
from videogen.evaluation import runs
from videogen.evaluation.presets import PRESETS, GeneratedClips, RealClips, counterpart
from videogen.evaluation.runs import evaluate_preset
from videogen.metrics.distributions import Moments, frechet_distance
from videogen.runs.finished import FinishedBatches
from videogen.tasks import reconstruct, to_pixels
from videogen.training.loading import Loaded

FVD, RFVD = PRESETS["fvd.larp_ucf_10k"], PRESETS["rfvd.16f_2048"]


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    monkeypatch.setattr(encoders, "load", lambda name, weights: Colours())
    drawn = dataclasses.replace(FVD, frames=5, real=5, generated=7, real_clips=RealClips("eval"))
    added = {
        "rfvd.few": dataclasses.replace(RFVD, frames=5, real=5, generated=5),
        "fvd.given": dataclasses.replace(drawn, generated_clips=GeneratedClips(given=3)),
        "fvd.twice": dataclasses.replace(drawn, real=None, generated_clips=GeneratedClips(repeats=2, given=3)),
        "fvd.free": drawn,
        "rfid.few": dataclasses.replace(PRESETS["rfid.coco_5k"], real=3, generated=3),
    }
    for name, preset in added.items():
        monkeypatch.setitem(PRESETS, name, preset)


def loaded_of(config) -> Loaded:
    task = tasks.build(config)
    return Loaded(Path("run"), config, task, task.init(nnx.Rngs(0)) | task.frozen(None), 3)


@pytest.fixture(scope="module")
def tokenizer():
    return loaded_of(tiny())


@pytest.fixture(scope="module")
def generator():
    """Three frames of five are given; it is told nothing else."""
    config = nbp.generator("debug", "700M")
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    with config.unlocked():
        config.text = {"encoder": {"name": "none"}, "tokenizer": {"name": "bytes", "path": "", "length": 1}}
        config.data.source = {"name": "shapes", "length": 6}
    config.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 32})
    config.model.update({"start": "given", "given": 2, "block": (1, 1, 4)})
    model = config.parts.tokenizer.model
    model.update({"width": 16, "heads": 2, "mlp_width": 32, "encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    return loaded_of(config)


def source_of(loaded, seed=0):
    clip = dataclasses.replace(clip_of(loaded.config), window="centre", crop="centre")
    settings = loaded.config.data.source.to_dict()
    return data.build(settings, clip=clip, seed=seed, split="eval")


def distance(real, generated) -> float:
    sides = [np.asarray(Colours()(jnp.asarray(clips))) for clips in (real, generated)]
    return frechet_distance(*map(Moments.of, sides), biased=True)


def test_reconstructions_are_of_exactly_the_real_clips(tokenizer):
    record = evaluate_preset(tokenizer, "rfvd.few", "stub", seed=4, batch_size=2)
    source = source_of(tokenizer, 4)
    order = np.random.default_rng(4).permutation(len(source))[:5]
    real = np.stack([source[int(i)]["video"] for i in order])
    expected = distance(real, reconstruct(tokenizer.tokenizer, real))
    assert record["metrics"] == {"frechet_distance": pytest.approx(expected, rel=1e-3)} and expected > 0
    protocol = record["protocol"]
    assert protocol["of"] == "reconstructions" and protocol["counts"] == {"real": 5, "generated": 5}
    assert protocol["real"]["split"] == "eval" and protocol["real"]["held_out"] and protocol["step"] == 3
    assert protocol["real"]["source"]["name"] == "shapes" and protocol["network_hash"] == "0123"
    json.dumps(record)


def test_an_identity_tokenizer_scores_zero_on_pictures_of_any_size(monkeypatch, tmp_path):
    """Case 11: originals that were not cropped as the tokenizer's input gave 2.2 in the place of 1.5."""
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (33 + i, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    config = tiny()
    config.data.clip.update({"frames": 1, "height": 16, "width": 24})
    with config.unlocked():
        config.data.source = {"name": "video_folder", "path": str(tmp_path), "holdout": 0.0}
    run = loaded_of(config)
    assert evaluate_preset(run, "rfid.few", "stub")["metrics"]["frechet_distance"] > 0
    monkeypatch.setattr(runs, "reconstructor", lambda model: lambda clips: clips)
    assert evaluate_preset(run, "rfid.few", "stub")["metrics"] == {"frechet_distance": 0.0}


def test_clips_of_the_training_split_are_the_middle_of_what_the_source_has(tmp_path):
    """Training cuts them at random places."""
    wide = np.random.default_rng(0).integers(0, 255, (16, 40, 3)).astype(np.uint8)
    Image.fromarray(wide).save(tmp_path / "a.png")
    config = tiny()
    config.data.clip.update({"frames": 1, "height": 16, "width": 16})
    with config.unlocked():
        config.data.source = {"name": "video_folder", "path": str(tmp_path), "holdout": 0.0}
    run, preset = SimpleNamespace(config=config), dataclasses.replace(FVD, real=None, real_clips=RealClips())
    for seed in range(4):
        (clip,) = runs.real_side(run, "fvd.free", preset, seed, other=False).clips(range(1))
        np.testing.assert_array_equal(clip[0], wide[:, 12:28])


def test_a_preset_of_the_other_kind_is_refused_with_the_right_name(tokenizer, generator):
    with pytest.raises(
        UserError, match="rfid.imagenet_50k measures reconstructions of a tokenizer, and run holds a gen"
    ):
        evaluate_preset(generator, "rfid.imagenet_50k", "stub")
    with pytest.raises(
        UserError, match="samples of a generator, and run holds a tokenizer; use --protocol=rfvd.16f_2048"
    ):
        evaluate_preset(tokenizer, "fvd.styleganv_2048", "stub")
    assert counterpart("rfid.imagenet_50k") == "fid.imagenet_50k"
    assert counterpart("fid.imagenet_50k") == "rfid.imagenet_50k"
    assert counterpart("rfvd.17f_2048") == "fvd.omnitokenizer_17f" and counterpart("is.ucf_10k") == ""


def test_clips_of_another_length_are_refused_with_both_numbers(tokenizer, generator):
    with pytest.raises(UserError, match="takes clips of 16 frames, and this run has 5; --clip=16x16x16 takes others"):
        evaluate_preset(tokenizer, "rfvd.16f_2048", "stub")
    with pytest.raises(UserError, match="takes clips of 16 frames, and this run has 5$"):
        evaluate_preset(generator, "fvd.k600_5f_64px", "stub")


def test_too_few_clips_of_the_source_are_refused_with_both_numbers(generator):
    with pytest.raises(UserError, match="the split 'eval' has 6 clips, and fvd.given takes 9"):
        evaluate_preset(generator, "fvd.given", "stub", count=9)


def test_another_rate_than_the_presets_is_refused(generator, monkeypatch):
    """Case 12."""
    for fps, split in ((25.0, "eval"), (8.0, "eval")):
        preset = dataclasses.replace(PRESETS["fvd.given"], real_clips=RealClips(split, fps=fps))
        config = generator.config.copy_and_resolve_references()
        config.data.clip.fps = 8.0
        run = dataclasses.replace(generator, config=config)
        if fps == 8:
            assert runs.real_side(run, "fvd.given", preset, 0, other=False).describe()["fps"] == [8.0]
        else:
            with pytest.raises(UserError, match="fvd.given takes 25 frames per second, and this source has 8"):
                runs.real_side(run, "fvd.given", preset, 0, other=False)


def test_given_frames_are_copied_and_counted_and_batches_change_nothing(generator, monkeypatch):
    seen = []
    draw = runs.Drawing.__call__
    monkeypatch.setattr(runs.Drawing, "__call__", lambda self, rows: seen.append(draw(self, rows)) or seen[-1])
    record = evaluate_preset(generator, "fvd.given", "stub", batch_size=3)
    source, drawn = source_of(generator), np.concatenate(seen)
    order = np.random.default_rng(0).permutation(len(source))
    real = np.stack([source[int(i)]["video"] for i in order])
    # Seven samples go on with six clips: the last one with the first.
    for i, clip in enumerate(drawn):
        np.testing.assert_array_equal(clip[:3], real[i % 6][:3])
    assert len(drawn) == 7 and record["protocol"]["counts"] == {"generated": 7, "real": 5}
    assert record["metrics"]["frechet_distance"] == pytest.approx(distance(real[:5], drawn), rel=1e-3)
    assert record["protocol"]["generated"]["first_frames_given"] == 3
    other = evaluate_preset(generator, "fvd.given", "stub", batch_size=4)["metrics"]["frechet_distance"]
    assert other == pytest.approx(record["metrics"]["frechet_distance"], rel=1e-3)
    with pytest.raises(UserError, match="continues 3 given frames, and fvd.free is of samples without any"):
        evaluate_preset(generator, "fvd.free", "stub")


class Completes:
    """A generator that was trained with tasks: what is not given is black."""

    window, given_frames = 5, 0

    def check_task(self, name):
        assert name == "frame_prediction"

    def complete(self, tasks, videos, seed, story, *, first):
        assert tasks == ["frame_prediction"] * len(videos) and videos.shape[1] == self.window and seed == 2
        videos = videos.copy()
        videos[:, 1:] = 0
        return videos, videos


def test_a_generator_of_tasks_predicts_what_follows_the_given_frame(generator, monkeypatch):
    made = SimpleNamespace(tasks=[1.0], draws=True)
    run = SimpleNamespace(task=made, config=generator.config, text=None, generator=Completes)
    preset = dataclasses.replace(PRESETS["fvd.given"], generated_clips=GeneratedClips(given=1))
    real = runs.real_side(run, "fvd.bair", preset, 2, other=False)
    (side,) = runs.drawn_sides(run, "fvd.bair", preset, real, 2, 4)
    clips, source = side.clips(range(5, 7)), source_of(run, 2)
    for row, clip in zip((5, 6), clips, strict=True):
        np.testing.assert_array_equal(clip[0], source[real.order[row % 6]]["video"][0])
        assert clip.shape == (5, 16, 16, 3) and not clip[1:].any()
    with pytest.raises(UserError, match="fvd.given gives 3 frames, and frame_prediction of this generator 1"):
        runs.drawn_sides(run, "fvd.given", PRESETS["fvd.given"], real, 2, 4)


def test_repeats_are_drawn_with_the_next_seeds_and_the_number_is_their_mean(generator):
    both = evaluate_preset(generator, "fvd.twice", "stub", seed=4, batch_size=4)
    found = [record["frechet_distance"] for record in both["repeats"]]
    assert [record["seed"] for record in both["repeats"]] == [4, 5] and found[0] != found[1]
    # The real side stays, and so do the first frames.
    preset = PRESETS["fvd.twice"]
    real = runs.real_side(generator, "fvd.twice", preset, 4, other=False)
    clips = np.stack(real.clips(range(6)))
    for seed, value in ((4, found[0]), (5, found[1])):
        draw = runs.Drawing(generator.generator(), generator, real, preset, 4, seed)
        drawn = np.concatenate([draw(range(0, 4)), draw(range(4, 7))])
        assert value == pytest.approx(distance(clips, drawn), rel=1e-3)
    assert both["metrics"] == {
        "frechet_distance": pytest.approx(np.mean(found)),
        "frechet_distance_over_repeats": pytest.approx(np.std(found)),
    }
    assert both["protocol"]["repeats"] == 2 and both["protocol"]["generated_clips"]["repeats"] == 2


def test_a_killed_evaluation_goes_on_where_it_stopped(generator, tmp_path, monkeypatch):
    whole = evaluate_preset(generator, "fvd.given", "stub", batch_size=3)["metrics"]
    draw, drawn = runs.Drawing.__call__, []

    def stop(self, rows):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(list(rows))
        return draw(self, rows)

    monkeypatch.setattr(runs.Drawing, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_preset(
            generator, "fvd.given", "stub", batch_size=3, keep=FinishedBatches(tmp_path / "x.json", {"a": 1})
        )
    drawn.clear()
    keep = FinishedBatches(tmp_path / "x.json", {"a": 1})
    assert evaluate_preset(generator, "fvd.given", "stub", batch_size=3, keep=keep)["metrics"] == whole
    assert drawn == [[6]]


@pytest.mark.parametrize(("rule", "expected"), [("uniform", [0, 1, 2, 3, 0]), ("frequency", None)])
def test_labels_are_those_of_real_clips_or_every_class_in_turn(generator, rule, expected):
    config = generator.config.copy_and_resolve_references()
    with config.unlocked():
        config.classes = 4
    run = dataclasses.replace(generator, config=config)
    drawn = dataclasses.replace(PRESETS["fvd.given"], generated_clips=GeneratedClips(labels=rule))
    real = runs.real_side(run, "fvd.given", drawn, 0, other=False)
    said = runs.Drawing(None, run, real, drawn, 8, 0).said(range(5))
    source = source_of(run)
    expected = expected or [source[real.order[i]]["label"] for i in range(5)]
    assert list(said) == ["label"] and said["label"].tolist() == expected


def test_prompts_are_those_of_real_clips(generator):
    texts, preset = ByteTokenizer(60), PRESETS["fvd.given"]
    real = runs.real_side(generator, "fvd.given", preset, 0, other=False)
    run = SimpleNamespace(text=texts, config=SimpleNamespace(classes=None), directory="run")
    said = runs.Drawing(None, run, real, preset, 8, 0).said([0, 1, 6])
    captions = [source_of(generator).caption(real.order[i]) for i in (0, 1, 0)]
    np.testing.assert_array_equal(said["text_ids"], texts.encode(captions)[0])
    score = PRESETS["clip_score.vit_b32"]
    texts = runs.texts_of(run, score, real)
    assert [texts(row) for row in (0, 1, 6)] == captions and runs.texts_of(run, preset, real) is None
    with pytest.raises(UserError, match="run was trained without text: its samples have no prompts"):
        runs.texts_of(generator, score, real)


class Broken(ShapesSource):
    """Seven clips, of which the second and the fourth cannot be read."""

    def __len__(self) -> int:
        return 7

    def sample(self, index, rng):
        if index in (1, 3):
            raise data.SampleError(f"clip {index}", "damaged")
        return super().sample(index, rng)


def test_clips_that_cannot_be_read_are_left_out_of_both_sides(tokenizer, monkeypatch, caplog):
    monkeypatch.setitem(PRESETS, "rfvd.few", dataclasses.replace(PRESETS["rfvd.few"], real=None, generated=None))
    monkeypatch.setattr(data, "build", lambda settings, **how: Broken(**how))
    monkeypatch.setattr(runs, "reconstructor", lambda model: lambda clips: clips)
    record = evaluate_preset(tokenizer, "rfvd.few", "stub", batch_size=2)
    assert record["metrics"] == {"frechet_distance": 0.0} and "left out: clip 3: damaged" in caplog.text
    for side in ("real", "generated"):
        found = record["protocol"][side]
        assert (found["counted"], found["left_out"]) == (5, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_grey_level_survives_the_way_to_pixels(dtype):
    """Case 6: by truncation 63 of 256 levels are lost in float32, 131 in float16."""
    levels = np.arange(256)
    video = jnp.asarray((levels / 127.5 - 1).astype(dtype))
    np.testing.assert_array_equal(to_pixels(video), levels)
    np.testing.assert_array_equal(to_pixels(jnp.asarray([-1.7, 1.2])), [0, 255])


@pytest.mark.slow
def test_devices_share_the_batches(run_python, tokenizer, generator):
    names = ("rfvd.few", "fvd.given")
    alone = [
        evaluate_preset(run, name, "stub", batch_size=3)["metrics"]["frechet_distance"]
        for name, run in zip(names, (tokenizer, generator), strict=True)
    ]
    code = """
import json
import pytest
import jax
from tests.evaluation import test_runs as here
from videogen.evaluation import measuring
patch, seen, spread = pytest.MonkeyPatch(), [], measuring.spread
here.presets.__wrapped__(patch)
measuring.spread = lambda tree, mesh: seen.append(mesh.size) or spread(tree, mesh)
made = here.tokenizer.__wrapped__(), here.generator.__wrapped__()
found = [
    here.evaluate_preset(run, name, "stub", batch_size=3)["metrics"]["frechet_distance"]
    for name, run in zip(("rfvd.few", "fvd.given"), made)
]
print(json.dumps([found, seen]))
"""
    done = run_python(code, devices=4)
    assert done.returncode == 0, done.stderr
    found, seen = json.loads(done.stdout.splitlines()[-1])
    assert found == pytest.approx(alone, rel=1e-3) and set(seen) == {4}


def alexnet(folder) -> str:
    """The two public files of LPIPS with AlexNet, with random weights."""
    rng, inputs, trunk, heads = np.random.default_rng(0), 3, {}, {}
    for k, ((place, width, size, *_),) in enumerate(AlexNet.STAGES):
        kernel = rng.normal(size=(width, inputs, size, size)) / (inputs * size**2) ** 0.5
        trunk |= {f"features.{place}.weight": kernel, f"features.{place}.bias": np.zeros(width)}
        heads[f"lin{k}.model.1.weight"], inputs = np.ones((1, width, 1, 1)), width
    for name, tensors in (("trunk", trunk), ("heads", heads)):
        save_file({key: x.astype(np.float32) for key, x in tensors.items()}, folder / f"{name}.safetensors")
    return f"{folder / 'trunk.safetensors'},{folder / 'heads.safetensors'}"


@pytest.mark.slow
def test_the_command_measures_a_run_and_refuses_what_does_not_fit(run_command, tmp_path):
    run, out = save_untrained(tiny(), tmp_path / "run"), tmp_path / "lpips.json"
    weights = f"--weights={alexnet(tmp_path)}"
    common = [f"--checkpoint={run}", "--protocol=lpips.alex", weights, "--clip=5x32x32", "--count=3", f"--out={out}"]
    done = run_command("evaluate", *common)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    protocol = record["protocol"]
    assert record["metrics"]["lpips"] > 0 and protocol["counts"] == {"generated": 3, "real": 3}
    assert protocol["real"]["size"] == ["32x32"] and protocol["network_hash"] and protocol["step"] == 0
    assert not (tmp_path / "lpips.json.parts").exists()
    for flags, words in (
        ([*common[:1], "--protocol=fvd.styleganv_2048", weights], "use --protocol=rfvd.16f_2048"),
        ([*common[:1], "--protocol=rfvd.16f_2048", weights], "takes clips of 16 frames, and this run has 5"),
        ([*common[:1], "--protocol=lpips.alex"], "--weights is missing"),
        ([*common[:4], f"--pictures={tmp_path}"], "--pictures is for other protocols than presets"),
        ([*common[:1], "--protocol=reconstruction", weights], "--weights is for presets; leave it out"),
    ):
        done = run_command("evaluate", *flags, f"--out={tmp_path / 'other.json'}")
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "other.json").exists()

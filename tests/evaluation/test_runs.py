"""Presets on runs: the other side is drawn, or made of exactly the real clips, and the record says how."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.evaluation.networks import Colours
from tests.training_configs import tiny
from videogen import data, encoders, tasks
from videogen.configs import nbp
from videogen.data.inputs import clip_of
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


def loaded_of(config, frozen=False) -> Loaded:
    config.data.source.update({"length": 20}) if frozen else None
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


def source_of(loaded, split="eval"):
    clip = dataclasses.replace(clip_of(loaded.config), window="centre", crop="centre")
    settings = loaded.config.data.source.to_dict()
    return data.build(settings, clip=clip, seed=loaded.config.seed + (split == "eval"), split=split)


def distance(real, generated) -> float:
    sides = [np.asarray(Colours()(jnp.asarray(clips))) for clips in (real, generated)]
    return frechet_distance(*map(Moments.of, sides), biased=True)


def test_reconstructions_are_of_exactly_the_real_clips(tokenizer):
    record = evaluate_preset(tokenizer, "rfvd.few", "stub", seed=4, batch_size=2)
    source = source_of(tokenizer)
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


def test_repeats_are_drawn_with_the_next_seeds_and_the_number_is_their_mean(generator):
    both = evaluate_preset(generator, "fvd.twice", "stub", seed=4, batch_size=4)
    alone = [evaluate_preset(generator, "fvd.twice", "stub", seed=s, batch_size=4) for s in (4, 5)]
    found = [record["frechet_distance"] for record in both["repeats"]]
    assert [record["seed"] for record in both["repeats"]] == [4, 5] and found[0] != found[1]
    # Each run alone has its own first repeat.
    assert found == pytest.approx([record["repeats"][0]["frechet_distance"] for record in alone], rel=1e-6)
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
    said = runs.Drawing(None, run, real, drawn, 8, 0)._said(range(5))
    source = source_of(run)
    expected = expected or [source[real.order[i]]["label"] for i in range(5)]
    assert list(said) == ["label"] and said["label"].tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_grey_level_survives_the_way_to_pixels(dtype):
    """Case 6: by truncation 63 of 256 levels are lost in float32, 131 in float16."""
    levels = np.arange(256)
    video = jnp.asarray((levels / 127.5 - 1).astype(dtype))
    np.testing.assert_array_equal(to_pixels(video), levels)
    np.testing.assert_array_equal(to_pixels(jnp.asarray([-1.7, 1.2])), [0, 255])

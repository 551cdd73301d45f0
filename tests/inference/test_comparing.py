"""What a record says of videos that were drawn with a shortcut."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from absl import logging as absl_logging
from etils import epath

from tests.training_configs import tiny
from tests.untrained import save_untrained
from videogen.configs import videodit
from videogen.configuration import read_settings
from videogen.errors import UserError
from videogen.inference.comparing import compare, constant_frames, record_of
from videogen.inference.files import sample
from videogen.training.loading import load


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, 3, 16, 16, 3)).astype(np.uint8)


def test_the_first_video_is_compared_with_that_without_the_shortcut():
    """One grey level apart everywhere is 48.13 dB."""
    right = np.clip(noise(0), 1, 254)
    one_away = right.copy()
    one_away[0] += 1
    one_away[1] = noise(1)[1]
    overrides = []
    exact = SimpleNamespace(videos=right)
    shortcut = SimpleNamespace(videos=one_away, measured=[{"density": np.array(x)} for x in ([0.25, 0.9], [0.35, 0.9])])
    loaded = SimpleNamespace(generator=lambda *asked: overrides.append(asked) or exact)
    settings = {"steps": 3, "attention": {"name": "svg2"}}
    found = compare(loaded, shortcut, settings, (8, 8), (16, 16), lambda g: g.videos)
    assert overrides == [({"steps": 3, "attention": None, "cache": None}, (8, 8), (16, 16))]
    assert float(found["psnr"]) == pytest.approx(48.1308, abs=1e-3) and 0.99 < float(found["ssim"]) < 1
    assert float(found["density"]) == pytest.approx(0.3) and found["seconds"] >= 0 <= found["seconds_without"]


def test_constant_frames_are_counted_and_reported(caplog):
    videos = noise(0)
    assert constant_frames(videos) == 0
    videos[0, 1], videos[1, 2] = 7, 0
    videos[0, 1, 3, 3] = 8  # rounding
    videos[1, 0] = (10, 200, 30)
    assert constant_frames(videos) == 3
    absl_logging.get_absl_logger().propagate = True
    with caplog.at_level(logging.WARNING):
        record = record_of({"psnr": np.float32(20.123456), "ssim": np.float32(np.nan)}, videos)
    assert record == {"psnr": 20.123, "constant_frames": 3} and "3 of 6 frames are of one colour" in caplog.text


def test_settings_of_the_command_line_go_into_sections():
    section = {"steps": 24, "attention": {"name": "svg2", "queries": 8}, "solver": {"name": "ddim"}, "cache": None}
    texts = ["attention.top_p=0.5", "steps=8", "cache.name=residual", "grid.name=karras", "attention.compare=false"]
    assert read_settings(texts, section) == {
        "attention": {"name": "svg2", "queries": 8, "top_p": 0.5, "compare": False},
        "steps": 8,
        "cache": {"name": "residual"},
        "grid": {"name": "karras"},
    }
    assert section["attention"] == {"name": "svg2", "queries": 8}
    assert read_settings(["attention=none"], section) == {"attention": None}
    for text, message in (("attention", "KEY=VALUE"), ("=3", "KEY=VALUE"), ("a..b=3", "KEY=VALUE")):
        with pytest.raises(UserError, match=message):
            read_settings([text], section)
    with pytest.raises(UserError, match="goes into steps, which is no section"):
        read_settings(["steps=3", "steps.name=4"], section)


SVG2 = {"name": "svg2", "queries": 4, "keys": 6, "top_p": 0.6, "minimum": 0.0, "warmup": 0.3, "block": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> epath.Path:
    """An untrained flow generator, whose videos are noise, on an untrained tokenizer."""
    root = tmp_path_factory.mktemp("flow")
    config = videodit.get_config("stage=generator,size=debug")
    config.model.transformer.update({"width": 16, "heads": 2, "layers": 2, "mlp_width": 16})
    config.text.encoder.update({"width": 16, "heads": 2, "layers": 1})
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.data.batch_size = config.data.eval_batch_size = 2
    config.sampler.steps = 3
    config.parts.tokenizer.model = tiny().model
    config.parts.tokenizer.model.quantizer = {"name": "gaussian", "width": 16}
    return save_untrained(config, root / "run", ema=1.0)


@pytest.mark.slow
def test_the_record_of_a_sparse_sample_has_its_density_fidelity_and_times(run, tmp_path):
    videos = sample(load(run), tmp_path / "out", ["a red circle", "a b", "c d"], sampler={"attention": SVG2}, seed=3)
    record = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert videos.shape == (3, 5, 16, 16, 3) and record["sampler"]["attention"] == SVG2
    found = record["shortcut"]
    assert 0.1 < found["density"] < found["density_with_warmup"] < 1
    # Nothing is trained: the network predicts nothing, whatever it attends to.
    assert found["psnr"] == 100 and found["ssim"] == pytest.approx(1) and found["constant_frames"] == 0
    assert found["seconds"] > 0 < found["seconds_without"]
    plain = sample(load(run), tmp_path / "plain", ["a red circle", "a b", "c d"], seed=3)
    np.testing.assert_array_equal(plain, videos)
    assert "shortcut" not in json.loads((tmp_path / "plain" / "prompts.json").read_text())
    sample(load(run), tmp_path / "cached", ["a"], sampler={"cache": {"name": "residual", "every": 3}})
    cached = json.loads((tmp_path / "cached" / "prompts.json").read_text())["shortcut"]
    assert cached["computed_calls"] == pytest.approx(2 / 3, abs=1e-4) and cached["psnr"] == 100


@pytest.mark.slow
def test_what_sparse_attention_cannot_go_with_is_one_line_of_the_command(run, tmp_path, run_command):
    arguments = [f"--checkpoint={run}", "--prompt=a", f"--out={tmp_path}/out", "--set=attention.name=svg2"]
    for more, message in (
        ([], "sampler.attention.queries=100: a clip of this model has"),
        (["--set=attention.queries=4", "--set=attention.keys=4", "--set=cache.name=residual"], "do not go together"),
        (["--set=attention.queries=4", "--set=attention.sparsity=0.25"], "has no setting 'sparsity'"),
    ):
        done = run_command("sample", *arguments, *more)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
        assert message in errors[0] and not list((tmp_path / "out").glob("*"))

"""Points of tokenizers and codecs: bits that were really written, errors against the array that was coded."""

import json
import logging

import numpy as np
import pytest
from flax import nnx
from matplotlib.image import imread

from videogen import tasks
from videogen.configs import hitvideo, karl, one_d_piece, phenaki
from videogen.errors import UserError
from videogen.evaluation import codecs, rate_distortion
from videogen.evaluation.measures import Network
from videogen.evaluation.protocols import Evaluation
from videogen.metrics import psnr, to_unit
from videogen.reporting.rates import write_leaderboard, write_rates
from videogen.tasks import reconstruct, to_video
from videogen.tokenizers import Request, Tokenizer
from videogen.tokens import Layout, SegmentLayout
from videogen.training.loading import Loaded

NETWORK = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
QUERIES = 10


def loaded_of(config, tmp_path) -> Loaded:
    config.data.eval_batch_size = 2
    task = tasks.build(config)
    return Loaded(tmp_path, config, task, task.init(nnx.Rngs(0)), step=0)


def ordered(tmp_path) -> Loaded:
    config = one_d_piece.get_config("size=debug")
    config.model.update({"queries": QUERIES, "encoder": dict(NETWORK), "decoder": dict(NETWORK)})
    return loaded_of(config, tmp_path)


@pytest.fixture
def few_strengths(monkeypatch):
    monkeypatch.setattr(rate_distortion, "STRENGTHS", {"jpeg": (95, 10), "webp": (100, 1)})


def test_points_of_an_ordered_tokenizer_are_by_the_number_of_tokens(tmp_path, few_strengths):
    loaded = ordered(tmp_path)
    evaluation = Evaluation(loaded, 3, 0)
    metrics, pictures = rate_distortion.rate_distortion(evaluation)
    found = metrics["rate_distortion"]
    assert list(found["tokenizer"]) == ["1", "2", "4", "8", "10"] and metrics["clips"] == 3
    for name, point in found["tokenizer"].items():
        # Codes of 9 bits, and 4 bits that say how many there are.
        assert point["bytes"] == -(-(int(name) * 9 + 4) // 8)
        assert point["written_bits_per_pixel"] == pytest.approx(8 * point["bytes"] / (4 * 24 * 24))
    whole = reconstruct(loaded.tokenizer, evaluation.videos)
    np.testing.assert_array_equal(pictures["reconstructions"], whole)
    expected = psnr(to_unit(to_video(whole)), to_unit(to_video(evaluation.videos)))
    assert found["tokenizer"]["10"]["psnr"] == pytest.approx(float(np.mean(expected)), rel=1e-5)


def test_codecs_stand_beside_with_their_whole_files(tmp_path, few_strengths):
    loaded = ordered(tmp_path)
    evaluation = Evaluation(loaded, 2, 0)
    found = rate_distortion.rate_distortion(evaluation)[0]["rate_distortion"]
    for codec in ("jpeg", "webp"):
        best, worst = found[codec].values()
        assert best["bytes"] > worst["bytes"] and best["psnr"] > worst["psnr"]
        assert best["frechet.shapes_stand_in"] < worst["frechet.shapes_stand_in"]
    sizes = [codecs.jpeg(video, 95).size for video in evaluation.videos]
    assert found["jpeg"]["95"]["bytes"] == pytest.approx(np.mean(sizes))
    # Headers and tables are counted: a black picture is larger than the 384 bytes of 256 tokens of 12 bits.
    black = [np.zeros((1, side, side, 3), np.uint8) for side in (64, 256)]
    assert [codecs.jpeg(picture, 1).size for picture in black] == [690, 1650]
    assert all(codecs.webp(p, 1).size < codecs.jpeg(p, 1).size for p in black)


def test_a_tokenizer_that_needs_all_its_codes_has_one_point(tmp_path, few_strengths):
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.model.update({"width": 16, "heads": 2, "mlp_width": 16, "encoder_layers": (0, 1), "decoder_layers": (1, 0)})
    config.model.quantizer.size = 8
    loaded = loaded_of(config, tmp_path)
    found = rate_distortion.rate_distortion(Evaluation(loaded, 2, 0))[0]["rate_distortion"]["tokenizer"]
    tokens = loaded.tokenizer.layout(rate_distortion.VideoShape(5, 16, 16)).only.tokens
    assert list(found) == [str(tokens)] and found[str(tokens)]["bytes"] == -(-tokens * 3 // 8)


def test_a_codec_that_cannot_has_no_point_and_the_others_have_theirs(tmp_path, few_strengths, monkeypatch, caplog):
    def broken(frames, strength):
        raise UserError("no such encoder")

    monkeypatch.setitem(codecs.CODECS, "jpeg", (broken, 1, 95))
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = rate_distortion.rate_distortion(Evaluation(ordered(tmp_path), 2, 0))[0]["rate_distortion"]
    assert "jpeg" not in found and "webp" in found
    assert "jpeg:95 cannot code these clips and has no point: no such encoder" in caplog.text


def test_continuous_latents_have_no_bits(tmp_path):
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.model.quantizer = {"name": "gaussian", "width": 4}
    with pytest.raises(UserError, match="continuous latents have no bits"):
        rate_distortion.rate_distortion(Evaluation(loaded_of(config, tmp_path), 2, 0))


@pytest.mark.parametrize(("name", "strengths"), [("webp", (100, 50, 1)), ("hevc", (6, 30, 51)), ("h264", (6, 30, 51))])
def test_files_of_codecs_shrink_with_the_strength(name, strengths):
    video = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    coded = [codecs.CODECS[name][0](video, strength) for strength in strengths]
    assert all(c.frames.shape == video.shape for c in coded) and (np.diff([c.size for c in coded]) < 0).all()


def test_the_picture_has_a_chart_of_each_measure(tmp_path):
    points = {
        "1": {"written_bits_per_pixel": 0.1, "psnr": 20.0, "ssim": 0.5},
        "2": {"written_bits_per_pixel": 0.2, "psnr": 25.0},
    }
    write_rates(tmp_path / "rates.png", {"tokenizer": points})
    height, width, _ = imread(tmp_path / "rates.png").shape
    assert width / height == pytest.approx(2 * 4.6 / 3.6, rel=0.01)


def test_numbers_of_tokens_that_are_tried():
    def counts(*tokens: int) -> list[int | None]:
        segments = {f"s{i}": SegmentLayout((("query", n),), (4,)) for i, n in enumerate(tokens)}
        return rate_distortion.counts(model, Layout.of(**segments))

    model = type("Model", (Tokenizer,), {"drops": True})()
    assert counts(8) == [1, 2, 4, 8] and counts(10) == [1, 2, 4, 8, 10] and counts(1) == [1]
    assert counts(1, 4, 9) == [1, 5, 14]
    rows = Layout.of(video=SegmentLayout((("time", 3), ("query", 4)), (8,)))
    assert rate_distortion.counts(model, rows) == [1, 2, 4]
    model = type("Model", (Tokenizer,), {"drops": False})()
    assert counts(8) == counts(1, 4) == [None]


def result(path, points: dict, frames: int = 4, **protocol) -> str:
    clip = {"fps": 8.0, "frames": frames, "height": 24, "width": 24}
    codecs = {name: {"1": {"written_bits_per_pixel": 2.0, "psnr": 30.0}} for name in ("jpeg", "h264")}
    metrics = {"rate_distortion": {**points, **codecs}, "clips": 8}
    path.parent.mkdir()
    how = {"name": "rate_distortion", "clip": clip, **protocol}
    path.write_text(json.dumps({"protocol": how, "seed": 0, "metrics": metrics}))
    return str(path)


def test_several_tokenizers_stand_on_one_picture(tmp_path):
    few, many = ({"written_bits_per_pixel": bits, "psnr": quality} for bits, quality in ((0.1, 20.0), (0.4, 25.0)))
    files = [
        result(tmp_path / "one_d" / "rates.json", {"tokenizer": {"8": few, "64": many}}),
        result(tmp_path / "karl" / "rates.json", {"tokenizer": {"64": many}, "by_error": {"0.05": few}}, frames=5),
    ]
    table = write_leaderboard(files, tmp_path / "all.png").splitlines()
    assert [line.split()[0] for line in table[1:]] == ["one_d", "karl,", "one_d", "karl"]
    assert table[1].split() == ["one_d", "8", "0.1000", "20"] and "by error" in table[2]
    assert imread(tmp_path / "all.png").shape[0] > 100
    other = result(tmp_path / "other" / "rates.json", {"tokenizer": {"8": few}}, split="train")
    with pytest.raises(UserError, match="protocol.split is nothing in the first and train"):
        write_leaderboard([files[0], other], tmp_path / "no.png")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"protocol": {"name": "reconstruction"}, "metrics": {"psnr": 1.0}}))
    with pytest.raises(UserError, match="is of the protocol reconstruction, not rate_distortion"):
        write_leaderboard([str(wrong)], tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_the_command_writes_one_page_at_a_time(tmp_path, run_command):
    file = result(
        tmp_path / "one_d" / "rates.json", {"tokenizer": {"8": {"written_bits_per_pixel": 0.1, "psnr": 20.0}}}
    )
    found = run_command("compare", file, f"--rates={tmp_path / 'all.png'}", f"--out={tmp_path / 'all.html'}")
    assert found.returncode == 2 and "--out and --rates are two different pages" in found.stderr
    assert not (tmp_path / "all.png").exists()
    found = run_command("compare", file, f"--rates={tmp_path / 'all.png'}")
    assert found.returncode == 0 and "0.1000" in found.stdout and (tmp_path / "all.png").exists()


def test_a_tokenizer_that_decides_has_points_by_error_and_lpips_is_that_of_its_weights(tmp_path, monkeypatch):
    config = karl.get_config("size=debug")
    config.model.update({"queries": 6, "longest": 0, "encoder": dict(NETWORK), "decoder": dict(NETWORK)})
    config.model.lengths.threshold = 0.5
    config.passes.step = 3
    loaded = loaded_of(config, tmp_path)
    monkeypatch.setattr(rate_distortion, "STRENGTHS", {})
    # Instead of AlexNet, for which these clips are too small: the largest difference of each frame.
    seen = Network(lambda one, other: np.abs(np.asarray(one - other)).max((1, 2, 3)), "f00d")
    monkeypatch.setattr(rate_distortion, "load_network", lambda name, weights, mesh: seen)
    evaluation = Evaluation(loaded, 2, seed=0, weights="alex.pth,heads.pth")
    metrics, pictures = rate_distortion.rate_distortion(evaluation)
    found = metrics["rate_distortion"]
    assert list(found["by_error"]) == ["0.02", "0.05", "0.1", "0.2"]
    kept = [loaded.tokenizer.tokenize(to_video(evaluation.videos), Request(e)).only.kept for e in (0.02, 0.2)]
    for name, mask in zip(("0.02", "0.2"), kept, strict=True):
        # 9 bits of each kept code, and one of each of 6 that says so.
        sizes = [-(-(9 * int(row.sum()) + 6) // 8) for row in mask]
        assert found["by_error"][name]["bytes"] == np.mean(sizes)
    rebuilt = pictures["reconstructions"].astype(np.float32) / 127.5 - 1
    errors = np.abs(rebuilt - (evaluation.videos.astype(np.float32) / 127.5 - 1)).max((2, 3, 4))
    assert found["tokenizer"]["6"]["lpips_alex"] == pytest.approx(errors.mean(), rel=1e-5)
    assert evaluation.beside["lpips_alex"] == {"weights": "f00d"}


def test_points_of_a_tokenizer_with_layers_are_by_its_first_layers(tmp_path, few_strengths):
    config = hitvideo.get_config("size=debug")
    config.data.clip.update({"height": 16, "width": 16})
    config.model.update({"width": 8, "multipliers": (1, 2), "spatial_strides": (4,), "temporal_strides": (2,)})
    loaded = loaded_of(config, tmp_path)
    found = rate_distortion.rate_distortion(Evaluation(loaded, 2, 0))[0]["rate_distortion"]["tokenizer"]
    assert list(found) == ["8", "20", "68"]
    # Codes of 10 bits, and 7 bits that say how many of the 68 are there.
    assert [point["bytes"] for point in found.values()] == [-(-(7 + 10 * n) // 8) for n in (8, 20, 68)]

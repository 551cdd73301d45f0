"""Measures of single clips: pairs of one name for LPIPS, captions for the CLIP score."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from videogen.data.text import train_bpe
from videogen.encoders.lpips import Lpips
from videogen.errors import UserError
from videogen.evaluation import folders, measures
from videogen.evaluation.folders import compare_folders
from videogen.evaluation.measures import Network
from videogen.evaluation.presets import PRESETS

RNG = np.random.default_rng(0)


def pictures(folder, names, side=64):
    folder.mkdir()
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (side, side, 3)).astype(np.uint8)).save(path)
    return folder


def pixels(path):
    return jnp.asarray(np.asarray(Image.open(path)), jnp.float32)[None] / 127.5 - 1


@pytest.fixture
def squared(monkeypatch):
    """Squared error of pictures in [-1, 1] in the place of a network."""

    def error(one, other):
        assert abs(one).max() <= 1
        return jnp.square(one - other).mean((1, 2, 3))

    monkeypatch.setattr(folders, "load_network", lambda name, weights, mesh: Network(error, "0123"))


def test_pairs_are_made_by_name_and_the_value_is_their_mean(tmp_path, squared):
    real = pictures(tmp_path / "real", ["a.png", "b/c.png", "d.png"])
    made = pictures(tmp_path / "made", ["d.png", "a.png", "b/c.png"])
    record = compare_folders("lpips.alex", real, made, "stub", batch_size=2)
    each = [float(jnp.square(pixels(real / n) - pixels(made / n)).mean()) for n in ("a.png", "b/c.png", "d.png")]
    assert record["metrics"] == {"lpips": pytest.approx(np.mean(each), rel=1e-5)}
    assert record["protocol"]["counts"] == {"generated": 3, "real": 3}
    same = compare_folders("lpips.alex", real, real, "stub")
    assert same["metrics"] == {"lpips": 0.0}


def test_names_without_a_partner_and_other_sizes_are_refused(tmp_path, squared):
    real, made = pictures(tmp_path / "real", ["a.png", "b.png"]), pictures(tmp_path / "made", ["a.png"])
    with pytest.raises(
        UserError, match=r"1 files of .*real have no partner of the same name in .*made, the first is b$"
    ):
        compare_folders("lpips.alex", real, made, "stub")
    with pytest.raises(UserError, match=r"1 files of .*real have no partner"):
        compare_folders("rfid.coco_5k", made, real, "stub", count=2)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(made / "b.png")
    with pytest.raises(UserError, match=r"paired clips must be of one size, got \[1, 64, 64, 3\] and \[1, 8, 9, 3\]"):
        compare_folders("lpips.alex", real, made, "stub")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(made / "b.jpg")
    with pytest.raises(UserError, match="has two files named b"):
        compare_folders("lpips.alex", real, made, "stub")


def test_lpips_is_that_of_the_network(tmp_path, monkeypatch):
    """The whole way with a trunk of random weights and heads of ones, pictures in [-1, 1]."""
    network = Lpips("alex", rngs=measures.nnx.Rngs(0))
    for head in network.heads:
        head.set_value(jnp.ones_like(head.get_value()))
    monkeypatch.setattr(Lpips, "load", classmethod(lambda cls, path, trunk: network))
    real, made = pictures(tmp_path / "real", ["a.png"]), pictures(tmp_path / "made", ["a.png"])
    found = compare_folders("lpips.alex", real, made, "x", batch_size=1)["metrics"]["lpips"]
    expected = network(pixels(real / "a.png"), pixels(made / "a.png"))
    assert found == pytest.approx(float(expected[0]), rel=1e-4) and found > 0


@pytest.fixture
def clip(monkeypatch):
    """Features of pictures are their mean colour, of texts their first ids; texts are cut at three tokens."""
    tokenizer = train_bpe(["red green blue"] * 9, 300, 3)

    def texts(said):
        ids, _ = tokenizer.encode(said)
        return ids.astype(np.float32), sum(map(tokenizer.is_cut, said))

    encode = lambda frames: (jnp.asarray(frames, jnp.float32)).mean((1, 2))  # noqa: E731
    monkeypatch.setattr(folders, "load_network", lambda name, weights, mesh: Network(encode, "0123", texts))
    return texts


def test_clip_scores_compare_with_captions_and_say_how_many_were_cut(tmp_path, clip):
    """Case 16: a caption above 77 tokens lost its end, and nobody was told."""
    folder, said = pictures(tmp_path / "made", ["a.png", "b.png"]), {"a.png": "red", "b.png": "green red blue red"}
    lines = [json.dumps({"file": name, "caption": caption}) for name, caption in said.items()]
    (folder / "captions.jsonl").write_text("\n".join(lines[:1]))
    with pytest.raises(UserError, match="1 files of .* have no caption in captions.jsonl, the first is b.png"):
        compare_folders("clip_score.vit_b32", None, folder, "stub")
    (folder / "captions.jsonl").write_text("\n".join(lines))
    record = compare_folders("clip_score.vit_b32", None, folder, "stub")
    cosines = []
    for name, caption in said.items():
        a, b = np.asarray(Image.open(folder / name), np.float64).mean((0, 1)), clip([caption])[0][0]
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert record["metrics"] == {"clip_score": pytest.approx(100 * np.mean(cosines), rel=1e-4)}
    assert record["protocol"]["texts_cut"] == 1 and record["protocol"]["counts"] == {"generated": 2}


def test_presets_of_pairs_take_the_same_frames_of_both(tmp_path):
    preset = PRESETS["lpips.vgg"]
    for name in ("real", "made"):
        pictures(tmp_path / name, ["a.png"])
    real, (made,) = folders.pairs_of(tmp_path / "real", tmp_path / "made", preset, 0)
    assert real.preset == made.preset and real.preset.real_clips.rule == "first"

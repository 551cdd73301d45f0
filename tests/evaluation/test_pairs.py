"""Measures of single clips: pairs of one name for LPIPS, captions for the CLIP score."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from PIL import Image

from videogen.data.text import train_bpe
from videogen.data.video_io import write_video
from videogen.encoders.lpips import Lpips
from videogen.errors import UserError
from videogen.evaluation import folders, measures
from videogen.evaluation.folders import compare_folders
from videogen.evaluation.measures import Network

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
    protocol = record["protocol"]
    assert protocol["counts"] == {"generated": 3, "real": 3} and protocol["of"] == "reconstructions"
    # Both files of a pair are read from their beginning; of what split they are is not known.
    assert protocol["real_clips"]["rule"] == "first" and protocol["real_clips"]["split"] == ""
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
    with pytest.raises(UserError, match="64x64 of real files and 64x64, 8x9 of generated files"):
        compare_folders("lpips.alex", real, made, "stub")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(made / "b.png")
    for path in (real / "a.png", made / "b.png"):
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"paired clips must be of one size, got \[1, 32, 48, 3\] and \[1, 64, 64, 3\]"):
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


def test_clip_keeps_75_tokens_between_start_and_end(tmp_path):
    """Case 16, with a network of random weights: the end of a longer caption stays."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    size = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40)
    text = transformers.CLIPTextConfig(**size, vocab_size=50, eos_token_id=49, bos_token_id=48)
    vision = transformers.CLIPVisionConfig(**size, image_size=24, patch_size=8)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    words = {f"w{i}": i for i in range(48)} | {"<start>": 48, "<end>": 49}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<start>", 48), ("<end>", 49)]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = [" ".join(f"w{1 + i % 40}" for i in range(length)) for length in (75, 76, 200)]
    features, cut = measures.load_network("clip", tmp_path, None).texts(said)
    ids = torch.tensor([[48, *(1 + i % 40 for i in range(75)), 49]])
    with torch.no_grad():
        expected = theirs.get_text_features(ids).pooler_output[0].numpy()
    assert cut == 2
    for found in features:
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_consistency_is_of_the_frames_of_each_clip(tmp_path, monkeypatch):
    """Frames of two colours in turn: the cosine with the frame before is 0, with the first one 0 and 1."""
    folder = tmp_path / "made"
    folder.mkdir()
    colours = np.zeros((4, 64, 64, 3), np.uint8)
    colours[::2, ..., 0], colours[1::2, ..., 2] = 255, 255
    write_video(folder / "turns.mp4", colours, 8)
    write_video(folder / "stays.mp4", colours[[0, 0, 0, 0]], 8)
    encode = lambda frames: jnp.round(jnp.asarray(frames, jnp.float32).mean((1, 2)) / 255)  # noqa: E731
    monkeypatch.setattr(folders, "load_network", lambda name, weights, mesh: Network(encode, "0123"))
    record = compare_folders("consistency.clip_b32", None, folder, "stub", batch_size=3)
    turns = np.mean([0, 0.5, 0])
    assert record["metrics"]["consistency"] == pytest.approx((turns + 1) / 2)
    assert record["protocol"]["counts"] == {"generated": 2} and "texts_cut" not in record["protocol"]

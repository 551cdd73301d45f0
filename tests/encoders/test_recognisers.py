"""Readers of text and faces: their files, what they are given, and their networks."""

import importlib.util
import json
import os

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.encoders.oracles import assert_near
from videogen.encoders.face_api import BLOCKS, MANIFEST, MEAN, SIDE, TEMPLATE, FaceApi, aligned, similarity
from videogen.encoders.installed import installed_weights
from videogen.encoders.ppocr import PpOcr, collapsed, prepared
from videogen.encoders.tfjs import read_manifest
from videogen.errors import UserError
from videogen.metrics.recognition import cosine


def write_manifest(folder, tensors, quantised=True):
    """Tensors as TensorFlow.js keeps them: 8 bits each, with a scale and a smallest value."""
    data, entries = b"", []
    for name, array in tensors.items():
        entry = {"name": name, "shape": list(array.shape), "dtype": "float32"}
        if quantised:
            low, scale = float(array.min()), float(np.ptp(array)) / 255 or 1.0
            entry["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
            data += np.round((array - low) / scale).astype(np.uint8).tobytes()
        else:
            data += array.astype("<f4").tobytes()
        entries.append(entry)
    (folder / "weights.bin").write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps([{"paths": ["weights.bin"], "weights": entries}]))
    return folder / MANIFEST


def test_manifests_are_read_with_their_scales(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.array([-1.0, 254.0], np.float32)}
    for quantised in (False, True):
        found = read_manifest(write_manifest(tmp_path, tensors, quantised))
        assert list(found) == ["a", "b/c"] and found["a"].dtype == np.float32
        for name, array in tensors.items():
            np.testing.assert_allclose(found[name], array, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g[0]["weights"][0].update(shape=[3, 3]), "ends beyond"),
        (lambda g: g[0]["weights"][0].update(shape=[2, 2]), "have 6 bytes, and its tensors 4"),
        (lambda g: g[0]["weights"][0].update(shape=[-2, -3]), "ends beyond"),
        (lambda g: g[0].update(paths=["../weights.bin"]), "another folder"),
        (lambda g: g[0].update(paths=["absent.bin"]), "cannot read"),
        (lambda g: g[0]["weights"][0].pop("name"), "cannot read"),
        (lambda g: g[0]["weights"][0]["quantization"].update(dtype="object"), "cannot read"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path, change, message):
    path = write_manifest(tmp_path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    groups = json.loads(path.read_text())
    change(groups)
    path.write_text(json.dumps(groups))
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)


class FaceReference:
    """The published graph in PyTorch; it draws each tensor, in TensorFlow's layout, when it is first asked for."""

    def __init__(self):
        self.weights, self.generator = {}, np.random.default_rng(0)

    def draw(self, name, shape, scale=1.0, base=0.0):
        value = base + scale * self.generator.standard_normal(shape)
        return torch.tensor(self.weights.setdefault(name, value.astype(np.float32)))

    def convolve(self, x, name, outputs, side=3, stride=1):
        inputs = x.shape[1]
        kernel = self.draw(f"{name}/conv/filters", (side, side, inputs, outputs), (2 / (inputs * side**2)) ** 0.5)
        bias = self.draw(f"{name}/conv/bias", (outputs,), 0.1)
        padding = (side - 1) // 2 if stride == 1 else 0
        y = functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=stride, padding=padding)
        weights = self.draw(f"{name}/scale/weights", (outputs,), 0.1, 1.0)[:, None, None]
        return y * weights + self.draw(f"{name}/scale/biases", (outputs,), 0.2)[:, None, None]

    def __call__(self, faces):
        x = torch.tensor((faces - MEAN) / 255).permute(0, 3, 1, 2)
        x = functional.max_pool2d(functional.relu(self.convolve(x, "conv32_down", 32, 7, 2)), 3, 2)
        for name in BLOCKS:
            outputs, halves = int(name[4:].split("_")[0]), "down" in name
            y = functional.relu(self.convolve(x, f"{name}/conv1", outputs, stride=2 if halves else 1))
            y = self.convolve(y, f"{name}/conv2", outputs)
            if halves:
                x = functional.avg_pool2d(x, 2)
                x = functional.pad(x, (0, 0, 0, 0, 0, outputs - x.shape[1]))
                y = functional.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
            x = functional.relu(x + y)
        return x.mean((2, 3)) @ self.draw("fc", (x.shape[1], 128), 0.1)


def test_the_face_network_is_the_published_graph(tmp_path):
    reference = FaceReference()
    faces = np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    expected = reference(faces.astype(np.float32))
    write_manifest(tmp_path, reference.weights, quantised=False)
    ours = FaceApi.load(tmp_path)
    assert_near(jax.jit(ours.encode)(faces), expected)
    assert len(ours.hash) == 64
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=f"has no {MANIFEST}; unpack the npm package"):
        FaceApi.load(tmp_path / "model")


def test_five_points_are_brought_to_the_template():
    """Turned by 30 degrees, 2.5 times as large and moved: the inverse is found, without mirroring."""
    angle = np.pi / 6
    turn = 2.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ turn.T + (40, -7)
    found = similarity(points, TEMPLATE)
    np.testing.assert_allclose(points @ found[:, :2].T + found[:, 2], TEMPLATE, atol=1e-9)
    with pytest.raises(UserError, match="all at one place"):
        similarity(np.ones((5, 2)), TEMPLATE)


def test_alignment_takes_the_pixels_at_the_landmarks():
    """A picture whose red is 4 times the column and whose green 4 times the row, and a face of two thirds the size."""
    rows, columns = np.mgrid[:60, :60]
    picture = np.stack([4 * columns, 4 * rows, 0 * rows], axis=-1).astype(np.uint8)
    landmarks = TEMPLATE / 3 + (3, 2)
    face = aligned(picture, landmarks)
    assert face.shape == (SIDE, SIDE, 3)
    for (x, y), (column, row) in zip(TEMPLATE, landmarks, strict=True):
        red, green, _ = face[round(y), round(x)]
        # Pixels are centred at halves.
        assert abs(red - 4 * (column - 0.5)) < 3 and abs(green - 4 * (row - 0.5)) < 3


def test_repeated_classes_count_once_and_blanks_not():
    assert collapsed(np.array([0, 5, 5, 0, 5, 7, 7, 7, 0])) == [5, 5, 7]
    assert collapsed(np.array([0, 0])) == [] and collapsed(np.zeros(0, int)) == []


def test_crops_are_blue_first_on_a_field_of_one_width():
    """Red becomes the last channel; what is narrower than the field has zeros, which are grey, behind it."""
    field = prepared(np.full((24, 40, 3), (255, 0, 0), np.uint8))
    assert field.shape == (3, 48, 320)
    np.testing.assert_allclose(field[:, :, :80], np.broadcast_to([[[-1]], [[-1]], [[1]]], (3, 48, 80)))
    assert not field[:, :, 80:].any()
    assert prepared(np.zeros((2, 100, 3), np.uint8)).all()  # longer than the field: squeezed
    assert prepared(np.zeros((7, 1, 3), np.uint8))[:, :, :7].all()


def test_a_reader_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"not a network")
    words = "give PP-OCRv6_rec_small.onnx" if importlib.util.find_spec("onnxruntime") else "needs onnxruntime"
    with pytest.raises(UserError, match=words) as error:
        PpOcr(tmp_path / "a.onnx")
    assert "\n" not in str(error.value)


FACES = {
    "sample1.jpg": [
        [(0.2286, 0.3562), (0.2666, 0.3576), (0.2387, 0.4014), (0.2334, 0.4214), (0.2678, 0.4225)],
        [(0.4515, 0.4291), (0.4885, 0.3985), (0.4733, 0.4499), (0.4761, 0.4767), (0.5121, 0.4505)],
        [(0.8114, 0.2196), (0.8416, 0.2637), (0.8076, 0.2669), (0.7807, 0.2677), (0.8094, 0.3096)],
    ],
    "sample3.jpg": [
        [(0.3267, 0.3182), (0.3746, 0.3194), (0.3439, 0.3617), (0.3335, 0.3967), (0.3687, 0.3968)],
        [(0.8114, 0.3025), (0.8590, 0.2977), (0.8425, 0.3467), (0.8120, 0.3722), (0.8592, 0.3694)],
        [(0.5805, 0.2368), (0.6291, 0.2521), (0.5893, 0.2879), (0.5761, 0.3135), (0.6205, 0.3284)],
    ],
}
"""Landmarks of faces in photos of the package, as shares of width and height, by its own detector."""


def photos(folder):
    """``(photo, face) -> (picture with a longer side of 800 pixels, landmarks)``."""
    from PIL import Image

    found = {}
    for name, faces in FACES.items():
        picture = Image.open(folder / "demo" / name).convert("RGB")
        picture.thumbnail((800, 800), Image.Resampling.LANCZOS)
        for k, landmarks in enumerate(faces):
            found[name, k] = np.asarray(picture), np.array(landmarks) * picture.size
    return found


@pytest.fixture(scope="module")
def face_api():
    """The unpacked npm package."""
    from pathlib import Path

    folder = os.environ.get("VIDEOGEN_FACE_API")
    if not folder:
        pytest.skip("VIDEOGEN_FACE_API names no unpacked npm package @vladmandic/face-api")
    return Path(folder)


@pytest.mark.slow
def test_the_real_face_network_gives_what_its_package_gives(face_api):
    """The first five numbers for a picture of stripes, as the package computed them in JavaScript."""
    rows, columns, channels = np.ogrid[:SIDE, :SIDE, :3]
    stripes = ((7 * columns + 13 * rows + 29 * channels) % 256).astype(np.uint8)
    found = np.asarray(FaceApi.load(face_api).encode(stripes[None]))[0]
    expected = [-0.04688975, 0.12886070, 0.06123971, -0.01211422, -0.03938553]
    np.testing.assert_allclose(found[:5], expected, atol=1e-5)
    assert np.abs(found).max() == pytest.approx(0.3517934, abs=1e-5)


@pytest.mark.slow
def test_real_faces_are_told_apart_and_suffer_from_compression(face_api):
    from videogen.evaluation import codecs

    embed, faces = FaceApi.load(face_api).embedder(), photos(face_api)
    embeddings = {key: embed(*face) for key, face in faces.items()}
    # Of the compressed faces each is nearest to its own original.
    for key, (picture, points) in faces.items():
        after = embed(codecs.build("jpeg:20")(picture[None])[0], points)
        assert min(faces, key=lambda other: np.linalg.norm(embeddings[other] - after)) == key
    for family in (("jpeg", (60, 20, 8, 3)), ("h264", (25, 35, 43, 51)), ("downsample", (2, 4, 8, 16))):
        means = []
        for strength in family[1]:
            codec = codecs.build(f"{family[0]}:{strength}")
            after = {key: embed(codec(picture[None])[0], points) for key, (picture, points) in faces.items()}
            means.append(np.mean([cosine(embeddings[key], after[key]) for key in faces]))
        assert means[0] < 1 and (np.diff(means) < 0).all(), (family, means)


@pytest.fixture(scope="module")
def reader():
    """The real recogniser."""
    pytest.importorskip("onnxruntime", reason="the extra evaluation has onnxruntime, which runs the reader")
    path = installed_weights("ppocrv6")
    if path is None:
        pytest.skip("the package rapidocr, which has the reader, is not installed")
    return PpOcr(path)


def written(text, colour="black", back="white"):
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (20 * len(text) + 20, 48), back)
    ImageDraw.Draw(picture).text((10, 24), text, fill=colour, anchor="lm", font=ImageFont.load_default(30))
    return np.asarray(picture)


@pytest.mark.slow
def test_the_real_reader_reads(reader):
    assert len(reader.letters) == 18_710 and len(reader.hash) == 64
    for text in ("Harbor", "4731", "a", "TUNNEL", "two words"):
        assert reader(written(text)) == text
    assert reader(np.full((48, 90, 3), 128, np.uint8)) == ""


@pytest.mark.slow
def test_the_real_reader_agrees_with_its_package(reader):
    """On scores, for crops that are not squeezed; the package resizes by another routine."""
    package = pytest.importorskip("cv2", reason="the package's preprocessing needs OpenCV")
    crop = written("Harbor")
    theirs = package.resize(crop[..., ::-1], (round(48 * crop.shape[1] / crop.shape[0]), 48))
    ours = prepared(crop)[:, :, : theirs.shape[1]]
    np.testing.assert_allclose(ours, theirs.transpose(2, 0, 1) / 127.5 - 1, atol=0.02)

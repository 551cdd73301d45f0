"""TokBench with the real reader: codecs in four strengths fall in the right order, and the command runs it whole."""

import json

import numpy as np
import pytest

from videogen.encoders import installed_weights
from videogen.encoders.ppocr import PpOcr
from videogen.errors import UserError
from videogen.evaluation import codecs, tokbench_request
from videogen.evaluation.rendered import RenderedSet
from videogen.evaluation.tokbench_request import Request, measure
from videogen.evaluation.tokbench_run import Recognisers, run

STRENGTHS = {"jpeg": (25, 12, 7, 2), "h264": (28, 36, 43, 51), "downsample": (2, 3, 4, 8)}


@pytest.fixture(scope="module")
def reader():
    """The real recogniser; a crop that it has read before it is not asked again, as nothing else decides a reading."""
    pytest.importorskip("onnxruntime", reason="the extra evaluation has onnxruntime, which runs the reader")
    path = installed_weights("ppocrv6")
    if path is None:
        pytest.skip("the package rapidocr, which has the reader, is not installed")
    network, known = PpOcr(path), {}

    def read(crop):
        key = (crop.shape, crop.tobytes())
        if key not in known:
            known[key] = network(crop)
        return known[key]

    return read


@pytest.mark.slow
def test_codecs_fall_in_the_right_order(reader):
    samples, by = RenderedSet(256, pictures=4, videos=1, frames=2, words=10), Recognisers(reader)

    def scores(text):
        metrics = run("tokbench.256.ppocrv6", samples, codecs.build(text), by, cleaned=True)[1]["text"]
        return {kind: metrics[kind]["t_ned"] for kind in ("pictures", "videos")}

    untouched = scores("identity")
    assert untouched == {"pictures": 1, "videos": 1}  # only words that are read exactly count
    for name, strengths in STRENGTHS.items():
        found = [scores(f"{name}:{strength}") for strength in strengths]
        pictures = [score["pictures"] for score in found]
        assert pictures[0] <= 1 and (np.diff(pictures) < 0).all(), (name, pictures)
        videos = [score["videos"] for score in found]
        assert videos[0] > videos[-1] and (np.diff(videos) <= 0.05).all(), (name, videos)


@pytest.mark.slow
def test_shuffled_boxes_are_read_alike(reader):
    (sample,) = RenderedSet(256, pictures=1, videos=0)
    words = sample.words[0]
    from videogen.evaluation.tokbench import score_text

    path = installed_weights("ppocrv6")
    expected, _ = score_text(sample.frames, [words], PpOcr(path))
    found, _ = score_text(sample.frames, [words[::-1]], PpOcr(path))
    assert found[::-1] == expected


class Stub:
    """Reads how high a crop is, in the place of the network."""

    hash = "0123"

    def __init__(self, path):
        assert path == "file"

    def __call__(self, crop):
        return str(len(crop))


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setitem(tokbench_request.READERS, "ppocrv6", Stub)


def test_a_request_is_measured_whole(stub):
    request = Request("tokbench.256.ppocrv6", codec="identity", count=1, seed=5, weights="file")
    record, examples = measure(request)
    protocol = record["protocol"]
    assert protocol["codec"] == "identity" and protocol["networks"] == {"ppocrv6": "0123"} and protocol["cleaned"]
    data = protocol["data"]
    assert (data["name"], data["pictures"], data["videos"], data["seed"]) == ("rendered", 1, 1, 5)
    assert record["seed"] == 5 and record["metrics"]["psnr"] == 100 and len(examples) == 24
    json.dumps(record)


def test_requests_that_cannot_be_met_are_one_line(stub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--checkpoint=TOKENIZER or --codec"):
        measure(Request("tokbench.256.ppocrv6"))
    with pytest.raises(UserError, match="for rendered words"):
        Request("tokbench.256.ppocrv6", published=tmp_path, count=3).samples()
    with pytest.raises(UserError, match="has no face_recognition_model"):
        Request("tokbench.256.ppocrv6", weights="file", faces=str(tmp_path)).recognisers()
    monkeypatch.setattr(tokbench_request, "installed_weights", lambda name: None)
    with pytest.raises(UserError, match="--weights is missing: the file of ppocrv6; or install the package rapidocr"):
        Request("tokbench.256.ppocrv6").recognisers()

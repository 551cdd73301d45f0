"""The protocol ``signs``: right values where the drawn clips are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from videogen import data
from videogen.configs import signvip
from videogen.data.clip import Clip
from videogen.errors import UserError
from videogen.evaluation import signs as module


@pytest.fixture(scope="module")
def evaluation():
    config = signvip.get_config("stage=codec,size=debug")
    source = data.build(config.data.source, clip=Clip(12, 24, 24, 8.0), seed=1, split="eval")
    samples = [source[i] for i in range(12)]
    clips = SimpleNamespace(samples=samples)
    loaded = SimpleNamespace(config=config, task=SimpleNamespace(draws=False))
    videos = np.stack([sample["video"] for sample in samples])
    return SimpleNamespace(loaded=loaded, clips=clips, videos=videos, seed=0)


def test_clips_that_are_the_originals_have_the_best_values(evaluation, monkeypatch):
    """At 12 frames of 24 × 24 the judge reads nearly all words of clips as the source renders them."""
    monkeypatch.setattr(module, "_from_maps", lambda evaluation, captions: evaluation.videos)
    metrics, shown = module.signs(evaluation)
    assert metrics["signs"] == metrics["signs_of_originals"] and metrics["clips"] == 12
    assert metrics["signs"]["words"] >= 0.95 and metrics["signs"]["appearance"] == 1.0
    assert metrics["hand_ssim"] == pytest.approx(1.0, abs=1e-5) and metrics["hand_distance"] == 0.0
    assert metrics["hands_seen"] > 0.9 and shown["reconstructions"].shape == (12, 12, 24, 24, 3)


def test_clips_of_other_sentences_are_not_read_as_these(evaluation, monkeypatch):
    monkeypatch.setattr(module, "_from_maps", lambda evaluation, captions: np.roll(evaluation.videos, 1, axis=0))
    metrics, _ = module.signs(evaluation)
    assert metrics["signs"]["words"] < 0.5 and metrics["signs"]["sentences"] == 0.0
    assert metrics["hand_ssim"] < 0.7 and metrics["hand_distance"] > 0.05


def test_other_sources_are_refused(evaluation):
    config = ConfigDict(evaluation.loaded.config.to_dict())
    config.data.source.name = "shapes"
    other = SimpleNamespace(loaded=SimpleNamespace(config=config))
    with pytest.raises(UserError, match="not from 'shapes'"):
        module.signs(other)

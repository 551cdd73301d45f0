"""Recognition: the share of clips whose class is among the likeliest, ties, and a run from the command line."""

import json

import numpy as np
import pytest

import videogen
from videogen.configs import recognition as stages
from videogen.errors import UserError
from videogen.evaluation import protocols
from videogen.evaluation.recognition import top
from videogen.training.loop import train


def test_ties_count_as_their_chance_and_what_is_not_finite_is_a_miss():
    logits = np.array([[3.0, 1, 2, 0], [1, 1, 1, 1], [0, 5, 5, 1], [np.nan, 9, 0, 0], [0, 1, 2, 3]])
    labels = np.array([0, 2, 1, 1, 0])
    assert top(logits, labels, 1).tolist() == [1, 0.25, 0.5, 0, 0]
    assert top(logits, labels, 2).tolist() == [1, 0.5, 1, 0, 0]
    assert top(logits, labels, 5).tolist() == [1, 1, 1, 0, 1]


@pytest.mark.slow
def test_clips_are_recognised_from_a_pretrained_model(tmp_path):
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}

    def tiny(stage: str):
        config = stages.get_config(f"stage={stage},size=debug")
        config.data.clip.update({"frames": 2, "height": 12, "width": 12})
        config.data.batch_size = config.data.eval_batch_size = 4
        config.model.network.encoder.transformer = sizes
        config.model.network.bert = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}
        config.steps = config.eval_every = config.checkpoint_every = 2
        return config

    train(tiny("pixels"), tmp_path / "pixels")
    config = tiny("of_pixels")
    config.start_from.run = str(tmp_path / "pixels")
    train(config, tmp_path / "run")
    loaded = videogen.load(tmp_path / "run")
    record, pictures = protocols.evaluate(loaded, "recognition", count=6, seed=0)
    json.dumps(record)
    found = record["metrics"]["recognition"]
    assert found["chance"] == pytest.approx(100 / 96) and 0 <= found["top_1"] <= found["top_5"] <= 100
    assert record["metrics"]["clips"] == 6 and len(pictures["videos"]) == 6
    assert "recognition" in record["protocol"]["measured"]
    with pytest.raises(UserError, match="use --protocol=recognition"):
        protocols.evaluate(loaded, "retrieval", count=6, seed=0)
    with pytest.raises(UserError, match="use --protocol=recognition"):
        protocols.evaluate(loaded, "reconstruction", count=6, seed=0)

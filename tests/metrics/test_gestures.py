"""The judge of signs reads words and shirts from pixels."""

import numpy as np
import pytest

from videogen import data
from videogen.data.clip import Clip
from videogen.data.signer_source import SHIRTS
from videogen.metrics.gestures import read_signs, signs_read


@pytest.fixture(scope="module")
def samples():
    source = data.build({"name": "signer"}, clip=Clip(12, 24, 24, 8.0), seed=1, split="train")
    return [source[i] for i in range(24)]


def read(videos, samples):
    attributes = [sample["attributes"] for sample in samples]
    return signs_read(videos, [a["words"] for a in attributes], [a["shirt"] for a in attributes])


def test_rendered_clips_are_read_without_a_mistake(samples):
    videos = [sample["video"] for sample in samples]
    assert read(videos, samples) == {"words": 1.0, "sentences": 1.0, "appearance": 1.0}


def test_noise_and_blur_are_read_through(samples):
    rng = np.random.default_rng(0)
    noisy = [np.clip(s["video"] + rng.normal(0, 25, s["video"].shape), 0, 255).astype(np.uint8) for s in samples]
    assert read(noisy, samples)["words"] >= 0.95
    blurred = []
    for sample in samples:
        x = np.pad(sample["video"].astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        blurred.append(
            ((x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] + 2 * x[:, 1:-1, 1:-1]) / 6).astype(
                np.uint8
            )
        )
    assert read(blurred, samples)["words"] >= 0.95


def test_the_clips_of_others_are_right_by_chance(samples):
    found = read([sample["video"] for sample in samples[1:] + samples[:1]], samples)
    assert found["words"] < 0.3 and found["sentences"] < 0.1 and found["appearance"] < 0.6


def test_shares_count_words_sentences_and_frames(samples):
    first, second = samples[:2]
    half = first["video"].copy()
    half[len(half) // 2 :] = second["video"][len(half) // 2 :]
    words = [(first["attributes"]["words"][0], "none"), second["attributes"]["words"]]
    found = signs_read([half, second["video"]], words, [first["attributes"]["shirt"], second["attributes"]["shirt"]])
    assert found["words"] == 0.75 and found["sentences"] == 0.5
    same = first["attributes"]["shirt"] == second["attributes"]["shirt"]
    assert found["appearance"] == (1.0 if same else 0.75)


def test_a_picture_without_hands_agrees_with_no_word():
    reading = read_signs(np.full((8, 24, 24, 3), 120, np.uint8), 2)
    assert reading.agreement == (0.0, 0.0) and len(reading.shirts) == 8 and set(reading.shirts) <= set(SHIRTS)

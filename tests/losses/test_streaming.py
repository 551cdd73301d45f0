"""The loss of a stream: where silence and answers are learned, what they cost, and when a model speaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen import losses
from videogen.losses import Outputs, Pass, first_speech, negative_log_likelihood, streaming_loss, streaming_targets
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

SILENCE = 9
# Words 1 2, frame 0 (two tokens), frame 1, an answer 5 6 7, frame 2, a question 3, frame 3, padding.
IDS = jnp.array([[1, 2, 0, 0, 0, 0, 5, 6, 7, 0, 0, 3, 0, 0, 0]])
FRAME = jnp.array([[-1, -1, 0, 0, 1, 1, -1, -1, -1, 2, 2, -1, 3, 3, -1]])
SAID = jnp.zeros((1, 15), bool).at[0, 6:9].set(True)


def test_answers_are_learned_and_silence_behind_frames_without_one():
    targets, answer, silent = streaming_targets(IDS, FRAME, SAID, SILENCE)
    assert np.flatnonzero(answer[0]).tolist() == [5, 6, 7]  # each predicts the next word
    assert targets[0, 5:8].tolist() == [5, 6, 7]
    assert np.flatnonzero(silent[0]).tolist() == [3, 10, 13] and (targets[0, [3, 10, 13]] == SILENCE).all()
    # A stream that ends with a frame is silent there.
    _, answer, silent = streaming_targets(IDS[:, :11], FRAME[:, :11], SAID[:, :11], SILENCE)
    assert np.flatnonzero(silent[0]).tolist() == [3, 10]


def test_the_loss_is_divided_by_the_labelled_places():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 15, 11)), jnp.float32)
    targets, answer, silent = streaming_targets(IDS, FRAME, SAID, SILENCE)
    each = np.asarray(negative_log_likelihood(logits, targets))[0]
    says, stays = each[[5, 6, 7]].sum(), each[[3, 10, 13]].sum()
    assert float(streaming_loss(logits, targets, answer, silent)) == pytest.approx((says + stays) / 6, rel=1e-6)
    half = float(streaming_loss(logits, targets, answer, silent, 0.5))
    assert half == pytest.approx((says + 0.5 * stays) / 6, rel=1e-6)
    nothing = jnp.zeros((1, 15), bool)
    assert float(streaming_loss(logits, targets, nothing, nothing)) == 0.0


def test_a_model_speaks_at_the_first_frame_at_which_silence_is_improbable():
    p = jnp.array([[0.9, 0.8, 0.79, 0.1], [0.9, 0.95, 0.85, 0.99]])
    assert first_speech(p, 0.8).tolist() == [2, 4]
    exists = jnp.array([[True, True, False, False], [True, True, True, False]])
    assert first_speech(p, 0.8, exists).tolist() == [2, 3]


def test_the_term_is_the_loss_of_its_pass():
    setting = losses.Setting(VideoShape(1, 16, 16), tokens=1, code_width=1, steps=10)
    terms = losses.build({"watch": {"name": "streaming", "weight": 1.0, "silence": 0.5}}, setting)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(1, 15, 11)), jnp.float32)
    targets, answer, silent = streaming_targets(IDS, FRAME, SAID, SILENCE)
    logits = logits.at[0, 3, SILENCE].set(9.0)
    outputs = Outputs({"stream": Pass(logits, targets, answer | silent)}, features={"silent": silent})
    total, metrics = losses.combine(terms, {}, outputs, jax.random.key(0), jnp.zeros((), int), MicroBatch())
    assert float(total) == pytest.approx(float(streaming_loss(logits, targets, answer, silent, 0.5)), rel=1e-6)
    right = np.asarray(jnp.argmax(logits, -1) == targets)[0]
    assert float(metrics["watch_silence_accuracy"]) == pytest.approx(right[[3, 10, 13]].mean())
    assert float(metrics["watch_answer_accuracy"]) == pytest.approx(right[[5, 6, 7]].mean())

"""Texts against clips: which are right, texts in parts, and several captions of a clip."""

import json

import jax
import numpy as np
import pytest

from tests.tasks.test_retrieval import batch, built, tiny
from videogen import load
from videogen.data.video_io import write_video
from videogen.evaluation import protocols
from videogen.metrics.retrieval import Places
from videogen.tasks.ranking import Ranking, Said, first_rows
from videogen.training.loop import train


def test_a_text_is_right_for_every_clip_that_has_it():
    ids = np.array([[1, 2], [3, 9], [3, 4], [3, 5], [1, 2]])
    mask = np.array([[True, True], [True, False], [True, True], [True, False], [True, True]])
    # Clip 0 has the texts 0 and 1, clip 1 the others; text 4 is text 0, and text 3 is text 1 but for its padding.
    said = Said(ids, mask, np.array([0, 0, 1, 1, 1]))
    assert said.right(3).astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]]


def test_parts_and_short_batches_go_on_with_their_last_row():
    said = Said(np.arange(10).reshape(5, 2), np.ones((5, 2), bool), np.arange(5))
    parts = said.parts(2)
    assert [part["text_ids"][:, 0].tolist() for part in parts] == [[0, 2], [4, 6], [8, 8]]
    assert first_rows({"x": np.arange(3)}, 5)["x"].tolist() == [0, 1, 2, 2, 2]


def test_both_ways_and_what_is_measured():
    scores, right = np.array([[3.0, 1], [2, 5], [4, 0]]), np.array([[True, False], [False, True], [True, False]])
    ranking = Ranking(scores, right, 1.0)
    found = ranking.measured()
    assert found["text_to_video_recall_at_1"] == 100 and found["video_to_text_queries"] == 2
    expected = {f"video_to_text_{k}": v for k, v in Places.of(scores.T, right.T).measured().items()}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.slow
def test_towers_rank_all_captions():
    task, towers = built(tiny())
    given = batch()
    said = Said(given["text_ids"][[0, 1, 1, 3, 2]], given["text_mask"][[0, 1, 1, 3, 2]], np.array([0, 1, 3, 3, 2]))
    ranking = task.ranked({"towers": towers}, [given], said=said)
    clips, texts, _ = task.embedded({"towers": towers}, [given])
    np.testing.assert_allclose(ranking.scores, texts[[0, 1, 1, 3, 2]] @ clips.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(ranking.right, said.right(4))
    assert ranking.scale == pytest.approx(1 / 0.07, rel=1e-5)


@pytest.mark.slow
def test_a_folder_whose_clips_have_several_captions(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    lines = []
    for i in range(12):
        write_video(videos / f"{i}.mp4", np.full((8, 16, 16, 3), 20 * i, np.uint8), 8.0)
        lines.append({"file": f"{i}.mp4", "captions": [f"number {i}", f"it is {i}"][: 1 + i % 2]})
    (videos / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny()
    config.data.source.update({"name": "video_folder", "path": str(videos), "holdout": 0.5})
    config.steps = config.eval_every = config.checkpoint_every = 2
    train(config, tmp_path / "run")
    loaded = load(tmp_path / "run")
    record, pictures = protocols.evaluate(loaded, "retrieval", count=6, seed=0)
    found, clips = record["metrics"], protocols.Evaluation(loaded, 6, 0).clips.samples
    asked = sum(len(sample.get("captions", ("",))) for sample in clips)
    assert found["captions_asked"] == asked > found["clips"] == len(clips)
    assert found["retrieval"]["text_to_video"]["queries"] == asked
    assert found["retrieval"]["video_to_text"]["queries"] == len(clips)
    assert len(pictures["correct"]) == len(clips)
    jax.clear_caches()

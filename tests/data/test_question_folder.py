"""Questions about the videos of a folder."""

import json
import logging

import numpy as np
import pytest

from tests.data.test_inputs import text_config
from videogen import data
from videogen.data.clip import Clip
from videogen.data.folders import _said as said_before
from videogen.data.inputs import held_out, new_text_tokenizer
from videogen.data.pipeline import Pipeline
from videogen.data.question_rows import Row, read_questions, write_questions
from videogen.data.text import ByteTokenizer
from videogen.errors import UserError

CLIP = Clip(4, 16, 24)


@pytest.fixture
def folder(make_video, tmp_path):
    """Two videos of 20 frames at 10 frames per second, and a writer of questions."""
    make_video("videos/a.mp4")
    make_video("videos/b/Č.mp4")

    def write(*rows, name="questions.jsonl", raw=None):
        lines = raw if raw is not None else "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / "videos" / name).write_bytes(lines)
        said_before.clear()
        return tmp_path / "videos"

    return write


def build(path, split="eval", clip=CLIP, holdout=0.0, **settings):
    config = {"name": "question_folder", "path": str(path), "holdout": holdout, **settings}
    return data.build(config, clip=clip, seed=0, split=split)


def row(**fields):
    return {"video": "a.mp4", "question": "what?", "answer": "this", **fields}


def test_several_questions_of_a_video_with_frames_over_all_of_it(folder, numbers):
    path = folder(
        row(options=["that", "this"], kind="count", id="q1"),
        row(question="open?", start=1.0, end=1.5),
        row(video="b/Č.mp4", question="hidden?", answer=""),
    )
    source = build(path)
    assert len(source) == 3 and source.texts == ("caption", "question", "answer")
    first, second, third = (source[i] for i in range(3))
    assert numbers(first["video"]) == [0, 6, 13, 19] and first["video"].shape == (4, 16, 24, 3)
    np.testing.assert_allclose(first["times"], [0, 0.6, 1.3, 1.9], rtol=1e-6)
    assert numbers(second["video"]) == [10, 11, 13, 14] and second["times"][0] == 1.0
    assert (first["options"], first["kind"], first["caption"]) == (("that", "this"), "count", "")
    assert (second["options"], second["answer"], third["answer"]) == ((), "this", "")
    assert source.name_of(0) == "question 'q1' about a.mp4"
    assert source.fields == {"video": ((4, 16, 24, 3), np.uint8), "times": ((4,), np.float32)}


def test_batches_and_options_of_a_folder(folder):
    path = folder(row(options=["that", "this", "none"]), row(options=["this", "that"]), row())
    text = ByteTokenizer(12)
    batches = held_out(build(path), 3, text).batches(3, text)
    assert batches[0]["options_ids"].shape == (3, 3, 12) and batches[0]["answer_index"].tolist() == [1, 0, -1]
    pipeline = Pipeline(build(path, "train"), batch_size=2, seed=0, workers=0, text=text)
    batch = next(pipeline)
    pipeline.close()
    assert {"question_ids", "answer_mask", "times"} <= set(batch) and "wrong_ids" not in batch


def test_a_wrong_answer_is_another_option_or_the_one_that_is_given(folder):
    source = build(folder(row(options=["that", "this"]), row(wrong="other")))
    assert [source[i]["wrong"] for i in range(2)] == ["that", "other"] and source.texts[-1] == "wrong"


def test_all_questions_of_a_video_are_in_one_split(folder):
    path = folder(*[row(id=str(i), video=video) for i, video in enumerate(["a.mp4", "b/Č.mp4"] * 4)])
    train, unseen = build(path, "train", holdout=0.3), build(path, holdout=0.3)
    assert len(train) == len(unseen) == 4 and train.keeps_apart
    files = [{a.name for a in source._asked} for source in (train, unseen)]
    assert not files[0] & files[1]
    folder(row(question="held out?"), name="test.jsonl")
    named = build(path, eval_questions="test.jsonl", holdout=0.3)
    assert len(named) == 1 and named[0]["question"] == "held out?"
    assert len(build(path, "train", eval_questions="test.jsonl", holdout=0.3)) == 8


def test_questions_without_an_answer_are_left_out_of_training_and_counted(folder, caplog):
    path = folder(row(), row(answer="", question="hidden?"))
    with caplog.at_level(logging.WARNING):
        assert len(build(path, "train")) == 1
    assert "1 questions have no answer and are left out of 'train'" in caplog.text
    with pytest.raises(UserError, match="no question of the split 'train' with an answer"):
        build(folder(row(answer="")), "train")


def test_a_sample_without_an_answer_teaches_nothing_and_is_skipped(folder):
    """Its batch had no target, and a loss of 0."""
    source = build(folder(row(), row(answer="")))
    pipeline = Pipeline(source, batch_size=4, seed=0, workers=0, text=ByteTokenizer(12))
    batch = next(pipeline)
    pipeline.close()
    assert batch["answer_mask"].any(1).all()
    assert pipeline.skipped == {"question 'what?' about a.mp4": "it has no answer to learn from"}


def test_missing_videos_are_counted_and_named(folder, caplog):
    path = folder(row(), row(video="gone.mp4"), row(video="gone.mp4", question="again?"))
    with caplog.at_level(logging.WARNING):
        assert len(build(path)) == 1
    assert (
        "1 of 3 questions are about videos that are there; 1 videos of 2 questions are not: 'gone.mp4'" in caplog.text
    )
    with pytest.raises(UserError, match="0 of 1 questions .* set data.source.path to the folder that the names"):
        build(folder(row(video="gone.mp4")))


def test_names_are_found_as_captions_are(folder):
    import unicodedata

    path = folder(row(video=unicodedata.normalize("NFD", "b/Č.mp4")), row(video="A.MP4"))
    assert [a.name for a in build(path)._asked] == ["b/Č.mp4", "a.mp4"]


def test_a_video_that_cannot_be_read_is_skipped(folder):
    path = folder(row(), row(video="bad.mp4"))
    (path / "bad.mp4").write_bytes(b"nothing")
    found = held_out(build(path), 5)
    assert len(found.samples) == 1 and list(found.skipped) == [str(path / "bad.mp4")]


@pytest.mark.parametrize(
    "line, words",
    [
        (b'{"video": "a.mp4"}', "line 1 is no JSON object like"),
        (b"[1]", "line 1 is no JSON object like"),
        (b"{", "line 1 is no JSON object like"),
        (b'{"video": "a.mp4", "question": "\xff"}', "line 1 is no UTF-8"),
        (b'{"video": 3, "question": "x"}', "'video' must be text, got 3"),
        (b'{"video": "a.mp4", "question": "x", "answer": 2}', "'answer' must be text, got 2; leave out"),
        (b'{"video": "a.mp4", "question": " "}', "'video' and 'question' must not be empty"),
        (b'{"video": "a.mp4", "question": "x", "option": ["a"]}', "unknown field 'option'.*options"),
        (b'{"video": "a.mp4", "question": "x", "options": "ab"}', "'options' must be a list of texts"),
        (b'{"video": "a.mp4", "question": "x", "options": ["a", 2]}', "'options' must be a list of texts"),
        (b'{"video": "a.mp4", "question": "x", "options": ["a"]}', "two or more different texts, got 'a'"),
        (b'{"video": "a.mp4", "question": "x", "options": ["a", "a "]}', "two or more different texts, got 'a'"),
        (b'{"video": "a.mp4", "question": "x", "options": ["a", "b"], "answer": "c"}', "'c' is none of the options"),
        (b'{"video": "a.mp4", "question": "x", "answer": "c", "wrong": "c"}', "'wrong' is the answer"),
        (b'{"video": "a.mp4", "question": "x", "start": "1"}', "'start' must be a number of seconds"),
        (b'{"video": "a.mp4", "question": "x", "end": -1}', "'end' must be a number of seconds"),
        (b'{"video": "a.mp4", "question": "x", "start": 2, "end": 2}', "from 2 to 2 s is empty"),
        (b"\n\n", "has no question; write one a line"),
    ],
)
def test_a_malformed_line_is_one_message_that_names_it(folder, line, words):
    with pytest.raises(UserError, match=words) as error:
        build(folder(raw=line))
    assert "\n" not in str(error.value)


def test_ids_are_unique_and_a_byte_order_mark_is_passed_over(folder):
    path = folder(raw=b"\xef\xbb\xbf" + json.dumps(row(id="1")).encode() + b"\r\n\n" + json.dumps(row(id="2")).encode())
    assert [a.row.id for a in build(path)._asked] == ["1", "2"]
    with pytest.raises(UserError, match="line 2: the id '1' is that of line 1, too"):
        build(folder(row(id="1"), row(id="1")))


def test_rows_are_written_as_they_are_read(tmp_path):
    rows = [Row("a.mp4", "what?", "b", ("a", "b"), "kind", "7", "", 1.5, 2.0), Row("č.mp4", "open\u2028?")]
    file = tmp_path / "questions.jsonl"
    assert write_questions(file, rows) == 2 and read_questions(file) == rows
    with pytest.raises(ZeroDivisionError):
        write_questions(file, (Row("a.mp4", str(1 // n)) for n in (1, 0)))
    assert read_questions(file) == rows and list(tmp_path.iterdir()) == [file]
    with pytest.raises(UserError, match="cannot write"):
        write_questions(tmp_path / "no" / "where", rows)


def test_missing_folder_and_file_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder .*set data.source.path"):
        build(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read .*questions.jsonl"):
        build(tmp_path)


def test_a_vocabulary_is_learned_without_captions(folder):
    path = folder(row(question="how many shapes are there", answer="three"))
    tokenizer = new_text_tokenizer(text_config(name="bpe", vocabulary_size=300, length=16), build(path, "train"))
    assert tokenizer.encode(["how many shapes are there"])[1].sum() < 16


def test_a_video_folder_has_times_and_whole_videos_where_asked(folder, numbers):
    config = {"name": "video_folder", "path": str(folder(row())), "whole": True, "times": True}
    source = data.build(config, clip=CLIP, seed=0, split="eval")
    sample = source[0]
    assert numbers(sample["video"]) == [0, 6, 13, 19] and source.fields["times"] == ((4,), np.float32)
    np.testing.assert_allclose(sample["times"], [0, 0.6, 1.3, 1.9], rtol=1e-6)
    window = data.build({**config, "whole": None}, clip=CLIP, seed=0, split="eval")[0]
    np.testing.assert_allclose(window["times"], np.array(numbers(window["video"])) / 10, rtol=1e-6)
    with pytest.raises(UserError, match="leave out audio or whole"):
        data.build({**config, "audio": True}, clip=Clip(4, 16, 24, 5.0), seed=0, split="eval")

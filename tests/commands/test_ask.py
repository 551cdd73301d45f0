"""Questions about a video file: answers, what they took, second questions, and mistakes in one line."""

import numpy as np
import pytest

import videogen
from tests.tasks.test_understanding import tiny
from tests.untrained import save_untrained
from videogen.configs import phenaki
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.inference.answering import Watched, ask, check, parse_options, watch

GUIDED = ({"name": "frames", "frames": 3}, {"name": "tokens", "budget": 7, "rule": "score"})
SETTINGS = {"model.vision.reducers": GUIDED, "text.tokenizer.length": 32}
SETTINGS |= {"data.source.kinds": ("colour",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run without a training, a tokenizer and two videos: one as long as clips of training, one twice as long."""
    found = tmp_path_factory.mktemp("ask")
    save_untrained(tiny(**SETTINGS), found / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3)).astype(np.uint8)
    write_video(found / "clip.mp4", pixels[:4], 4.0)
    write_video(found / "long.mp4", pixels, 4.0)
    return found


def test_a_second_question_is_a_fresh_start(folder):
    """Users 11: question B after A has the answer and the tokens of B alone."""
    loaded = videogen.load(folder / "run")
    watched = watch(loaded, str(folder / "clip.mp4"))
    both = [*ask(loaded, watched, ["which form?", "where does it move?"])]
    (alone,) = ask(loaded, watched, ["where does it move?"])
    assert [reply.question for reply in both] == ["which form?", "where does it move?"]
    assert both[1].answer == alone.answer and both[1].after == alone.after == 7 and alone.before == 16
    assert all(reply.first > 0 and reply.each > 0 for reply in both)
    (chosen,) = ask(loaded, watched, ["where does it move?"], ["left", "right", "up"], budget=4)
    assert chosen.answer == ["left", "right", "up"][int(np.argmax(chosen.likely))] and chosen.after == 4
    np.testing.assert_allclose(sum(chosen.likely), 1, rtol=1e-5)
    lines = chosen.lines(["left", "right", "up"])
    assert "16 tokens, 4 behind the reducers" in lines[2] and "to the first token" in lines[2] and "left " in lines[1]


def test_frames_lie_over_the_whole_video_and_their_rate_is_said(folder):
    """Users 1 and 3."""
    loaded = videogen.load(folder / "run")
    clip, long = (watch(loaded, str(folder / name)) for name in ("clip.mp4", "long.mp4"))
    np.testing.assert_allclose(clip.times, np.arange(4) / 4, atol=1e-3)
    assert clip.lines() == ["4 frames over 0.75 s: 4 frames per second"]
    # 9 frames, of which 4: the first, the last and between.
    np.testing.assert_allclose(long.times, np.array([0, 3, 5, 8]) / 4, atol=1e-3)
    assert long.lines()[0] == "4 frames over 2.00 s: 1.5 frames per second"
    assert "longer than the clips of training, 0.75 s" in long.lines()[1]
    assert Watched(clip.frames[:1], clip.times[:1], None).lines()[0].endswith("0 frames per second")


def test_mistakes_are_one_line(folder):
    loaded = videogen.load(folder / "run")
    for questions, options, message in (
        (["  "], [], "--question is empty"),
        (["which form is it? " * 4], [], r"--question has more than 32 tokens \(text.tokenizer.length\)"),
        (["which form?"], ["red", ""], "an option is empty"),
    ):
        with pytest.raises(UserError, match=message):
            check(loaded, questions, options)
    with pytest.raises(UserError, match="nofile.mp4"):
        watch(loaded, str(folder / "nofile.mp4"))
    assert parse_options("red, blue") == ["red", "blue"] and parse_options(None) == []


@pytest.mark.slow
def test_the_command_answers_or_names_the_mistake(run_command, folder):
    run, video = f"--checkpoint={folder}/run", f"--video={folder}/long.mp4"
    done = run_command("ask", run, video, "--question=which form?", "--question=where?", "--options=left,right")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("behind the reducers") == 2 and "longer than the clips of training" in done.stdout
    config = phenaki.get_config("stage=tokenizer,size=debug")
    save_untrained(config, folder / "tokenizer")
    for arguments, words in (
        ([run, f"--video={folder}/none.mp4", "--question=a"], "none.mp4"),
        ([f"--checkpoint={folder}/tokenizer", video, "--question=a"], "no model that answers questions"),
        ([run, video, "--question="], "--question is empty"),
        ([run, video, "--question=a", "--options=red"], "leaves nothing to choose"),
        ([run, video], "--question"),
        ([f"--checkpoint={folder}/nothing", video, "--question=a"], "no run or export directory"),
    ):
        done = run_command("ask", *arguments)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert done.returncode == 2 and len(errors) == 1 and words in errors[0], done.stderr
        assert "Traceback" not in done.stderr

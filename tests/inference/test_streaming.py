"""Sessions: what is said at the start, when a model speaks, questions at any time, memory that does not grow."""

import jax
import numpy as np
import pytest

import videogen
from tests.tasks.test_understanding import tiny as tiny_of_clips
from tests.tasks.test_watching import tiny
from tests.untrained import save_untrained
from videogen.configs import phenaki
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.inference.eyes import ClipEye, Eye, Glance, Limit, StreamEye, of_pixels, size_of
from videogen.inference.streaming import Said, Session, Settings, open_session, watch_file

FRAMES = 18
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 12, 12, 3)).astype(np.uint8)
QUESTIONS = ("how many shapes are there?", "which form appears next?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs without a training, of streams and of clips, and a video of 30 frames."""
    found = tmp_path_factory.mktemp("streams")
    save_untrained(tiny(**{"data.clip.frames": FRAMES, "text.tokenizer.length": 34}), found / "watching")
    save_untrained(tiny_of_clips(**{"text.tokenizer.length": 34, "data.source.kinds": ("colour",)}), found / "clips")
    write_video(found / "video.mp4", PIXELS, 2.0)
    return found


@pytest.fixture(scope="module")
def watching(folder):
    return videogen.load(folder / "watching")


@pytest.fixture(scope="module")
def clips(folder):
    return videogen.load(folder / "clips")


class Scripted(Eye):
    """An eye that sees what it is told, and answers ``questions`` from a frame on."""

    knows_silence = True

    def __init__(self, glances, answers=None, frames=8):
        self.glances, self.answers, self.number = list(glances), answers or {}, -1
        self.limit = Limit(frames, 11, 2.0, "the oldest frames are forgotten", 4)
        self.told = []

    def push(self, frame, second):
        self.number += 1
        return self.glances[self.number]

    def ids(self, question):
        if not question:
            raise UserError("empty")

    def ask(self, question, threshold):
        first = self.answers.get(question, 10**6)
        return f"answer at {self.number}" if self.number >= first else None

    def tell(self):
        return f"event at {self.number}"

    def tell_of(self, start, stop):
        self.told.append((start, stop))
        return f"scene {start}-{stop}"


def glance(silence=1.0, dropped=1.0, features=(1.0, 0.0)):
    return Glance(silence, dropped, np.array(features))


def test_what_pixels_say_of_a_frame():
    """A place of 6 × 6 is dropped where its pixels differ by less than 0.02 on average."""
    frame = np.full((12, 12, 3), 100, np.uint8)
    assert of_pixels(frame, None).dropped == 0.0 and of_pixels(frame, frame).dropped == 1.0
    assert of_pixels(frame + 5, frame).dropped == 1.0 and of_pixels(frame + 6, frame).dropped == 0.0
    other = frame.copy()
    other[:2, 10:] += 50
    assert of_pixels(other, frame).dropped == pytest.approx(35 / 36)
    found = of_pixels(frame, None)
    assert found.silence == 1.0 and found.features.shape == (432,)
    np.testing.assert_allclose(found.features, 100 / 255 - 0.5, atol=1e-6)


def played(session, count):
    return [said for k in range(count) for said in session.push(PIXELS[0], k / 2)]


def test_the_limit_is_said_at_the_start():
    """Users 20: how many frames and minutes fit, and what is forgotten then."""
    limit = Limit(744, 11, 2.0, "the oldest frames are forgotten", 372, 3 * 2**20)
    assert limit.minutes == pytest.approx(6.2)
    assert limit.lines() == [
        "744 frames of 11 slots fit into the memory: 6.2 minutes at 2 frames per second",
        "then the oldest frames are forgotten, 372 at a time; 3.0 MiB, however long the stream is",
    ]
    assert "12 seconds at 2 frames" in Limit(24, 6, 2.0, "", 1).lines()[0]


def test_a_model_speaks_where_silence_is_improbable():
    session = Session(Scripted([glance(p) for p in (0.9, 0.8, 0.79, 0.99, 0.1)]), "silence", 0.8)
    assert played(session, 5) == [Said(1.0, "event at 2"), Said(2.0, "event at 4")]
    assert played(Session(Scripted([glance(0.0)] * 3), "never", 0.8), 3) == []


def test_a_model_speaks_where_a_scene_begins():
    """TimeChat-Online: the trigger is known one frame after the scene has begun."""
    shares = [0.0, *[1.0] * 10, 0.1, *[1.0] * 5]
    session = Session(Scripted([glance(dropped=share) for share in shares]), "changes", 0.0)
    assert played(session, len(shares)) == [Said(6.0, "event at 12")]


def test_a_question_about_the_future_is_answered_when_its_time_has_come():
    eye = Scripted([glance()] * 10, {"now?": 0, "next?": 6})
    session = Session(eye, "silence", 0.8)
    with pytest.raises(UserError, match="push a frame"):
        session.ask("now?")
    assert played(session, 3) == []
    assert session.ask("now?") == Said(1.0, "answer at 2", "now?")
    assert session.ask("next?") is None and session.ask("next?") is None and session.open == ["next?"]
    found = [said for k in range(3, 10) for said in session.push(PIXELS[0], k / 2)]
    assert found == [Said(3.0, "answer at 6", "next?")] and session.open == []
    with pytest.raises(UserError, match="empty"):
        session.wait_for("")
    with pytest.raises(UserError, match="came behind one at 4.5 s"):
        session.push(PIXELS[0], 4.5)


def test_a_model_of_clips_is_asked_again_at_changes_alone():
    shares = [0.0, *[1.0] * 10, 0.1, *[1.0] * 5]
    eye = Scripted([glance(dropped=share) for share in shares], {"next?": 4})
    eye.knows_silence = False
    session = Session(eye, "changes", 0.0)
    session.wait_for("next?")
    # The open question is answered in the place of what it would say by itself.
    assert played(session, len(shares)) == [Said(6.0, "answer at 12", "next?")]


def test_captions_of_scenes_have_their_times():
    """VideoLLaMB: a segmenter, and a caption of every scene."""
    features = [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 4 + [(1.0, 0.0)] * 3
    eye = Scripted([glance(features=each) for each in features], frames=10)
    eye.knows_silence = False
    session = Session(eye, "scenes", 0.0)
    found = played(session, 12) + session.finish()
    assert found == [
        Said(2.5, "scene 0-5", start=0.0),
        Said(4.5, "scene 5-9", start=2.5),
        Said(5.5, "scene 9-12", start=4.5),
    ]
    assert [said.line() for said in found][1] == "[2.50 … 4.50 s] scene 5-9"
    assert Said(1.0, "two", "how many?").line() == "[1.00 s] how many? two"
    assert session.finish() == []


def test_a_scene_is_never_longer_than_what_is_remembered():
    eye = Scripted([glance()] * 40, frames=10)
    eye.knows_silence = False
    played(Session(eye, "scenes", 0.0), 40)
    assert eye.told == [(0, 8), (8, 16), (16, 24), (24, 32)]


@pytest.mark.slow
def test_sessions_of_a_trained_model_evict_and_keep_times_in_range(watching):
    eye = StreamEye(watching, frames=6)
    assert eye.limit.frames == 6 and eye.limit.kept == 3 and eye.limit.each == 11 and eye.trained == 8.5
    assert eye.limit.size == size_of(eye.memory)
    for k in range(7):
        eye.push(PIXELS[k], 100 + k / 2)
    # At the seventh frame the first three go: what was at 101.5 s is at 0 now.
    assert eye.times == [101.5, 102.0, 102.5, 103.0] and eye.base == 101.5
    assert size_of(eye.memory) == eye.limit.size
    assert float(eye._since(101.5)) == 0.0 and float(eye._since(103.0)) == 1.5 and float(eye._since(1e6)) == 8.5
    fresh = eye.fresh()
    for k in range(3, 7):
        found = fresh.push(PIXELS[k], k / 2)
    again = eye.watcher.run("asked", eye.memory, *(array[0] for array in eye.ids(QUESTIONS[0])))[1]
    other = fresh.watcher.run("asked", fresh.memory, *(array[0] for array in fresh.ids(QUESTIONS[0])))[1]
    np.testing.assert_allclose(float(again), float(other), rtol=1e-4)
    assert 0 < found.silence < 1 and found.features.shape == (8,)


@pytest.mark.slow
def test_frames_that_were_kept_from_long_ago_are_as_old_as_training_knows(watching):
    eye = StreamEye(watching, frames=4, evict="still", keep=0.75)
    # The first frame, then still ones far apart in time: it stays, and the row would begin long ago.
    eye.push(PIXELS[0], 0.0)
    for k in range(4):
        eye.push(PIXELS[1], 1000.0 + k)
    assert eye.times == [0.0, 1000.0, 1002.0, 1003.0] and eye.base == 1001.0
    assert [float(eye._since(second)) for second in eye.times] == [0.0, 0.0, 1.0, 2.0]


@pytest.mark.slow
def test_question_b_after_a_is_b_alone_in_a_session(watching):
    session = open_session(watching, Settings(speaks="never", threshold=1.0, frames=6))
    sessions = [session, session.fresh()]
    for k in range(8):
        for session in sessions:
            session.push(PIXELS[k], k / 2)
    sessions[0].ask(QUESTIONS[1])
    assert sessions[0].ask(QUESTIONS[0]) == sessions[1].ask(QUESTIONS[0])
    leaves = [jax.tree.leaves(session.eye.memory) for session in sessions]
    for mine, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.slow
def test_memory_and_time_are_flat_over_ten_thousand_frames(watching):
    """Users 20: bytes and programs are the same after 1,000 and 10,000 frames, and seconds per frame, too."""
    import time

    session = open_session(watching, Settings(frames=6, threshold=0.0))
    seconds, sizes = [], []
    for k in range(10_000):
        if k % 1000 == 0:
            seconds.append(time.process_time())
        session.push(PIXELS[k % 30], k / 2)
        if k in (999, 9999):
            sizes.append(size_of(session.eye.memory))
            programs = session.eye.watcher.programs
            assert [programs[name]._cache_size() for name in ("push", "choose", "forget")] == [1, 1, 1]
    each = np.diff(np.array([*seconds, time.process_time()]))[1:]
    assert sizes[0] == sizes[1] == session.eye.limit.size and len(session._times) == 1
    # The machine is shared: the last thousands are no slower than the first ones.
    assert np.median(each[-3:]) < 1.25 * np.median(each[:3])


@pytest.mark.slow
def test_a_model_of_clips_sees_the_last_frames_alone(clips):
    eye = ClipEye(clips)
    assert eye.limit.frames == 4 and eye.limit.kept == 3 and eye.limit.fps == 4.0
    pixels = RNG.integers(0, 256, (7, 8, 8, 3)).astype(np.uint8)
    for k in range(7):
        found = eye.push(pixels[k], k / 4)
    fresh = eye.fresh()
    for k in range(3, 7):
        fresh.push(pixels[k], 50 + k / 4)
    assert eye.tell() == fresh.tell() and eye.ask("how?", 0.0) == fresh.ask("how?", 0.0)
    np.testing.assert_array_equal(eye.frames, pixels[3:])
    assert found.silence == 1.0 and found.dropped == 0.0 and eye.push(pixels[6], 9.0).dropped == 1.0
    # Of a scene the frames of it alone are shown.
    one = eye.fresh()
    for k in (4, 5):
        one.push(pixels[k], k / 4)
    many = eye.fresh()
    for k in range(3, 7):
        many.push(pixels[k], k / 4)
    assert many.tell_of(1, 3) == one.tell() and eye.limit.size == size_of([eye.frames, eye.times])


@pytest.mark.slow
def test_sessions_that_a_model_cannot_have_are_refused(watching, clips, folder):
    save_untrained(phenaki.get_config("stage=tokenizer,size=debug"), folder / "tokenizer")
    for loaded, settings, message in (
        (videogen.load(folder / "tokenizer"), Settings(), "no model that watches streams"),
        (clips, Settings(speaks="silence"), "not trained to be silent"),
        (watching, Settings(speaks="scenes"), "tells of events"),
        (clips, Settings(threshold=0.5), "threshold is for models that were trained on streams"),
        (clips, Settings(frames=5), "holds 2 to 4 frames"),
        (watching, Settings(frames=19), "holds 2 to 18 frames"),
    ):
        with pytest.raises(UserError, match=message):
            open_session(loaded, settings)
    with pytest.raises(UserError, match="speaks"):
        Settings(speaks="always")
    session = open_session(watching)
    with pytest.raises(UserError, match="frames are uint8 12×12×3, got uint8 8×8×3"):
        session.push(np.zeros((8, 8, 3), np.uint8), 0.0)
    for question, message in ((" ", "is empty"), ("how " * 20, "more than 34 tokens")):
        with pytest.raises(UserError, match=message):
            session.wait_for(question)


@pytest.mark.slow
def test_a_file_is_watched_and_asked_at_its_times(watching, folder):
    session = open_session(watching, Settings(speaks="never", threshold=1.0, frames=6))
    asked = [(3.2, QUESTIONS[0]), (1.0, QUESTIONS[0])]
    found = [*watch_file(session, str(folder / "video.mp4"), asked)]
    # Asked behind the first frame from then on; at a threshold of 1 everything is answered at once.
    assert [said.second for said in found] == [1.0, 3.5] and all(said.question == QUESTIONS[0] for said in found)
    with pytest.raises(UserError, match="--at=99 lies behind the last frame, at 14.5 s"):
        [*watch_file(session.fresh(), str(folder / "video.mp4"), [(99.0, QUESTIONS[0])])]
    with pytest.raises(UserError, match="does not exist"):
        [*watch_file(session.fresh(), str(folder / "none.mp4"))]


@pytest.mark.slow
def test_the_command_watches_or_names_the_mistake(run_command, folder):
    run, video = f"--checkpoint={folder}/watching", f"--video={folder}/video.mp4"
    asked = (f"--question={QUESTIONS[0]}", "--at=2", "--threshold=1")
    done = run_command("ask", run, video, "--stream", *asked, "--speaks=never", "--memory=6")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6 frames of 11 slots fit into the memory: 3 seconds") and "forgotten" in lines[1]
    assert lines[2] == "it answers questions alone" and lines[3].startswith(f"[2.00 s] {QUESTIONS[0]}")
    done = run_command("ask", f"--checkpoint={folder}/clips", video, "--stream", "--speaks=scenes")
    assert done.returncode == 0 and "it speaks at the end of every scene" in done.stdout, done.stderr
    assert " … " in done.stdout.splitlines()[-1]
    for arguments, words in (
        ([run, f"--video={folder}/none.mp4", "--stream"], "none.mp4"),
        ([run, video, "--stream", "--question=a?"], "there are 1 questions and 0 times"),
        ([run, video, "--stream", "--budget=4"], "--budget is not for streams"),
        ([f"--checkpoint={folder}/clips", video, "--question=a", "--at=2"], "--at is for streams; add --stream"),
        ([f"--checkpoint={folder}/clips", video], "--question is missing"),
        ([run, video, "--question=a"], "no model that answers questions"),
        ([run, video, "--stream", "--memory=99"], "holds 2 to 18 frames"),
        ([run, video, "--stream", "--evict=newest"], "unknown rule of eviction"),
    ):
        done = run_command("ask", *arguments)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert done.returncode == 2 and len(errors) == 1 and words in errors[0], done.stderr
        assert "Traceback" not in done.stderr

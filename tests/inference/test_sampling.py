"""What sampling reads of given files and prompts, and how samples are written."""

import json
import logging
from types import SimpleNamespace

import av
import numpy as np
import pytest
from absl import logging as absl_logging
from ml_collections import ConfigDict
from PIL import Image

from videogen.data.decode import decode_clip
from videogen.data.inputs import clip_of
from videogen.data.text import ByteTokenizer
from videogen.data.video_io import read_video
from videogen.errors import UserError
from videogen.inference.sampling import draw_videos, encode_prompts, read_clip, read_prompts, write_samples


def loaded(source="video_folder", fps=10.0, frame_rate=None, side=32):
    clip = {"frames": 9, "height": side, "width": side, "fps": fps}
    data = {"source": {"name": source}, "clip": clip, "frame_rate": frame_rate, "eval_batch_size": 4}
    config = ConfigDict({"data": data, "sampler": {"name": "maskgit", "steps": 24, "guidance_scale": 2.0}})
    coder = SimpleNamespace(drawn_with={})
    return SimpleNamespace(config=config, text=ByteTokenizer(8), directory="run", step=3, hash="abc", coder=coder)


@pytest.fixture
def uneven(tmp_path):
    """Frame i is grey of value 10·i; ten a second at first, then thirty."""
    times = [i / 10 for i in range(5)] + [0.4 + i / 30 for i in range(1, 20)]
    with av.open(str(tmp_path / "uneven.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = av.utils.Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")
            frame.pts = round(1000 * time)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return tmp_path / "uneven.mkv"


def numbers(video):
    return [round(float(frame.mean()) / 10) for frame in video]


def test_given_videos_are_read_like_training_clips(uneven):
    """Frames were taken by the average rate of the file."""
    run = loaded()
    assert numbers(read_clip(run, str(uneven), 9, 9)) == [0, 1, 2, 3, 4, 7, 10, 13, 16]
    clip = clip_of(run.config)
    trained = decode_clip(uneven, "x", clip, np.random.default_rng(0))
    whole = numbers(read_clip(run, str(uneven), 11, 1))
    first = whole.index(numbers(trained.video)[0])
    assert abs(trained.start - first / 10) < 0.04
    with pytest.raises(UserError, match="too short, 12 frames at 10 fps are needed"):
        read_clip(run, str(uneven), 12, 12)
    assert numbers(read_clip(run, str(uneven), 13, 11))[-2:] == [numbers(read_clip(run, str(uneven), 11, 11))[-1]] * 2


def test_given_videos_have_the_rate_of_the_cache_that_was_learned(uneven):
    assert numbers(read_clip(loaded("tokens", fps=5.0, frame_rate=10.0), str(uneven), 5, 5)) == [0, 1, 2, 3, 4]
    assert numbers(read_clip(loaded(fps=5.0, frame_rate=10.0), str(uneven), 3, 3)) == [0, 2, 4]
    assert numbers(read_clip(loaded(fps=0.0), str(uneven), 9, 9)) == [*range(9)]


def test_pictures_are_given_first_frames_whatever_their_size(tmp_path):
    """A 4K clip was read whole, and refused."""
    Image.new("RGB", (3840, 2160), (10, 200, 30)).save(tmp_path / "large.png")
    frame = read_clip(loaded(), str(tmp_path / "large.png"), 1, 1)
    assert frame.shape == (1, 32, 32, 3) and np.abs(frame.astype(int) - (10, 200, 30)).max() <= 1
    with pytest.raises(UserError, match="large.png cannot be used: too short, 5 frames"):
        read_clip(loaded(), str(tmp_path / "large.png"), 5, 5)


def test_each_cut_prompt_is_named(caplog):
    absl_logging.get_absl_logger().propagate = True
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert encode_prompts(loaded(), ["short", "much too long", "longer still"])["text_ids"].shape == (3, 8)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"only the first 8 tokens of this prompt are read: {prompt}" for prompt in ("much too long", "longer still")
    ]


@pytest.mark.parametrize(
    "run, rate", [(loaded(fps=12.0), 12), (loaded(fps=0.0, frame_rate=30.0), 30), (loaded("tokens", 8.0, 24.0), 24)]
)
def test_samples_are_written_at_the_rate_of_the_clips(tmp_path, run, rate):
    """Samples of a cache of 24 frames a second, and all of ``clip.fps=0``, were written at 8."""
    videos = np.zeros((2, 4, 32, 32, 3), np.uint8)
    paths = write_samples(tmp_path / "out", videos, ["a"], run, seed=0, story=False, compared=videos)
    for path in (*paths, tmp_path / "out" / "side_by_side_0.mp4"):
        assert read_video(path)[1] == rate


CLIPS = np.random.default_rng(0).integers(0, 255, (2, 4, 24, 32, 3), np.uint8)


def test_the_record_of_samples_says_all_that_they_were_made_from(tmp_path):
    asked = {"count": 1, "image": "x.png", "video": None, "task": None}
    settings = {"seed": 5, "story": False, "asked": asked, "sampler": {"steps": 8}}
    write_samples(tmp_path, CLIPS, ["a", "b"], loaded(), **settings)
    assert json.loads((tmp_path / "prompts.json").read_text()) == {
        "videos": {"sample_0.mp4": "a", "sample_1.mp4": "b"},
        "seed": 5,
        "checkpoint": "run",
        "step": 3,
        "hash": "abc",
        "sampler": {"name": "maskgit", "steps": 8, "guidance_scale": 2.0},
        "frames": 4,
        "fps": 10.0,
        "story": False,
        "count": 1,
        "image": "x.png",
    }


def test_files_have_the_size_of_the_clips_unless_asked(tmp_path):
    """All were enlarged, by a factor that nobody had asked for."""
    paths = write_samples(tmp_path, CLIPS, [], loaded(), seed=0, story=False)
    assert [read_video(path)[0].shape for path in paths] == [(4, 24, 32, 3)] * 2
    paths = write_samples(tmp_path, CLIPS, [], loaded(), seed=0, story=False, scale=3)
    assert [read_video(path)[0].shape for path in paths] == [(4, 72, 96, 3)] * 2


@pytest.mark.parametrize("ending", ["mp4", "gif", "png", "npz"])
def test_a_single_file_of_each_kind(tmp_path, ending):
    flat = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None, None] * 60, (4, 24, 32, 3))
    (path,) = write_samples(tmp_path / f"x.{ending}", flat[None], ["a"], loaded(), seed=0, story=False)
    assert json.loads((tmp_path / "x.json").read_text())["videos"] == {"video_0": "a"}
    if ending == "npz":
        arrays = np.load(path)
        np.testing.assert_array_equal(arrays["videos"], flat[None])
        assert arrays["fps"] == 10
        return
    frames, fps = read_video(path)
    if ending == "png":
        np.testing.assert_array_equal(frames[0], np.concatenate(list(flat), axis=1))
        return
    assert fps == 10 and np.abs(frames.astype(int) - flat).max() <= 4


def test_several_videos_need_a_directory_or_arrays(tmp_path):
    write_samples(tmp_path / "x.npz", CLIPS, ["a"], loaded(), seed=0, story=False)
    assert np.load(tmp_path / "x.npz")["videos"].shape == CLIPS.shape
    with pytest.raises(UserError, match="holds one video, and 2 are drawn"):
        write_samples(tmp_path / "x.gif", CLIPS, ["a"], loaded(), seed=0, story=False)


def test_prompts_are_read_from_a_file_a_line_each(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffa red circle\n\n  a blue square \n")
    assert read_prompts(str(tmp_path / "p.txt")) == ["a red circle", "a blue square"]
    (tmp_path / "p.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="is no UTF-8 text"):
        read_prompts(str(tmp_path / "p.txt"))
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(str(tmp_path / "p.txt"))


@pytest.mark.slow
def test_one_file_for_several_videos_is_refused_before_the_work(run_command, tmp_path):
    arguments = [f"--checkpoint={tmp_path}/none", "--prompt=a", "--count=2", f"--out={tmp_path}/d/x.gif"]
    done = run_command("sample", *arguments)
    assert done.returncode == 2 and "holds one video, and 2 are drawn" in done.stderr
    assert not (tmp_path / "d").exists()


def test_drawing_shows_a_bar_over_the_windows(capsys):
    class Stub:
        window, given_frames = 5, 0

        def default_overlap(self):
            return 3

        def windows(self, frames, overlap):
            return 3

        def generate(self, told, frames, seed, *, progress, **_):
            assert list(progress(range(3))) == [0, 1, 2]
            return np.zeros((1, frames, 8, 8, 3), np.uint8)

    run = loaded()
    run.generator = lambda sampler, tile, size: Stub()
    assert draw_videos(run, [], seed=0, frames=9).shape[1] == 9
    assert "drawing 1 … 1 of 1: 100%" in capsys.readouterr().err

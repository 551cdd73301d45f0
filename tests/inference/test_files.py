"""Videos to codes to videos, and prompts to videos, from files to files; the guide's code runs as it stands."""

import json
import re

import numpy as np
import pytest

import videogen
from tests.processes import REPOSITORY
from tests.training_configs import tiny
from tests.untrained import save_untrained
from videogen.configs import phenaki
from videogen.data.clip import Clip
from videogen.data.video_io import read_fitted, read_video, write_video
from videogen.errors import UserError
from videogen.inference.files import decode, encode, sample
from videogen.tokenizers import Tiled
from videogen.training.loading import load
from videogen.training.loop import train

pytestmark = pytest.mark.slow  # the runs that they read are trained


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory with ``runs/tokenizer``, ``runs/generator`` and a video of 30 frames, wider than clips."""
    root = tmp_path_factory.mktemp("files")
    save_untrained(tiny(), root / "runs" / "tokenizer", ema=1.0)
    config = phenaki.get_config("stage=generator,size=debug")
    small = {"width": 16, "heads": 2, "layers": 1, "mlp_width": 16}
    config.model.transformer.update(small)
    config.text.encoder.update({"width": 16, "heads": 2})
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.data.batch_size = config.data.eval_batch_size = 2
    config.steps = config.eval_every = config.checkpoint_every = 1
    config.sampler.steps = 2
    config.parts.tokenizer.checkpoint = str(root / "runs" / "tokenizer")
    train(config, root / "runs" / "generator")
    (root / "my_videos").mkdir()
    write_video(root / "my_videos" / "kitten.mp4", moving(30), 16.0, scale=1)
    return root


def moving(frames: int) -> np.ndarray:
    ramp = np.linspace(0, 200, 48)[None, None, :, None] + np.arange(frames)[:, None, None, None]
    return np.broadcast_to(ramp, (frames, 24, 48, 3)).astype(np.uint8)


@pytest.mark.slow
def test_the_code_of_the_guide_runs(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "python.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    # 30 frames at 16 a second are 15 at the 8 of training.
    assert "(8, 4, 4, 1) int32\n(15, 16, 16, 3) uint8" in capsys.readouterr().out
    assert len(names["videos"]) == 2 and read_video("samples/sample_1.mp4")[0].shape == (5, 16, 16, 3)
    assert read_video("circle.gif")[0].shape == (5, 64, 64, 3)


def test_a_loaded_run_says_what_it_is_in_four_lines(root):
    lines = repr(load(root / "runs" / "tokenizer")).splitlines()
    assert len(lines) == 4
    assert lines[0] == f"tokenizer 'cvivit' of {root}/runs/tokenizer, step 0"
    assert lines[1] == "clips: 5 frames of 16×16 at 8 frames per second" and lines[3] == "trained on: shapes"


def test_codes_of_a_file_are_those_of_its_frames(root, tmp_path):
    loaded, video = load(root / "runs" / "tokenizer"), root / "my_videos" / "kitten.mp4"
    coded = encode(loaded, video, tmp_path / "x.npz")
    frames, fps = read_fitted(video, Clip(5, 16, 16, 8.0))
    assert frames.shape == (15, 16, 16, 3) and fps == 8
    first = loaded.tokenizer.tokenize(frames[None, :5].astype(np.float32) / 127.5 - 1).only.values
    np.testing.assert_array_equal(coded[:3], first[0])
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["frames"] == 15 and arrays["fps"] == 8 and str(arrays["tokenizer"]) == loaded.hash
    shown = decode(root / "runs" / "generator", tmp_path / "x.npz", tmp_path / "x.npz.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz.npz")["videos"][0], shown)
    assert shown.shape == frames.shape


def test_frames_larger_than_clips_go_by_tiles(root, tmp_path):
    loaded, video = load(root / "runs" / "tokenizer"), root / "my_videos" / "kitten.mp4"
    coded = encode(loaded, video, tmp_path / "x.npz", size=(24, 40), tile=(16, 16))
    frames, _ = read_fitted(video, Clip(5, 24, 40, 8.0))
    first = Tiled(loaded.tokenizer, (16, 16)).tokenize(frames[None, :5].astype(np.float32) / 127.5 - 1).only.values
    assert coded.shape == (8, 6, 10, 1)
    np.testing.assert_array_equal(coded[:3], first[0])
    shown = decode(loaded, tmp_path / "x.npz", tmp_path / "x.gif", tile=(16, 16))
    assert shown.shape == frames.shape


def test_samples_are_decoded_by_tiles(root, tmp_path):
    """Tiles of the whole frame change nothing; smaller ones decode the same codes with a part of the frame hidden."""
    generator = root / "runs" / "generator"
    whole = sample(generator, tmp_path / "a", ["a"])
    np.testing.assert_allclose(sample(generator, tmp_path / "b", ["a"], tile=(16, 16)), whole, atol=1)
    cut = sample(generator, tmp_path / "c", ["a"], tile=(8, 8))
    assert cut.shape == whole.shape and (cut != whole).any()
    assert json.loads((tmp_path / "c" / "prompts.json").read_text())["tile"] == [8, 8]
    with pytest.raises(UserError, match="use 8"):
        sample(generator, tmp_path / "d", ["a"], tile=(9, 8))


def test_mistakes_are_one_line_each(root, tmp_path):
    loaded = load(root / "runs" / "tokenizer")
    with pytest.raises(UserError, match="codes are written to a .npz file"):
        videogen.encode(loaded, root / "my_videos" / "kitten.mp4", tmp_path / "x.mp4")
    with pytest.raises(UserError, match="nothing.mp4 does not exist"):
        videogen.encode(loaded, tmp_path / "nothing.mp4", tmp_path / "x.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match="bad.npz is no file of codes"):
        videogen.decode(loaded, tmp_path / "bad.npz", tmp_path / "x.mp4")
    np.savez(tmp_path / "other.npz", codes=np.zeros((3, 4, 4, 1), int), frames=5, fps=8.0, tokenizer="0" * 64)
    with pytest.raises(UserError, match="other.npz was made by tokenizer 000000000000, this one is"):
        videogen.decode(loaded, tmp_path / "other.npz", tmp_path / "x.mp4")
    with pytest.raises(UserError, match="videos are written to .mp4, .gif, .png, .npz files"):
        videogen.decode(loaded, tmp_path / "other.npz", tmp_path / "x.avi")


def test_an_out_that_cannot_be_written_is_refused_before_the_drawing(root, tmp_path, run_command):
    (tmp_path / "file").write_text("")
    out = f"--out={tmp_path}/file/x.gif"
    done = run_command("sample", f"--checkpoint={root}/runs/generator", "--prompt=a", out)
    assert done.returncode == 2 and "--out: cannot write" in done.stderr and "drawing" not in done.stderr, done.stderr
    with pytest.raises(UserError, match="is no run or export directory"):
        sample(tmp_path / "none", tmp_path / "new" / "x.gif", ["a"])
    assert not (tmp_path / "new").exists()

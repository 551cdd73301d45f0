import av
import numpy as np
import pytest

from videogen.data.video_io import read_video, side_by_side, write_video
from videogen.errors import UserError


def gradient(frames=5, height=40, width=60):
    y, x = np.mgrid[:height, :width]
    video = np.stack([np.stack([4 * y + t, 4 * x, 100 + 0 * x], -1) for t in range(frames)])
    return video.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 60), (41, 61), (1, 1)])
def test_written_videos_read_back_nearly_equal(tmp_path, size):
    video = gradient(5, *size)
    write_video(tmp_path / "v.mp4", video, fps=8, scale=1)
    read, fps = read_video(tmp_path / "v.mp4")
    assert fps == 8 and read.shape[0] == 5
    assert read.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    error = np.abs(read[:, : size[0], : size[1]].astype(int) - video)
    assert error.mean() < 3


def test_small_clips_are_enlarged_by_a_whole_factor(tmp_path):
    video = gradient(3, 32, 48)
    write_video(tmp_path / "v.mp4", video, fps=7.5)
    read, fps = read_video(tmp_path / "v.mp4")
    assert read.shape == (3, 128, 192, 3) and fps == 7.5
    assert np.abs(read[:, ::4, ::4].astype(int) - video).mean() < 6


def test_files_play_everywhere(tmp_path):
    write_video(tmp_path / "v.mp4", gradient(), fps=8)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_side_by_side_keeps_every_clip():
    clips = [gradient(), gradient() // 2, gradient() // 3]
    joined = side_by_side(clips)
    assert joined.shape == (5, 40, 3 * 60 + 2 * 2, 3)
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(joined[:, :, i * 62 : i * 62 + 60], clip)


@pytest.mark.parametrize(
    "name", ["empty.mp4", "text_renamed.mp4", "audio_only.mp4", "huge_size_in_stream.mp4"]
)
def test_unreadable_files_are_one_clear_error(shared, name):
    with pytest.raises(UserError, match=name):
        read_video(shared / "data/broken" / name)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_video(tmp_path / "no.mp4")

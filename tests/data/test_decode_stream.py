"""The frames of a file one after another: the same ones that a clip of its beginning has."""

import numpy as np
import pytest

from videogen.data.clip import Clip
from videogen.data.decode_stream import decode_stream
from videogen.data.video_io import read_beginning, read_stream, write_video
from videogen.errors import UserError


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Eight frames at 4 frames per second, each of another grey."""
    path = tmp_path_factory.mktemp("stream") / "clip.mp4"
    frames = np.broadcast_to((30 * np.arange(8, dtype=np.uint8))[:, None, None, None], (8, 16, 16, 3))
    write_video(path, frames, 4.0)
    return path


@pytest.mark.parametrize(("fps", "count"), [(4.0, 8), (2.0, 4), (8.0, 16), (3.0, 6)])
def test_frame_k_is_on_show_at_k_over_the_rate(video, fps, count):
    found = [*read_stream(video, Clip(1, 16, 16, fps))]
    np.testing.assert_allclose([second for _, second in found], np.arange(count) / fps)
    expected = read_beginning(video, Clip(count, 16, 16, fps))
    np.testing.assert_array_equal(np.stack([frame for frame, _ in found]), expected)


def test_without_a_rate_every_frame_has_its_own_time(video):
    found = [*decode_stream(str(video), "clip", Clip(1, 16, 16, None))]
    np.testing.assert_allclose([second for _, second in found], np.arange(8) / 4, atol=1e-3)
    assert np.diff([frame.mean() for frame, _ in found]).min() > 20


def test_frames_come_before_the_file_is_read_and_mistakes_are_one_line(video, tmp_path):
    first, second = next(read_stream(video, Clip(1, 8, 8, 4.0)))
    assert first.shape == (8, 8, 3) and second == 0.0
    with pytest.raises(UserError, match="does not exist"):
        next(read_stream(tmp_path / "none.mp4", Clip(1, 8, 8, 4.0)))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="cannot be used"):
        next(read_stream(tmp_path / "text.mp4", Clip(1, 8, 8, 4.0)))

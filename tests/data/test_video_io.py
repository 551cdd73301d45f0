import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from videogen.data import video_io
from videogen.data.clip import Clip
from videogen.data.video_io import read_beginning, read_video, side_by_side, write_video
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


@pytest.mark.parametrize("name", ["empty.mp4", "text_renamed.mp4", "audio_only.mp4", "huge_size_in_stream.mp4"])
def test_unreadable_files_are_one_clear_error(shared, name):
    with pytest.raises(UserError, match=name):
        read_video(shared / "data/broken" / name)
    with pytest.raises(UserError, match=name):
        read_beginning(shared / "data/broken" / name, Clip(1, 32, 32))


@pytest.mark.parametrize("name", ["truncated_index_at_start.mp4", "flipped_bytes.mp4"])
def test_damaged_files_are_one_clear_error(shared, name):
    with pytest.raises(UserError, match=f"{name} cannot be used: (truncated, 17 of 49|decode error at frame 32)"):
        read_video(shared / "data/broken" / name)


def test_rotation_is_applied(shared):
    path = shared / "data/broken/rotated_display_matrix.mp4"
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    upright, fps = read_video(path)
    assert upright.shape == (24, 284, 160, 3) and fps == 24
    np.testing.assert_array_equal(upright[0], np.rot90(stored, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_one_frame_turned_as_their_exif_says(tmp_path, orientation):
    picture = Image.fromarray(gradient(1)[0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "p.jpg", quality=95, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "p.jpg")))
    read, _ = read_video(tmp_path / "p.jpg")
    assert read.shape == (1, *upright.shape)
    assert np.abs(read[0].astype(int) - upright).mean() < 3


def test_lossless_pictures_come_back_exactly(tmp_path):
    Image.fromarray(gradient(1)[0]).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_video(tmp_path / "p.png")[0], gradient(1))


def test_animations_keep_frames_and_rate(shared):
    frames, fps = read_video(shared / "data/broken/animated.gif")
    assert frames.shape == (16, 128, 192, 3) and abs(fps - 1 / 0.12) < 0.01


def test_colours_and_the_order_of_frames_survive(tmp_path):
    frames = np.zeros((10, 64, 64, 3), np.uint8)
    frames[:, :, :32] = (225, 40, 40)
    frames[:, :, 32:] = 25 * np.arange(10, dtype=np.uint8)[:, None, None, None]
    write_video(tmp_path / "v.mp4", frames, fps=np.float32(29.97))
    read, fps = read_video(tmp_path / "v.mp4")
    assert abs(fps - 29.97) < 1e-3
    assert np.abs(read[:, 20:-20, 10:20].astype(int) - (225, 40, 40)).max() <= 6
    assert np.abs(read[:, 20:-20, -40:-20].mean((1, 2, 3)) - 25 * np.arange(10)).max() <= 3


def test_files_larger_than_memory_allows_are_refused(tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", gradient(5, 64, 64), fps=8, scale=1)
    monkeypatch.setattr(video_io, "PIXEL_BUDGET", 5 * 64 * 64)
    assert len(read_video(tmp_path / "v.mp4")[0]) == 5
    monkeypatch.setattr(video_io, "PIXEL_BUDGET", 5 * 64 * 64 - 1)
    with pytest.raises(UserError, match="more than 20,479 pixels|above the pixel budget"):
        read_video(tmp_path / "v.mp4")


@pytest.mark.parametrize("rows", [64, 720])
def test_files_are_tagged_and_have_the_colours_that_their_tags_say(tmp_path, rows):
    """Without tags players showed (220, 40, 30) of a 720p sample as (236, 56, 27)."""
    frames = np.full((3, rows, 64, 3), (220, 40, 30), np.uint8)
    write_video(tmp_path / "v.mp4", frames, fps=8, scale=1)
    with av.open(str(tmp_path / "v.mp4")) as container:
        frame = next(container.decode(video=0))
        tags = frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc
        assert tags == (1, 1, 1, 1)  # BT.709, limited range
        shown = frame.reformat(format="rgb24", src_colorspace="ITU709", dst_colorspace="ITU709").to_ndarray()
    assert np.abs(shown.astype(int) - (220, 40, 30)).max() <= 5
    assert np.abs(read_video(tmp_path / "v.mp4")[0].astype(int) - (220, 40, 30)).max() <= 5


@pytest.mark.parametrize(
    "frames, message",
    [
        (np.zeros((3, 8, 8), np.uint8), r"must be RGB, .*, got \[3, 8, 8\]; convert grey"),
        (np.zeros((3, 8, 8, 1), np.uint8), r"must be RGB, .*, got \[3, 8, 8, 1\]; convert grey"),
        (np.zeros((3, 8, 8, 4), np.uint8), r"must be RGB, .*, got \[3, 8, 8, 4\]; convert grey and drop alpha"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one frame"),
        (np.zeros((3, 0, 8, 3), np.uint8), "at least one frame of one pixel"),
        (np.zeros((3, 8, 8, 3), np.float32), "must be an array of uint8, got float32"),
        ([[1]], "must be an array of uint8, got list"),
    ],
)
def test_arrays_that_are_no_clips_are_one_line(tmp_path, frames, message):
    for use in (
        lambda: write_video(tmp_path / "v.mp4", frames, fps=8),
        lambda: Clip(3, 8, 8).fit(frames, None),
        lambda: side_by_side([frames]),
    ):
        with pytest.raises(UserError, match=message):
            use()
    assert not (tmp_path / "v.mp4").exists()


def test_no_rate_and_clips_of_several_sizes_are_one_line(tmp_path):
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="positive number"):
            write_video(tmp_path / "v.mp4", gradient(), fps=fps)
    for clips in ([], [gradient(), gradient(4)]):
        with pytest.raises(UserError, match="must have one size"):
            side_by_side(clips)


def test_one_pixel_high_clips_are_written(tmp_path):
    for size in ((1, 1), (1, 40), (40, 1)):
        write_video(tmp_path / "v.mp4", gradient(2, *size), fps=8)
        assert read_video(tmp_path / "v.mp4")[0].shape[1] >= 128


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_video(tmp_path / "no.mp4")
    with pytest.raises(UserError, match="does not exist"):
        read_beginning(tmp_path / "no.mp4", Clip(1, 8, 8))

"""Frames over a whole video, with their own times."""

import av
import numpy as np
import pytest

from videogen.data.clip import Clip
from videogen.data.decode import decode_beginning, decode_clip, decode_fitted
from videogen.data.decode_spread import decode_spread
from videogen.data.source import SampleError
from videogen.data.video import Video


def spread_clip(path, frames, fps=None, **settings):
    return decode_spread(path, path.name, Clip(frames, 16, 16, fps), None, **settings)


@pytest.fixture
def counted(monkeypatch):
    """Counts the frames that are decoded."""
    count, frames = [0], Video.frames

    def counting(*arguments):
        for entry in frames(*arguments):
            count[0] += 1
            yield entry

    monkeypatch.setattr(Video, "frames", counting)
    return count


@pytest.fixture
def coloured(tmp_path):
    """Writes a video whose frame i has the grey value of the places of i in base 8, in two halves."""

    def make(frames, fps, times=None, gop=12, name="clip.mp4"):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=fps)
            video.height = video.width = 32
            video.pix_fmt, video.gop_size = "yuv420p", gop
            if times is not None:
                video.codec_context.time_base = video.time_base = av.utils.Fraction(1, 1000)
            for i in range(frames):
                picture = np.empty((32, 32, 3), np.uint8)
                for k in range(4):
                    picture[:, 8 * k : 8 * k + 8] = 20 + 30 * (i // 8**k % 8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = i if times is None else round(times[i] * 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        return path

    return make


def read_numbers(video):
    """The numbers of the frames of such a video at half its size."""
    columns = video.astype(float).mean((1, 3))[:, 2::4]
    return [round(sum(8**k * round((v - 20) / 30) for k, v in enumerate(row))) for row in columns]


def test_frames_and_times_of_three_hundred_frames(coloured):
    """The golden numbers of a rate that was computed wrongly: K / T · fps ended at 8.75 s."""
    decoded = spread_clip(coloured(300, 30), 8)
    assert read_numbers(decoded.video) == [0, 43, 85, 128, 171, 214, 256, 299]
    np.testing.assert_allclose(decoded.times, [0, 1.433, 2.833, 4.267, 5.7, 7.133, 8.533, 9.967], atol=6e-4)
    assert decoded.fps == pytest.approx(7 / 9.9667, rel=1e-4)


def test_one_frame_is_the_middle_one(coloured):
    decoded = spread_clip(coloured(300, 30), 1)
    assert read_numbers(decoded.video) == [150] and decoded.times.tolist() == [5.0]


def test_a_cap_is_spread_over_the_whole_video(coloured):
    """1 frame/s with a cap of 128 took all frames from the first 128 s of 240."""
    decoded = spread_clip(coloured(240, 1), 128, fps=1.0)
    assert len(decoded.times) == 128 and (np.diff(decoded.times) > 0).all()
    assert decoded.times[0] == 0 and decoded.times[-1] >= 238
    moments = Clip(128, 8, 8, 1.0).moments(240.0, 30.0)
    assert moments[0] == 0 and moments[-1] == 239 and (np.diff(moments) > 0).all()


def test_moments_keep_the_rate_where_the_cap_allows_it_and_are_denser_where_the_video_is_short():
    assert Clip(10, 8, 8, 1.0).moments(10.0, 30.0).tolist() == list(range(10))
    np.testing.assert_allclose(Clip(10, 8, 8, 1.0).moments(5.0, 4.0) * 4, np.rint(np.linspace(0, 19, 10)) + 0.5)
    assert Clip(10, 8, 8, 1.0).moments(2.0, 4.0) is None
    assert Clip(4, 8, 8).moments(1.0, 4.0).tolist() == [0.125, 0.375, 0.625, 0.875]


def test_times_are_those_of_the_frames_where_the_rate_varies(coloured):
    times = [0, 0.1, 0.2, 1.0, 1.1, 2.5, 2.6, 4.0]
    path = coloured(8, 10, times=times, name="uneven.mkv")
    decoded = spread_clip(path, 4, fps=1.0)
    assert set(decoded.times.tolist()) <= {np.float32(t) for t in times}
    # At 0, 1, 3 and 4 seconds (of five) the frames that began last.
    assert read_numbers(decoded.video) == [0, 3, 6, 7]
    np.testing.assert_allclose(decoded.times, [0, 1.0, 2.6, 4.0], atol=1e-3)


@pytest.mark.parametrize("gop", [12, 600])
def test_frames_far_apart_are_sought_and_equal_those_of_the_whole_decode(coloured, counted, gop):
    path = coloured(600, 10, gop=gop)
    sought = spread_clip(path, 6)
    # With one key frame, seeking costs more than decoding once.
    assert counted[0] < (150 if gop == 12 else 1300)
    assert read_numbers(sought.video) == [0, 120, 240, 359, 479, 599]
    np.testing.assert_allclose(sought.times, np.array([0, 120, 240, 359, 479, 599]) / 10, rtol=1e-6)


def test_a_part_of_a_video(coloured):
    path = coloured(100, 10)
    decoded = spread_clip(path, 3, part=(2.0, 4.0))
    assert read_numbers(decoded.video) == [20, 30, 39] and decoded.times.tolist() == pytest.approx([2.0, 3.0, 3.9])
    assert read_numbers(spread_clip(path, 2, part=(9.0, None)).video) == [90, 99]
    with pytest.raises(SampleError, match="ends at 10.0 s, before 12 s"):
        spread_clip(path, 3, part=(12.0, 14.0))
    with pytest.raises(SampleError, match="too short, 2 frames where a clip needs 3 frames"):
        spread_clip(path, 3, part=(2.0, 2.2))


def test_a_header_that_promises_more_is_not_believed(coloured, monkeypatch):
    path = coloured(40, 10)
    monkeypatch.setattr(Video, "extent", lambda self: (0.0, 60.0))
    decoded = spread_clip(path, 4)
    assert read_numbers(decoded.video) == [0, 13, 26, 39]


def test_a_picture_is_one_frame(shared, tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20), (200, 0, 0)).save(tmp_path / "a.png")
    assert spread_clip(tmp_path / "a.png", 1).times.tolist() == [0.0]
    with pytest.raises(SampleError, match="too short, 1 frames"):
        spread_clip(tmp_path / "a.png", 2)


def test_windows_have_the_times_of_their_frames(coloured):
    path = coloured(40, 10)
    for fps, expected in ((None, [1.6, 1.7, 1.8, 1.9, 2.0]), (5.0, [1.4, 1.6, 1.8, 2.0, 2.2])):
        decoded = decode_clip(path, path.name, Clip(5, 16, 16, fps), None)
        first = decoded.times[0]
        np.testing.assert_allclose(decoded.times - first, np.array(expected) - expected[0], atol=1e-5)
        assert read_numbers(decoded.video) == [round(float(t) * 10) for t in decoded.times]
    # 20 frames per second of a video that has 10: every frame is shown twice, and has its own time.
    doubled = decode_clip(path, path.name, Clip(4, 16, 16, 20.0, window="first"), None)
    np.testing.assert_allclose(doubled.times, [0, 0, 0.1, 0.1], atol=1e-6)
    assert decode_fitted(path, path.name, Clip(1, 16, 16)).times.shape == (40,)
    kept = decode_beginning(path, path.name, Clip(50, 16, 16), needed=40).times
    assert kept.shape == (50,) and (kept[40:] == kept[39]).all()

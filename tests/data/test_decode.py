import contextlib
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from videogen.data.clip import Clip
from videogen.data.decode import decode_audio, decode_beginning, decode_clip
from videogen.data.source import SampleError
from videogen.data.video import Video


def decode(path, clip, rng=None, **settings):
    return decode_clip(path, Path(path).name, clip, rng, **settings)


def reason(path, clip, **settings):
    with pytest.raises(SampleError) as error:
        decode(path, clip, **settings)
    assert error.value.name == Path(path).name
    return error.value.reason


NINE = Clip(9, 64, 64)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("empty.mp4", "empty file"),
        ("text_renamed.mp4", "not a video container"),
        ("truncated_index_at_end.mp4", "index missing / truncated"),
        ("audio_only.mp4", "no video stream"),
        ("huge_size_in_stream.mp4", "size unknown or too large"),
        ("huge_size_budget.mp4", "above the pixel budget (8180x8192), see data.source.pixel_budget"),
        ("single_frame.mp4", "too short, 1 frames where a clip needs 9 frames"),
    ],
)
def test_unusable_files_are_skipped_with_their_reason(shared, name, expected):
    assert reason(shared / "data/broken" / name, NINE) == expected


@pytest.mark.parametrize(
    "name, frames",
    [
        ("odd_size_131x97.mp4", 60),
        ("variable_frame_rate.mp4", 48),
        ("ten_bit_420.mp4", 24),
        ("chroma_444.mp4", 25),
        ("rotated_display_matrix.mp4", 24),
        ("animated.gif", 16),
        ("huge_size_in_container_header.mp4", 12),
        ("single_frame.mp4", 1),
    ],
)
def test_unusual_files_give_all_their_frames_and_no_more(shared, name, frames):
    path = shared / "data/broken" / name
    assert decode(path, Clip(frames, 64, 64)).video.shape == (frames, 64, 64, 3)
    assert "too short" in reason(path, Clip(frames + 1, 64, 64))


@pytest.mark.parametrize(
    "name, original, good, expected",
    [
        ("truncated_index_at_start.mp4", None, 17, "truncated, 17 of 49 frames"),
        ("flipped_bytes.mp4", "airplane_zoom_out.mp4", 32, "decode error at frame 32"),
        ("flipped_bytes_mild.mp4", "man_smiling_portrait.mp4", 25, "decode error at frame 25"),
    ],
)
def test_damaged_files_are_used_up_to_the_damage(shared, name, original, good, expected):
    path = shared / "data/broken" / name
    assert reason(path, Clip(good + 8, 64, 64)) == expected
    windows = [decode(path, Clip(good - 1, 256, 456), rng) for rng in map(np.random.default_rng, range(4))]
    assert all(len(window.video) == good - 1 for window in windows)
    if original:
        with av.open(str(shared / "data/clips" / original)) as container:
            clean = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        for window in windows:
            first = round(window.start * window.fps)
            np.testing.assert_array_equal(window.video, clean[first : first + good - 1])


def test_rotation_is_applied(shared):
    upright = decode(shared / "data/broken/rotated_display_matrix.mp4", Clip(1, 284, 160)).video[0]
    with av.open(str(shared / "data/broken/rotated_display_matrix.mp4")) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clockwise = [np.rot90(frame, -1) for frame in stored]
    differences = [np.abs(upright.astype(int) - frame).mean() for frame in clockwise]
    assert min(differences) < 2


def test_ten_bit_has_the_brightness_of_its_eight_bit_original(shared):
    ten = decode(shared / "data/broken/ten_bit_420.mp4", Clip(9, 64, 64)).video
    eight = decode(shared / "data/clips/bird_on_branch.mp4", Clip(9, 64, 64)).video
    assert abs(ten.mean() - eight.mean()) < 12


@pytest.mark.parametrize("matrix", ["ITU601", "ITU709"])
@pytest.mark.parametrize("levels", ["MPEG", "JPEG"])
def test_tagged_ranges_and_matrices_give_the_same_picture(tmp_path, matrix, levels):
    matrix, levels = Colorspace[matrix], ColorRange[levels]
    path = str(tmp_path / "range.mp4")
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[:, :, 16:] = (250, 128, 5)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        stream.codec_context.color_range = levels
        stream.codec_context.colorspace = matrix
        stream.options = {"crf": "1"}
        frame = av.VideoFrame.from_ndarray(picture[0], format="rgb24")
        frame = frame.reformat(format="yuv444p", dst_color_range=levels, dst_colorspace=matrix)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(decode(path, Clip(1, 32, 32)).video.astype(int) - picture).max() <= 6


def test_window_after_a_seek_equals_the_same_frames_of_the_whole_file(shared):
    path = shared / "data/clips/dashcam_street.mp4"
    with av.open(str(path)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    clip = Clip(4, *whole.shape[1:3])
    for seed in range(5):
        decoded = decode(path, clip, np.random.default_rng(seed))
        first = round(decoded.start * 30)
        np.testing.assert_array_equal(decoded.video, whole[first : first + 4])


def whole(path):
    """Every frame in the order of the decoder, without a seek."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def make_moving(tmp_path):
    """Writes 40 frames at 10 per second of a noise that moves, so that all differ and refer to each other."""

    def make(name, codec, pix_fmt="yuv420p", **options):
        noise = np.random.default_rng(0).integers(0, 256, (8, 60, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt, stream.gop_size = 64, 96, pix_fmt, 6
            stream.options = {key.replace("_", "-"): value for key, value in options.items()}
            for i in range(40):
                picture = np.ascontiguousarray(noise[:, 3 * i : 3 * i + 96])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    "name, codec, settings",
    [
        ("b_frames.mp4", "libx264", {}),
        ("open_gop.mkv", "libx264", {"x264_params": "open-gop=1:bframes=3"}),
        ("no_key_frames.mp4", "libx264", {"x264_params": "intra-refresh=1:keyint=10"}),
        ("reordered.avi", "libx264", {}),
        ("plain.avi", "mpeg4", {}),
        ("hevc.mp4", "libx265", {"x265_params": "open-gop=1:bframes=3:keyint=8:log-level=none"}),
        ("vp8.webm", "libvpx", {}),
        ("vp9.webm", "libvpx-vp9", {}),
        ("unmarked.mov", "qtrle", {"pix_fmt": "rgb24"}),
        ("animation.gif", "gif", {"pix_fmt": "rgb8"}),
        ("transport.ts", "libx264", {}),
    ],
)
def test_windows_equal_the_whole_decode_in_every_container(make_moving, name, codec, settings):
    path = make_moving(name, codec, **settings)
    frames, starts = whole(path), set()
    assert len(frames) == 40
    for seed in range(8):
        window = decode(path, Clip(4, 64, 96), np.random.default_rng(seed)).video
        first = next(i for i, frame in enumerate(frames) if (frame == window[0]).all())
        np.testing.assert_array_equal(window, frames[first : first + 4])
        paced = decode(path, Clip(4, 64, 96, fps=5.0), np.random.default_rng(seed)).video
        first = next(i for i, frame in enumerate(frames) if (frame == paced[0]).all())
        np.testing.assert_array_equal(paced, frames[first : first + 8 : 2])
        starts.add(first)
    assert len(starts) >= 5


@pytest.mark.parametrize("name, settings", [("a.mp4", "keyint=6"), ("b.mp4", "intra-refresh=1:keyint=10")])
def test_windows_are_where_they_were_drawn(make_moving, name, settings):
    """Also near the end, where a decoder that was not at a key frame gives nothing after a seek."""
    path = make_moving(name, "libx264", x264_params=settings)
    frames = whole(path)
    for seed in range(16):
        start = np.random.default_rng(seed).uniform(0, 4 - 3 / 10 - 0.05)
        window = decode(path, Clip(4, 64, 96), np.random.default_rng(seed))
        first = int(np.ceil(10 * start - 0.5))
        np.testing.assert_array_equal(window.video, frames[first : first + 4])
        assert window.start == pytest.approx(first / 10, abs=1e-3)


@pytest.mark.parametrize(
    "name, codec, params", [("a.mp4", "libx264", ""), ("open.mkv", "libx264", "open-gop=1"), ("b.avi", "mpeg4", "")]
)
def test_a_late_window_is_found_without_decoding_what_is_before(make_moving, monkeypatch, name, codec, params):
    path, decoded = make_moving(name, codec, **({"x264_params": params} if params else {"bf": "2"})), []
    frames = Video.frames
    monkeypatch.setattr(
        Video, "frames", lambda *arguments: (decoded.append(frame) or frame for frame in frames(*arguments))
    )
    for seed in range(12):
        decoded.clear()
        window = decode(path, Clip(4, 64, 96), np.random.default_rng(seed))
        # Two groups of six pictures before the window, at most.
        assert 4 <= len(decoded) <= 16 + 1 and window.video.shape[0] == 4


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_windows_of_files_that_begin_late(make_video, numbers, name):
    path = make_video(name, frames=20, times=[100 + i / 10 for i in range(20)])
    windows = [decode(path, Clip(4, 32, 32), np.random.default_rng(seed)) for seed in range(40)]
    counts = np.bincount([numbers(window.video)[0] for window in windows], minlength=17)
    assert (counts > 0).sum() >= 13 and counts.max() <= 8
    for window in windows:
        assert numbers(window.video) == [*range(numbers(window.video)[0], numbers(window.video)[0] + 4)]


@pytest.mark.parametrize(
    "name, codec, first", [("reordered.avi", "libx264", 0.2), ("a.mp4", "libx264", 0.0), ("plain.avi", "mpeg4", 0.0)]
)
def test_frames_have_even_times_in_the_order_in_which_they_are_shown(make_moving, name, codec, first):
    """AVI has no times of showing; those that FFmpeg guesses are out of order, and its last frames have none."""
    with make_moving(name, codec).open("rb") as file, contextlib.closing(Video(file, name, 2**28)) as video:
        times = [time for time, _ in video.frames(None)]
    np.testing.assert_allclose(times, first + np.arange(40) / 10, atol=1e-6)
    # The clip at the beginning has the times since its first frame.
    begun = decode_beginning(make_moving(name, codec), name, Clip(4, 32, 32))
    np.testing.assert_allclose(begun.times, np.arange(4) / 10, atol=1e-6)


def test_windows_are_central_or_spread_over_the_file(make_video, numbers):
    path = make_video(frames=20)
    assert numbers(decode(path, Clip(4, 32, 32)).video) == [8, 9, 10, 11]
    starts = {numbers(decode(path, Clip(4, 32, 32), np.random.default_rng(i)).video)[0] for i in range(120)}
    assert starts == set(range(17))


def test_frames_are_chosen_by_time_not_by_number(make_video, numbers):
    path = make_video(frames=21, fps=10)
    assert numbers(decode(path, Clip(5, 32, 32, fps=2.5)).video) == [2, 6, 10, 14, 18]
    # Twice the rate of the file: every frame is on show for two moments.
    assert numbers(decode(path, Clip(8, 32, 32, fps=20.0)).video) == [8, 8, 9, 9, 10, 10, 11, 11]
    uneven = make_video("uneven.mkv", frames=8, times=[0, 0.1, 0.2, 0.3, 1.0, 1.1, 1.2, 1.9])
    shown = numbers(decode(uneven, Clip(18, 32, 32, fps=10.0)).video)
    assert shown.count(3) == 7 and shown == sorted(shown)


def test_equal_rates_give_every_frame_once(make_video, numbers):
    """Milliseconds are too coarse for 24 frames a second: frames came twice."""
    path = make_video("24.mkv", frames=40, times=[round(i / 24, 3) for i in range(40)])
    for seed in range(10):
        shown = numbers(decode(path, Clip(12, 32, 32, fps=24.0), np.random.default_rng(seed)).video)
        assert shown == [*range(shown[0], shown[0] + 12)]


def test_last_frame_stays_for_a_frame_s_time(make_video, numbers):
    path = make_video(frames=10, fps=10)
    assert numbers(decode(path, Clip(20, 32, 32, fps=20.0)).video) == [i // 2 for i in range(20)]
    assert "needs 21 frames at 20 fps" in reason(path, Clip(21, 32, 32, fps=20.0))


def test_beginning_is_read_by_time_stamps(make_video, numbers):
    """By average rate these gave 0, 0, 1, 2, 3, 4, 4, 5, 6."""
    times = [0, 0.02, 0.04, 0.1, 0.15, 0.2, 0.24, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]
    path = make_video("uneven.mkv", frames=16, times=times)
    assert numbers(decode_beginning(path, "x", Clip(9, 32, 32, fps=10.0)).video) == [0, 3, 5, 7, 8, 9, 10, 11, 12]
    assert numbers(decode_beginning(path, "x", Clip(5, 32, 32)).video) == [0, 1, 2, 3, 4]
    padded = decode_beginning(path, "x", Clip(14, 32, 32, fps=10.0), needed=11)
    assert numbers(padded.video)[-4:] == [14, 15, 15, 15] and padded.fps == 10
    with pytest.raises(SampleError, match="too short, 14 frames at 10 fps are needed"):
        decode_beginning(path, "x", Clip(14, 32, 32, fps=10.0))


def test_beginning_of_a_long_file_reads_no_more_than_it_needs(make_video, monkeypatch):
    path, decoded = make_video(frames=40), []
    frames = Video.frames
    monkeypatch.setattr(
        Video, "frames", lambda *arguments: (decoded.append(frame) or frame for frame in frames(*arguments))
    )
    decode_beginning(path, "x", Clip(1, 32, 32))
    assert len(decoded) == 1


def test_windows_end_where_the_video_ends(make_video, numbers):
    path = make_video(frames=10, fps=10)
    assert numbers(decode(path, Clip(10, 32, 32)).video) == [*range(10)]
    assert numbers(decode(path, Clip(5, 32, 32, fps=5.0)).video) == [0, 2, 4, 6, 8]
    assert "needs 6 frames at 5 fps" in reason(path, Clip(6, 32, 32, fps=5.0))


@pytest.mark.parametrize("name, codec", [("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mov", "libx264")])
def test_other_containers(make_video, numbers, name, codec):
    path = make_video(name, codec=codec)
    assert numbers(decode(path, Clip(4, 32, 32)).video) == [8, 9, 10, 11]
    encoded = path.read_bytes()
    np.testing.assert_array_equal(
        decode_clip(encoded, name, Clip(4, 32, 32), None).video, decode(path, Clip(4, 32, 32)).video
    )


def test_pixel_budget_bounds_what_a_decoder_holds_not_how_long_it_reads(make_video):
    """4K at 30 frames a second into 17 frames at 8 was skipped; a header of 1000 frames a second did the same."""
    pixels = 16 * 64 * 96
    path = make_video(frames=40, size=(64, 96), fps=240)
    assert decode(path, Clip(5, 32, 32, fps=30.0), pixel_budget=pixels).video.shape[0] == 5
    assert "see data.source.pixel_budget" in reason(path, Clip(5, 32, 32), pixel_budget=pixels - 1)
    assert "budget (96x64)" in reason(path, Clip(5, 32, 32), pixel_budget=1)
    thin = make_video("thin.mp4", size=(4, 400))
    assert "budget (6400x64)" in reason(thin, Clip(1, 64, 64), pixel_budget=pixels)


@pytest.mark.parametrize("name, fps, codec", [("a.mp4", 1000, "libx264"), ("a.avi", 100_000, "mjpeg")])
def test_absurd_rates_of_headers_are_ignored(make_video, numbers, name, fps, codec):
    path = make_video(name, frames=12, fps=fps, codec=codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    assert numbers(decode(path, Clip(9, 32, 32)).video) == [*range(9)]
    assert decode(path, Clip(9, 32, 32)).fps == 25


def test_missing_file_is_a_reason_too(tmp_path):
    assert "unreadable" in reason(tmp_path / "no.mp4", NINE)


def test_audio_window_is_the_sound_at_that_time(tmp_path):
    rate, seconds = 44_100, 3
    time = np.arange(rate * seconds) / rate
    sound = np.sin(2 * np.pi * (200 * time + 100 * time**2)) * 0.5
    path = tmp_path / "chirp.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    got = decode_audio(path, "chirp", 1.0, 1.0, 16_000)
    wanted = 1 + np.arange(16_000) / 16_000
    expected = np.sin(2 * np.pi * (200 * wanted + 100 * wanted**2)) * 0.5
    assert got.shape == (16_000, 1) and got.dtype == np.float32
    assert np.corrcoef(got[:, 0], expected)[0, 1] > 0.99
    tail = decode_audio(path, "chirp", 2.5, 1.0, 16_000)
    assert np.abs(tail[:7900]).mean() > 0.1 and not tail[8100:].any()


def test_silent_video_has_no_audio(shared):
    with pytest.raises(SampleError, match="no audio stream"):
        decode_audio(shared / "data/clips/coffee_pour.mp4", "coffee", 0.0, 1.0, 16_000)

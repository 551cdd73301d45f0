"""Readable files that are easily read wrongly: ``shared/data/hard``, and orientations and HDR made here."""

import io
import os
import struct

import av
import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from PIL import Image, ImageOps

from videogen.data import media, picture
from videogen.data.clip import Clip
from videogen.data.decode import decode_beginning, decode_clip, decode_whole
from videogen.data.source import SampleError


@pytest.fixture
def hard(shared):
    return shared / "data/hard"


def read(path, clip, rng=None):
    return decode_clip(path, path.name, clip, rng)


def shown(path):
    return decode_whole(path, path.name, 2**28)[0]


def is_green(frames):
    return (frames[..., 1].astype(int) - np.maximum(frames[..., 0], frames[..., 2]) > 40).any()


@pytest.mark.parametrize("name, reason", [("unknown_codec.mp4", "unknown codec"), ("seek_refused.mov", "too short, 0")])
def test_what_no_decoder_reads_is_skipped_with_its_reason(hard, name, reason):
    with pytest.raises(SampleError, match=reason):
        read(hard / name, Clip(4, 32, 32))


def test_every_frame_is_fitted_on_its_own(hard):
    """64 × 96 pixels become 128 × 128 after 15 frames; ``np.stack`` failed."""
    assert read(hard / "size_changes.webm", Clip(30, 32, 32)).video.shape == (30, 32, 32, 3)
    for seed in range(4):
        assert read(hard / "size_changes.webm", Clip(29, 48, 32), np.random.default_rng(seed)).video.shape[0] == 29
    assert shown(hard / "size_changes.webm").shape == (30, 64, 96, 3)


def test_mirrors_are_no_turns(hard):
    plain, mirrored = shown(hard / "plain.mp4"), shown(hard / "mirrored.mp4")
    assert np.abs(mirrored.astype(int) - plain[:, :, ::-1]).mean() < 2
    assert mirrored[0, :, 50:].mean() < mirrored[0, :, :40].mean()
    red = mirrored[0, 5, -6].astype(int)
    assert red[0] > 200 and red[1:].max() < 60


MATRICES = {  # a, b, c, d of the display matrix -> what players show
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): np.rot90,
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, -1, -1, 0): lambda image: image[::-1, ::-1].swapaxes(0, 1),
}


class Turned:
    """A frame with a display matrix, as far as orientation needs it."""

    def __init__(self, a, b, c, d):
        self.side_data = {"DISPLAYMATRIX": struct.pack("<9i", *(65536 * v for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)}


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_orientations(matrix):
    image = np.arange(6).reshape(2, 3)
    swapped, flips = picture.orientation(Turned(*matrix))
    got = (image.T if swapped else image)[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    np.testing.assert_array_equal(got, MATRICES[matrix](image))


@pytest.mark.parametrize("angle", [0, 90, 180, -90, -180, 270])
def test_orientation_where_side_data_cannot_be_read(angle):
    """PyAV fails on side data of a type it does not know, and still tells the angle."""

    class Unreadable:
        rotation = angle

        @property
        def side_data(self):
            raise ValueError("31 is not a valid Type")

    image = np.arange(6).reshape(2, 3)
    swapped, flips = picture.orientation(Unreadable())
    got = (image.T if swapped else image)[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    np.testing.assert_array_equal(got, np.rot90(image, angle // 90))


def test_transparent_colours_of_palettes_are_white():
    palette = np.zeros((256, 4), np.uint8)
    palette[:2] = (255, 0, 200, 0), (0, 0, 200, 0)  # alpha, red, green, blue
    indices = np.zeros((8, 8), np.uint8)
    indices[:, 4:] = 1
    frame = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
    rgb = picture.upright(frame, None, lambda *size: size)
    assert (rgb[:, :4] == (0, 200, 0)).all() and (rgb[:, 4:] == 255).all()


@pytest.mark.parametrize("name", ["exif2.jpg", "exif5.jpg"])
def test_exif_is_applied_as_pillow_does(hard, name):
    np.testing.assert_array_equal(shown(hard / name)[0], ImageOps.exif_transpose(Image.open(hard / name)))


def test_pixels_that_are_not_square_are_stretched(hard):
    ball = shown(hard / "anamorphic.mp4")
    assert ball.shape[1:3] == (240, 427)
    grey = ball[0].astype(int).mean(-1)
    inside = np.abs(grey - grey[0, 0]) > 60
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert rows > 60 and abs(rows / columns - 1) < 0.05
    fitted = read(hard / "anamorphic.mp4", Clip(1, 60, 106)).video[0].astype(int).mean(-1)
    inside = np.abs(fitted - fitted[0, 0]) > 60
    assert abs(inside.any(1).sum() / inside.any(0).sum() - 1) < 0.1


def test_windows_of_a_cut_file_are_where_they_are_asked_for(hard):
    """The edit list hides the first key frame; most windows collapsed to time 0."""
    path = hard / "cut_bird_on_branch.mp4"
    frames = shown(path)
    starts = set()
    for seed in range(12):
        window = read(path, Clip(5, 256, 456), np.random.default_rng(seed))
        first = round(window.start * 24)
        np.testing.assert_array_equal(window.video, frames[first : first + 5])
        starts.add(first)
    assert len(starts) >= 10 and min(starts) < 24


def test_codecs_that_mark_no_key_frame_give_windows_anywhere(hard):
    path = hard / "qtrle.mov"
    frames = shown(path)
    starts = [read(path, Clip(4, 64, 96), np.random.default_rng(seed)) for seed in range(10)]
    for window in starts:
        first = round(window.start * 10)
        np.testing.assert_array_equal(window.video, frames[first : first + 4])
    assert len({window.start for window in starts}) >= 6


@pytest.mark.parametrize("name", ["alpha.webm", "logo.png"])
def test_transparency_is_white_and_shows_nothing_hidden(hard, name):
    frames = shown(hard / name)
    assert not is_green(frames)
    assert (frames[:, 0, 0] >= 250).all()
    small = read(hard / name, Clip(1, 12, 16)).video
    assert not is_green(small)


def test_hdr_is_tone_mapped(hard):
    """203 nits are near white."""
    frames = shown(hard / "hdr10.mp4")
    assert 230 <= frames.max() <= 250
    assert frames.std(-1).max() < 4


def pq(nits):
    root = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375


def test_light_below_the_knee_is_kept_and_brighter_light_never_clips():
    nits = np.array([0.0, 20.3, 101.5, 203.0, 400.0, 1000.0, 4000.0])
    coded = np.round(65535 * pq(nits)).astype(np.uint16)
    grey = picture.tone_mapped(np.repeat(coded[None, :, None], 3, -1), ColorTrc.SMPTE2084)[0, :, 0]
    # sRGB of 0, 0.1 and 0.5 of white.
    np.testing.assert_allclose(grey[:3], [0, 89, 188], atol=2)
    assert 235 <= grey[3] <= 248 and (np.diff(grey.astype(int)) >= 0).all() and grey[5] < 256


def test_hlg_has_its_reference_white_at_three_quarters():
    coded = np.full((1, 1, 3), round(0.75 * 65535), np.uint16)
    assert 235 <= picture.tone_mapped(coded, ColorTrc.ARIB_STD_B67)[0, 0, 0] <= 248


@pytest.mark.parametrize("rows, matrix", [(480, "ITU601"), (720, "ITU709")])
def test_untagged_colours_are_those_that_players_assume(tmp_path, rows, matrix):
    path = tmp_path / "untagged.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = rows, 32, "yuv444p"
        stream.options = {"crf": "1"}
        colour = np.full((rows, 32, 3), (220, 40, 30), np.uint8)
        frame = av.VideoFrame.from_ndarray(colour, format="rgb24").reformat(
            format="yuv444p", dst_colorspace=av.video.reformatter.Colorspace[matrix]
        )
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(shown(path)[0].astype(int) - (220, 40, 30)).max() <= 4


PICTURES = [("PNG", mode) for mode in ("RGB", "L", "LA", "RGBA", "P", "I;16", "1")]
PICTURES += [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "RGBA")]


@pytest.mark.parametrize("kind, mode", PICTURES)
def test_pictures_of_every_mode_are_one_frame_of_rgb(kind, mode):
    content = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((30, 40), 128 * 257, np.uint16)).save(content, kind)
    else:
        Image.new("RGB", (40, 30), (128, 128, 128)).convert(mode).save(content, kind)
    frame = decode_clip(content.getvalue(), "x", Clip(1, 30, 40), None).video
    assert frame.shape == (1, 30, 40, 3)
    assert abs(frame.mean() - 128) < 4
    assert decode_clip(content.getvalue(), "x", Clip(1, 30, 40), None).fps == 1
    assert decode_clip(content.getvalue(), "x", Clip(1, 30, 40, fps=8.0), None).fps == 8
    with pytest.raises(SampleError, match="too short, 1 frames where a clip needs 2 frames"):
        decode_clip(content.getvalue(), "x", Clip(2, 30, 40), None)


def test_large_pictures_are_above_the_budget():
    content = io.BytesIO()
    Image.new("L", (1000, 1000)).save(content, "PNG")
    with pytest.raises(SampleError, match=r"budget \(1000x1000\)"):
        decode_clip(content.getvalue(), "x", Clip(1, 8, 8), None, pixel_budget=16 * 10**6 - 1)


def test_one_pixel_high_videos_are_read(make_video):
    for size in ((1, 64), (64, 1), (1, 1)):
        path = make_video(f"{size[0]}.mov", frames=3, size=size, codec="png", pix_fmt="rgb24")
        assert decode_clip(path, "x", Clip(2, 16, 16), None).video.shape == (2, 16, 16, 3)
    content = io.BytesIO()
    Image.new("RGB", (50, 1)).save(content, "PNG")
    assert decode_clip(content.getvalue(), "x", Clip(1, 8, 8), None).video.shape == (1, 8, 8, 3)


PLAYLISTS = {
    "concat.mp4": "ffconcat version 1.0\nfile other.mp4\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nother.mp4\n#EXT-X-ENDLIST\n",
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_read_no_neighbour(make_video, tmp_path, monkeypatch, name):
    """A text file renamed to .mp4 that says ``ffconcat`` was played."""
    make_video("other.mp4")
    (tmp_path / name).write_text(PLAYLISTS[name])
    monkeypatch.chdir(tmp_path)
    for encoded in (name, tmp_path / name, PLAYLISTS[name].encode()):
        with pytest.raises(SampleError, match="not a video container"):
            decode_clip(encoded, name, Clip(4, 32, 32), None)


@pytest.mark.parametrize(
    "name", ["http:", "tcp:", "file:", "talk: part 1.mp4", "concat:a.mp4|b.mp4", "pipe:0", "%d.mp4"]
)
def test_names_are_no_addresses(make_video, tmp_path, monkeypatch, name):
    """A folder ``http:`` made FFmpeg open the network, and names with a colon were skipped."""
    file = make_video("x.mp4").rename(tmp_path / "content")
    place = tmp_path / name if name.endswith(("mp4", "0")) else tmp_path / name / "x.mp4"
    place.parent.mkdir(exist_ok=True)
    file.rename(place)
    monkeypatch.chdir(tmp_path)
    assert decode_clip(str(place.relative_to(tmp_path)), name, Clip(4, 32, 32), None).video.shape[0] == 4


def test_files_that_cannot_be_read_are_skipped(tmp_path, make_video, monkeypatch):
    """Permissions and I/O errors ended the run inside the error handler."""
    path = make_video("x.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("pipe.mp4", "folder.mp4"):
        with pytest.raises(SampleError, match="no regular file"):
            read(tmp_path / name, Clip(4, 32, 32))

    class Failing(io.FileIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(media, "open", lambda path, mode: Failing(path), raising=False)
    with pytest.raises(SampleError, match="Input/output error"):
        read(path, Clip(4, 32, 32))

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(media, "open", refuse, raising=False)
    with pytest.raises(SampleError, match=r"unreadable file \(Permission denied\)"):
        read(path, Clip(4, 32, 32))


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError(31), MemoryError(), UnicodeDecodeError("utf-8", b"", 0, 1, "")]
)
def test_whatever_a_decoder_raises_is_a_skipped_sample(make_video, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(picture, "_rgb", fail)
    path = make_video("x.mp4")
    with pytest.raises(SampleError, match="cannot be decoded|more memory"):
        read(path, Clip(4, 32, 32))
    with pytest.raises(SampleError, match="cannot be decoded|more memory"):
        decode_beginning(path, "x.mp4", Clip(4, 32, 32))

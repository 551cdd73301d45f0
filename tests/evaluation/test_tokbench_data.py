"""Rendered words are where they are said to be, and the published folder is read as its scripts read it."""

import json

import numpy as np
import pytest
from PIL import Image

from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.evaluation import rendered
from videogen.evaluation.rendered import FONTS, RenderedSet
from videogen.evaluation.tokbench import EDGES
from videogen.evaluation.tokbench_folder import PublishedFolder, plain_name


@pytest.fixture
def blank(monkeypatch):
    """Sets on even grey."""
    monkeypatch.setattr(
        RenderedSet,
        "_background",
        lambda self, i, frames: np.full((frames, self.setting, self.setting, 3), 90, np.uint8),
    )


def changed(frame, box):
    """The pixels of a frame that are not the background, in a box."""
    left, top, right, bottom = map(int, box)
    return (frame[top:bottom, left:right] != 90).any(-1)


def test_words_lie_in_their_boxes_and_nowhere_else(blank):
    for sample in RenderedSet(256, pictures=2, videos=1, frames=3):
        assert len(sample.words) == len(sample.frames) and sample.words[0]
        for frame, words in zip(sample.frames, sample.words, strict=True):
            inside = np.zeros(frame.shape[:2], bool)
            for word in words:
                ink = changed(frame, word.box)
                # A pixel above and below the ink; beside it also the room that the font gives its letters.
                assert ink[1].any() and ink[-2].any() and not ink[[0, -1]].any() and not ink[:, [0, -1]].any()
                left, top, right, bottom = map(int, word.box)
                assert not inside[top:bottom, left:right].any()  # apart from the others
                inside[top:bottom, left:right] = True
                assert word.ratio == (bottom - top) / 256
            assert (frame[~inside] == 90).all()


def test_words_are_drawn_evenly_over_the_bins(blank):
    """Three bins; whole pixels, and ink a little smaller than asked, move some words of the smallest to below it."""
    edges = EDGES["text", "pictures"][512]
    ratios = [w.ratio for sample in RenderedSet(512, pictures=8, videos=0) for w in sample.words[0]]
    counts, _ = np.histogram(ratios, (0, *edges))
    assert len(ratios) > 80 and counts[0] < 0.15 * len(ratios)
    assert (counts[1:] > len(ratios) / 5).all(), counts


def test_a_set_is_decided_by_its_seed():
    first, again, other = (RenderedSet(256, pictures=1, videos=1, frames=2, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        assert a.words == b.words and a.words != c.words
    assert len(first) == 2 and first.describe()["backgrounds"] == "shapes"


def test_words_of_a_video_move_and_keep_their_size():
    (sample,) = RenderedSet(256, pictures=0, videos=1, frames=4, words=5)
    assert sample.kind == "videos" and sample.frames.shape == (4, 256, 256, 3)
    for words in zip(*sample.words, strict=True):
        assert len({word.text for word in words}) == len({word.ratio for word in words}) == 1
        assert len({word.instance for word in words}) == 1
    assert any(words[0].box != words[-1].box for words in zip(*sample.words, strict=True))


def test_fonts_are_there_and_have_the_letters():
    for name in FONTS:
        # A missing letter is a box, the same for all.
        assert len({bytes(rendered._font(name, 20).getmask(letter)) for letter in "abcXYZ0189"}) == 10, name


def test_frames_of_videos_are_backgrounds(tmp_path):
    write_video(tmp_path / "a.mp4", np.full((4, 64, 80, 3), (200, 30, 30), np.uint8), 8.0)
    one, other = RenderedSet(256, pictures=2, videos=0, words=0, folder=str(tmp_path))
    np.testing.assert_allclose(one.frames[0].mean((0, 1)), (200, 30, 30), atol=6)
    assert abs(other.frames[0].mean((0, 1)) - (200, 30, 30)).max() > 20
    found = RenderedSet(256, folder=str(tmp_path)).describe()
    assert found["backgrounds"]["videos"] == 1 and len(found["backgrounds"]["hash"]) == 16
    with pytest.raises(UserError, match="no video in"):
        RenderedSet(256, folder=str(tmp_path / "absent")).describe()


def published(folder):
    """A small folder in the published layout."""
    generator = np.random.default_rng(0)
    for name in ("annotations", "video_annotations", "images/text_data/ic13", "images/face_data/wflw"):
        (folder / name).mkdir(parents=True)
    for name in ("videos/text_data/ds", "videos/face_data/face_clip_3s"):
        (folder / name).mkdir(parents=True)

    def picture(path, width, height):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(path, "png")

    picture(folder / "images/text_data/ic13/a.png", 40, 30)
    picture(folder / "images/text_data/ic13/b.png.png", 80, 60)
    picture(folder / "images/face_data/wflw/f.png", 50, 50)
    word = {"bbox": [1, 2, 11, 8], "rec": "Cat", "ratio": 0.25}
    texts = [{"file_name": f"{n}.png", "height": 30, "width": 40, "annotations": [word, word]} for n in "ab"]
    (folder / "annotations/text_ic13.json").write_text(json.dumps(texts))
    face = {"kps": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]], "ratio": 0.3, "box": [0, 0, 9, 9]}
    faces = [{"image_name": "f.png", "img_height": 50, "img_width": 50, "faces": [face]}]
    (folder / "annotations/face_meta.json").write_text(json.dumps(faces))
    for name in ("text_data/ds/v.mp4", "face_data/face_clip_3s/w.mp4"):
        write_video(folder / "videos" / name, generator.integers(0, 256, (4, 128, 160, 3), np.uint8), 8.0)
    common = {"video_name": "v", "height": 128, "width": 160}
    frames = [
        {**common, "file_name": f"v-frame{n}.jpg", "annotations": [{**word, "rec": text, "bbox": [n, 0, n + 9, 9]}]}
        for n, text in ((3, "end"), (1, "stay"), (2, "stay"))
    ]
    (folder / "video_annotations/text_ds.json").write_text(json.dumps(frames))
    video = {"video_name": "w.mp4", "video_height": 128, "video_width": 160, "frame_anns": [[face], [], [face]]}
    (folder / "video_annotations/videoface_meta.json").write_text(json.dumps([video]))
    return folder


def test_the_published_folder(tmp_path):
    found = PublishedFolder(published(tmp_path))
    a, b, face, text_video, face_video = found
    assert len(found) == 5 and found.describe()["samples"] == 5
    assert (a.name, a.dataset, a.kind, a.frames.shape) == ("a.png", "ic13", "pictures", (1, 30, 40, 3))
    assert [word.text for word in a.words[0]] == ["Cat"] * 2 and a.words[0][0].ratio == 0.25
    assert len({word.instance for word in a.words[0]}) == 2  # two words of one text are two instances
    # The second picture has twice the annotated size, and a doubled ending.
    assert b.name == "b.png" and b.words[0][0].box == (2, 4, 22, 16)
    assert face.dataset == "wflw" and face.faces[0][0].ratio == 0.3
    np.testing.assert_array_equal(face.faces[0][0].landmarks[4], (9, 10))
    assert text_video.kind == "videos" and len(text_video.frames) == 3
    assert [[w.text for w in words] for words in text_video.words] == [["stay"], ["stay"], ["end"]]
    assert [words[0].box[0] for words in text_video.words] == [1, 2, 3]  # the file counts frames from 1
    assert text_video.words[0][0].instance == text_video.words[1][0].instance
    assert [len(faces) for faces in face_video.faces] == [1, 0, 1] and len(face_video.words) == 3


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("annotations/text_ic13.json", "[{}]", "cannot read .*text_ic13.json"),
        ("annotations/text_ic13.json", "{", "cannot read .*text_ic13.json"),
        ("annotations/face_meta.json", "[3]", "cannot read .*face_meta.json"),
        ("video_annotations/text_ds.json", '[{"video_name": "v", "file_name": "v.jpg"}]', "cannot read .*text_ds.json"),
        ("video_annotations/videoface_meta.json", "5", "cannot read .*videoface_meta.json"),
    ],
)
def test_damaged_annotations_are_one_line(tmp_path, path, content, message):
    (published(tmp_path) / path).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        PublishedFolder(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="name the published TokBench folder"):
        PublishedFolder(tmp_path)
    (published(tmp_path) / "images/text_data/ic13/a.png").unlink()
    with pytest.raises(UserError, match="1 annotated files are missing, the first is .*a.png"):
        PublishedFolder(tmp_path)


def test_doubled_endings():
    assert plain_name("a.jpg.jpg") == "a.jpg" and plain_name("a.b.jpg") == "a.b.jpg"
    assert plain_name("a.png.jpg.jpg") == "a.png"

"""TokBench by the properties of its definition, with a reader that matches templates and an embedder of pixels."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from videogen.errors import UserError
from videogen.evaluation import codecs, tokbench_run
from videogen.evaluation.instances import Face, Sample, Word, crop, fitted
from videogen.evaluation.tokbench import EDGES, Row, by_instance, mismatched, score_face, score_text, summarise
from videogen.evaluation.tokbench_run import Recognisers, judged, run, setting_of

DIGITS = "0123456789"


def drawn(digit: str, side: int) -> np.ndarray:
    """A digit, black on white, in a square."""
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).text((32, 32), digit, fill="black", anchor="mm", font=ImageFont.load_default(60))
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX))


TEMPLATES = np.stack([drawn(digit, 16).mean(-1) for digit in DIGITS])


def match(part: np.ndarray) -> str:
    """The digit whose template correlates best; nothing where the crop is flat."""
    x = np.asarray(Image.fromarray(part).convert("L").resize((16, 16), Image.Resampling.BILINEAR), np.float64)
    if x.std() < 1:
        return ""
    unit = [(t - t.mean()).ravel() / np.linalg.norm(t - t.mean()) for t in TEMPLATES]
    return DIGITS[int(np.argmax([abs(u @ (x - x.mean()).ravel()) for u in unit]))]


def page(sides=(8, 12, 20), count=60, size=256) -> Sample:
    """Digits of several sizes on white, in rows."""
    generator = np.random.default_rng(0)
    picture, words, x, y = np.full((size, size, 3), 255, np.uint8), [], 2, 2
    for k in range(count):
        side, text = sides[k % len(sides)], DIGITS[generator.integers(10)]
        if x + side > size:
            x, y = 2, y + max(sides) + 2
        picture[y : y + side, x : x + side] = drawn(text, side)
        words.append(Word((x, y, x + side, y + side), text, side / size, f"{k}"))
        x += side + 3
    return Sample("page.png", "digits", picture[None], [words], [[]])


def moments(picture, landmarks):
    """Colours at the landmarks, in the place of a face network."""
    places = np.clip(np.round(landmarks).astype(int), 0, np.array(picture.shape[1::-1]) - 1)
    return picture[places[:, 1], places[:, 0]].astype(np.float64).ravel() + 1


FACE = Face(np.array([(20.0, 20), (40, 20), (30, 30), (22, 40), (38, 40)]), 0.2, "0")


def test_the_untouched_picture_is_read_perfectly():
    sample = page()
    rows, rejected = score_text(sample.frames, sample.words, match)
    assert rejected == 0 and len(rows) == 60
    assert all(row.scores == {"t_acc": 1, "t_ned": 1} for row in rows)
    faces, _ = score_face(sample.frames, sample.frames, [[FACE]], moments)
    assert faces[0].scores == {"f_sim": pytest.approx(1)}


def test_case_matters_and_an_empty_reading_counts_zero():
    picture, word = np.zeros((9, 9, 3), np.uint8), Word((0, 0, 5, 5), "Cat", 0.1)
    for read, scores in {"Cat": (1, 1), "cat": (0, 2 / 3), "": (0, 0), "Cats": (0, 3 / 4)}.items():
        (row,), _ = score_text([picture], [[word]], lambda part, read=read: read)
        assert (row.scores["t_acc"], row.scores["t_ned"]) == pytest.approx(scores), read
        assert row.read == read


def test_boxes_are_clipped_and_those_without_a_pixel_rejected():
    picture = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    np.testing.assert_array_equal(crop(picture, (-3, 7.5, 2.2, 99)), picture[7:, :3])
    for box in ((3, 3, 3, 6), (5, 3, 4, 6), (12, 0, 20, 5), (-5, 0, 0, 5), (0, 10, 5, 12)):
        assert crop(picture, box) is None
    words = [Word((0, 0, 5, 5), "a", 0.1), Word((3, 3, 3, 6), "b", 0.1)]
    rows, rejected = score_text([picture], [words], lambda part: "a")
    assert len(rows) == 1 and rejected == 1


def test_annotations_grow_with_the_picture():
    word, face = Word((1, 2, 3, 4), "a", 0.1).scaled(2, 3), FACE.scaled(2, 3)
    assert word.box == (2, 6, 6, 12)
    np.testing.assert_array_equal(face.landmarks[1], (80, 60))


def test_both_pictures_are_aligned_by_the_same_landmarks():
    generator = np.random.default_rng(0)
    before = generator.integers(0, 256, (64, 64, 3), np.uint8)
    after, seen = np.roll(before, 1, axis=0), []

    def embedder(picture, landmarks):
        seen.append(landmarks)
        return moments(picture, landmarks)

    (row,), _ = score_face([before], [after], [[FACE]], embedder)
    np.testing.assert_array_equal(seen[0], seen[1])
    moved = dataclasses.replace(FACE, landmarks=FACE.landmarks + (0, 1))
    # Landmarks that follow the shift in one picture alone would find the same pixels again.
    followed = moments(after, moved.landmarks)
    assert row.scores["f_sim"] < 0.999 and np.array_equal(followed, moments(before, FACE.landmarks))


def test_faces_do_not_depend_on_the_scale_of_embeddings():
    generator = np.random.default_rng(0)
    pair = generator.integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = [
        score_face([pair[0]], [pair[1]], [[FACE]], lambda *a, s=scale: s * moments(*a))[0][0].scores["f_sim"]
        for scale in (1, 1000)
    ]
    assert found[0] == pytest.approx(found[1]) and -1 <= found[0] < 1


@pytest.mark.parametrize("strengths", [(1, 2, 4, 8)])
def test_scores_fall_with_downsampling_and_faster_where_digits_are_small(strengths):
    sample, edges, by_bin = page(), (0.02, 0.04, 0.06, 1), []
    for strength in strengths:
        after = codecs.build(f"downsample:{strength}")(sample.frames)
        rows, _ = score_text(after, sample.words, match)
        by_bin.append([b["t_acc"] for b in summarise(rows, edges)["bins"].values()])
    means = np.mean(by_bin, axis=1)
    assert means[0] == 1 and (np.diff(means) < 0).all()
    small, _, large = np.transpose(by_bin)
    assert small[1] < large[1] and small[2] < large[2]


def test_order_changes_nothing():
    sample = page()
    after = codecs.build("downsample:3")(sample.frames)
    rows, _ = score_text(after, sample.words, match)
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled, _ = score_text(after, [[sample.words[0][k] for k in order]], match)
    assert sorted(shuffled, key=lambda row: int(row.instance)) == rows
    edges = EDGES["text", "pictures"][256]
    assert summarise(shuffled, edges)["bins"] == summarise(rows, edges)["bins"]


def test_data_sets_are_pooled_before_binning():
    """The mean of the two data sets' own scores would be (1 + (0 + 0) / 2) / 2 = 0.5."""
    one = [Row("a", 0.025, {"t_ned": 1.0}, dataset="a")]
    two = [Row("b", 0.025, {"t_ned": 0.0}, dataset="b"), Row("c", 0.5, {"t_ned": 0.0}, dataset="b")]
    assert summarise(one + two, EDGES["text", "pictures"][256])["t_ned"] == 0.25


def test_a_constant_video_scores_as_its_frame():
    sample = page()
    video = np.repeat(codecs.build("downsample:3")(sample.frames), 5, axis=0)
    alone, _ = score_text(video[:1], sample.words, match)
    rows, _ = score_text(video, [*sample.words] * 5, match)
    found = by_instance(rows)
    assert len(rows) == 300 and len(found) == 60
    edges = EDGES["text", "pictures"][256]
    still = summarise(found, edges)
    assert still.pop("stability") == pytest.approx(1)
    assert still == summarise(by_instance(alone), edges)


def test_a_reading_that_changes_from_frame_to_frame_is_less_stable():
    rows = [Row("a", 0.1, {"t_acc": 0.0, "t_ned": value}) for value in (1.0, 0.0)]
    (found,) = by_instance(rows)
    assert found.scores == {"t_acc": 0, "t_ned": 0.5, "stability": 0.5}


def test_the_floor_of_faces():
    assert mismatched({"a": np.ones(3), "b": np.ones(3)}) == pytest.approx(1)  # a network that knows nobody
    assert mismatched({"a": np.array([1.0, 0]), "b": np.array([0.0, 1])}) == 0
    assert mismatched({"a": np.ones(3)}) is None


@pytest.mark.parametrize(("height", "width"), [(100, 200), (300, 90), (64, 64), (50, 33)])
def test_pictures_are_put_in_a_black_square_and_come_back(height, width):
    picture = np.full((1, height, width, 3), 200, np.uint8)
    given = fitted(picture, 64)
    assert given.frames.shape == (1, 64, 64, 3)
    top, left, high, wide = given.content
    assert max(high, wide) == 64 and abs(high / wide - height / width) < 2 / min(high, wide) * height / width
    assert (top, left) == ((64 - high) // 2, (64 - wide) // 2)
    inside = np.zeros((64, 64), bool)
    inside[top : top + high, left : left + wide] = True
    assert (given.frames[0][inside] == 200).all() and (given.frames[0][~inside] == 0).all()
    np.testing.assert_array_equal(given.restored(given.frames), picture)
    with pytest.raises(UserError, match="must have the shape"):
        given.restored(given.frames[:, 1:])


def test_videos_keep_their_shorter_side_and_are_padded_to_32():
    video = np.full((3, 48, 90, 3), 9, np.uint8)
    given = fitted(video, 64)
    assert given.frames.shape == (3, 64, 128, 3) and given.content == (0, 4, 64, 120)
    np.testing.assert_array_equal(given.restored(given.frames), video)


class Pages:
    """Two pictures and a video of two frames, with words and faces."""

    def __init__(self):
        one = dataclasses.replace(page(), faces=[[FACE]])
        other = dataclasses.replace(one, name="other.png", frames=255 - one.frames)
        clip = Sample("a.mp4", "clips", np.repeat(one.frames, 2, axis=0), one.words * 2, [[FACE]] * 2)
        self.samples = [one, other, clip]

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(self.samples)

    def describe(self):
        return {"name": "pages"}


def blurred(frames):
    return codecs.build("downsample:3")(frames)


def test_a_run_says_how_it_was_measured_and_gives_all_numbers():

    def distance(one, other):
        """Of pictures in [-1, 1]."""
        assert one.shape == other.shape and float(abs(one).max()) <= 1
        return abs(one - other).mean((1, 2, 3)) / 2

    by = Recognisers(match, moments, distance, hashes={"match": "0"})
    how, metrics, examples = run("tokbench.256.ppocrv6", Pages(), blurred, by)
    assert how["name"] == "tokbench.256.ppocrv6" and how["setting"] == 256 and how["recogniser"] == "ppocrv6"
    assert how["data"] == {"name": "pages"} and how["networks"] == {"match": "0"} and how["rejected_words"] == 0
    assert how["bins"]["text.pictures"] == [0.02, 0.03, 0.04, 1]
    text = metrics["text"]["pictures"]
    assert text["instances"] == 120 and 0 < text["t_ned"] < 1 and text["t_acc"] <= text["t_ned"]
    assert metrics["originals"]["videos"]["t_ned"] == 1 and metrics["text"]["videos"]["stability"] == pytest.approx(1)
    assert metrics["faces"]["pictures"]["instances"] == 2 and metrics["faces"]["videos"]["f_sim"] <= 1
    floor = metrics["faces"]["f_sim_of_mismatched"]
    expected = (metrics["faces"]["videos"]["f_sim"] - floor) / (1 - floor)
    assert metrics["faces"]["f_sim_above_floor_of_videos"] == pytest.approx(expected)
    assert 10 < metrics["psnr"] < 60 and 0 < metrics["ssim"] < 1
    samples = Pages().samples
    each = [np.abs(s.frames.astype(float) - blurred(s.frames)).mean() / 255 for s in samples]
    assert metrics["lpips"] == pytest.approx(np.mean(each), rel=1e-5)
    tiles, text, before, after = examples[0]
    assert tiles.shape == (2, 32, 160, 3) and text == before and len(examples) == 24


def test_only_words_that_the_reader_knows_count_in_a_cleaned_set(caplog):
    def reader(part):
        return match(part) if part.shape[0] > 8 else "?"

    by = Recognisers(reader)
    cleaned = run("tokbench.256.ppocrv6", Pages(), blurred, by, cleaned=True)[1]
    assert cleaned["originals"]["pictures"]["read_exactly"] == 80  # of two pages with twenty of each size
    assert cleaned["text"]["pictures"]["instances"] == 80
    assert not caplog.records
    whole = run("tokbench.256.ppocrv6", Pages(), blurred, by)[1]
    assert whole["text"]["pictures"]["instances"] == 120
    assert "originals (pictures) are read with a T-NED of 0.67" in caplog.text


def test_a_run_goes_on_where_it_stopped():
    stored, computed = {}, []

    def keep(name, compute):
        if name not in stored:
            computed.append(name)
            stored[name] = compute()
        return stored[name]

    by = Recognisers(match, moments)
    first = run("tokbench.256.ppocrv6", Pages(), blurred, by, keep=keep)[1]
    assert computed == ["sample_0", "sample_1", "sample_2"]
    assert run("tokbench.256.ppocrv6", Pages(), lambda frames: 0 / 0, by, keep=keep)[1] == first
    arrays = judged(Pages().samples[0], 256, blurred, by)
    assert all(array.dtype != object for array in arrays.values())


def test_protocols_name_their_reader():
    assert setting_of("tokbench.1024.ppocrv6") == (1024, "ppocrv6")
    assert len(tokbench_run.PROTOCOLS) == 3
    with pytest.raises(UserError, match="did you mean 'tokbench.256.ppocrv6'"):
        setting_of("tokbench.256.ppocr")

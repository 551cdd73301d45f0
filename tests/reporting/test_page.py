"""The report stands alone, holds the clips it was given, and shows text as text."""

import base64
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from ml_collections import ConfigDict

from videogen.data.video_io import read_video
from videogen.errors import UserError
from videogen.reporting import page as report
from videogen.reporting.page import Clips, Curves, Figures, Pairs, Section, Table, write_report
from videogen.reporting.run_page import write_run_report
from videogen.tasks import Picture

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Every tag is closed in order; collects attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def clips(count: int, frames: int = 5, height: int = 24, width: int = 32) -> list[np.ndarray]:
    """Smooth clips, so that encoding loses little."""
    ramp = np.linspace(0, 200, width)[None, None, :, None] + np.arange(frames)[:, None, None, None] * 5
    ramp = np.broadcast_to(ramp, (frames, height, width, 3))
    return [(ramp + 5 * i).astype(np.uint8) for i in range(count)]


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": s, "train/loss": 1 / s, "speed/videos_per_second": 3.0} for s in range(1, 200)]
    records.append({"step": 200, "eval/loss": 0.5, "eval/psnr": 21.5})
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 201, "tr')
    return path


def page(tmp_path, *blocks, title="A <title>", text="one\n\ntwo & three", commands=("a 'b' <c>",)):
    path = tmp_path / "deep" / "report.html"
    write_report(path, title, [Section("First <part>", text, blocks)], commands)
    content = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(content)
    assert checker.open == []
    return content, checker


def embedded(content: str, kind: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(f'src="data:{kind};base64,([^"]*)"', content)]


def test_nothing_is_fetched(tmp_path, metrics):
    blocks = Curves(metrics, ("loss", "psnr")), Clips(clips(2), ["a", "b"]), Pairs(clips(1), clips(1), ["c"])
    content, checker = page(tmp_path, *blocks)
    assert not re.search(r"<script|<link|@import|url\((?!#)", content)
    for _, name, value in checker.attributes:
        if name in ("src", "href", "xlink:href", "poster"):
            assert value.startswith(("data:", "#")), (name, value[:80])


def test_clips_are_embedded_whole_and_enlarged(tmp_path):
    videos = clips(3, frames=7)
    content, _ = page(tmp_path, Clips(videos, ["a", "b", "c"], fps=4.0))
    movies = embedded(content, "video/mp4")
    assert len(movies) == 3 and len(embedded(content, "image/png")) == 3
    for video, movie in zip(videos, movies, strict=True):
        file = tmp_path / "clip.mp4"
        file.write_bytes(movie)
        frames, fps = read_video(file)
        factor = frames.shape[1] // 24
        assert factor >= 4 and frames.shape == (7, 24 * factor, 32 * factor, 3) and fps == 4.0
        shown = frames[:, factor // 2 :: factor, factor // 2 :: factor].astype(float)
        assert np.abs(shown - video).mean() < 6


def test_original_and_reconstruction_play_in_one_clip(tmp_path):
    dark, bright = [np.zeros((3, 32, 32, 3), np.uint8)], [np.full((3, 32, 32, 3), 200, np.uint8)]
    content, _ = page(tmp_path, Pairs(dark, bright, ["c"]))
    file = tmp_path / "clip.mp4"
    file.write_bytes(embedded(content, "video/mp4")[0])
    frames, _ = read_video(file)
    half = frames.shape[2] // 2
    assert frames[:, :, : half - 16].mean() < 10 and abs(frames[:, :, half + 16 :].mean() - 200) < 10
    assert content.index("original") < content.index("reconstruction")


def test_the_strip_shows_first_and_last_frame(tmp_path):
    from matplotlib.image import imread

    video = np.zeros((9, 8, 8, 3), np.uint8)
    video[0, :, :, 0], video[-1, :, :, 1] = 255, 255
    content, _ = page(tmp_path, Clips([video], ["c"]))
    file = tmp_path / "strip.png"
    file.write_bytes(embedded(content, "image/png")[0])
    strip = imread(file)[..., :3]
    assert strip.shape[:2] == (8, 5 * 8 + 4)
    np.testing.assert_array_equal(strip[:, :8], np.broadcast_to([1.0, 0, 0], (8, 8, 3)))
    np.testing.assert_array_equal(strip[:, -8:], np.broadcast_to([0, 1.0, 0], (8, 8, 3)))


def test_verdicts_and_readings_stand_with_their_clip(tmp_path):
    verdicts = [("red circle", {"colour": True}), ("blue square", {"colour": False})]
    _, checker = page(tmp_path, Clips(clips(2), ["first", "second"], verdicts))
    text = " ".join(checker.text)
    places = [text.index(w) for w in ("first", "✓ colour", "red circle", "second", "✗ colour", "blue square")]
    assert places == sorted(places)


def test_text_is_escaped(tmp_path):
    blocks = (
        Clips(clips(1), ['<img src="http://x">'], [("<b>", {"<i>": True})]),
        Table(("<th>",), (("<td>", 1.23456),)),
        Figures([("<f>", "<g>", "<h>")]),
    )
    _, checker = page(tmp_path, *blocks)
    text = "".join(checker.text)
    given = ("A <title>", "First <part>", "a 'b' <c>", '<img src="http://x">', "<b>", "<i>", "<th>", "<td>")
    for shown in (*given, "<f>", "<g>", "<h>"):
        assert shown in text
    assert "1.235" in text and "two & three" in text


def test_curves_share_a_chart_by_metric_and_leave_out_what_was_not_logged(tmp_path, metrics):
    content, checker = page(tmp_path, Curves(metrics, ("loss", "psnr", "no_such_metric")))
    text = " ".join(checker.text)
    assert content.count("<svg") == 2
    for word in ("train/loss", "eval/loss", "eval/psnr", "PSNR (dB)", "step", "higher is better"):
        assert word in text
    assert "no such metric" not in text and "videos" not in text


def test_curves_are_drawn_in_the_page_colour(tmp_path, metrics):
    content, _ = page(tmp_path, Curves(metrics, ("loss",)))
    svg = content[content.index("<svg") : content.index("</svg>")]
    assert "currentColor" in svg and "#000000" not in svg


def test_missing_metrics_name_the_file(tmp_path):
    with pytest.raises(UserError, match="nothing.jsonl"):
        page(tmp_path, Curves(tmp_path / "nothing.jsonl", ("loss",)))


def test_a_failed_report_leaves_the_old_one(tmp_path):
    old, _ = page(tmp_path)
    with pytest.raises(UserError):
        page(tmp_path, Curves(tmp_path / "nothing.jsonl", ("loss",)))
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == old


def test_one_caption_per_clip(tmp_path):
    with pytest.raises(ValueError):
        page(tmp_path, Clips(clips(2), ["only one"]))


def run_report(tmp_path, metrics, picture: Picture, held_out, captions=()) -> str:
    (tmp_path / "metrics.jsonl").write_bytes(metrics.read_bytes())
    settings = {"clip": {"fps": 8.0}, "held_out": held_out}
    config = ConfigDict({"task": "generator", "steps": 9, "data": settings})
    write_run_report(epath.Path(tmp_path), config, [picture], captions)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_samples_are_called_so_and_show_their_prompts(tmp_path, metrics, monkeypatch):
    """They were labelled 'reconstruction', without a word of what was asked for, and no command was named."""
    picture = Picture("samples", list(zip(clips(2), clips(2), strict=True)), ["", ""], ("original", "sample"))
    monkeypatch.setattr(sys, "argv", ["launch/x.py", "--steps=3", "--prompt=a b"])
    page = run_report(tmp_path, metrics, picture, True, ["a red circle", "a blue square", "unused"])
    for shown in ("a red circle", "a blue square", "original<", "sample<", "Drawn for the captions of held-out clips"):
        assert shown in page
    assert "reconstruction" not in page and "unused" not in page
    assert "python launch/x.py --steps=3 &#x27;--prompt=a b&#x27;" in page


@pytest.mark.parametrize(("held_out", "words"), [(False, "clips of the training set"), (None, "of clips")])
def test_nothing_is_called_held_out_that_is_not(tmp_path, metrics, held_out, words):
    page = run_report(tmp_path, metrics, Picture("reconstructions", [tuple(clips(2))], ["x"]), held_out)
    assert words in page and "eld-out" not in page


def test_a_single_column_and_three_are_shown(tmp_path, metrics):
    assert "original<" not in run_report(tmp_path, metrics, Picture("samples", [(clips(1)[0],)], [""], ("s",)), True)
    columns = ("original", "given", "completed")
    page = run_report(tmp_path, metrics, Picture("tasks", [tuple(clips(3))], ["inpainting"], columns), True)
    places = [page.index(f"{word}<") for word in columns]
    assert places == sorted(places)


@pytest.mark.parametrize("values", [[0.3, 0.2], [1.123456, 1.123457], [123456.0, 9876543.0], [1e-5, 2e-7], [8200.0]])
def test_no_text_of_a_chart_is_cut_or_covers_another(values):
    """Titles ran into what good looks like, and long axis labels out of the picture."""
    steps = 1600.0 * np.arange(1, len(values) + 1)
    series = steps, np.array(values)
    figure = report.chart({"eval/deterministic_gradient_sharpness": series, "train/learning_rate": series})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in texts]
    ticks = [t for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for t in _outside(axis)]
    boxes = [box for text, box in zip(texts, boxes, strict=True) if text not in ticks]
    assert len(boxes) > 5
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def _outside(axis) -> list[Text]:
    """Labels of ticks beyond the view, which are not drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [label for place, label in ticks if not low <= place <= high]


def test_titles_and_units_are_text_of_the_page():
    for key, (title, unit, good) in report.METRICS.items():
        shown = report.chart_title(key)
        assert title in shown and unit in shown and good in shown

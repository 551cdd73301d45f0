"""GenEval's rule on constructed detections, and its six tasks on shapes."""

import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from videogen.data import Clip
from videogen.data.shapes_source import ShapesSource, parse, render
from videogen.errors import UserError
from videogen.evaluation import geneval, protocols
from videogen.evaluation.geneval import Detection, Prompt, Wanted, relations, shows

CUP, DOG = Detection("cup", (0, 0, 10, 10), colour="red"), Detection("dog", (30, 0, 50, 10), colour="brown")


def at(x, y, side=10.0, name="cup"):
    return Detection(name, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def test_objects_must_be_there_often_enough_and_confidently():
    prompt = Prompt("two_object", "", (Wanted("cup"), Wanted("dog")))
    assert shows(prompt, [CUP, DOG]) and not shows(prompt, [CUP, CUP])
    unsure = Detection("dog", confidence=0.3)
    assert not shows(prompt, [CUP, unsure]) and shows(prompt, [CUP, Detection("dog", confidence=0.31)])
    assert not shows(prompt, [])


def test_counting_is_exact_and_asks_for_more_confidence():
    prompt = Prompt("counting", "", (Wanted("cup", 2),), (Wanted("cup", 3),))
    assert [shows(prompt, [CUP] * n) for n in (1, 2, 3)] == [False, True, False]
    # A third one of which the detector is not sure does not count.
    assert shows(prompt, [CUP, CUP, Detection("cup", confidence=0.9)])
    assert shows(prompt, [CUP, CUP, DOG, DOG, DOG])


def test_colours_are_those_of_the_most_confident_objects():
    prompt = Prompt("colors", "", (Wanted("cup", colour="red"),))
    blue = Detection("cup", colour="blue", confidence=0.8)
    assert shows(prompt, [blue, CUP]) and not shows(prompt, [blue]) and not shows(prompt, [Detection("cup")])
    both = Prompt("color_attr", "", (Wanted("cup", colour="red"), Wanted("dog", colour="brown")))
    exchanged = [Detection("cup", colour="brown"), Detection("dog", colour="red")]
    assert shows(both, [CUP, DOG]) and not shows(both, exchanged)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((-20, 0), {"left of"}),
        ((20, 0), {"right of"}),
        ((0, -20), {"above"}),
        ((0, 20), {"below"}),
        # A tenth of both sides of 10 is 2: nearer than that there is no relation.
        ((1.9, 0), set()),
        ((0, 0), set()),
        # (20 - 2) of 28.3 each.
        ((20, 20), {"right of", "below"}),
        # (30 - 2) and (10 - 2) of 31.6: .89 and .25.
        ((30, -10), {"right of"}),
        # (3.9 - 2) of 3.9 is less than half.
        ((3.9, 0), set()),
        ((4.1, 0), {"right of"}),
    ],
)
def test_relations_of_boxes(place, expected):
    assert relations(at(*place), at(0, 0)) == expected


def test_positions_are_from_the_objects_of_an_earlier_entry():
    prompt = Prompt("position", "", (Wanted("dog"), Wanted("cup", position=("left of", 0))))
    assert shows(prompt, [at(0, 0), at(50, 0, name="dog")]) and not shows(prompt, [at(50, 0), at(0, 0, name="dog")])


def test_the_score_is_the_mean_of_the_tasks_and_what_is_missing_is_wrong():
    prompts = [Prompt(task, "", ()) for task in geneval.TASKS] + [Prompt("counting", "", ())]
    verdicts = [[True] * 4, [True, True, False, None], [False] * 4, [True] * 4, [None] * 4, [True] * 4, [True] * 4]
    found = geneval.summed(prompts, verdicts)
    shares = {"single_object": 1.0, "two_object": 0.5, "counting": 0.5, "colors": 1.0, "position": 0.0}
    assert found["geneval"] == {**shares, "color_attr": 1.0, "score": pytest.approx(4 / 6)}
    assert found["pictures"]["two_object"] == "3 / 4" and found["pictures"]["position"] == "0 / 4"
    assert found["pictures"]["counting"] == "8 / 8"
    # Without a task there is no score of all.
    assert "score" not in geneval.summed(prompts[:3], verdicts[:3])["geneval"]


@pytest.fixture
def published(tmp_path):
    """Two prompts in the published form, with pictures as the published code writes them."""
    lines = [
        {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"},
        {
            "tag": "position",
            "include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}],
            "prompt": "a photo of a cup left of a dog",
        },
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, levels in enumerate([(10, 10, 10, 99, 10), (20, 10)]):
        folder = tmp_path / f"{number:05}" / "samples"
        folder.mkdir(parents=True)
        for i, level in enumerate(levels):
            Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{i:04}.png")
    (tmp_path / "00000" / "samples" / "0001.png").write_bytes(b"broken")
    return tmp_path


def test_a_folder_of_pictures_is_scored_with_a_detector(published):
    seen = {10: [at(0, 0)], 20: [at(0, 0), at(50, 0, name="dog")], 99: []}
    prompts = geneval.read_prompts(published / "prompts.jsonl")
    assert prompts[1].include[1] == Wanted("cup", position=("left of", 0))
    found = geneval.score_folder(prompts, published, lambda picture: seen[int(picture[0, 0, 0])])
    # Of four: one broken, one without a cup. The fifth picture does not count. Of the second prompt two are missing.
    assert found["geneval"] == {"single_object": 0.5, "position": 0.25}
    assert found["pictures"] == {"single_object": "3 / 4", "position": "2 / 4"}
    with pytest.raises(UserError, match="is no folder of pictures"):
        geneval.score_folder(prompts, published / "nowhere", lambda picture: [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is no prompt"),
        ('{"tag": "colours", "prompt": "", "include": []}', "unknown task 'colours'; did you mean 'colors'"),
        (
            '{"tag": "position", "prompt": "", "include": [{"class": "a", "count": 1, "position": ["above", 0]}]}',
            "earlier",
        ),
        ('{"tag": "colors", "prompt": "", "include": [{"count": 1}]}', "'class'"),
    ],
)
def test_lines_that_are_no_prompts_are_named(tmp_path, line, message):
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        geneval.read_prompts(tmp_path / "prompts.jsonl")


@pytest.fixture(scope="module")
def scenes():
    """Captions and clips with one shape and with two."""
    sources = [ShapesSource(clip=Clip(5, 32, 32), seed=1, split="eval", second_shape=share) for share in (0.0, 1.0)]
    samples = [[source[i] for i in range(24)] for source in sources]
    return {sample["caption"]: sample["video"] for half in samples for sample in half}


def test_rendered_prompts_of_shapes_have_every_task_right(scenes):
    ones, twos = ([c for c in scenes if len(parse(c)["shapes"]) == n] for n in (1, 2))
    prompts = geneval.shapes_prompts(ones, twos, 24)
    assert {task: sum(p.tag == task for p in prompts) for task in geneval.TASKS} == dict.fromkeys(geneval.TASKS, 4)
    counted = [parse(p.text)["shapes"] for p in prompts if p.tag == "counting"]
    assert sorted(map(len, counted)) == [1, 1, 2, 2]
    right = [[shows(prompt, geneval.shapes_seen(scenes[prompt.text]))] for prompt in prompts]
    assert geneval.summed(prompts, right)["geneval"]["score"] == 1.0
    # Clips without shapes have every task wrong, and those of other prompts some.
    empty = np.full((5, 32, 32, 3), 120, np.uint8)
    wrong = [[shows(prompt, geneval.shapes_seen(empty))] for prompt in prompts]
    assert geneval.summed(prompts, wrong)["geneval"] == dict.fromkeys((*geneval.TASKS, "score"), 0.0)


@pytest.mark.parametrize(
    ("task", "clip", "expected"),
    [
        ("single_object", [Detection("circle", colour="blue", moves="up"), Detection("shape")], True),
        ("single_object", [Detection("cross", colour="red", moves="left"), Detection("shape")], False),
        ("colors", [Detection("circle", colour="red", moves="up"), Detection("shape")], True),
        ("colors", [Detection("circle", colour="blue", moves="left"), Detection("shape")], False),
        ("position", [Detection("circle", colour="blue", moves="left"), Detection("shape")], True),
        ("position", [Detection("circle", colour="red", moves="up"), Detection("shape")], False),
        ("counting", [Detection("cross"), Detection("shape")], True),
        ("counting", [Detection("circle"), *[Detection("shape")] * 2], False),
    ],
)
def test_each_task_of_shapes_asks_for_one_thing(task, clip, expected):
    caption = "a large red circle moves left quickly on a dark striped background"
    two = "a large red circle moves left quickly and a small blue cross moves up slowly on a dark striped background"
    prompt = next(
        p for p in geneval.shapes_prompts([caption] * 7, [two] * 5, 12) if p.tag == task and p.text == caption
    )
    assert shows(prompt, clip) is expected


def test_prompts_of_shapes_are_a_multiple_of_twelve_and_of_two_forms(scenes):
    ones, twos = ([c for c in scenes if len(parse(c)["shapes"]) == n] for n in (1, 2))
    with pytest.raises(UserError, match="takes at least 12 prompts, or a multiple of it, got 128"):
        geneval.shapes_prompts(ones, twos, 128)
    with pytest.raises(UserError, match="36 prompts need 21 captions of a kind, and there are 7"):
        geneval.shapes_prompts(ones[:7], twos, 36)
    alike = [c for c in twos if len({s["form"] for s in parse(c)["shapes"]}) == 1]
    assert alike and not {p.text for p in geneval.shapes_prompts(ones, twos, 24)} & set(alike)


def test_the_protocol_asks_a_generator_for_unseen_prompts_of_every_task(monkeypatch):
    """A generator that draws what it is asked for has all right; one that draws something else, not."""
    settings = {"source": {"name": "shapes"}, "clip": {"frames": 5, "height": 32, "width": 32, "fps": 8.0}}
    loaded = types.SimpleNamespace(config=ConfigDict({"data": settings, "seed": 0}))
    place = ShapesSource(clip=Clip(5, 32, 32), seed=0, split="eval")
    monkeypatch.setattr(protocols, "encode_prompts", lambda loaded, prompts: prompts)

    def perfect(evaluation, prompts):
        assert evaluation.count == len(prompts) == 24
        scenes = [parse(prompt) for prompt in prompts]
        for i, scene in enumerate(scenes):
            while not place._place(scene["shapes"], np.random.default_rng(i)):
                i += 1000
        return np.stack([render(scene, place.clip) for scene in scenes])

    monkeypatch.setattr(protocols, "_samples", perfect)
    # 35 prompts are 24 and some that tasks cannot share.
    found, _ = protocols.geneval_of_shapes(protocols.Evaluation(loaded, 35, 0))
    assert found["geneval"] == dict.fromkeys((*geneval.TASKS, "score"), 1.0) and found["prompts"] == 24
    assert found["pictures"] == dict.fromkeys(geneval.TASKS, "4 / 4")
    monkeypatch.setattr(protocols, "_samples", lambda *asked: perfect(*asked)[::-1])
    found, _ = protocols.geneval_of_shapes(protocols.Evaluation(loaded, 24, 0))
    assert 0 < found["geneval"]["score"] < 0.9
    loaded.config.data.source.name = "video_folder"
    with pytest.raises(UserError, match="geneval.shapes needs a generator trained on shapes, not on video_folder"):
        protocols.geneval_of_shapes(protocols.Evaluation(loaded, 24, 0))

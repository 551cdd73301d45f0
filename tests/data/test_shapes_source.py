import hashlib
import itertools

import numpy as np
import pytest

from videogen.data import texts_of
from videogen.data.clip import Clip
from videogen.data.shapes_source import (
    COLOURS,
    DIRECTIONS,
    FORMS,
    RADII,
    TEXTURES,
    TONES,
    TRAVEL,
    ShapesSource,
    background,
    caption,
    form_mask,
    held_out_together,
    parse,
    path,
    radius_of,
    render,
)
from videogen.errors import UserError

CLIP = Clip(9, 32, 32)


def source(clip=CLIP, seed=0, split="train", **settings):
    return ShapesSource(clip=clip, seed=seed, split=split, **settings)


def test_sample_depends_on_seed_and_index_only():
    first, again, other = source(), source(), source(seed=1)
    order = [5, 0, 3]
    for i in order:
        np.testing.assert_array_equal(first[i]["video"], again[i]["video"])
        assert first.caption(i) == first[i]["caption"] == again[i]["caption"]
    assert any(first[i]["caption"] != other[i]["caption"] for i in order)
    np.testing.assert_array_equal(
        first.sample(4, np.random.default_rng(0))["video"], first.sample(4, np.random.default_rng(1))["video"]
    )


def test_fields():
    sample = source(clip=Clip(5, 24, 32, fps=6.0))[0]
    assert sample["video"].shape == (5, 24, 32, 3) and sample["video"].dtype == np.uint8
    assert sample["fps"] == 6.0
    shape = sample["attributes"]["shapes"][0]
    assert ShapesSource.classes[sample["label"]] == f"{shape['colour']} {shape['form']}"


def test_captions_parse_back_to_their_attributes():
    mixed = source(second_shape=0.5, turn=0.5)
    for i in range(200):
        scene = mixed[i]["attributes"]
        text = caption(scene)
        parsed = parse(text)
        assert caption(parsed) == text
        assert text == text.lower()
        for told, true in zip(parsed["shapes"], scene["shapes"], strict=True):
            assert told == {key: true[key] for key in told}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog runs",
        "a large red circle moves left quickly",
        "a huge red circle moves left quickly on a dark plain background",
        "a large red circle moves left quickly on a dark plain background.",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(UserError, match="no caption of the shapes source"):
        parse(text)


def test_splits_share_no_caption_and_one_in_eight_is_held_out():
    train = {source(seed=s).caption(i) for s in range(2) for i in range(1500)}
    held_out = {source(seed=s, split="eval").caption(i) for s in range(2) for i in range(1500)}
    assert not train & held_out
    assert all(hashlib.sha256(text.encode()).digest()[0] % 8 == 0 for text in held_out)
    sizes, colours, forms, ways, speeds = 3, 6, 4, 4, 2
    total = sizes * colours * forms * ways * speeds * 9
    assert len(held_out) == pytest.approx(total * 7 / 8 / 8, rel=0.1)


def triples(text: str) -> set[tuple[str, str, str]]:
    return {(s["colour"], s["form"], way) for s in parse(text)["shapes"] for way in s["directions"]}


def test_held_out_triples_of_colour_form_and_direction_occur_in_no_other_split():
    settings = dict(second_shape=0.3, turn=0.3)
    train, held_out, new = (
        [source(seed=seed, split=split, **settings).caption(i) for seed in range(2) for i in range(1500)]
        for split in ("train", "eval", "composition")
    )
    seen, unseen = set().union(*map(triples, train)), set().union(*map(triples, held_out))
    apart = {triple for triple in itertools.product(COLOURS, FORMS, DIRECTIONS) if held_out_together(*triple)}
    assert len(apart) == 12 and seen == unseen == set(itertools.product(COLOURS, FORMS, DIRECTIONS)) - apart
    assert all(triples(text) & apart for text in new) and apart <= set().union(*map(triples, new))
    # Every two of the three occur together in training: what is new is their union.
    for places in ((0, 1), (0, 2), (1, 2)):
        assert {tuple(t[i] for i in places) for t in apart} <= {tuple(t[i] for i in places) for t in seen}
    # Held out evenly: two triples of each colour, three of each form and direction.
    for place, count in ((0, 2), (1, 3), (2, 3)):
        assert {sum(t[place] == word for t in apart) for word in {t[place] for t in apart}} == {count}


@pytest.mark.parametrize("split", ["train", "eval", "composition"])
@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_the_number_of_captions_of_a_split_is_known(split, turn):
    made = {source(split=split, turn=turn).caption(i) for i in range(300)}
    listed = list(source(split=split, turn=turn).captions())
    assert made <= set(listed) and len(listed) == len(set(listed))
    splits = [set(source(split=s, turn=turn).captions()) for s in ("train", "eval", "composition")]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 5184 * (3 if turn else 1)


def test_probabilities_of_second_shape_and_turn():
    scenes = [source(second_shape=0.3, turn=0.6)[i]["attributes"]["shapes"] for i in range(400)]
    assert np.mean([len(s) == 2 for s in scenes]) == pytest.approx(0.3, abs=0.08)
    assert np.mean([len(s[0]["directions"]) == 2 for s in scenes]) == pytest.approx(0.6, abs=0.08)
    assert all(len(s["shapes"]) == 1 for s in (source()[i]["attributes"] for i in range(50)))
    for shapes in scenes:
        assert len({s["colour"] for s in shapes}) == len(shapes)
        for shape in shapes:
            assert len(set(shape["directions"])) == len(shape["directions"])
    with pytest.raises(UserError, match="probability"):
        source(turn=1.5)


@pytest.mark.parametrize("clip", [CLIP, Clip(17, 64, 48), Clip(33, 32, 64)])
def test_shapes_stay_inside_and_apart(clip):
    mixed = source(clip=clip, second_shape=0.7, turn=0.5)
    unit = min(clip.height, clip.width)
    for i in range(60):
        masks, shapes = [], mixed[i]["attributes"]["shapes"]
        for shape in shapes:
            centres = np.array(shape["start"]) + path(shape, np.linspace(0, 1, clip.frames))
            mask = form_mask(shape["form"], centres, radius_of(shape["size"], len(shapes)), clip.height, clip.width)
            areas = mask.sum((1, 2))
            assert areas.min() > 0.95 * areas.max() > 0.02 * unit**2
            masks.append(mask > 0)
        assert len(masks) == 1 or not (masks[0] & masks[1]).any()


def test_motion_is_the_same_at_every_frame_rate_and_resolution():
    scene = source(turn=1.0)[3]["attributes"]
    short, long = render(scene, Clip(9, 32, 32)), render(scene, Clip(17, 32, 32))
    np.testing.assert_array_equal(short, long[::2])
    large = render(scene, Clip(9, 128, 128)).reshape(9, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(large - short).mean() < 2.5


def test_total_displacement_and_visible_speeds():
    for speed, travel in (("slowly", 0.2), ("quickly", 0.35)):
        for direction, axis, sign in (("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)):
            offsets = path({"directions": [direction], "speed": speed}, np.linspace(0, 1, 9))
            assert offsets[-1, axis] == pytest.approx(sign * travel) and not offsets[:, 1 - axis].any()


def test_forms_are_smooth_and_different():
    centre = np.full((1, 2), 0.5)
    masks = {form: form_mask(form, centre, 0.3, 64, 64)[0] for form in FORMS}
    for form, mask in masks.items():
        assert mask.min() == 0 and mask.max() == 1
        assert ((mask > 0) & (mask < 1)).any(), form
        moved = form_mask(form, centre + [[0, 1 / 64]], 0.3, 64, 64)[0]
        np.testing.assert_allclose(np.roll(mask, 1, axis=1), moved, atol=1e-4)
    for a, b in itertools.combinations(FORMS, 2):
        assert np.abs(masks[a] - masks[b]).sum() > 0.1 * masks[a].sum()


def test_backgrounds_are_grey_and_below_the_shapes_saturation():
    for i in range(30):
        sample = source()[i]
        video = sample["video"].astype(int)
        saturation = video.max(-1) - video.min(-1)
        shape = sample["attributes"]["shapes"][0]
        progress = np.linspace(0, 1, CLIP.frames)
        centres = np.array(shape["start"]) + path(shape, progress)
        mask = form_mask(shape["form"], centres, radius_of(shape["size"], 1), 32, 32)
        assert saturation[mask == 0].max() == 0
        assert saturation[mask == 1].min() > 100


def test_the_numbers_that_the_data_set_is_made_of():
    """Whoever changes one makes another data set, on which measured numbers no longer hold."""
    assert COLOURS == {
        "red": (225, 40, 40),
        "yellow": (235, 215, 40),
        "green": (35, 170, 60),
        "cyan": (40, 205, 220),
        "blue": (45, 75, 230),
        "purple": (165, 50, 205),
    }
    assert RADII == {"small": 0.2, "medium": 0.25, "large": 0.3} and TRAVEL == {"slowly": 0.2, "quickly": 0.35}
    assert TONES == {"dark": 45, "grey": 120, "pale": 205} and TEXTURES == ("plain", "gradient", "striped")
    assert [radius_of("large", count) for count in (1, 2)] == [0.3, 0.75 * 0.3]
    # Contrast of the textures, in grey levels, and the pixels of a shape's inside.
    for texture, least, most in (("plain", 120, 120), ("gradient", 98, 142), ("striped", 98, 142)):
        shades = background({"tone": "grey", "texture": texture}, 240, 240)
        np.testing.assert_allclose([shades.min(), shades.max()], [least, most], atol=0.4)


def test_held_out_shapes_are_none_of_training_and_captions_name_all_there_is_to_see():
    source = ShapesSource(clip=Clip(2, 16, 16), seed=0, split="eval")
    assert source.keeps_apart is True and source.judged is True and source.field == "video"
    assert source.fields == {"video": ((2, 16, 16, 3), np.uint8)}
    assert source[0]["video"].shape == source.fields["video"][0]


def test_a_colour_may_be_left_out():
    source = ShapesSource(clip=Clip(1, 8, 8), seed=0, split="train", second_shape=0.5, without="purple")
    scenes = [parse(source.caption(i)) for i in range(300)]
    assert {s["colour"] for scene in scenes for s in scene["shapes"]} == set(COLOURS) - {"purple"}
    alone = ShapesSource(clip=Clip(1, 8, 8), seed=0, split="eval", without="red")
    every = ShapesSource(clip=Clip(1, 8, 8), seed=0, split="eval")
    assert set(alone.captions()) == {text for text in every.captions() if " red " not in text}
    with pytest.raises(UserError, match="unknown colour 'violet'"):
        ShapesSource(clip=Clip(1, 8, 8), seed=0, split="train", without="violet")


def test_a_second_text_says_less_in_other_words():
    source = ShapesSource(clip=Clip(1, 8, 8), seed=0, split="train", second_shape=0.5, turn=0.5, subtitle=True)
    assert source.texts == ("caption", "subtitle")
    for i in range(20):
        said, shapes = source[i]["subtitle"], source[i]["attributes"]["shapes"]
        expected = [f"the {s['colour']} {s['form']} goes {' and '.join(s['directions'])}" for s in shapes]
        assert said == "look, " + ", ".join(expected)
        assert source.texts_at(i) == [source.caption(i), said]
    plain = ShapesSource(clip=Clip(1, 8, 8), seed=0, split="train", second_shape=0.5, turn=0.5)
    assert plain.texts == ("caption",) and "subtitle" not in plain[0] and plain.texts_at(0) == [plain.caption(0)]
    np.testing.assert_array_equal(plain[3]["video"], source[3]["video"])
    assert texts_of({"name": "shapes", "subtitle": True}) == source.texts
    assert texts_of({"name": "shapes"}) == texts_of({"name": "shapes", "subtitle": None}) == ("caption",)

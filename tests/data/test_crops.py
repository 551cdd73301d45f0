"""Two centre crops that published numbers were made with: sizes and places by the published rules."""

import numpy as np
import pytest
from PIL import Image

from videogen.data.clip import Clip
from videogen.data.crops import CROPS, adm, centre_crop, torchvision
from videogen.data.video_folder import VideoFolderSource
from videogen.errors import UserError

RNG = np.random.default_rng(0)


def test_the_two_rules_give_other_sizes_and_places():
    """Case 9, pictures of width × height 640 × 513 and 500 × 334 at 256 pixels."""
    assert adm(513, 640, 256)[0] == [(256, 320), (256, 320)] and torchvision(513, 640, 256)[0] == [(256, 319)]
    assert adm(334, 500, 256)[1] == (0, 63) and torchvision(334, 500, 256)[1] == (0, 64)
    # The fraction of the longer side is cut off, and rounded: 385.54.
    assert torchvision(332, 500, 256)[0] == [(256, 385)] and adm(332, 500, 256)[0] == [(256, 386)]
    # And turned.
    assert adm(500, 334, 256)[1] == (63, 0) and torchvision(640, 513, 256)[0] == [(319, 256)]


def test_pixels_are_those_of_the_published_operations():
    picture = RNG.integers(0, 255, (60, 90, 3)).astype(np.uint8)
    image = Image.fromarray(picture)
    halved = image.resize((45, 30), Image.Resampling.BOX).resize((36, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(centre_crop(picture, 24, "adm"), np.asarray(halved)[:, 6:30])
    once = image.resize((36, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(centre_crop(picture, 24, "torchvision"), np.asarray(once)[:, 6:30])


@pytest.mark.parametrize("rule", CROPS)
@pytest.mark.parametrize("shape", [(16, 16), (16, 17), (33, 32), (7, 5)])
def test_every_picture_becomes_a_square(rule, shape):
    picture = RNG.integers(0, 255, (*shape, 3)).astype(np.uint8)
    assert centre_crop(picture, 16, rule).shape == (16, 16, 3)
    if shape == (16, 16):
        np.testing.assert_array_equal(centre_crop(picture, 16, rule), picture)


def test_a_source_takes_the_rule_that_its_clip_names(tmp_path):
    picture = RNG.integers(0, 255, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for rule in CROPS:
        source = VideoFolderSource(clip=Clip(1, 24, 24, crop=rule), seed=0, split="train", path=str(tmp_path))
        np.testing.assert_array_equal(source[0]["video"][0], centre_crop(picture, 24, rule))
    for size in ((2, 24, 24), (1, 24, 16)):
        with pytest.raises(UserError, match="the crop 'adm' is one of square pictures"):
            Clip(*size, crop="adm")
    with pytest.raises(UserError, match="did you mean 'centre'"):
        Clip(1, 8, 8, crop="center")
    with pytest.raises(UserError, match="unknown window 'last'"):
        Clip(1, 8, 8, window="last")


@pytest.mark.parametrize(("window", "split"), [("first", "train"), ("centre", "train"), ("random", "eval")])
def test_windows_and_crops_by_name_do_not_ask_for_the_split(window, split, tmp_path):
    spare = 10
    clip = Clip(2, 8, 8, window=window, crop="centre")
    starts = {clip.start_frame(spare, np.random.default_rng(i)) for i in range(40)}
    assert starts == {"first": {0}, "centre": {5}, "random": set(range(11))}[window]
    times = {clip.start(1.0, 3.0, np.random.default_rng(i)) for i in range(40)}
    assert {"first": times == {1.0}, "centre": times == {2.0}, "random": len(times) == 40}[window]
    wide = np.zeros((2, 8, 32, 3), np.uint8)
    wide[:, :, 12:20] = 200
    assert (clip.fit(wide, np.random.default_rng(0)) == 200).all()
    Image.fromarray(wide[0]).save(tmp_path / "a.png")
    source = VideoFolderSource(clip=Clip(1, 8, 8, window=window), seed=0, split=split, path=str(tmp_path))
    assert (source.choice("rng") is None) == (split == "eval" and window != "random")

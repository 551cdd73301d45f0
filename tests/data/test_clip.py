import numpy as np
import pytest

from videogen.data.clip import Clip, resize
from videogen.errors import UserError


@pytest.mark.parametrize("size", [(97, 131), (64, 64), (20, 300), (300, 20), (32, 48)])
def test_fit_gives_exactly_the_clip_from_any_size(size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    for rng in (None, np.random.default_rng(1)):
        assert Clip(2, 32, 48).fit(frames, rng).shape == (2, 32, 48, 3)


def test_cover_keeps_the_aspect_and_just_covers():
    for size in ((97, 131), (1080, 1920), (33, 2000)):
        height, width = Clip(1, 32, 48).cover(*size)
        assert height >= 32 and width >= 48 and (height == 32 or width == 48)
        assert height / width == pytest.approx(size[0] / size[1], rel=0.03)


def test_central_and_random_crops():
    frames = np.arange(10, dtype=np.uint8)[None, :, None, None].repeat(3, -1).repeat(4, 2)
    clip = Clip(1, 4, 4)
    np.testing.assert_array_equal(clip.fit(frames, None)[0, :, 0, 0], [3, 4, 5, 6])
    tops = {int(clip.fit(frames, np.random.default_rng(i))[0, 0, 0, 0]) for i in range(100)}
    assert tops == set(range(7))


def test_resize_keeps_brightness_and_does_not_alias():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 200
    small = resize(stripes, 16, 16)
    assert small.std() < 2 and abs(small.mean() - 100) < 2
    flat = np.full((1, 10, 14, 3), 77, np.uint8)
    assert np.abs(resize(flat, 33, 47).astype(int) - 77).max() <= 1


@pytest.mark.parametrize("values", [(0, 8, 8, None), (1, 0, 8, None), (1, 8, 8, 0.0), (1, 8, 8, -1.0)])
def test_impossible_clips_are_refused(values):
    with pytest.raises(UserError, match="clip"):
        Clip(*values)

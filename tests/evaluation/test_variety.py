"""How much samples of one prompt differ."""

import numpy as np
import pytest

from videogen.evaluation.variety import MEASURE, OF_EACH, distance_within, same_caption, within_prompts


class Captioned:
    """Clips of one grey level each, whose captions go round."""

    def __init__(self, captions, length):
        self.captions, self.length = captions, length

    def __len__(self):
        return self.length

    def caption(self, index):
        return self.captions[index % len(self.captions)]

    def __getitem__(self, index):
        return {"video": np.full((2, 4, 4, 3), 51 * (index % 5), np.uint8)}


def test_the_distance_is_the_mean_over_pairs_and_then_groups():
    black, white, grey = (np.full((1, 2, 2, 3), level, np.uint8) for level in (0, 255, 51))
    # Pairs: 1, 0.2 and 0.8; and of a group of equal clips 0.
    assert distance_within([np.stack([black, white, grey]), np.stack([black, black])]) == pytest.approx((2.0 / 3) / 2)


def test_only_captions_with_several_clips_count():
    source = Captioned(["a", "b", "c"], 8)
    assert same_caption(source, ["a", "b", "missing"]) == {"a": [0, 3, 6], "b": [1, 4, 7]}
    assert same_caption(Captioned(["a", "b"], 3), ["a", "b"]) == {"a": [0, 2]}
    assert len(same_caption(Captioned(["a"], 100), ["a"])["a"]) == OF_EACH


def test_samples_stand_beside_real_clips_of_the_same_prompts():
    source, asked = Captioned(["a", "b"], 8), []

    def draw(prompts):
        asked.extend(prompts)
        return np.stack([np.full((2, 4, 4, 3), 255 * (i % 2), np.uint8) for i in range(len(prompts))])

    found = within_prompts(source, ["a", "b"], draw)[MEASURE]
    assert asked == ["a"] * OF_EACH + ["b"] * OF_EACH
    # Of four samples, two black and two white, four of six pairs differ.
    assert found["samples"] == pytest.approx(4 / 6)
    # Clips 0, 2, 4, 6 have levels 0, .4, .8, .2, and 1, 3, 5, 7 have .2, .6, 0, .4.
    of_a = np.mean([0.4, 0.8, 0.2, 0.4, 0.2, 0.6])
    of_b = np.mean([0.4, 0.2, 0.2, 0.6, 0.2, 0.4])
    assert found["real"] == pytest.approx((of_a + of_b) / 2)


def test_nothing_is_said_where_no_prompt_has_two_real_clips():
    assert within_prompts(Captioned(["a"], 1), ["a", "z"], lambda prompts: pytest.fail("nothing to draw")) == {}

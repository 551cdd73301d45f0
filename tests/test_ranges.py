"""What settings may be: the ends of every range, and values that Python takes for numbers and users do not."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import pytest
from ml_collections import ConfigDict

from videogen.building import build, check_value
from videogen.errors import UserError
from videogen.ranges import Count, Decay, Natural, Number, OneOf, Positive, Share, Weight

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("declared", "good", "bad", "words"),
    [
        (int, [-3, 0, 2**40], [1.0, "1", True, None, NAN], "a whole number"),
        (float, [-1, 0.5, INFINITE], ["0.5", False, None, NAN], "a number"),
        (Count, [1, 7], [0, -1, 1.5, True], "a whole number of at least 1"),
        (Natural, [0, 7], [-1, 0.5, False], "a whole number of at least 0"),
        (Share, [0, 0.5, 1, 1.0], [-0.1, 1.1, NAN], "a number of at least 0 and at most 1"),
        (Decay, [0, 0.999], [1, 1.0, -0.1], "a number of at least 0 and below 1"),
        (Positive, [0.1, 3], [0, 0.0, -1, NAN], "a number above 0"),
        (Weight, [0, 2.5], [-1, NAN, "1"], "a number of at least 0"),
        (Annotated[int, Number(int, -1, 4)], [-1, 4], [-2, 5], "a whole number of at least -1 and at most 4"),
        (bool, [True, False], [0, 1, "True", None], "True or False"),
        (str, ["", "a"], [0, None, ("a",)], "a word"),
        (int | None, [None, 3], [1.5, "3"], "a whole number"),
        (Count | None, [None, 3], [0, "3"], "a whole number of at least 1"),
        (int | tuple[int, int], [3, (1, 2), [1, 2]], [1.5, "3"], "a whole number"),
        (Sequence[int], [(), (1, 2), [3]], [3, "12", None, {"a": 1}], "a sequence such as \\(1, 2\\)"),
        (Sequence[Count], [(1,), [3]], [(1, 0)], "entry 1, must be a whole number of at least 1"),
        (tuple[int, float], [(1, 2.5), [1, 2]], [(1,), (1, 2, 3)], "must have 2 entries"),
        (tuple[int, ...], [(), (1, 2, 3)], [(1, "a")], "entry 1, must be a whole number"),
        (Sequence, [(), ("a", 1)], [3, "ab"], "a sequence"),
        (Mapping[str, int], [{}, {"a": 1}, ConfigDict({"a": 1})], [3, (1, 2)], "a section with keys of its own"),
        (Annotated[str, OneOf("max", "min")], ["max", "min"], ["mx", 3, None], "unknown setting .*; (did you|known)"),
    ],
)
def test_ends_of_ranges_and_wrong_types(declared, good, bad, words):
    for value in good:
        check_value("setting", declared, value)
    for value in bad:
        with pytest.raises(UserError, match=words):
            check_value("setting", declared, value)


def test_annotations_of_other_kinds_take_any_value():
    for declared in (object, "Float[Array, 'a']", list[object] | None):
        check_value("setting", declared, None)


def test_messages_show_values_in_one_short_line():
    with pytest.raises(UserError) as refusal:
        check_value("width", Count, ConfigDict({"a": 1, "b": {"c": "d" * 200}}))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 150


def test_parts_are_checked_by_their_signatures():
    class Part:
        def __init__(self, width: Count, *, rate: Share = 0.5, rngs=None):
            self.width = width

    assert build({"part": Part}, {"name": "part", "width": 3}, "thing", rngs="any").width == 3
    with pytest.raises(UserError, match="^width of thing 'part' must be a whole number of at least 1, got 0$"):
        build({"part": Part}, {"name": "part", "width": 0}, "thing")
    with pytest.raises(UserError, match="^rate of thing 'part' must be a number of at least 0 and at most 1, got 2$"):
        build({"part": Part}, {"name": "part", "width": 1, "rate": 2}, "thing")

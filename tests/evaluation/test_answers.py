"""Reading answers without guessing, and counting them."""

import itertools
import math

import pytest

from videogen.errors import UserError
from videogen.evaluation.answers import (
    ALL,
    LETTERS,
    Reply,
    as_record,
    character_error_rate,
    choice_reply,
    exact_match,
    likeliest,
    normalised,
    read_choice,
    score,
    token_f1,
    word_error_rate,
)

OPTIONS = ("up", "left", "right", "red")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The shape moves left, so (B)", 1),
        ("Because it is red", None),
        ("I cannot tell", None),
        ("(B) … no, (C)", 2),
        ("(B) no, (Z)", 1),
        ("B", 1),
        ("b", 1),
        ("B.", 1),
        ("B) left", 1),
        ("**B**", 1),
        ("B: left", 1),
        ("B: red", None),
        ("It turns.\nB", 1),
        ("Answer: B", 1),
        ("The answer is B because it moves.", 1),
        ("The answer is A.", 0),
        ("The answer is A red shape", None),
        ("option C, I think", 2),
        ("red", 3),
        ("Red.", 3),
        ("The answer is red", 3),
        ("(d) red", 3),
        ("A red circle moves left", None),
        ("Both A and B", None),
        ("(E)", None),
        ("E", None),
        ("", None),
        ("ｌｅｆｔ", 1),
    ],
)
def test_the_last_stated_option_is_read_and_nothing_is_guessed(text, expected):
    assert read_choice(text, OPTIONS) == expected


def test_a_word_is_no_option_however_many_options_there_are():
    assert read_choice("I cannot tell", LETTERS) is None
    assert read_choice("The answer is I think unknown", [f"option {i} x" for i in range(12)]) is None


@pytest.mark.parametrize(
    "say", ["({letter}) is it", "{text}", "I think first of (A), but no: ({letter})", "{letter}. {text}"]
)
def test_permuting_the_options_permutes_the_result(say):
    for order in itertools.permutations(range(4)):
        options = [OPTIONS[i] for i in order]
        place = options.index("right")
        assert read_choice(say.format(letter=LETTERS[place], text="right"), options) == place == order.index(2)


def test_options_that_read_alike_are_not_told_apart():
    assert read_choice("two", ("2", "two", "3")) is None
    assert read_choice("three", ("2", "two", "3")) == 2


def test_normalised_answers():
    assert normalised("  The RED  circle. ") == "red circle"
    assert normalised("It's two, isn't it?") == "its 2 isnt it"
    assert normalised("1.5 m") == "1.5 m" and normalised("-5") == "-5" and normalised("2-3") == "2 3"
    assert exact_match("A dog!", "dog") and exact_match("ten", ("9", "10")) and not exact_match("", "")
    assert not exact_match("dogs", "dog")


def test_error_rates_and_token_f1():
    # One word replaced, one left out, of four.
    assert word_error_rate("red blue cyan", "red green cyan red") == 0.5
    assert word_error_rate("a b c d", "a") == 3.0 and word_error_rate("", "") == 0.0
    # kitten -> sitting: three edits over seven letters.
    assert character_error_rate("kitten", "sitting") == pytest.approx(3 / 7)
    assert character_error_rate(" Red  blue ", "red blue") == 0.0
    # Two shared words, three said, four true.
    assert token_f1("red red blue", "red blue cyan green") == pytest.approx(2 * 2 / 7)
    assert token_f1("", "") == 1.0 and token_f1("", "red") == 0.0 and token_f1("Red", "red") == 1.0


def test_what_is_unparsed_or_failed_stays_in_the_denominator():
    said = ["(B)", "I cannot tell", None, "left"]
    rows = score(choice_reply(text, OPTIONS, 1, kind) for text, kind in zip(said, ("a", "a", "b", "b"), strict=True))
    assert list(rows) == [ALL, "a", "b"]
    assert rows[ALL].accuracy == 0.5 and rows[ALL].count == 4 and rows[ALL].unparsed == 2 and rows[ALL].chance == 0.25
    assert rows[ALL].standard_error == pytest.approx(math.sqrt(0.5 * 0.5 / 4))
    assert rows["a"].accuracy == rows["b"].accuracy == 0.5 and rows["b"].unparsed == 1
    assert as_record(rows)["a"]["count"] == 2


def test_chance_is_the_mean_over_the_questions():
    rows = score([Reply("colour", True, 1 / 6), Reply("count", False, 1 / 3), Reply("", True)])
    assert rows[ALL].chance == pytest.approx((1 / 6 + 1 / 3) / 3) and set(rows) == {ALL, "colour", "count"}
    with pytest.raises(UserError, match="no answers to score"):
        score([])


def test_the_likeliest_option_is_chosen_and_ties_are_not_broken_by_place():
    assert likeliest([-3.0, -1.5, -2.0]) == 1 and likeliest([-float("inf"), -9.0]) == 1
    assert likeliest([-1.0, -1.0]) is None and likeliest([float("nan"), -1.0]) is None and likeliest([]) is None
    chosen = [likeliest(row) for row in ([-2.0, -1.0], [-1.0, -1.0])]
    rows = score(choice_reply(choice, OPTIONS[:2], 1) for choice in chosen)
    assert rows[ALL].accuracy == 0.5 and rows[ALL].unparsed == 1 and rows[ALL].chance == 0.5

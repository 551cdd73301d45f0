"""Prompt programs with models that are functions: what is asked, about what, what it costs, what stays as it was."""

import dataclasses

import pytest

from videogen.errors import UserError
from videogen.language.asking import Answer, Seen, run, tiles
from videogen.language.parsing import read_list, read_yes
from videogen.language.programs import Program, Step, build_program

QUESTION = "What does the {red} square do?"
VIDEO = object()


class Model:
    """A video-language model that notes what it was asked and answers by a rule."""

    def __init__(self, rule=lambda seen, prompt: "the answer", yes=None):
        self.rule, self.yes, self.asked = rule, yes, []

    def __call__(self, seen, prompt, longest):
        self.asked.append((seen, prompt, longest))
        yes = None if self.yes is None else self.yes(seen)
        return Answer(self.rule(seen, prompt), 3, 0.5, yes)


class Texts:
    """A language model that gives answers one after another."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, text):
        self.asked.append(text)
        return self.answers[len(self.asked) - 1]


def clock():
    """Two seconds pass between any two looks."""
    clock.now += 2.0
    return clock.now


clock.now = 0.0


def asked(name, model, texts=None, settings=None, **more):
    program = build_program({"name": name, **(settings or {})})
    return run(program, model, texts or Texts(), VIDEO, QUESTION, duration=10.0, clock=clock, **more)


def test_the_plain_program_asks_the_question():
    model = Model()
    found = asked("plain", model)
    assert model.asked == [(Seen(VIDEO, 0.0, 10.0), QUESTION, 16)]
    assert found.answer.text == "the answer" and found.unread == found.extra_tokens == 0 and found.weights is None


def test_sub_questions_are_answered_alone_and_stand_before_the_question():
    model = Model(lambda seen, prompt: f"<{prompt}>")
    texts = Texts('Sure: ["Where is it first?", "Where is it last?"] Done.')
    found = asked("decompose", model, texts)
    assert QUESTION in texts.asked[0]
    whole = Seen(VIDEO, 0.0, 10.0)
    assert model.asked[:2] == [(whole, "Where is it first?", 64), (whole, "Where is it last?", 64)]
    assert model.asked[2] == (whole, f"<Where is it first?> <Where is it last?> {QUESTION}", 16)
    # Another second question changes nothing of the first answer.
    other = Model(lambda seen, prompt: f"<{prompt}>")
    asked("decompose", other, Texts('["Where is it first?", "Who else is there?"]'))
    assert other.asked[0] == model.asked[0]
    assert found.results["parts"] == ["Where is it first?", "Where is it last?"]
    # Seven words of the text model in two seconds, and two answers of three tokens in half a second each.
    assert [one.step for one in found.exchanges] == ["parts", "answers", "answers", "final"]
    assert found.extra_tokens == 10 + 2 * 3 and found.extra_seconds == 2.0 + 2 * 0.5
    assert found.exchanges[0].text.startswith("Sure") and found.exchanges[-1].text == found.answer.text


@pytest.mark.parametrize(("text", "unread"), [("[]", 0), ("I cannot tell.", 1), ("__import__('os')", 1), ("[[1]]", 1)])
def test_without_sub_questions_the_prompt_is_the_question_to_the_letter(text, unread):
    model = Model()
    found = asked("decompose", model, Texts(text))
    assert [prompt for _, prompt, _ in model.asked] == [QUESTION] and found.unread == unread


def test_no_more_sub_questions_than_asked_for():
    model = Model()
    asked("decompose", model, Texts("1. a\n2. b\n3. c"), {"most": 2, "longest": 5})
    assert [(prompt, longest) for _, prompt, longest in model.asked[:2]] == [("a", 5), ("b", 5)]
    assert len(model.asked) == 3


def test_frames_are_weighed_by_whether_they_show_the_objects():
    model = Model(yes=lambda seen: 0.1 * seen.start)
    texts = Texts("Yes, it does.", '["red square", "movement"]', '["red square"]')
    found = asked("decouple", model, texts, times=(1.0, 4.0, 9.0))
    assert "red square, movement" in texts.asked[2]
    prompt = "Does the image contain any object of red square? A. yes, B. no"
    assert [(seen.start, seen.stop, p) for seen, p, _ in model.asked[:3]] == [(t, t, prompt) for t in (1.0, 4.0, 9.0)]
    assert found.weights == pytest.approx((0.1, 0.4, 0.9)) and found.results["needed"] is True
    last, prompt, _ = model.asked[3]
    assert prompt == QUESTION and last.weights == found.weights and last.video is VIDEO


def test_without_objects_frames_are_asked_whether_they_suffice():
    for texts in (Texts("No."), Texts("yes", "nothing of that kind"), Texts("yes", '["truth"]', "[]")):
        model = Model(yes=lambda seen: 0.5)
        found = asked("decouple", model, texts, times=(2.0,))
        assert "sufficient information" in model.asked[0][1] and QUESTION in model.asked[0][1]
        assert found.weights == (0.5,)
    # Answers in words, of which one cannot be read, and frames that all do not help.
    words = Model(lambda seen, prompt: {1.0: "A. yes", 2.0: "b", 3.0: "A square is there"}.get(seen.start, "x"))
    found = asked("decouple", words, Texts("no"), times=(1.0, 2.0, 3.0))
    assert found.weights == (1.0, 0.0, 0.5) and found.unread == 1
    none = asked("decouple", Model(yes=lambda seen: 0.0), Texts("no"), times=(1.0, 2.0))
    assert none.weights == (1.0, 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_segments_tile_the_video_and_stand_in_order(count):
    parts = tiles(10.0, count)
    assert parts[0][0] == 0.0 and parts[-1][1] == 10.0
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in zip(parts, [*parts[1:], (10.0, 0)], strict=True))
    model = Model(lambda seen, prompt: f"at {seen.start:g} ")
    found = asked("progressive", model, settings={"segments": count})
    assert [(seen.start, seen.stop) for seen, _, _ in model.asked[:-1]] == parts
    prompts = {prompt for _, prompt, _ in model.asked[:-1]}
    assert prompts == {f"Summarise the key information of this segment to help answer: {QUESTION}"}
    lines = [f"From {a:g} s to {b:g} s: at {a:g}" for a, b in parts]
    assert model.asked[-1][:2] == (Seen(VIDEO, 0.0, 10.0), "\n".join([*lines, QUESTION]))
    assert found.extra_tokens == 3 * count


def test_one_segment_sees_the_whole_video():
    model = Model()
    asked("progressive", model, settings={"segments": 1})
    assert model.asked[0][0] == Seen(VIDEO, 0.0, 10.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('Here [1]:\n```json\n["a", " b ", "a", ""]\n```', ["a", "b"]),
        ("['what is it', \"where\"]", ["what is it", "where"]),
        ("1. one\n2) two\n(3) three\n- four\n* five\n• six", ["one", "two", "three", "four", "five", "six"]),
        ("[]", []),
        ("", None),
        ("one, two", None),
        ('{"a": 1}', None),
        ("[1, 2]", None),
        ("['it's here', 'b']", None),
        ("[" * 3000 + "]" * 3000, None),
        ("[open('/etc/passwd').read()]", None),
    ],
)
def test_lists_are_read_and_never_evaluated(text, expected):
    assert read_list(text) == expected


def test_long_answers_take_no_time():
    for text in ("- " + " " * 10_000 + "x", "\n" * 10_000, "['a'" + " " * 10_000, "[" * 10_000, "'" * 10_000):
        read_list(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", True),
        (" no, it", False),
        ("A. yes", True),
        ("(B)", False),
        ("a", True),
        ("A dog", None),
        ("Maybe", None),
    ],
)
def test_yes_and_no(text, expected):
    assert read_yes(text) is expected


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda: Program(final="{answer}"), "the place {answer}"),
        (lambda: Program(final="{question.__class__}"), "not known there"),
        (lambda: Program(final="{question!r}"), "not known there"),
        (lambda: Program(final="{question"), "no text with places"),
        (lambda: Program(steps=(Step(name="a", prompt="{item}"),)), "the place {item}"),
        (lambda: Program(steps=(Step(name="a", prompt="x", line="{start}"),)), "the place {start}"),
        (lambda: Program(steps=(Step(name="a", prompt="x", when="b"),)), "names the step 'b', which is not one before"),
        (lambda: Program(steps=(Step(name="a", prompt="x"), Step(name="a", prompt="y"))), "called 'a'"),
        (lambda: Step(name="a", prompt="x", read="lists"), "unknown read of Step 'lists'"),
        (lambda: build_program({"name": "decomposed"}), "unknown program 'decomposed'"),
        (lambda: build_program({"name": "progressive", "segments": 0}), "segments of program 'progressive'"),
    ],
)
def test_programs_that_cannot_be_are_refused(program, message):
    with pytest.raises(UserError, match=message):
        program()


def test_a_program_of_ones_own():
    """A new program is data: each object of a list is looked for, and the last prompt says what was found."""
    program = Program(
        steps=(
            Step(name="objects", prompt="Name the objects of: {question}", read="list"),
            Step(name="where", prompt="Where is the {item}?", asked="video", each="objects", line="{text};"),
        ),
        final="Known: {where} {question} ({objects})",
        needs="objects",
    )
    model = Model(lambda seen, prompt: prompt[13:16])
    found = run(program, model, Texts("- cat\n- dog"), VIDEO, "Who wins?", duration=3.0)
    assert model.asked[-1][1] == "Known: cat; dog; Who wins? (cat, dog)"
    assert dataclasses.asdict(found)["results"]["where"] == ["cat", "dog"]

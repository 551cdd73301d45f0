"""Reading and scoring answers to questions about videos.

A choice is read, never guessed: an answer that states no option is unparsed, and wrong. What failed or could not be
read stays in every denominator.
"""

import collections
import dataclasses
import math
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from videogen.errors import UserError

ALL = "all"
"""The row of all kinds."""

LETTERS = string.ascii_uppercase

_STATED = re.compile(
    r"\(\s*(?P<bracket>[A-Za-z])\s*\)"  # (B)
    r"|(?:^|\n)\s*(?P<leading>[A-Z])(?:[.)](?=\s|$)|\s*(?=\n|$))"  # B. left; B) left; B
    # Of the letters that are words, only at the end of a clause.
    r"|\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\s*(?:is|:)?\s*(?P<named>[B-HJ-Z](?![\w'’])|[AI](?=\s*(?:$|[.,:;!?)\n])))"
)
_LETTER = re.compile(r"\s*([A-Za-z])[.)]?\s*")
_PREAMBLE = re.compile(r"^\s*(?:the\s+)?(?:correct\s+|best\s+|final\s+)?answer\s*(?:is|:)\s*", re.IGNORECASE)
_LABEL = re.compile(r"^\s*(?P<letter>[A-Za-z])\s*[:.)]?\s+(?P<rest>.*)$", re.DOTALL)

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def read_choice(text: str, options: Sequence[str]) -> int | None:
    """Which option a text states; ``None`` where it states none.

    An option is stated by its letter, as ``(B)``, ``B.`` or ``B)`` at the beginning of a line, ``option B``, ``answer:
    B``, or ``B`` alone, or by its own text alone. Where several are stated the last counts. A letter is no statement
    where it begins a word or is one (``Because``, ``I``), nor is a word of an option within a sentence. Asterisks
    (bold letters) are passed over.

    Args:
      text: an answer.
      options: in the order of their letters; none has a letter of its own in front.
    """
    text = text.replace("*", "")
    if (alone := _alone(text, options)) is not None:
        return alone
    if letter := _LETTER.fullmatch(text):
        place = LETTERS.index(letter[1].upper())
        return place if place < len(options) else None
    stated = None
    for match in _STATED.finditer(text):
        letter = next(group for group in match.groups() if group).upper()
        if (place := LETTERS.index(letter)) < len(options):
            stated = place
    return stated


def _alone(text: str, options: Sequence[str]) -> int | None:
    """The option that a text is, behind ``the answer is`` or its own letter where these are there."""
    known = [normalised(option) for option in options]
    said = _PREAMBLE.sub("", text)
    words = normalised(said)
    if words and known.count(words) == 1:
        return known.index(words)
    labelled = _LABEL.match(said)
    if labelled and (words := normalised(labelled["rest"])):
        place = LETTERS.index(labelled["letter"].upper())
        if place < len(known) and known[place] == words:
            return place
    return None


def likeliest(log_likelihoods: Sequence[float]) -> int | None:
    """The option of the highest log-likelihood; ``None`` where two share it, or one is no number.

    A model that finds all options equally likely would else be right wherever the answer comes first.
    """
    values = list(map(float, log_likelihoods))
    if not values or any(map(math.isnan, values)):
        return None
    best = max(values)
    return values.index(best) if values.count(best) == 1 else None


def normalised(text: str) -> str:
    """A text for comparison: lower case, no articles and punctuation, single blanks, zero … ten as figures.

    These are the rules of the evaluation of VQA (Antol et al. 2015). Decimal points and minus signs stay.
    """
    text = f" {unicodedata.normalize('NFKC', text).casefold()} "
    kept = (
        sign if unicodedata.category(sign)[0] != "P" or _of_number(text, i) else ("" if sign in "'’" else " ")
        for i, sign in enumerate(text)
    )
    words = [word for word in "".join(kept).split() if word not in ARTICLES]
    return " ".join(str(NUMBERS.index(word)) if word in NUMBERS else word for word in words)


def _of_number(text: str, place: int) -> bool:
    """Whether a sign is a decimal point or a minus."""
    before, sign, behind = text[place - 1], text[place], text[place + 1]
    return behind.isdigit() and ((sign == "." and before.isdigit()) or (sign == "-" and before.isspace()))


def exact_match(said: str, true: str | Sequence[str]) -> bool:
    """Whether an answer is a true one, both ``normalised``; of several true ones any. An empty answer never is."""
    wanted = [true] if isinstance(true, str) else true
    words = normalised(said)
    return bool(words) and words in map(normalised, wanted)


def _tokens(text: str) -> list[str]:
    """Words in lower case, as DIVE compares them: signs stay."""
    return text.casefold().split()


def token_f1(said: str, true: str) -> float:
    """Harmonic mean of precision and recall over the bags of words, in [0, 1]; 1 where both have none."""
    words, wanted = _tokens(said), _tokens(true)
    if not words or not wanted:
        return float(words == wanted)
    shared = (collections.Counter(words) & collections.Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))


def word_error_rate(said: str, true: str) -> float:
    """Least number of words to insert, leave out or replace, over the number of true words; it may exceed 1."""
    return _edits(_tokens(said), _tokens(true)) / max(len(_tokens(true)), 1)


def character_error_rate(said: str, true: str) -> float:
    """The same of characters, with single blanks between words."""
    said, true = " ".join(_tokens(said)), " ".join(_tokens(true))
    return _edits(said, true) / max(len(true), 1)


def _edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance of two sequences."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


@dataclasses.dataclass(frozen=True)
class Reply:
    """One question that was asked.

    Attributes:
      kind: of the question.
      right: whether the answer is; ``None`` where it states no option, or the sample failed.
      chance: share of right answers of one who sees no video; 0 of an open question.
    """

    kind: str
    right: bool | None
    chance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Score:
    """How many answers are right.

    Attributes:
      accuracy: share of all, in [0, 1]; what is unparsed or failed counts as wrong.
      standard_error: of the accuracy, sqrt(p·(1 - p)/n).
      unparsed: how many state no option, or failed.
      chance: accuracy of one who sees no video.
      count: of all.
    """

    accuracy: float
    standard_error: float
    unparsed: int
    chance: float
    count: int


def choice_reply(said: str | int | None, options: Sequence[str], answer: int, kind: str = "") -> Reply:
    """The reply to a question with options.

    Args:
      said: the text of the answer, or the option that was chosen (``likeliest``); ``None`` where none was, or the
        sample failed.
      options: in the order of their letters.
      answer: place of the right one.
      kind: of the question.
    """
    read = read_choice(said, options) if isinstance(said, str) else said
    return Reply(kind, None if read is None else read == answer, 1 / len(options))


def score(replies: Iterable[Reply]) -> dict[str, Score]:
    """The score of all replies, under ``ALL``, and of each kind, in the order in which kinds first occur.

    Raises:
      UserError: there are none.
    """
    replies = list(replies)
    if not replies:
        raise UserError("there are no answers to score; check that the split has questions")
    rows = {ALL: replies}
    for reply in replies:
        rows.setdefault(reply.kind or ALL, [])
    for reply in replies:
        if reply.kind:
            rows[reply.kind].append(reply)
    return {name: _score(row) for name, row in rows.items()}


def _score(replies: Sequence[Reply]) -> Score:
    count = len(replies)
    share = sum(reply.right is True for reply in replies) / count
    unparsed = sum(reply.right is None for reply in replies)
    chance = math.fsum(reply.chance for reply in replies) / count
    return Score(share, math.sqrt(share * (1 - share) / count), unparsed, chance, count)


def as_record(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Scores as JSON values."""
    return {name: dataclasses.asdict(row) for name, row in scores.items()}

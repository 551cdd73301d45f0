"""How answers of language models are read: lists, and yes or no. Nothing is ever evaluated."""

import json
import re
from collections.abc import Sequence

LONGEST_ANSWER = 4000
"""Letters of an answer that are looked at."""

ENTRY = re.compile(r"^[ \t]*(?:[-*•]|\(?\d{1,3}[.):])[ \t]+(\S.*)$", re.MULTILINE)
"""A line of a list: behind a dash, a star, or a number."""

QUOTED = re.compile(r"'([^'\n]*)'|\"([^\"\n]*)\"")
QUOTES = re.compile(rf"\[\s*(?:{QUOTED.pattern})(?:\s*,\s*(?:{QUOTED.pattern}))*\s*\]")
"""A list of quoted texts, which with single quotes is no JSON."""

YES = re.compile(r"\W*(?:(yes|no)\b|([ab])(?=\s*(?:[.):,]|$)))", re.IGNORECASE)


def read_list(text: str) -> list[str] | None:
    """The texts of a list: JSON, quoted texts in brackets, or lines behind dashes or numbers; ``None`` for no list.

    Entries are stripped; empty ones and repetitions are left out. What stands around the list does not count.
    """
    text = text[:LONGEST_ANSWER]
    for start in [place.start() for place in re.finditer(r"\[", text)][:16]:
        found = _bracketed(text[start : text.rfind("]") + 1])
        if found is not None:
            return _once(found)
    lines = ENTRY.findall(text)
    return _once(lines) if lines else None


def _bracketed(text: str) -> list[str] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if QUOTES.fullmatch(text) is None:
            return None
        found = [a or b for a, b in QUOTED.findall(text)]
    return found if isinstance(found, list) and all(isinstance(entry, str) for entry in found) else None


def _once(entries: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(entry.strip() for entry in entries if entry.strip()))


def read_yes(text: str) -> bool | None:
    """Whether an answer begins with yes, or the choice A, or with no, or B; ``None`` for neither."""
    found = YES.match(text[:LONGEST_ANSWER])
    return None if found is None else (found[1] or found[2]).lower() in ("yes", "a")

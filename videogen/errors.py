"""The one error type that users see as a single line, and the helper that suggests near matches."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input: its message names the mistake and the remedy in one line.

    Commands print it as ``error: …`` and exit with code 2; library callers may catch it.
    """


def shown(value: object) -> str:
    """A value as a message shows it: in one line, and not longer than 80 letters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]} …"


def near_matches(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'a' or 'b'?" or, when nothing is close, the list of what is known."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; known: " + (", ".join(known) if known else "(none)")

"""What benchmarks that compare with other libraries share."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def peer_packages(install: str) -> Iterator[None]:
    """Ends the program with one line where a package that is imported in the body is not installed.

    Args:
      install: what ``pip install`` is to be given.
    """
    try:
        yield
    except ImportError as error:
        sys.exit(f"error: {error.name or error} is missing here: pip install {install}")

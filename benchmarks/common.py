"""What benchmarks that compare with other libraries share."""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

Timed = tuple[Callable[[], Any], int]
"""A call that waits for its result, and the model's parameters."""


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


def seconds_of(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, both: Mapping[str, Timed], shape: tuple[int, ...], calls: int) -> None:
    """Prints the median times of ours and a peer's, who take turns, and the ratio of the medians.

    Args:
      name: of what is measured.
      both: whose -> what is timed: ours first.
      shape: of the input, its batch first.
      calls: of each, after one that is not counted.
    """
    for call, _ in both.values():
        call()
    times = [[seconds_of(call) for call, _ in both.values()] for _ in range(calls)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    device = jax.devices()[0].device_kind
    for (who, (_, parameters)), seconds in zip(both.items(), medians, strict=True):
        record = {"name": f"{who}/{name}", "seconds": round(seconds, 3), "batch": shape[0]}
        record |= {"shape": list(shape[1:]), "parameters": parameters, "device": device}
        print(json.dumps(record), flush=True)
    ratio = {"name": f"ratio/{name}", "ours_over_theirs": round(medians[0] / medians[1], 3)}
    print(json.dumps(ratio), flush=True)

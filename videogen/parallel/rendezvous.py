"""Process 0 counts the processes of a job before JAX's runtime connects them: mistakes are named within seconds.

The runtime itself waits for minutes, or aborts with stacks, when two processes have one index or another idea of how
many there are. Process 0 listens at the job's address for one line of JSON from each other process, answers all of them
at once, and leaves the address to the runtime.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from videogen.errors import UserError

WAIT_TOLD = 10.0
"""Seconds after which process 0 says, and says again, who has not arrived."""

_RETRY = 0.2
_ANSWER = 5.0
"""Seconds a process that has connected may take to say who it is."""


def meet(address: str, count: int, index: int, timeout: float) -> None:
    """Returns once all ``count`` processes have called it with indices 0 … ``count`` - 1.

    Args:
      address: ``HOST:PORT`` of process 0.
      count: processes of the job.
      index: this process.
      timeout: seconds within which all must arrive.

    Raises:
      UserError: two processes with one index, another count, a port in use, or a process that never came.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    if index == 0:
        _gather(address, int(port), count, deadline)
    else:
        _report(address, host.strip("[]"), int(port), {"index": index, "count": count}, deadline)


def _gather(address: str, port: int, count: int, deadline: float) -> None:
    here, arrived = socket.gethostname(), {}
    problem = f"not all processes of the job arrived at {address} in time"
    with _listening(address, port) as server, contextlib.ExitStack() as open_sockets:
        told = time.monotonic() + WAIT_TOLD
        try:
            while len(arrived) < count - 1:
                if time.monotonic() > deadline:
                    problem = f"not all processes of the job arrived at {address}; {_missing(arrived, count)}"
                    raise UserError(problem)
                if time.monotonic() > told:
                    logging.warning("still waiting: %s", _missing(arrived, count))
                    told = time.monotonic() + WAIT_TOLD
                with contextlib.suppress(TimeoutError):
                    connection = open_sockets.enter_context(server.accept()[0])
                    hello = _receive(connection)
                    if "index" not in hello:
                        continue  # something else that looked in
                    if problem := _mistake(hello, arrived, count, here):
                        _send(connection, {"problem": problem})
                        raise UserError(problem)
                    arrived[hello["index"]] = (hello["host"], connection)
            problem = ""
        finally:
            for _, connection in arrived.values():
                _send(connection, {"problem": problem})
                # They hang up first, so that the port is free at once.
                _receive(connection)


@contextlib.contextmanager
def _listening(address: str, port: int) -> Iterator[socket.socket]:
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"cannot listen at {address} ({error.strerror}); another process 0 or another program may be there"
        ) from error
    with server:
        server.settimeout(_RETRY)
        yield server


def _mistake(hello: dict[str, Any], arrived: dict[int, Any], count: int, here: str) -> str:
    index, name = hello["index"], f"process {hello['index']} on {hello['host']}"
    if hello["count"] != count:
        zero = f"process 0 on {here} for {count}"
        return f"{name} was started for {hello['count']} processes and {zero}; start all for the same number"
    if index in arrived:
        return f"{name} and another one on {arrived[index][0]} have the same index; give every process its own, from 0"
    return ""


def _missing(arrived: dict[int, Any], count: int) -> str:
    absent = [index for index in range(1, count) if index not in arrived]
    some = ", ".join(map(str, absent[:8])) + (" …" if len(absent) > 8 else "")
    return f"{len(absent)} of {count} processes have not arrived: {some}"


def _report(address: str, host: str, port: int, hello: dict[str, Any], deadline: float) -> None:
    hello = {**hello, "host": socket.gethostname()}
    while True:
        if time.monotonic() > deadline:
            raise UserError(f"process 0 of the job does not answer at {address}; start it, or see what keeps it away")
        try:
            connection = socket.create_connection((host, port), timeout=_ANSWER)
        except OSError:
            time.sleep(_RETRY)
            continue
        with connection:
            _send(connection, hello)
            answer = _receive(connection, deadline - time.monotonic())
        if "problem" not in answer:
            raise UserError(
                f"{address} belongs to a job that has begun, or to another program; give every process its own index"
            )
        if answer["problem"]:
            raise UserError(answer["problem"])
        return


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, patience: float = _ANSWER) -> dict[str, Any]:
    """One line of JSON; an empty dict when there is none."""
    connection.settimeout(max(patience, 0.1))
    try:
        with connection.makefile("rb") as file:
            message = json.loads(file.readline(10_000))
        return message if isinstance(message, dict) else {}
    except (OSError, ValueError):
        return {}

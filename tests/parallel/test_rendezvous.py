"""Process 0 counts the job before JAX's runtime starts: every mistake in it is one line, in every process."""

import socket
import threading
import time

import pytest

from videogen.errors import UserError
from videogen.parallel import rendezvous


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(*processes: tuple[int, int], timeout: float = 20.0) -> list[str]:
    """What ``meet`` says to each of the processes (index, count), '' where it returns."""
    address, said = f"127.0.0.1:{free_port()}", [None] * len(processes)

    def run(place: int, index: int, count: int) -> None:
        try:
            rendezvous.meet(address, count, index, timeout)
            said[place] = ""
        except UserError as error:
            said[place] = str(error)

    threads = [threading.Thread(target=run, args=(i, *process)) for i, process in enumerate(processes)]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join(timeout + 10)
    return said


def test_all_processes_meet_in_any_order():
    assert start((2, 3), (0, 3), (1, 3)) == ["", "", ""]


def test_two_with_one_index_are_named_to_all():
    first, zero, second = start((1, 3), (0, 3), (1, 3))
    host = socket.gethostname()
    assert first == zero == second
    assert first == (
        f"process 1 on {host} and another one on {host} have the same index; give every process its own, from 0"
    )


def test_another_number_of_processes_is_named_to_all():
    zero, other = start((0, 2), (1, 3))
    assert zero == other and "was started for 3 processes and process 0" in zero and "for 2;" in zero


def test_a_second_process_zero_is_refused_and_the_first_goes_on():
    first, second, other = start((0, 2), (0, 2), (1, 2))
    assert first == other == "" and "another process 0 or another program may be there" in second


def test_who_is_missing_is_said_while_waiting_and_in_the_end(caplog, monkeypatch):
    monkeypatch.setattr(rendezvous, "WAIT_TOLD", 0.5)
    zero, other = start((0, 4), (2, 4), timeout=2.0)
    assert zero == other and "2 of 4 processes have not arrived: 1, 3" in zero
    assert "still waiting: 2 of 4 processes have not arrived: 1, 3" in caplog.text


def test_a_latecomer_is_told_that_the_job_has_begun():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def answer_as_another_protocol() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"\x00\x00\x12\x04\x00 no JSON\n")

        threading.Thread(target=answer_as_another_protocol, daemon=True).start()
        with pytest.raises(UserError, match="belongs to a job that has begun"):
            rendezvous.meet(address, 2, 1, 10.0)


def test_an_absent_process_zero_is_named():
    with pytest.raises(UserError, match="process 0 of the job does not answer at 127.0.0.1"):
        rendezvous.meet(f"127.0.0.1:{free_port()}", 2, 1, 0.5)

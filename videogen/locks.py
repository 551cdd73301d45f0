"""The lock of a directory that one process at a time may write to."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from videogen.errors import UserError

LOCK = "run.lock"


@contextlib.contextmanager
def locked(directory: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a directory, which is made where there is none; the system lets go of it at a kill.

    Args:
      directory: on a local or a shared file system; object stores have no locks.

    Raises:
      UserError: another process holds it, on this host or one that shares the file system.
      OSError: nothing can be written there.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a+") as file:
        file.seek(0)
        holder = _holder(file.read())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                who = holder or "another process"
                raise UserError(f"{directory} is in use by {who}; stop it, or use another --workdir") from None
            logging.warning("%s cannot be locked (%s): see that nothing else writes there", directory, error.strerror)
        if holder:
            logging.info("%s was left without a word by %s; this run takes over", directory, holder)
        file.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}) + "\n")
        file.flush()
        try:
            yield
        finally:
            # Emptied and not removed: another start may have opened the file already.
            file.truncate(0)


def _holder(content: str) -> str:
    """Who wrote a lock, in words; empty for a lock without content."""
    try:
        entry = json.loads(content)
        return f"process {entry['pid']} on {entry['host']} since {entry['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process" if content.strip() else ""

"""Why a run ends before its last step: the errors that commands show as one line."""

import contextlib
import errno
import re
from collections.abc import Iterator

from etils import epath

FULL_OR_READ_ONLY = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not grow any further",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EIO: "the device reports an error",
    errno.ENOTDIR: "a part of its path is a file",
    errno.ENOENT: "it was removed",
    errno.ESTALE: "its file system is gone",
}
"""Error number -> words, of what keeps a directory from being written."""


class Stopped(Exception):
    """The run cannot go on; the message says why and what to do. Commands exit with code 1.

    Attributes:
      everywhere: whether all processes of the job stop at the same step, rather than this one alone.
    """

    everywhere = False


class Interrupted(Stopped):
    """SIGTERM or a preemption notice arrived and the state has been saved; commands exit with code 0."""

    everywhere = True


class NotFinite(Stopped):
    """A loss or gradient was NaN or infinite; the last finite state has been saved."""

    everywhere = True


class NotWritten(Stopped):
    """The run directory cannot be written; the last good checkpoint is still there."""


def why_not_written(error: BaseException | None) -> str | None:
    """Why a directory could not be written, in words; ``None`` for an error of another kind."""
    while error is not None:
        number = getattr(error, "errno", None)
        if number is None and (found := re.search(r"os_error_code='(\d+)'", str(error))):
            # Orbax's array storage raises its own errors, with the number inside the text.
            number = int(found[1])
        if number in FULL_OR_READ_ONLY:
            return FULL_OR_READ_ONLY[number]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def storage_errors(workdir: epath.Path, remedy: str, kind: type[Exception] = NotWritten) -> Iterator[None]:
    """Turns a failure to write into one line that names the directory and what to do.

    Args:
      workdir: the run directory.
      remedy: what to do.
      kind: type of the error raised instead.
    """
    try:
        yield
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        raise kind(f"{workdir} cannot be written: {reason}; {remedy}") from error

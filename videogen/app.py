"""What every command shares: bad input gives one line and exit code 2."""

import os
import re
import sys
from collections.abc import Callable
from logging import WARNING
from logging import Formatter as PlainFormatter

from absl import app, flags, logging

from videogen.errors import UserError

BAD_INPUT = 2
STOPPED = 1


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs ``main``.

    Args:
      main: the command.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(PlainFormatter("%(message)s"))
    # Libraries report every file they write; a user wants our words and everybody's warnings.
    handler.addFilter(lambda record: record.levelno >= WARNING or "videogen" in record.pathname)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            fail(UserError(f"unexpected argument {argv[1]!r}; flags are written --name=value"))
        try:
            main()
        except UserError as error:
            fail(error)

    app.run(guarded, flags_parser=_parse)


def fail(error: Exception) -> None:
    """Prints the error as one line and exits with code 2."""
    sys.exit(_line(error, BAD_INPUT))


def _line(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; a mistake in them, or in the config they name, is one line."""
    try:
        if any(argument in ("--help", "-help", "--helpfull", "--helpshort") for argument in argv):
            return app.parse_flags_with_usage(argv)
        # Config files import their neighbours (configs.common).
        sys.path.insert(0, os.getcwd())
        remaining = flags.FLAGS(argv)
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS.config, str | None):
            list(flags.FLAGS.config)  # a file that could not be loaded says so on first use
        return remaining
    except flags.IllegalFlagValueError as error:
        missing = re.fullmatch(r"flag --(\w+)=None: .*", str(error))
        fail(UserError(f"--{missing[1]} is missing; see --help") if missing else error)
    except flags.Error as error:
        fail(error)
    except OSError as error:
        lines = str(error).splitlines()
        fail(UserError(f"{next((x for x in reversed(lines) if x.strip()), error)}; the configs are in configs/"))
    except KeyError as error:
        # str() of a KeyError is the repr of its message.
        fail(UserError(error.args[0]))
    except (UserError, AttributeError, TypeError, ValueError) as error:
        fail(error)
    return argv

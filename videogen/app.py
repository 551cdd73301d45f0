"""What every command shares: bad input is one line and exit code 2; the processes of a job start and end together."""

import atexit
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from logging import WARNING, LogRecord
from logging import Formatter as PlainFormatter
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from videogen.configuration import find_config, flatten
from videogen.environment import expect_no_tpu
from videogen.errors import UserError, near_matches
from videogen.exits import BAD_INPUT, INTERRUPTED, STOPPED, exit_at_once

COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, for a job of several processes."
)
PROCESS_COUNT = flags.DEFINE_integer(
    "process_count",
    None,
    "Processes of the job; 1 ignores what the environment says. SLURM, GKE and TPU machines need none of these flags.",
    lower_bound=1,
)
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "This process among them, from 0.", lower_bound=0)
HELP_CONFIG = flags.DEFINE_bool(
    "help_config", False, "Print every key of --config with its value and meaning, and do nothing else."
)


def define_mesh() -> flags.FlagHolder[str | None]:
    """The flag ``--mesh`` of commands that load a trained model, for ``training.loading.load_for_command``."""
    return flags.DEFINE_string(
        "mesh",
        None,
        "Devices along the axes replica, data, fsdp, tensor and context, e.g. data=4,fsdp=2; -1 takes what is left. By "
        "default all devices share each batch (data=-1) where that goes evenly, else one computes.",
    )


def run(main: Callable[..., None], distributed: bool = False, takes_files: bool = False) -> None:
    """Parses the flags and runs ``main``.

    Args:
      main: the command.
      distributed: whether the command can be one of several processes of a job.
      takes_files: whether arguments that are no flags are files; ``main`` gets their list.
    """
    survive_closed_streams()
    expect_no_tpu()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(PlainFormatter("%(message)s"))
    handler.addFilter(_worth_reading)
    emit = handler.python_handler.emit

    def emit_above_bars(record: LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            emit(record)

    handler.python_handler.emit = emit_above_bars

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1 and not takes_files:
            fail(UserError(f"unexpected argument {argv[1]!r}; flags are written --name=value"))
        try:
            if distributed:
                _run_in_job(main)
            elif given := [flag.name for flag in (COORDINATOR_ADDRESS, PROCESS_COUNT, PROCESS_INDEX) if flag.present]:
                raise UserError(f"this command is a single process; leave out --{given[0]}")
            else:
                main(*[argv[1:]] * takes_files)
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            raise SystemExit(_line(UserError("interrupted"), INTERRUPTED)) from None

    code = STOPPED  # of an exception that nobody caught
    # First registered, hence the last to be called.
    atexit.register(lambda: exit_at_once(code))
    try:
        app.run(guarded, flags_parser=_parse)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else BAD_INPUT * bool(error.code)
        if code == 1 and _asks_for_help(sys.argv[1:]):
            # absl ends with 1 where it has shown what was asked for.
            code = 0
            raise SystemExit(0) from None
        if code == STOPPED:
            # Clean-up by the libraries would meet the same fault and hide our line under its stacks.
            exit_at_once(code)
        raise


def _asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether one of the flags is for the help text."""
    return any(argument.lstrip("-") in ("help", "helpfull", "helpshort", "h", "?") for argument in arguments)


class _Surviving:
    """A text stream whose failures are ignored: a closed terminal, or a full disk under a log, ends no training."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def survive_closed_streams() -> None:
    """Lets nothing that is written to stdout and stderr raise, closed as they may be."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened would take the place, and messages would go into it.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Surviving):
            setattr(sys, name, _Surviving(stream if stream is not None else open(os.devnull, "w")))  # noqa: SIM115


def _run_in_job(main: Callable[[], None]) -> None:
    """Runs ``main`` as a process of the job that flags or environment describe, if there is one."""
    from videogen.parallel.distributed import find_job, initialize

    peers = initialize(find_job(os.environ, COORDINATOR_ADDRESS.value, PROCESS_COUNT.value, PROCESS_INDEX.value))
    if peers is None:
        return main()
    try:
        main()
    except UserError as error:
        _line(error, BAD_INPUT)
        peers.leave(str(error))
        exit_at_once(BAD_INPUT)
    except SystemExit as error:
        if error.code and not getattr(error.__cause__, "everywhere", False):
            peers.leave(str(error.__cause__ or "see its last lines"))
            exit_at_once(error.code)
        peers.close()
        raise
    except Exception as error:
        logging.exception("process %d failed", peers.index)
        # Most often because another one is gone.
        peers.wait_for_cause()
        peers.leave(f"{type(error).__name__}: {error}".split("\n")[0])
        exit_at_once(STOPPED)
    peers.close()


def _worth_reading(record: LogRecord) -> bool:
    """Libraries report every file they write, and print the errors they raise; a user wants our words and warnings."""
    ours = "videogen" in record.pathname
    return ours or (record.levelno >= WARNING and not (record.exc_info and "orbax" in record.pathname))


def fail(error: Exception) -> None:
    """Prints the error as one line and exits with code 2."""
    sys.exit(_line(error, BAD_INPUT))


def stop(error: Exception) -> NoReturn:
    """Prints the error as one line and exits with code 1: the input was right, but something else went wrong."""
    raise SystemExit(_line(error, STOPPED)) from error


def _line(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; a mistake in them, or in the config they name, is one line."""
    try:
        if any(argument in ("--help", "-help", "--helpfull", "--helpshort") for argument in argv):
            return app.parse_flags_with_usage(argv)
        # sys.argv stays as it was typed, for reports; ml_collections reads only the names of overrides there.
        argv = with_found_config(argv)
        if any(re.fullmatch(r"--?help_config(=true)?", argument) for argument in argv):
            _print_config(argv)
        remaining = flags.FLAGS(argv)
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS.config, str | None):
            list(flags.FLAGS.config)  # a file that could not be loaded says so on first use
        _expand_home()
        return remaining
    except flags.IllegalFlagValueError as error:
        missing = re.fullmatch(r"flag --(\w+)=None: .*", str(error))
        fail(UserError(f"--{missing[1]} is missing; see --help") if missing else override_error(error, argv))
    except flags.Error as error:
        fail(error)
    except OSError as error:
        lines = str(error).splitlines()
        fail(UserError(f"{next((x for x in reversed(lines) if x.strip()), error)}; see --help"))
    except (UserError, AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        fail(override_error(error, argv))
    return argv


def _print_config(arguments: Sequence[str]) -> NoReturn:
    """Prints the keys of the config that ``arguments`` name, overrides applied, and exits."""
    holder, values = _config_of([a for a in arguments if a.lstrip("-").startswith("config")])
    if "config" not in values or holder.value is None:
        raise UserError("--help_config needs a config: --config=FILE:stage=…,size=…")
    from videogen.reporting.config_help import config_help

    print(config_help(holder.value), end="")
    sys.exit()


def override_error(error: Exception, arguments: Sequence[str]) -> UserError:
    """What ml_collections says of a ``--config.key=value`` that does not fit, in words that name the whole key.

    Args:
      error: what it raised.
      arguments: of the command.
    """
    if isinstance(error, UserError):
        return error
    while isinstance(error, AttributeError) and error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]
    if any(re.fullmatch(r"--?config\.data\.clip\.fps=[Nn]one", argument) for argument in arguments):
        return UserError("data.clip.fps is a number; 0 takes every frame of a file: --config.data.clip.fps=0")
    if isinstance(error, KeyError):
        known = set(flatten(_config_of([a for a in arguments if a.lstrip("-").partition("=")[0] == "config"])[0].value))
        for argument in arguments:
            key = argument.partition("=")[0].lstrip("-").removeprefix("config.")
            if argument.lstrip("-").startswith("config.") and key not in known:
                return UserError(f"the config has no setting {key!r}{near_matches(key, known)}")
    return UserError(str(error))


def _config_of(arguments: Sequence[str]) -> tuple[Any, flags.FlagValues]:
    """The holder of the config that ``arguments``, and no others, give, and the parsed flags."""
    values, argv = flags.FlagValues(), ["", *arguments]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return holder, values


def with_found_config(argv: list[str]) -> list[str]:
    """The arguments with the path of the file of ``--config`` in place of its name."""
    found = list(argv)
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.+)", argument, re.DOTALL):
            found[i] = match[1] + find_config(match[2])
        elif argument in ("--config", "-config") and i + 1 < len(argv):
            found[i + 1] = find_config(argv[i + 1])
    return found


def _expand_home() -> None:
    """Replaces a leading ``~/`` in flags and config values: shells leave it alone behind ``=``."""

    def expanded(value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value

    def walk(section: ConfigDict) -> None:
        for key in section:
            value = section[key]
            if isinstance(value, ConfigDict):
                walk(value)
            elif value != (new := expanded(value)):
                section[key] = new

    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if isinstance(flag.value, str):
            flag.value = expanded(flag.value)
        elif isinstance(flag.value, list):
            flag.value = [expanded(value) for value in flag.value]
        elif isinstance(flag.value, ConfigDict):
            walk(flag.value)

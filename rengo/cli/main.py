"""The ``rengo`` command: a thin skin over the Python API. Each group of commands is one module."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from fl_client.tasks.loading import require_not_loading
from rengo.cli.codes import DONE, FAILED, INTERRUPTED, UNREACHABLE, USAGE
from runtime.errors import (
    ConfigError,
    Mismatch,
    NotFound,
    RengoError,
    StorageError,
    TransportError,
)
from runtime.text import printable

_LONGEST = 500
# command: the module of rengo.cli that holds it, in the order of the help
_COMMANDS = {
    "demo": "site.demo",
    "up": "site.up",
    "site": "site.backup",
    "status": "operator.status",
    "topology": "operator.topology",
    "run": "operator.run",
    "simulate": "machine.simulate",
    "runs": "operator.runs",
    "models": "operator.models",
    "task": "operator.task",
    "devices": "operator.devices",
    "data": "machine.data",
    "enroll": "machine.enroll",
    "broker": "site.components",
    "store": "site.components",
    "server": "site.roles",
    "domain": "site.domain",
    "client": "site.roles",
    "iot": "site.roles",
    "agent": "machine.agent",
    "algorithms": "machine.algorithms",
    "audit": "operator.audit",
    "doctor": "machine.doctor",
}


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line, or of the one module that holds ``command``.

    A device's agent runs for months: it must not hold what other commands import.
    """
    parser = argparse.ArgumentParser(
        prog="rengo",
        description="Federated learning over MQTT and S3 for fleets of real devices.",
        epilog="Exit codes: 0 done, 2 bad usage or configuration, 3 the run failed, "
        "4 the broker or the store cannot be reached.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug logs")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    modules = [_COMMANDS[command]] if command in _COMMANDS else dict.fromkeys(_COMMANDS.values())
    for module in modules:
        importlib.import_module(f"rengo.cli.{module}").add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no traceback reaches a user without --debug."""
    words = sys.argv[1:] if argv is None else list(argv)
    _make_output_safe()
    try:
        try:
            return _run(words)
        finally:
            # what cannot be written must be told here, not by the interpreter at its end
            sys.stdout.flush()
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has gone
        _drop_output()
        return FAILED
    except RengoError as error:
        if "--debug" in words:
            raise
        _tell(one_line(error))
        return exit_code(error)
    except OSError as error:
        if not _is_output_sound():
            _drop_output()
        if "--debug" in words:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _tell(printable(f"{where}{error.strerror or error}"))
        return FAILED
    except Exception as error:
        if "--debug" in words:
            raise
        what = printable(f"internal error: {type(error).__name__}: {error}", _LONGEST)
        _tell(f"{what}; --debug shows where")
        return FAILED


def _tell(text: str) -> None:
    """Say on standard error why the command ends; where that is a full disk the code tells it."""
    with suppress(OSError):
        print(f"rengo: {text}", file=sys.stderr)


def _make_output_safe() -> None:
    """Let any text be printed, whatever the terminal's encoding, and where a stream is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # takes the lowest free number, which a file of ours would get otherwise
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_output_sound() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """Have what is still buffered go nowhere: it must not fail again at the exit."""
    with suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    require_not_loading("`rengo`")
    command = next((word for word in words if not word.startswith("-")), None)
    parser = build_parser(command)
    options = parser.parse_args(words)
    if options.version:
        import rengo  # noqa: PLC0415  (the name is this package's own)

        print(f"rengo {rengo.__version__}")
        return DONE
    if options.command is None:
        parser.print_help()
        return USAGE
    if getattr(options, "at_site", False) and options.data_dir is None:
        # an agent's commands need no site
        from rengo.site.folder import default_home  # noqa: PLC0415

        options.data_dir = default_home()
    code: int = options.action(options)
    return code


def exit_code(error: RengoError) -> int:
    """Return the exit code that tells what kind of trouble it was."""
    match error:
        case ConfigError() | NotFound():
            return USAGE
        case TransportError() | StorageError():
            return UNREACHABLE
    return FAILED


def one_line(error: RengoError) -> str:
    """Return an error's text on one line, a mismatch's on one for each difference."""
    if isinstance(error, Mismatch):
        return "\n".join(printable(line) for line in str(error).split("\n"))
    return printable(" ".join(str(error).split()))

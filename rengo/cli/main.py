"""The ``rengo`` command: a thin skin over the Python API. Each group of commands is one module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rengo.cli import algorithms, demo, devices, doctor, roles, run, runs, up
from runtime.errors import (
    ConfigError,
    NotFound,
    RengoError,
    StorageError,
    TransportError,
)

DONE, USAGE, FAILED, UNREACHABLE, INTERRUPTED = 0, 2, 3, 4, 130
_GROUPS = (demo, up, run, runs, devices, roles, algorithms, doctor)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="rengo",
        description="Federated learning over MQTT and S3 for fleets of real devices.",
        epilog="Exit codes: 0 done, 2 bad usage or configuration, 3 the run failed, "
        "4 the broker or the store cannot be reached.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug logs")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for group in _GROUPS:
        group.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no traceback reaches a user without --debug."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.version:
        import rengo  # noqa: PLC0415  (the name is this package's own)

        print(f"rengo {rengo.__version__}")
        return DONE
    if options.command is None:
        parser.print_help()
        return USAGE
    try:
        code: int = options.action(options)
    except KeyboardInterrupt:
        print("rengo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    except RengoError as error:
        if options.debug:
            raise
        print(f"rengo: {one_line(error)}", file=sys.stderr)
        return exit_code(error)
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
    """Return an error's text on one line."""
    return " ".join(str(error).split())

"""What several commands share: options, signals, logs, the operator's connection, output."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from runtime.config import merge, parse_assignment
from runtime.errors import ConfigError
from runtime.files import require_writable
from runtime.processes.child import PRIVATE_UMASK
from runtime.text import LogFormatter

if TYPE_CHECKING:
    from rengo.operator.client import OperatorClient
    from runtime.security.identity import Identity

PARTITION_HELP = (
    "how a shared data set is divided over the devices: iid, dirichlet:ALPHA, shards:K, "
    "quantity:ALPHA or natural, each with +turned, +inverted, +tinted or +domains if each device "
    "is to see images in its own way (default: as the task has it)"
)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Commands(Protocol):
    """What ``add_subparsers`` returns, as far as it is used here."""

    def add_parser(self, name: str, **kwargs: Any) -> argparse.ArgumentParser:
        """Return the parser of a new command."""
        ...


def add_command(
    commands: Commands, name: str, action: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    """Return the parser of a command that ``action`` carries out."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(action=action)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    return parser


def add_site(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which site is meant."""
    parser.add_argument(
        "--data-dir",
        type=absolute,
        metavar="DIR",
        help="the site's folder (default: RENGO_HOME or ~/.rengo)",
    )
    parser.set_defaults(at_site=True)


def absolute(text: str) -> Path:
    """Return a path given on the command line: a task may change the working folder later."""
    return Path(text).absolute()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the run definition, for example cohort.deadline_s=30; may repeat",
    )


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Add what makes several runs of one command."""
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="so many runs, with the seed and those after it"
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B,C",
        help="a run for each value of a key, for example algorithm.mu=0,0.1,1; several give every "
        "combination",
    )
    parser.add_argument(
        "--group", metavar="NAME", help="what these runs are called together in `runs compare`"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``."""
    parser.add_argument(
        "--output",
        type=absolute,
        default="rengo-output",
        metavar="DIR",
        help="where each run gets a folder for its model and plot (default: rengo-output)",
    )


def command_name() -> str:
    """Return how this command is called from where the user stands, as a shell takes it."""
    called = Path(sys.argv[0])
    if called.name != "rengo":
        return f"{Path(sys.executable).name} -m rengo"
    found = shutil.which("rengo")
    if found is not None and Path(found).resolve() == called.resolve():
        return "rengo"
    called, here = called.absolute(), Path.cwd()
    return shlex.quote(str(called.relative_to(here) if called.is_relative_to(here) else called))


def settings_of(assignments: list[str]) -> dict[str, Any]:
    """Return the nested settings that ``--set`` flags make."""
    values: dict[str, Any] = {}
    for text in assignments:
        path, value = parse_assignment(text)
        nested: Any = value
        for part in reversed(path):
            nested = {part: nested}
        merge(values, nested)
    return values


def connect(options: argparse.Namespace) -> OperatorClient:
    """Return the operator's connection to the site that the options name.

    Raises:
        ConfigError: no site was ever started there.
    """
    operator = operator_of(options.data_dir)
    if operator is None:
        raise ConfigError(
            f"no site in {options.data_dir}: start one with `rengo up`, or name its folder by "
            "--data-dir or RENGO_HOME"
        )
    # imported here: an agent's commands use this module too and need no operator's connection
    from rengo.operator.client import OperatorClient  # noqa: PLC0415

    return OperatorClient(operator)


def operator_of(data_dir: Path) -> Identity | None:
    """Return the identity of the operator of the site in a folder; None where there is no site."""
    if not data_dir.is_dir():
        return None
    from rengo.site.folder import SiteFolder  # noqa: PLC0415  see ``add_site``

    identities = SiteFolder(data_dir).all_identities()
    return next((each for each in identities if each.role == "operator"), None)


def progress_stream(json_path: str | None) -> TextIO:
    """Return where progress goes: to standard error where the JSON document takes the output.

    Raises:
        ConfigError: the document could not be written at the end; checked before the work begins.
    """
    if json_path == "-":
        return sys.stderr
    if json_path is not None:
        path = Path(json_path).absolute()
        if not path.parent.is_dir():
            raise ConfigError(f"--json {json_path}: there is no folder {path.parent}")
        if path.is_dir():
            raise ConfigError(f"--json {json_path} is a folder")
        require_writable(path.parent)
    return sys.stdout


def print_json(document: dict[str, Any], path: str | None) -> None:
    """Write a JSON document to a file, to standard output for ``-``, nowhere for None."""
    if path is None:
        return
    text = json.dumps(document, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        # opening and writing fail in different ways
        file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written: {error.strerror}") from error
    try:
        with file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def begin_role(*, debug: bool) -> None:
    """Log to standard error, one line a record, and make every file for its owner alone."""
    # libraries that make files (SQLite's logs, locks, caches) ask the process
    os.umask(PRIVATE_UMASK)
    log_to(
        sys.stderr,
        logging.DEBUG if debug else logging.INFO,
        "%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for name in ("urllib3", "botocore", "boto3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_to(stream: TextIO, level: int, line: str) -> None:
    """Write log records to a stream, each on one line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter(line))
    logging.basicConfig(level=level, handlers=[handler])


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into KeyboardInterrupt; later ones wait for the end.

    A signal that was ignored at the start (``nohup``) stays ignored.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    caught = [number for number in _ENDING if before[number] != signal.SIG_IGN]

    def interrupt(*_: object) -> None:
        for number in caught:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in caught:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def serve(run_forever: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run a role on this thread until SIGINT or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop())
    run_forever()

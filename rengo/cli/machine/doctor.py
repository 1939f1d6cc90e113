"""``rengo doctor``: what is missing on this machine, or in a store, and how to mend it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rengo.cli.codes import DONE, USAGE
from rengo.cli.common import Commands, add_command, add_site, print_json
from rengo.doctor.checks import Check, as_json, diagnose, healthy
from rengo.doctor.disk_use import check_disk_use
from rengo.terminal.lines import say
from runtime.errors import AccessDenied, ConfigError, NotFound, Unavailable

if TYPE_CHECKING:
    from storage.store.s3 import S3Store


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "doctor", examine, "say what is missing and how to mend it")
    parser.add_argument(
        "what",
        nargs="?",
        choices=("machine", "store", "agent"),
        default="machine",
        help="machine (the default); store: what the site's object store can do, how fast, "
        "and how far its clock is off, leaving nothing in it; or agent: what keeps this machine's "
        "agent from its work",
    )
    add_site(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="store: a server's TOML file, instead of that of the site in --data-dir; "
        "agent: its TOML file",
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="store: its address instead of the file's"
    )
    parser.add_argument("--bucket", metavar="NAME", help="store: its bucket instead of the file's")
    parser.add_argument("--id", help="agent: the device's id, where several run on this machine")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def examine(options: argparse.Namespace) -> int:
    """Print the findings; 2 when something that is required is missing."""
    if options.what == "store":
        return _examine_store(options)
    if options.what == "agent":
        return _examine_agent(options)
    given = [name for name in ("config", "endpoint", "bucket") if getattr(options, name)]
    if given:
        raise ConfigError(f"--{given[0]} goes with `rengo doctor store`")
    return _show(options, [*diagnose(options.data_dir), *check_disk_use(options.data_dir)])


def _show(options: argparse.Namespace, found: Sequence[Check]) -> int:
    if options.json:
        print_json(as_json(found), "-")
    else:
        _print(found)
    return DONE if healthy(found) else USAGE


def _print(found: Sequence[Check]) -> None:
    for check in found:
        mark = "ok  " if check.ok else ("MISS" if check.required else "note")
        say(f"{mark}  {check.name}: {check.detail}")
        if check.mend:
            say(f"      mend: {check.mend}")
    print("All well." if healthy(found) else "Mend what is marked MISS, then run this again.")


def _examine_agent(options: argparse.Namespace) -> int:
    from rengo.cli.machine.agent import agent_target  # noqa: PLC0415
    from rengo.doctor.agent import diagnose_agent  # noqa: PLC0415
    from rengo.site.folder import default_home  # noqa: PLC0415  see ``add_site``

    if options.data_dir != default_home():
        raise ConfigError("--data-dir is a site's folder; name the agent by --config or --id")
    return _show(options, diagnose_agent(agent_target(options)))


def _examine_store(options: argparse.Namespace) -> int:
    # a device's machine has no boto3, and this command is for devices too
    from rengo.doctor import store as doctor_store  # noqa: PLC0415
    from storage.store.probe import probe  # noqa: PLC0415
    from storage.store.speed import speeds  # noqa: PLC0415

    store = _store(options)
    settings = store.settings
    with _named(store), _progress() as say:
        found = probe(store, say)
        checked = doctor_store.checks(store, found)
        measured = list(speeds(store, say))
    if options.json:
        print_json(doctor_store.as_json(store, found, measured, checked), "-")
        return DONE if healthy(checked) else USAGE
    place = f"{settings.bucket}/{settings.root}"
    print(f"Store {settings.endpoint}, bucket {place.rstrip('/')}")
    for line in doctor_store.speed_lines(measured):
        print(f"      {line}")
    _print(checked)
    return DONE if healthy(checked) else USAGE


def _store(options: argparse.Namespace) -> S3Store:
    from storage.store.s3 import S3Store  # noqa: PLC0415
    from storage.store.settings import settings_from  # noqa: PLC0415

    given = {
        name: getattr(options, name) for name in ("endpoint", "bucket") if getattr(options, name)
    }
    file: Path | None = options.config
    if file is None:
        own = options.data_dir / "server" / "server.toml"
        file = own if own.exists() else None
    settings = settings_from(file, given)
    if "endpoint" in given:
        # the file's public name is that of the file's endpoint
        settings = settings.model_copy(update={"public_endpoint": None})
    return S3Store(settings)


@contextmanager
def _named(store: S3Store) -> Iterator[None]:
    """Within the block, an error names the configuration key to look at."""
    settings = store.settings
    try:
        yield
    except Unavailable as error:
        raise Unavailable(
            f"{error}; does the store run, and is store.endpoint right? (that of a site runs "
            "during `rengo up`)"
        ) from error
    except AccessDenied as error:
        raise AccessDenied(f"{error}; check store.access_key and store.secret") from error
    except NotFound as error:
        raise NotFound(
            f"there is no bucket {settings.bucket} at {settings.endpoint}; check store.bucket, or "
            "let the server's first start make it"
        ) from error


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Give a line on standard error that tells what is tried, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415

    with Console(stderr=True).status("asking the store") as status:
        yield lambda text: status.update(f"asking the store: {text}")

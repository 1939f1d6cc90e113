"""``rengo enroll URL``: make this machine a device of a site, once, and start its agent."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from fl_client.identity.enrolment import enroll
from fl_client.own_packages import command
from rengo.cli.codes import DONE
from rengo.cli.common import Commands, add_command, command_name
from rengo.cli.join_token import JOIN_VARIABLE, read_token
from rengo.cli.site.roles import add_agent_options, add_engine_options
from rengo.site.folder import default_home
from runtime.broker_url import BrokerPlace, parse_url
from runtime.files import make_folder
from runtime.security.identity import read_identity
from runtime.security.join_token import JoinToken

_DAY_S = 24 * 3600.0
_WORTH_TELLING_S = _DAY_S


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "enroll", run, "make this machine a device of a site, once, and start its agent"
    )
    parser.add_argument("url", metavar="URL", help="the site's broker: mqtt(s)://HOST:PORT")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--token", help="the join token, as `rengo devices invite` printed it")
    source.add_argument(
        "--token-file", type=Path, metavar="FILE", help="a file with the token, instead"
    )
    parser.add_argument("--name", default="", help="the device's id (default: the server's choice)")
    parser.add_argument(
        "--pi", action="store_true", help="start the Raspberry Pi's agent, as `rengo iot` does"
    )
    parser.add_argument(
        "--only", action="store_true", help="write the identity file and start nothing"
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="where this machine is a device of that broker already, start its agent: for a "
        "container that is started again with the same words",
    )
    add_agent_options(parser)
    add_engine_options(parser)


def run(options: argparse.Namespace) -> int:
    """Enrol this machine, then serve as its agent."""
    place = parse_url(options.url)
    home = default_home()
    known = _known(home, place) if options.once else None
    if known is not None:
        return _start(options, known)
    token = JoinToken.parse(read_token(options))
    enrolled = enroll(place, token, make_folder(home / "identities"), options.name)
    path = enrolled.path
    print(f"Enrolled as {path.stem}. Its identity lies in {path}; keep it to this machine.")
    if abs(enrolled.clock_off_s) > _WORTH_TELLING_S:
        days = enrolled.clock_off_s / _DAY_S
        where = "ahead of" if days > 0 else "behind"
        print(f"This machine's clock is {abs(days):.1f} days {where} the server's. Training does")
        print("not mind, but certificates of others may look expired, or not valid yet.")
    again = shlex.join(["iot" if options.pi else "client", *_settings_given(options)])
    print(f"From now on `{command_name()} {again}` starts the agent.", flush=True)
    return _start(options, path)


def _start(options: argparse.Namespace, path: Path) -> int:
    if not options.only:
        _become_agent(options, path)
    return DONE


def _become_agent(options: argparse.Namespace, path: Path) -> NoReturn:
    sys.stdout.flush()
    # this process becomes the agent under other words: whoever lists processes sees these, and not
    # the token, as long as the agent runs
    around = {name: value for name, value in os.environ.items() if name != JOIN_VARIABLE}
    words = [*command("rengo"), *agent_words(options, path)]
    os.execve(sys.executable, words, around)  # noqa: S606


def agent_words(options: argparse.Namespace, path: Path) -> list[str]:
    """Return the command that starts the agent of an identity as ``enroll`` was told to."""
    words = ["--debug"] if options.debug else []
    words += ["iot" if options.pi else "client", "--identity", str(path)]
    data_dir = options.data_dir or default_home() / "devices" / path.stem
    return [*words, "--data-dir", str(data_dir), *_settings_given(options)]


def _settings_given(options: argparse.Namespace) -> list[str]:
    """Return the words of what ``enroll`` was told of the agent beside its identity."""
    words = [word for task in options.task or () for word in ("--task", task)]
    words += [word for label in options.label or () for word in ("--label", label)]
    names = ["config", "role", "index", "count", "folder", "partition"]
    names += [] if options.pi else ["engine", "profile", "accelerators"]
    for name in names:
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    return words


def _known(home: Path, place: BrokerPlace) -> Path | None:
    """Return the identity by which this machine is a device of that broker already."""
    for path in sorted((home / "identities").glob("*.json")):
        identity = read_identity(path)
        if identity.role == "device" and (identity.host, identity.port) == (place.host, place.port):
            return path
    return None

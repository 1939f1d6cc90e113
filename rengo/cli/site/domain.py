"""``rengo domain``: a server to its devices, and a device to its parent."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from fl_client.identity.enrolment import enroll
from fl_client.own_packages import command
from rengo.cli.common import Commands, add_command, add_site, begin_role, serve
from rengo.cli.join_token import JOIN_VARIABLE, read_token
from rengo.cli.site.roles import (
    identity_of,
    lock_folder,
    require_private,
    server_of,
    server_settings,
    status_server,
)
from rengo.cli.site.up import add_listening, keep_up, site_options
from rengo.site.folder import SiteFolder
from rengo.site.site import Site
from runtime.broker_url import parse_url, url_of
from runtime.config import load, read_toml, validate
from runtime.errors import ConfigError
from runtime.files import atomic_write, make_folder
from runtime.processes.memory import share_one_heap
from runtime.security.identity import read_identity
from runtime.security.join_token import JoinToken

_GIVEN_ONCE = ("--token", "--token-file", "--parent", "--name")


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "domain",
        run,
        "run a domain: broker, store and server for its own devices, and one device to its parent",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="run the domain's server alone, by its TOML file; nothing else is to be given then",
    )
    parser.add_argument(
        "--parent", metavar="URL", help="at the first start: the parent's broker, mqtt(s)://…"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--token", help="at the first start: the parent's join token")
    source.add_argument(
        "--token-file", type=Path, metavar="FILE", help="a file with the token, instead"
    )
    parser.add_argument(
        "--name", default="", help="at the first start: the domain's name, also at its parent"
    )
    parser.add_argument(
        "--names",
        choices=("shown", "hidden"),
        help="whether the parent learns what devices are called (kept; hidden at first)",
    )
    parser.add_argument(
        "--local-rounds",
        type=int,
        metavar="N",
        help="how many rounds the devices do for one of the parent's (kept; 1 at first)",
    )
    parser.add_argument(
        "--cohort",
        type=int,
        metavar="N",
        help="how many devices take part in a round (kept; at first all that are online)",
    )
    add_site(parser)
    add_listening(parser)


def run(options: argparse.Namespace) -> int:
    """Run the domain with its broker and its store, or its server alone."""
    if options.config is not None:
        return run_domain(options)
    folder = SiteFolder(options.data_dir)
    home = make_folder(folder.root / "parent")
    path = _known(home)
    if path is None:
        path = _enrol(options, folder, home)
        if options.token is not None or os.environ.get(JOIN_VARIABLE):
            _begin_without_token()
    identity = read_identity(path)
    _require_same(options, path)
    section = _section(options, home, path)
    given = replace(site_options(options), domain=identity.id, parent=section)
    return keep_up(Site(options.data_dir, devices=options.devices or 0, options=given), options)


def run_domain(options: argparse.Namespace) -> int:
    """Run the server of a domain, and its agent for the parent, until it is told to stop."""
    # other commands need no server
    from rengo.domain.process import Domain, seams_of  # noqa: PLC0415
    from rengo.domain.settings import DomainConfig  # noqa: PLC0415

    begin_role(debug=options.debug)
    share_one_heap()  # a server's threads and an agent's: 40 MB of heaps with a hundred devices
    config = load(DomainConfig, options.config, "RENGO_DOMAIN")
    require_private(options.config)
    server_identity = identity_of("server", config.identity)
    own = identity_of("device", config.parent.identity)
    with lock_folder(config.data_dir):
        seams = seams_of(server_identity, config.parent)
        settings = seams.settings(server_settings(config, server_identity))
        server = server_of(config, server_identity, settings)
        domain = Domain(server, seams, config.parent, own, status_server)
        serve(domain.run_forever, domain.stop)
    return 0


# --- the parent -------------------------------------------------------------------------------


def _known(home: Path) -> Path | None:
    """Return the identity that the domain has of its parent."""
    return next(iter(sorted(home.glob("*.json"))), None)


def _enrol(options: argparse.Namespace, folder: SiteFolder, home: Path) -> Path:
    """Become a device of the parent's.

    Raises:
        ConfigError: something is missing, or the names do not go together.
    """
    if options.parent is None or not options.name:
        raise ConfigError(
            "a domain's first start needs --parent URL, --name NAME, and a join token, which "
            "`rengo devices invite` makes at the parent's site"
        )
    record = folder.record()
    if record is not None and record.domain != options.name:
        raise ConfigError(
            f"the site in {folder.root} is domain {record.domain!r} and stays it; take another "
            f"--data-dir for {options.name!r}, or --name {record.domain}"
        )
    token = JoinToken.parse(read_token(options))
    if token.domain == options.name:
        raise ConfigError(
            f"the parent's own domain is called {options.name!r}; choose another --name"
        )
    path = enroll(parse_url(options.parent), token, home, options.name).path
    print(f"Enrolled as domain {path.stem} of {options.parent}.", flush=True)
    return path


def _begin_without_token() -> None:
    """Begin again under other words: whoever lists processes must not see the token."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        name = word.partition("=")[0]
        if name not in _GIVEN_ONCE:
            words.append(word)
        elif "=" not in word:
            next(given, None)
    around = {name: value for name, value in os.environ.items() if name != JOIN_VARIABLE}
    sys.stdout.flush()
    argv = [*command("rengo"), *words]
    os.execve(sys.executable, argv, around)  # noqa: S606


def _require_same(options: argparse.Namespace, path: Path) -> None:
    """Raise ConfigError where another parent or name is given than at the first start."""
    identity = read_identity(path)
    if options.name and options.name != identity.id:
        raise ConfigError(
            f"this domain is {identity.id!r} to its parent and stays it; for {options.name!r} take "
            "another --data-dir"
        )
    if options.parent is None:
        return
    place = parse_url(options.parent)
    if (place.host, place.port) != (identity.host, identity.port):
        raise ConfigError(
            f"the parent of this domain is {url_of(identity)}, not {options.parent}; for another "
            "parent take another --data-dir"
        )


def _section(options: argparse.Namespace, home: Path, path: Path) -> dict[str, Any]:
    """Return what the domain is below its parent, as it was kept and as it is given now."""
    from rengo.domain.settings import ParentSection  # noqa: PLC0415  see ``run_domain``

    kept = home / "parent.toml"
    section: dict[str, Any] = read_toml(kept) if kept.exists() else {}
    section |= {"identity": str(path), "data_dir": str(home / "agent")}
    if options.names is not None:
        section["names"] = options.names == "shown"
    if options.local_rounds is not None:
        section["local_rounds"] = options.local_rounds
    if options.cohort is not None:
        section["cohort"] = {**section.get("cohort", {}), "size": options.cohort}
    validate(ParentSection, section, "the domain's settings")
    atomic_write(kept, tomli_w.dumps(section).encode())
    return section

"""``rengo up``: a whole site on this machine until it is stopped."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from rengo.cli.codes import DONE
from rengo.cli.common import Commands, add_command, add_site, command_name, interruptible, log_to
from rengo.site.addresses import OwnCertificate
from rengo.site.folder import SiteFolder, default_home
from rengo.site.preparation import Preparation, SiteOptions
from rengo.site.site import Site
from rengo.terminal.event_lines import SiteEventLines
from rengo.terminal.lines import say
from runtime.broker_url import parse_url
from runtime.disk import met_full_disk
from runtime.errors import ConfigError, TransportError

_LOOK_EVERY_S = 5.0
_DEVICES = 8


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "up", run, "run broker, store and server of one site")
    add_site(parser)
    add_listening(parser)
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="write all that the site's processes need, start nothing, and say how each is started",
    )
    for part in ("broker", "store"):
        parser.add_argument(
            f"--{part}-at",
            metavar="NAME",
            help=f"with --prepare: the name by which the other processes reach the {part}, where "
            "that has a machine or a container of its own",
        )


def add_listening(parser: argparse.ArgumentParser) -> None:
    """Add how a site listens, and what it is made of."""
    parser.add_argument(
        "--broker",
        metavar="KIND",
        help="nats, mosquitto, or the mqtt(s)://HOST:PORT of another broker (kept; nats at first)",
    )
    parser.add_argument(
        "--credentials",
        type=Path,
        metavar="FILE",
        help="the users of another broker: TOML, mode 0600",
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="the address to listen on, 0.0.0.0 for all; anything but loopback is TLS "
        "(kept; 127.0.0.1 at first)",
    )
    parser.add_argument(
        "--advertise",
        metavar="NAME",
        help="the name or address by which devices reach this machine (default: found)",
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="a certificate of yours with its chain, PEM"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM, mode 0600")
    parser.add_argument(
        "--tls-ca",
        type=Path,
        metavar="FILE",
        help="the authority behind it, where the system does not know it",
    )
    parser.add_argument(
        "--client-certs",
        type=Path,
        metavar="DIR",
        help="mutual TLS: ca.pem, and NAME.pem with NAME.key for each identity of the site",
    )
    parser.add_argument("--broker-port", type=int, help="the MQTT port (default: a free one, kept)")
    parser.add_argument("--store-port", type=int, help="the S3 port (default: a free one, kept)")
    parser.add_argument(
        "--store",
        choices=("juicefs", "seaweedfs"),
        default="juicefs",
        help="which S3 server, at the first start (default: juicefs)",
    )
    parser.add_argument(
        "--devices",
        type=int,
        help=f"device identities to prepare (default: {_DEVICES}; none of a domain)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the site until SIGINT, SIGTERM or SIGHUP, or prepare it."""
    if options.prepare:
        return _prepare(options)
    if options.broker_at or options.store_at:
        raise ConfigError("--broker-at and --store-at are for --prepare: this runs all in one")
    devices = _DEVICES if options.devices is None else options.devices
    return keep_up(Site(options.data_dir, devices=devices, options=site_options(options)), options)


def keep_up(site: Site, options: argparse.Namespace) -> int:
    """Run a site until SIGINT, SIGTERM or SIGHUP, and say what happens in it."""
    log_to(sys.stdout, logging.WARNING, "%(message)s")
    try:
        with interruptible():
            print("Starting the broker, the store and the server", flush=True)
            with site:
                print(welcome(site), flush=True)
                _watch(site)
    except KeyboardInterrupt:
        print(f"\nStopped. Everything is kept in {options.data_dir}.")
    return DONE


def _prepare(options: argparse.Namespace) -> int:
    given = site_options(options)
    if options.devices:
        raise ConfigError("devices of a prepared site join by `rengo devices invite`: no --devices")
    if given.broker is not None and "://" in given.broker:
        raise ConfigError(
            "--prepare is for a broker of the site's own; on another one only `rengo server` is "
            "left to start, see docs/brokers.md"
        )
    folder = SiteFolder(options.data_dir)
    with folder.lock():
        made = Preparation(folder, given)
        folder.keep(made.record)
    print(f"Site {made.record.domain!r} is prepared in {folder.root}. Its processes:\n")
    for part, path in made.settings.items():
        print(f"  {command_name()} {part} --config {shlex.quote(str(path))}")
    return DONE


def site_options(options: argparse.Namespace) -> SiteOptions:
    """Return how a site is to listen by what was given on the command line."""
    broker, certificate = options.broker, None
    if broker is not None and broker not in {"nats", "mosquitto"}:
        parse_url(broker)
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together")
    if options.tls_ca is not None and options.tls_cert is None:
        raise ConfigError("--tls-ca is the authority of --tls-cert, which is missing")
    if options.tls_cert is not None:
        certificate = OwnCertificate(options.tls_cert, options.tls_key, options.tls_ca)
    return SiteOptions(
        broker=broker,
        broker_port=options.broker_port,
        store=options.store,
        store_port=options.store_port,
        host=options.host,
        advertise=options.advertise,
        broker_at=getattr(options, "broker_at", None),
        store_at=getattr(options, "store_at", None),
        certificate=certificate,
        credentials=options.credentials,
        client_certificates=options.client_certs and options.client_certs.absolute(),
    )


def _watch(site: Site) -> NoReturn:
    story = SiteEventLines()
    while True:
        try:
            with site.connect() as client:
                while True:
                    for news in client.news(_LOOK_EVERY_S):
                        for line in story.take(news):
                            _say(line)
        except TransportError as error:
            # the supervisor starts the broker again; until then no message comes
            _say(f"nothing is heard from the broker: {error}")


def _say(line: str) -> None:
    """Say what happens; where standard output is on a full disk the site goes on without."""
    try:
        say(line)
    except OSError as error:
        if not met_full_disk(error):
            raise


def welcome(site: Site) -> str:
    """Return what a user needs to know of a site that is up."""
    record, folder = site.record, site.folder
    name = command_name()
    home = "" if folder.root == default_home() else f"RENGO_HOME={shlex.quote(str(folder.root))} "
    names = sorted((path.stem for path in folder.identities.glob("device-*.json")), key=_by_number)
    ready = f" ({_range(names)} ready)" if names else " (start with --devices N)"
    scheme = "http" if site.listening.trust is None else "https"
    return f"""\
Site {record.domain!r} is up. Its data lies in {folder.root}.

  broker  {site.public_url}
  store   {scheme}://{site.listening.advertised}:{record.store_port} ({record.store})
  logs    {folder.root / "logs"}

Add devices, each in a terminal of its own on this machine{ready}:

  {home}{name} client --task digits

Invite a device elsewhere, with a token and the one line to type there:

  {home}{name} devices invite

Then start a run:

  {home}{name} run digits --rounds 10 --follow

Ctrl-C stops the site and keeps its data.
"""


def _range(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} to {names[-1]} are"


def _by_number(name: str) -> tuple[int, str]:
    number = name.rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, name)

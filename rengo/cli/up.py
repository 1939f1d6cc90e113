"""``rengo up``: a whole site on this machine until it is stopped."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import NoReturn

from rengo.cli.codes import DONE
from rengo.cli.common import Commands, add_command, add_site, command_name, interruptible
from rengo.folder import HOST, default_home
from rengo.site import Site
from rengo.view import SiteStory
from runtime.errors import TransportError

_LOOK_EVERY_S = 5.0


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "up", run, "run broker, store and server of one site")
    add_site(parser)
    parser.add_argument("--broker-port", type=int, help="the MQTT port (default: a free one, kept)")
    parser.add_argument("--store-port", type=int, help="the S3 port (default: a free one, kept)")
    parser.add_argument(
        "--store",
        choices=("juicefs", "seaweedfs"),
        default="juicefs",
        help="which S3 server, at the first start (default: juicefs)",
    )
    parser.add_argument(
        "--devices", type=int, default=8, help="device identities to prepare (default: 8)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the site until SIGINT, SIGTERM or SIGHUP."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    site = Site(
        options.data_dir,
        devices=options.devices,
        broker_port=options.broker_port,
        store_port=options.store_port,
        store=options.store,
    )
    try:
        with interruptible():
            print("Starting the broker, the store and the server", flush=True)
            with site:
                print(welcome(site), flush=True)
                _watch(site)
    except KeyboardInterrupt:
        print(f"\nStopped. Everything is kept in {options.data_dir}.")
    return DONE


def _watch(site: Site) -> NoReturn:
    story = SiteStory()
    while True:
        try:
            with site.connect() as client:
                while True:
                    for news in client.news(_LOOK_EVERY_S):
                        for line in story.take(news):
                            print(line, flush=True)
        except TransportError as error:
            # the supervisor brings the broker back; meanwhile there is nothing to hear
            print(f"nothing is heard from the broker: {error}", flush=True)


def welcome(site: Site) -> str:
    """Return what a user needs to know of a site that is up."""
    record, folder = site.record, site.folder
    name = command_name()
    home = "" if folder.root == default_home().absolute() else f"RENGO_HOME={folder.root} "
    names = sorted((path.stem for path in folder.identities.glob("device-*.json")), key=_by_number)
    ready = f" ({names[0]} to {names[-1]} are ready)" if names else " (start with --devices N)"
    return f"""\
Site {record.domain!r} is up. Its data lies in {folder.root}.

  broker  mqtt://{HOST}:{record.broker_port}
  store   http://{HOST}:{record.store_port} ({record.store})
  logs    {folder.root / "logs"}

Add devices, each in a terminal of its own on this machine{ready}:

  {home}{name} client --task digits

Then start a run:

  {home}{name} run digits --rounds 10 --follow

Ctrl-C stops the site and keeps its data.
"""


def _by_number(name: str) -> tuple[int, str]:
    number = name.rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, name)

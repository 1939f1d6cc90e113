"""``rengo up``: a whole site on this machine until it is stopped."""

from __future__ import annotations

import argparse
import logging
import threading

from rengo.cli.common import Commands, add_command, add_site, interruptible
from rengo.site import Site


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "up", run, "run broker, store and server of one site")
    add_site(parser)
    parser.add_argument("--broker-port", type=int, help="the MQTT port (default: a free one, kept)")
    parser.add_argument("--store-port", type=int, help="the S3 port (default: a free one, kept)")
    parser.add_argument(
        "--store", choices=("juicefs", "seaweedfs"), default="juicefs", help="which S3 server"
    )
    parser.add_argument(
        "--devices", type=int, default=8, help="device identities to prepare (default: 8)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the site until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with interruptible():
        site = Site(
            options.data_dir,
            devices=options.devices,
            broker_port=options.broker_port,
            store_port=options.store_port,
            store=options.store,
        )
        try:
            with site:
                _tell(site)
                threading.Event().wait()
        except KeyboardInterrupt:
            print("\nStopped. Everything is kept in", site.folder.root)
    return 0


def _tell(site: Site) -> None:
    record, folder = site.record, site.folder
    names = sorted(path.stem for path in folder.identities.glob("device-*.json"))
    print(f"Site {record.domain!r} is up. Its data lies in {folder.root}.")
    print(f"  broker  mqtt://127.0.0.1:{record.broker_port}")
    print(f"  store   http://127.0.0.1:{record.store_port} ({record.store})")
    print(f"  logs    {folder.root / 'logs'}")
    print("Add a device, each in a terminal of its own on this machine:")
    print("  rengo client --task digits")
    if names:
        print(f"({len(names)} identities are ready, {names[0]} to {names[-1]}.)")
    print("Then start a run:")
    print("  rengo run digits --rounds 10 --follow")
    print("Ctrl-C stops the site.", flush=True)

"""``rengo devices ls|show``."""

from __future__ import annotations

import argparse
from typing import Any

from rengo.cli.common import Commands, add_command, add_site, connect, print_json
from rengo.tables import print_table
from runtime.errors import ConfigError


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser("devices", help="list and show devices")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, action, summary in (
        ("ls", list_devices, "list every device that was heard of"),
        ("show", show_device, "show what one device says of itself"),
    ):
        parser = add_command(verbs, name, action, summary)
        if name == "show":
            parser.add_argument("device_id", help="the device's id, as `rengo devices ls` shows it")
        add_site(parser)
        parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def _devices(options: argparse.Namespace) -> list[dict[str, Any]]:
    with connect(options) as client:
        return client.devices()


def list_devices(options: argparse.Namespace) -> int:
    """Print the devices."""
    devices = _devices(options)
    if options.json:
        print_json({"devices": devices}, options.json)
        return 0
    rows = []
    for device in devices:
        info = device["info"] or {}
        rows.append(
            [
                device["id"],
                device["status"],
                device["role"],
                info.get("profile", "-"),
                info.get("engine", "-"),
                ", ".join(device["tasks"]),
            ]
        )
    print_table(["device", "status", "role", "profile", "engine", "tasks"], rows, "no devices yet")
    return 0


def show_device(options: argparse.Namespace) -> int:
    """Print one device."""
    found = [device for device in _devices(options) if device["id"] == options.device_id]
    if not found:
        raise ConfigError(f"no device {options.device_id!r}; `rengo devices ls` lists them")
    if options.json:
        print_json(found[0], options.json)
        return 0
    info = found[0].pop("info") or {}
    for key, value in {**found[0], **info}.items():
        print(f"{key:14} {value}")
    return 0

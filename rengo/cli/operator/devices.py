"""``rengo devices ls|show|invite|label|group|rotate|revoke``."""

from __future__ import annotations

import argparse
import re
import sys

from fl_server.operations.catalogue import (
    DEVICES_GROUP,
    DEVICES_INVITE,
    DEVICES_LABEL,
    DEVICES_REVOKE,
    DEVICES_ROTATE,
)
from fl_server.operations.results.members import DeviceRow
from rengo.cli.common import Commands, add_command, add_site, connect, print_json
from rengo.terminal.device import device_lines
from rengo.terminal.lines import say
from rengo.terminal.tables import print_table
from runtime.errors import ConfigError, MissingExtra

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_TIME = re.compile(r"(\d{1,6})([smhd])")


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser(
        "devices", help="invite, list, show, label, group, rotate and revoke devices"
    )
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, action, summary in (
        ("ls", list_devices, "list every device that was admitted"),
        ("show", show_device, "show what is known of one device"),
        ("invite", invite, "make a join token and print the line to type on a device"),
        ("label", label, "give devices labels, by which runs choose them, or take some away"),
        ("group", regroup, "put devices into a group, by which runs choose them"),
        ("rotate", rotate, "give a device another password"),
        ("revoke", revoke, "cut a device off for good, or end a join token"),
    ):
        parser = add_command(verbs, name, action, summary)
        if name in {"show", "rotate"}:
            parser.add_argument("device_id", help="the device's id, as `rengo devices ls` shows it")
        if name == "revoke":
            parser.add_argument("device_id", help="a device's id, or a join token's (join-…)")
        if name == "invite":
            _add_invitation(parser)
        if name in {"label", "group"}:
            parser.add_argument("device_ids", metavar="DEVICE[,DEVICE...]", help="the devices' ids")
        if name == "label":
            parser.add_argument(
                "labels", nargs="+", metavar="NAME=VALUE", help="a label, or NAME- to take it away"
            )
        if name == "group":
            parser.add_argument("group", nargs="?", help="the group's name")
            parser.add_argument("--none", action="store_true", help="take them out of their groups")
        add_site(parser)
        parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def _add_invitation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group", default="", help="a group for whoever comes by this token")
    parser.add_argument("--project", default="default", help="its project (default: default)")
    parser.add_argument(
        "--uses", type=int, default=1, metavar="N", help="how many devices may use it (default: 1)"
    )
    parser.add_argument(
        "--expires",
        default="1h",
        metavar="TIME",
        help="how long it is good for: 90s, 30m, 1h or 7d (default: 1h)",
    )
    parser.add_argument("--qr", action="store_true", help="show the token as a QR code too")


def _devices(options: argparse.Namespace) -> list[DeviceRow]:
    with connect(options) as client:
        return client.devices()


def list_devices(options: argparse.Namespace) -> int:
    """Print the devices."""
    devices = _devices(options)
    if options.json:
        print_json({"devices": [each.document() for each in devices]}, options.json)
        return 0
    rows = []
    for device in devices:
        info = device.info
        rows.append(
            [
                device.id,
                "never seen" if device.status == "enrolled" else device.status,
                device.role,
                "-" if info is None else info.profile,
                "-" if info is None else info.engine,
                device.group or "-",
                ", ".join(device.tasks),
            ]
        )
    head = ["device", "status", "role", "profile", "engine", "group", "tasks"]
    print_table(head, rows, "no devices yet; `rengo devices invite` makes a token for one")
    return 0


def show_device(options: argparse.Namespace) -> int:
    """Print one device."""
    found = [each for each in _devices(options) if each.id == options.device_id]
    if not found:
        raise ConfigError(f"no device {options.device_id!r}; `rengo devices ls` lists them")
    if options.json:
        print_json(found[0].document(), options.json)
        return 0
    say(*device_lines(found[0]))
    return 0


def invite(options: argparse.Namespace) -> int:
    """Print a new join token."""
    lifetime_s = _seconds(options.expires)
    if options.qr:
        _require_qr()
    arguments = {
        "group": options.group,
        "project": options.project,
        "uses": options.uses,
        "lifetime_s": lifetime_s,
    }
    with connect(options) as client:
        made = client.request(DEVICES_INVITE, arguments)
    line = f"rengo enroll {made.url} --token {made.token}"
    if options.json:
        print_json({**made.document(), "expires_s": lifetime_s, "command": line}, options.json)
        return 0
    uses = "one device" if options.uses == 1 else f"{options.uses} devices"
    print(f"Token {made.token_id} for {uses}, good for {options.expires}:\n\n  {made.token}\n")
    print(f"On the device, once:\n\n  {line}\n")
    if options.qr:
        _print_qr(made.token)
    return 0


def label(options: argparse.Namespace) -> int:
    """Give devices labels, or take some away."""
    labels, removed = {}, []
    for text in options.labels:
        name, equals, value = text.partition("=")
        if equals:
            labels[name] = value
        elif text.endswith("-"):
            removed.append(text[:-1])
        else:
            raise ConfigError(
                f"{text!r} is no label; write {text}=VALUE, or {text}- to take it away"
            )
    given = {"device_ids": options.device_ids.split(","), "labels": labels, "remove": removed}
    with connect(options) as client:
        done = client.request(DEVICES_LABEL, given)
    if options.json:
        print_json(done.document(), options.json)
        return 0
    for device in done.devices:
        shown = ", ".join(f"{name}={value}" for name, value in sorted(device.labels.items()))
        say(f"{device.id}: {shown or 'no labels of an operator'}")
    return 0


def regroup(options: argparse.Namespace) -> int:
    """Put devices into a group, or out of theirs."""
    if (options.group is None) is not options.none:
        raise ConfigError("name one group, or take the devices out of theirs by --none")
    given = {"device_ids": options.device_ids.split(","), "group": options.group or ""}
    with connect(options) as client:
        done = client.request(DEVICES_GROUP, given)
    if options.json:
        print_json(done.document(), options.json)
        return 0
    where = f"in group {done.group}" if done.group else "in no group"
    say(f"{', '.join(done.devices)}: {where}")
    return 0


def rotate(options: argparse.Namespace) -> int:
    """Give a device another password."""
    with connect(options) as client:
        done = client.request(DEVICES_ROTATE, {"device_id": options.device_id})
    if options.json:
        print_json(done.document(), options.json)
        return 0
    when = "now" if done.online else "as soon as it is online"
    print(f"{options.device_id} gets another password {when}; the old one holds until it has it.")
    return 0


def revoke(options: argparse.Namespace) -> int:
    """Cut a device off."""
    with connect(options) as client:
        done = client.request(DEVICES_REVOKE, {"device_id": options.device_id})
    if options.json:
        print_json(done.document(), options.json)
        return 0
    print(f"{options.device_id} is revoked: cut off from the broker, its queue and state removed.")
    return 0


def _seconds(text: str) -> float:
    found = _TIME.fullmatch(text)
    if found is None:
        raise ConfigError(f"--expires {text!r} is not a time: 90s, 30m, 1h or 7d")
    return float(int(found[1]) * _UNITS[found[2]])


def _require_qr() -> None:
    try:
        import segno  # noqa: F401, PLC0415  (an extra, needed here alone)
    except ImportError as error:
        raise MissingExtra("segno", "server") from error


def _print_qr(text: str) -> None:
    import segno  # noqa: PLC0415

    segno.make(text, error="m").terminal(out=sys.stdout, compact=True)

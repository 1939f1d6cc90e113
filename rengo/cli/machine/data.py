"""``rengo data ls|get|show``: published data sets, and how they are divided over devices."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.datasets.device import Device
from fl_client.datasets.public import listing
from fl_client.datasets.public.files import find
from fl_client.datasets.public.published import Published, cache_folder
from fl_client.tasks.registry import load_task
from rengo.cli.codes import DONE
from rengo.cli.common import PARTITION_HELP, Commands, absolute, add_command, print_json
from rengo.site.device_folders import device_folders
from rengo.terminal.format import size
from rengo.terminal.lines import say
from rengo.terminal.tables import print_table
from runtime.errors import ConfigError

_MOST_DEVICES = 10_000
_MOST_COLUMNS = 20


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser("data", help="list, fetch and show data sets")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = add_command(verbs, "ls", list_data, "list the data sets, and which are here")
    _add_json(parser)
    parser = add_command(verbs, "get", get, "fetch a data set and verify it")
    parser.add_argument("name", help="a data set that `rengo data ls` lists")
    parser.add_argument(
        "--to",
        type=absolute,
        metavar="DIR",
        help="where its files go (default: the user's cache, where tasks look for them)",
    )
    parser = add_command(verbs, "show", show, "show which examples each device of a task has")
    parser.add_argument("task", help="a task's name or FILE.py:CLASS")
    parser.add_argument(
        "--clients", type=int, default=6, help="how many devices (default: 6, or as --data says)"
    )
    parser.add_argument(
        "--data", type=absolute, metavar="DIR", help="a folder with a sub-folder for each device"
    )
    parser.add_argument("--partition", default="", metavar="KIND", help=PARTITION_HELP)
    parser.add_argument(
        "--data-seed", type=int, default=0, help="what the devices draw with (default: 0)"
    )
    parser.add_argument(
        "--plot", type=absolute, metavar="FILE", help="write a picture: .png, .svg or .pdf"
    )
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def list_data(options: argparse.Namespace) -> int:
    """Print the data sets."""
    found = [(each, _where(each)) for each in map(listing.published, listing.names())]
    if options.json:
        rows = [
            {
                "name": each.name,
                "summary": each.summary,
                "examples": each.examples or None,
                "bytes": each.size_bytes,
                "licence": each.licence,
                "path": None if where is None else str(where),
                "bundled": each.package is None,
            }
            for each, where in found
        ]
        print_json({"datasets": rows}, options.json)
        return DONE
    table = [
        [
            each.name,
            f"{each.examples:,}" if each.examples else "-",
            size(each.size_bytes) if each.size_bytes else "-",
            _place(each, where),
            each.licence,
        ]
        for each, where in found
    ]
    print_table(["name", "examples", "size", "where", "licence"], table, "")
    return DONE


def _where(wanted: Published) -> Path | None:
    if wanted.package is None:
        return None
    try:
        return find(wanted).absolute()
    except ConfigError:
        return None


def _place(wanted: Published, where: Path | None) -> str:
    if wanted.package is None:
        return "comes with Rengo"
    return f"not here: rengo data get {wanted.name}" if where is None else str(where)


def get(options: argparse.Namespace) -> int:
    """Fetch a data set."""
    # it starts other programs, and the other verbs need none
    from rengo.data.fetch import fetch  # noqa: PLC0415

    wanted = listing.published(options.name)
    folder = options.to or cache_folder(wanted.name)
    fetch(wanted, folder)
    say(f"{wanted.name} is in {folder}, as it was published: {wanted.summary}")
    say(f"licence: {wanted.licence}")
    if options.to:
        say(f"tasks find it there by {wanted.variable}={folder}")
    return DONE


def _devices(options: argparse.Namespace) -> list[Device]:
    """Return the devices that are shown: one for each folder, with its name, or numbered ones."""
    if options.data is not None:
        places: list[Path | None] = [*device_folders(options.data).trainers]
    elif 1 <= options.clients <= _MOST_DEVICES:
        places = [None] * options.clients
    else:
        raise ConfigError(f"--clients must be 1 to {_MOST_DEVICES}, not {options.clients}")
    return [
        Device(
            f"device-{number}" if place is None else place.name,
            number - 1,
            len(places),
            seed=options.data_seed,
            folder=place,
            partition=options.partition,
        )
        for number, place in enumerate(places, 1)
    ]


def show(options: argparse.Namespace) -> int:
    """Print which examples each device of a task has."""
    # numpy, and for a task of torch's its packages
    from rengo.data.counts import DeviceCounts, counts_of  # noqa: PLC0415

    devices = _devices(options)
    task = load_task(options.task)
    found: list[DeviceCounts] = list(counts_of(task, devices))
    if options.plot:
        # matplotlib is an extra
        from rengo.terminal.plot import draw_partition  # noqa: PLC0415

        rows = {each.device_id: each.classes or {0: each.examples} for each in found}
        title = f"{task.name}, {options.partition or 'as the task has it'}"
        draw_partition(rows, title, options.plot)
    if options.json:
        document = [
            {
                "id": each.device_id,
                "examples": each.examples,
                "held_out": each.held_out,
                "classes": {str(label): count for label, count in each.classes.items()},
            }
            for each in found
        ]
        print_json({"task": task.name, "devices": document}, options.json)
        return DONE
    labels = sorted({label for each in found for label in each.classes})
    columns = labels if len(labels) <= _MOST_COLUMNS else []
    table = [
        [
            each.device_id,
            str(each.examples),
            str(each.held_out),
            str(len(each.classes) or "-"),
            *(str(each.classes.get(label, "")) for label in columns),
        ]
        for each in found
    ]
    headings = ["device", "examples", "held out", "classes", *map(str, columns)]
    print_table(headings, table, "no devices")
    return DONE

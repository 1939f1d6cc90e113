"""``rengo site backup|restore``: a site as one file."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rengo.cli.codes import DONE
from rengo.cli.common import Commands, absolute, add_command, add_site, command_name
from rengo.site.backup import back_up, restore
from rengo.terminal.format import count, size


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser("site", help="back a site up into one file, and restore it")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = add_command(
        verbs, "backup", run_backup, "write a site, also a running one, into one file"
    )
    parser.add_argument("file", type=absolute, metavar="FILE", help="the file to write")
    add_site(parser)
    parser = add_command(verbs, "restore", run_restore, "make a site's folder of a backup")
    parser.add_argument("file", type=Path, metavar="FILE", help="a file of `rengo site backup`")
    parser.add_argument("folder", type=absolute, metavar="DIR", help="a new or an empty folder")


def run_backup(options: argparse.Namespace) -> int:
    """Write a backup."""
    held = back_up(options.data_dir, options.file)
    print(f"{options.file}: site {held.domain!r}, {_what(len(held.files), held.size_bytes)}")
    print("It holds the keys of the site: keep it as you keep those.")
    return DONE


def run_restore(options: argparse.Namespace) -> int:
    """Restore a backup."""
    held = restore(options.file, options.folder)
    print(f"{options.folder}: site {held.domain!r}, {_what(len(held.files), held.size_bytes)}")
    print(f"Start it: {command_name()} up --data-dir {shlex.quote(str(options.folder))}")
    return DONE


def _what(files: int, bytes_: int) -> str:
    return f"{count(files, 'file')}, {size(bytes_)}"

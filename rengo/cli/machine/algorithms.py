"""``rengo algorithms``: what there is and what can be set."""

from __future__ import annotations

import argparse
import dataclasses
import inspect

from algorithms.registry import algorithm_class, names
from rengo.cli.common import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "algorithms", show, "list the algorithms, or explain one")
    parser.add_argument("name", nargs="?", help="the algorithm to explain")


def show(options: argparse.Namespace) -> int:
    """Print the list or one algorithm's settings."""
    for name in [options.name] if options.name else names():
        algorithm = algorithm_class(name)
        summary = (inspect.getdoc(algorithm) or "").splitlines()[0]
        print(f"{name:12} {summary}")
        for field in dataclasses.fields(algorithm) if options.name else ():
            print(f"  algorithm.{field.name} = {field.default!r}")
    return 0

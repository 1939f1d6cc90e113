"""``rengo models promote VERSION --canary SHARE``: its options, progress and exit code."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import TextIO

from fl_server.operations.results.models import CanaryReport
from rengo.cli.codes import DONE
from rengo.cli.common import connect, interruptible, print_json, progress_stream
from rengo.operator.canary import CanaryTrial, begin, follow
from rengo.terminal.format import count, duration
from rengo.terminal.lines import say
from runtime.errors import ConfigError, RunNotCompleted

_DEFAULT = CanaryTrial()
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how a candidate is tried."""
    parser.add_argument(
        "--canary",
        type=_share,
        metavar="SHARE",
        help="try it first on a share of the evaluators, for example 20%%, beside what is in "
        "production; promote it or roll it back by what they measure",
    )
    parser.add_argument(
        "--metric",
        help="what the canary compares (default: what runs of the task are compared by)",
        metavar="NAME",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="X",
        help=f"how much worse it may be and still be promoted (default: {_DEFAULT.max_drop})",
    )
    parser.add_argument(
        "--deadline",
        type=_seconds,
        metavar="TIME",
        help=f"how long the canary waits for measurements: 90s, 5m, 1h (default: "
        f"{_DEFAULT.deadline_s:.0f}s)",
    )


def _share(text: str) -> float:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: say 20% or 0.2")
    return share


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: say 90s, 5m or 1h")
    return float(match[1]) * _UNITS_S[match[2] or ""]


def trial_of(options: argparse.Namespace) -> CanaryTrial | None:
    """Return the canary's settings, None where the version is to be promoted at once.

    Raises:
        ConfigError: the options of a canary stand there without ``--canary``.
    """
    given = {
        "metric": options.metric,
        "max_drop": options.max_drop,
        "deadline_s": options.deadline,
    }
    known = {name: value for name, value in given.items() if value is not None}
    if options.canary is not None:
        if options.reason:
            raise ConfigError("--reason: a canary gives its own reason")
        return CanaryTrial(share=options.canary, **known)
    if known:
        raise ConfigError("--metric, --max-drop and --deadline belong to --canary SHARE")
    return None


def try_out(options: argparse.Namespace, trial: CanaryTrial) -> int:
    """Try a version and wait for the verdict.

    Raises:
        RunNotCompleted: it was not promoted; says why.
    """
    progress = _Progress(progress_stream(options.json))
    canary_id = ""
    try:
        with interruptible(), connect(options) as client:
            canary_id = begin(client, options.name, trial)
            shown = follow(client, canary_id, progress.tell)
    except KeyboardInterrupt:
        if canary_id:
            progress.say(f"{canary_id} goes on, and decides by itself.")
        raise
    print_json(shown.document(), options.json)
    if shown.verdict == "promoted" and not shown.problem:
        progress.say(f"{shown.candidate} is in production for task {shown.task}: {shown.reason}.")
        return DONE
    raise RunNotCompleted(_refused(shown))


def _refused(shown: CanaryReport) -> str:
    came = {
        "promoted": "was not promoted",
        "rolled_back": "was rolled back",
        "inconclusive": "was not promoted, the canary is inconclusive",
    }[shown.verdict]
    return f"{shown.candidate} {came}: {shown.problem or shown.reason}"


@dataclass
class _Progress:
    """A line when the canary has begun, and one whenever more pairs have come."""

    out: TextIO
    _pairs: int | None = None

    def tell(self, shown: CanaryReport) -> None:
        """Say how it stands, unless that was said."""
        if self._pairs is None:
            devices = count(shown.cohort_size, shown.measured_by.removesuffix("s"))
            self.say(
                f"{shown.candidate} against {shown.production} on {devices}, for at most "
                f"{duration(shown.deadline_s)} ({shown.canary_id})"
            )
            self._pairs = 0
        if shown.pairs > self._pairs:
            self._pairs = shown.pairs
            self.say(f"{self._pairs} of {shown.cohort_size} have measured both")

    def say(self, line: str) -> None:
        """Print a line at once."""
        say(line, out=self.out)

"""Appends facts to a journal for ever and says after each which it was; killed by its test."""

from __future__ import annotations

import sys

from fl_server.persistence.journal import Journal
from fl_server.rounds.facts import RunPaused, RunResumed


def main() -> None:
    journal = Journal(sys.argv[1])
    number = 0
    while True:
        journal.append("r", [RunPaused(), RunResumed()])
        number += 1
        print(number, flush=True)


if __name__ == "__main__":
    main()

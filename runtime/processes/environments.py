"""Which of several installations an agent runs from, so that a new one is tried once.

Three symbolic links, each replaced by one rename: ``next`` is to be tried, ``trying`` is being
tried, ``current`` has worked. The launcher renames ``next`` before it starts it: whatever
ends the trial before its commit, a power cut included, brings the old installation back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.files import make_folder, sync_folder

TRIAL = "RENGO_TRIAL"
LINKS = "environment"
TRIAL_S = 120.0


@dataclass(frozen=True)
class Environments:
    """The links of one agent.

    Attributes:
        links: the folder they lie in, ``environment`` below the agent's data folder.
    """

    links: Path

    @property
    def current(self) -> Path | None:
        """The installation that has proved itself; None before the first update."""
        return self._target("current")

    @property
    def waiting(self) -> Path | None:
        """The one that is tried at the next start."""
        return self._target("next")

    @property
    def trying(self) -> Path | None:
        """The one that was started to be tried, until it is committed or given up."""
        return self._target("trying")

    def propose(self, environment: Path) -> None:
        """Have an installation tried at the next start."""
        make_folder(self.links)
        fresh = self.links / f".next.{secrets.token_hex(4)}"
        fresh.symlink_to(environment)
        fresh.replace(self.links / "next")
        sync_folder(self.links)

    def withdraw(self) -> None:
        """Take back what was proposed and has not been tried."""
        (self.links / "next").unlink(missing_ok=True)

    def give_up(self) -> None:
        """Forget a trial that has failed."""
        (self.links / "trying").unlink(missing_ok=True)

    def commit(self) -> None:
        """Make the one that is tried the current one."""
        (self.links / "trying").replace(self.links / "current")
        sync_folder(self.links)

    def _target(self, name: str) -> Path | None:
        try:
            return (self.links / name).readlink()
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class UpdateTrial:
    """This process is a new installation, tried."""

    environments: Environments

    @classmethod
    def of_environment(cls) -> UpdateTrial | None:
        """Return the trial that the launcher started, None in an everyday start."""
        folder = os.environ.pop(TRIAL, "")
        return UpdateTrial(Environments(Path(folder))) if folder else None

    def commit(self) -> None:
        """Take this installation from now on; one that was committed already stays so."""
        with contextlib.suppress(FileNotFoundError):
            self.environments.commit()


def launcher(root: Path, links: Path, installed: Path) -> str:
    """Return the shell script that starts an agent from the right installation.

    Args:
        root: only installations below it are started, whoever wrote the links.
        links: the folder of the links.
        installed: what runs as long as there is no link.
    """
    return f"""\
#!/bin/sh
# Starts Rengo's agent; written by `rengo agent install-service`.
links='{_quoted(links)}'
inside() {{
    found=$(readlink -f "$links/$1") || return 1
    case "$found" in '{_quoted(root)}'/*) [ -x "$found/bin/python" ] ;; *) return 1 ;; esac
}}
case "$1" in client | iot)
    if [ -L "$links/next" ] && mv -f -T "$links/next" "$links/trying" && sync && inside trying; then
        {TRIAL}="$links" exec "$found/bin/python" -P -m rengo "$@"
    fi
esac
if [ -L "$links/current" ] && inside current; then
    exec "$found/bin/python" -P -m rengo "$@"
fi
exec '{_quoted(installed)}/bin/python' -P -m rengo "$@"
"""


def this_environment() -> Path:
    """Return the virtual environment of this process, its links resolved."""
    return Path(sys.prefix).resolve()


def _quoted(path: Path) -> str:
    return str(path).replace("'", "'\\''")

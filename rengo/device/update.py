"""Updates an agent: into a second environment, tried once, kept when it has proved itself.

Whatever ends this in between, a working environment stays: the links change by single renames, the
launcher tries the new environment once, and the new agent commits itself when it has reached the
broker (``runtime.processes.environments``).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rengo.device.status import StatusClient, ask_status
from runtime.errors import ConfigError, RunNotCompleted, TransportError
from runtime.processes.environments import LINKS, TRIAL_S, Environments, this_environment
from runtime.processes.locks import take_lock

LAUNCHER = "rengo-agent"
_PREFIX = "rengo-env-"
_LOOK_EVERY_S = 0.5
_RESTART_S = 60.0
_LONGEST_LINE = 500


@dataclass(frozen=True)
class AgentUpdate:
    """One update.

    Attributes:
        target: a version, a wheel, or "" for the newest.
        config: the agent's file, which the new version has to understand.
        data_dir: the agent's.
        wait_s: how long a round may go on before the update gives up.
        find_links: a folder of wheels, for a machine without a package index.
    """

    target: str
    config: Path | None
    data_dir: Path
    wait_s: float
    find_links: Path | None = None

    def carry_out(self, say: Callable[[str], None]) -> None:
        """Update.

        Raises:
            ConfigError: this installation cannot be updated so, or the new one cannot be installed.
            RunNotCompleted: the agent did not stop working in time, or the new installation did not
                work; the earlier one runs on.
        """
        here = this_environment()
        root = here.parent
        if not (root / LAUNCHER).is_file():
            raise ConfigError(
                f"there is no {root / LAUNCHER}, by which `rengo agent install-service` has an "
                "agent start; without it: pip install --upgrade rengo, and start the agent again"
            )
        links = Environments(self.data_dir / LINKS)
        with take_lock(root / ".rengo-update.lock", "another `rengo agent update` is under way"):
            _sweep(root, {here, links.waiting, links.trying, links.current})
            fresh = root / f"{_PREFIX}{secrets.token_hex(4)}"
            try:
                self._install(fresh, say)
                self._require_sound(fresh)
                with self._held(say) as visit:
                    self._switch(visit, links, fresh, say)
            except BaseException:
                # asked in the order in which it moves on
                if fresh not in (links.waiting, links.trying, links.current):
                    shutil.rmtree(fresh, ignore_errors=True)
                raise
            _sweep(root, {here, fresh, links.current})

    def _install(self, fresh: Path, say: Callable[[str], None]) -> None:
        say(f"installing {self.target or 'the newest version'} into {fresh}")
        shared = "true" in _system_packages()
        _run([sys.executable, "-m", "venv", *(["--system-site-packages"] * shared), str(fresh)])
        source = (
            [] if self.find_links is None else ["--no-index", f"--find-links={self.find_links}"]
        )
        pip = [str(fresh / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet"]
        _run([*pip, "--disable-pip-version-check", *source, self._requirement()])

    def _requirement(self) -> str:
        extras = "iot,torch" if find_spec("torch") is not None else "iot"
        if self.target.endswith(".whl"):
            wheel = Path(self.target).resolve()
            if not wheel.is_file():
                raise ConfigError(f"there is no wheel {self.target}")
            return f"rengo[{extras}] @ {wheel.as_uri()}"
        return f"rengo[{extras}]" + (f"=={self.target}" if self.target else "")

    def _require_sound(self, fresh: Path) -> None:
        """Raise ConfigError unless the new installation loads and understands the agent's file."""
        python = [str(fresh / "bin" / "python"), "-P"]
        _run(
            [
                *python,
                "-c",
                "import numpy, fl_client.agent.agent, fl_client.training.process;"
                "import rengo.cli.machine.agent",
            ]
        )
        if self.config is not None:
            _run([*python, "-m", "rengo", "agent", "check-config", "--config", str(self.config)])
        # the links must not reach the disk before what they lead to
        os.sync()

    @contextmanager
    def _held(self, say: Callable[[str], None]) -> Iterator[StatusClient | None]:
        """Within the block the agent takes no order and has none; None where no agent runs."""
        try:
            ask_status(self.data_dir)
        except TransportError:
            yield None
            return
        with StatusClient(self.data_dir) as visit:
            deadline, told = time.monotonic() + self.wait_s, False
            while busy := visit.ask("hold")["busy"]:
                if time.monotonic() >= deadline:
                    raise RunNotCompleted(f"not updated, for {busy}; --wait TIME waits for its end")
                if not told:
                    say(f"waiting: {busy}")
                    told = True
                time.sleep(_LOOK_EVERY_S)
            yield visit

    def _switch(
        self,
        visit: StatusClient | None,
        links: Environments,
        fresh: Path,
        say: Callable[[str], None],
    ) -> None:
        links.propose(fresh)
        if visit is None:
            say("no agent runs: the new version is tried at its next start, and kept if it holds")
            return
        if not visit.ask("restart")["restarting"]:
            links.withdraw()
            raise RunNotCompleted("the agent would not end; nothing was changed")
        say("the agent starts again, from the new environment")
        deadline = time.monotonic() + TRIAL_S + _RESTART_S
        while not self._is_committed(links, fresh):
            if time.monotonic() >= deadline:
                links.withdraw()
                raise RunNotCompleted(
                    "the agent did not come back; if it has no service that starts it again, "
                    f"start it by {fresh.parent / LAUNCHER}"
                )
            time.sleep(_LOOK_EVERY_S)
        say("the new version has reached the broker and is kept")

    def _is_committed(self, links: Environments, fresh: Path) -> bool:
        try:
            status = ask_status(self.data_dir)
        except TransportError:
            return False
        if status["environment"] == str(fresh):
            return not status["on_trial"]
        if links.waiting is None:
            links.give_up()
            raise RunNotCompleted(
                "the new version was tried and did not reach the broker; the earlier one runs "
                "again (journalctl -u rengo-agent says why)"
            )
        return False


def _sweep(root: Path, kept: set[Path | None]) -> None:
    """Remove the environments that earlier updates made and nothing uses."""
    for path in root.glob(f"{_PREFIX}*"):
        if path not in kept:
            shutil.rmtree(path)


def _system_packages() -> str:
    """Return what this environment says of the system's packages: on a Pi numpy may be there."""
    for line in (this_environment() / "pyvenv.cfg").read_text("utf-8").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "include-system-site-packages":
            return value.strip()
    return "false"


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        why = " ".join((done.stderr or done.stdout).split())[-_LONGEST_LINE:]
        raise ConfigError(f"{' '.join(argv[:4])} … failed: {why}")

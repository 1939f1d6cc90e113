"""`rengo agent update` with real environments: taken when it holds, taken back when it does not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import rengo.cli.site.roles
from rengo.device.status import ask_status
from rengo.device.update import LAUNCHER
from runtime.errors import TransportError
from runtime.processes.environments import LINKS, Environments, launcher
from runtime.security.identity import write_identity
from tests.integration.broker_fixtures import Site, site
from tests.integration.commands import surroundings

__all__ = ["site"]
ROOT = Path(__file__).parents[2]
PACKAGES = ("rengo", "algorithms", "broker", "storage", "fl_server", "fl_client", "iot", "runtime")
NAME = "dev-a"
PATIENCE_S = 60.0
LONGEST_S = 25.0
SITE_PACKAGES = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}"


def make_wheel(folder: Path, version: str, changed: Mapping[str, str] | None = None) -> Path:
    """Return a wheel of this working tree, some of its files changed."""
    path = folder / f"rengo-{version}-py3-none-any.whl"
    info = f"rengo-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        packages = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
        for file in (*packages, ROOT / "rengo_start.py"):
            name = str(file.relative_to(ROOT))
            wheel.writestr(name, (changed or {}).get(name) or file.read_text("utf-8"))
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        extras = "Provides-Extra: iot\nProvides-Extra: torch\n"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: rengo\nVersion: {version}\n{extras}"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def dependencies(folder: Path) -> Path:
    """Return a folder of what is installed here but Rengo, for PYTHONPATH: no index is needed."""
    folder.mkdir()
    here = Path(pytest.__file__).parents[1]
    for path in here.iterdir():
        if not path.name.lower().startswith(("rengo", "__editable__", "__pycache__", "pip")):
            (folder / path.name).symlink_to(path)
    return folder


@dataclass
class Device:
    """An agent that is started again whenever it ends, as by systemd."""

    root: Path
    home: Path
    environment: dict[str, str]
    supervisor: subprocess.Popen[bytes]

    @property
    def folder(self) -> Path:
        return self.home / "devices" / NAME

    @property
    def status(self) -> dict[str, Any]:
        """What the agent says of itself, once it is on trial no more; {} while none is ready."""
        try:
            status = ask_status(self.folder)
        except TransportError:
            return {}
        return status if status["connection"]["connected"] and not status["on_trial"] else {}

    @property
    def running(self) -> str:
        """The environment of an agent that is ready; "" while none is."""
        return Path(self.status.get("environment", "")).name

    def python(self) -> str:
        current = Environments(self.folder / LINKS).current or self.root / "venv"
        return str(current / "bin" / "python")

    def update(self, wheel: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python(), "-P", "-m", "rengo", "agent", "update", "--id", NAME, "--to", wheel],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def device(site: Site, tmp_path: Path) -> Iterator[Device]:
    home, root = tmp_path / "home", tmp_path / "opt"
    identity = site.identity(NAME)
    write_identity(home / "identities" / f"{NAME}.json", identity)
    installed = root / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", installed], check=True)
    with zipfile.ZipFile(make_wheel(tmp_path, "0.1.0")) as wheel:
        wheel.extractall(installed / SITE_PACKAGES / "site-packages")
    start = root / LAUNCHER
    start.write_text(launcher(root, home / "devices" / NAME / LINKS, installed))
    start.chmod(0o755)
    environment = surroundings(home, {"PYTHONPATH": str(dependencies(tmp_path / "deps"))})
    once = f"{start} iot --id {NAME} & wait $!; sleep 0.2"
    loop = f"trap 'kill $!; wait; exit' TERM; while :; do {once}; done"
    log = (tmp_path / "agent.log").open("wb")
    with log:
        supervisor = subprocess.Popen(["sh", "-c", loop], env=environment, stderr=log)
        try:
            yield Device(root, home, environment, supervisor)
        finally:
            supervisor.send_signal(signal.SIGTERM)
            supervisor.wait(PATIENCE_S)


def moments(count: int) -> list[float]:
    """Return when an update is killed, in seconds after it began to install."""
    source = random.Random(5)
    return [source.uniform(0, LONGEST_S) for _ in range(count)]


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([0.0], id="killed at once"),
        pytest.param(
            moments(20),
            id="killed at any moment",
            marks=[pytest.mark.soak, pytest.mark.timeout(1800)],
        ),
    ],
)
def test_an_update_is_taken_when_it_holds_and_taken_back_when_it_does_not(
    device: Device, tmp_path: Path, kills: list[float]
) -> None:
    until(lambda: device.running == "venv")
    good = make_wheel(tmp_path, "0.1.1")
    for after_s in kills:
        _ended_in_between_leaves_what_works(device, good, after_s)
    done = device.update(good)
    out, _ = done.communicate(timeout=3 * PATIENCE_S)
    assert done.returncode == 0, out
    assert "the new version has reached the broker and is kept" in out
    taken = device.running
    assert taken.startswith("rengo-env-")
    roles = Path(rengo.cli.site.roles.__file__).read_text("utf-8")
    head = "def status_server() -> StatusServer:\n"
    broken = roles.replace(head, f"{head}    exit(5)\n")
    assert broken != roles
    done = device.update(make_wheel(tmp_path, "0.1.3", {"rengo/cli/site/roles.py": broken}))
    out, _ = done.communicate(timeout=3 * PATIENCE_S)
    assert done.returncode == 3, out
    assert "the earlier one runs again" in out
    until(lambda: device.running == taken)
    left = {path.name for path in device.root.glob("rengo-env-*")}
    assert left == {taken}


def _ended_in_between_leaves_what_works(device: Device, wheel: Path, after_s: float) -> None:
    """Kill the update, so long after it began, and the agent with it."""
    seen = set(device.root.glob("rengo-env-*"))
    killed = device.update(wheel)
    until(lambda: bool(set(device.root.glob("rengo-env-*")) - seen) or killed.poll() is not None)
    with contextlib.suppress(subprocess.TimeoutExpired):
        killed.wait(after_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = device.status.get("pid")
    if before is not None:
        with contextlib.suppress(ProcessLookupError):  # it was about to start again
            os.kill(before, signal.SIGKILL)
    until(lambda: device.status.get("pid") not in {None, before})
    print(f"killed after {after_s:.1f} s; runs from {device.running}", flush=True)

"""A service's walls stand while its agent works: what its unit forbids is not what training needs.

No systemd runs here; ``tests.seccomp`` puts up the walls that it would, from the unit's own lines.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

from rengo.device.systemd import ServiceUnit
from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec, device_process
from rengo.site.site import Site
from runtime.processes.child import Child
from tests.integration.commands import rengo
from tests.seccomp import settings_of
from tests.support import require

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or find_library("seccomp") is None, reason="there is no libseccomp"
)
ROOT = Path(__file__).parents[2]
WRITE_AND_RUN = """
import mmap
mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
"""
BECOME_EXECUTABLE = """
import ctypes, mmap
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
libc = ctypes.CDLL(None, use_errno=True)
if libc.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ | mmap.PROT_EXEC):
    raise PermissionError(ctypes.get_errno(), "mprotect")
"""
# neither is in @system-service
MOUNT = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.umount2(b"/nowhere", 0)
if ctypes.get_errno() == 1:
    raise PermissionError(1, "umount2")
"""
CALLBACK = """
import ctypes
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
numbers = (ctypes.c_int * 3)(3, 1, 2)
ctypes.CDLL(None).qsort(numbers, 3, 4, kind(lambda a, b: a[0] - b[0]))
print(list(numbers))
"""


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The units of a Pi and of an edge, as ``install-service`` writes them."""
    require("systemd-analyze", "systemd")
    folder = tmp_path_factory.mktemp("units")
    made = {}
    for command in ("iot", "client"):
        made[command] = folder / f"{command}.service"
        service = ServiceUnit(command, Path("/p"), Path("/c"), Path("/d"), user="rengo")
        made[command].write_text(service.text())
    return made


def walled(unit: Path, *argv: str) -> list[str]:
    return [sys.executable, "-m", "tests.seccomp", str(unit), *argv]


def ran(unit: Path, code: str) -> subprocess.CompletedProcess[str]:
    argv = walled(unit, sys.executable, "-c", code)
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("code", [WRITE_AND_RUN, BECOME_EXECUTABLE], ids=["mmap", "mprotect"])
def test_the_walls_stand(units: dict[str, Path], code: str) -> None:
    refused = ran(units["iot"], code)
    assert refused.returncode == 1
    assert "PermissionError" in refused.stderr
    # an edge's torch compiles code into memory, where it is asked to
    allowed = ran(units["client"], code)
    assert allowed.returncode == 0, allowed.stderr


@pytest.mark.parametrize("command", ["iot", "client"])
def test_no_service_may_call_what_is_no_services(units: dict[str, Path], command: str) -> None:
    assert "PermissionError" in ran(units[command], MOUNT).stderr
    free = subprocess.run([sys.executable, "-c", MOUNT], capture_output=True, check=False)
    if os.geteuid() == 0:
        assert free.returncode == 0, "without the walls it may"


def test_a_callback_from_c_needs_no_memory_that_is_written_and_run(
    units: dict[str, Path],
) -> None:
    done = ran(units["iot"], CALLBACK)
    assert done.stdout == "[1, 2, 3]\n", done.stderr


CONVOLVE = """
import torch
layer = torch.nn.Conv1d(6, 16, 9)
layer(torch.randn(32, 6, 100)).sum().backward()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="seen there")
def test_torch_writes_code_into_memory_which_is_why_an_edge_may(units: dict[str, Path]) -> None:
    """When this fails, torch needs it no more, and the edge's unit can forbid it as well."""
    pytest.importorskip("torch")
    assert "could not create a primitive" in ran(units["iot"], CONVOLVE).stderr
    assert ran(units["client"], CONVOLVE).returncode == 0


# --- real agents ----------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "home", devices=2) as site:
        yield site


def agent(site: Site, unit: Path, spec: DeviceSpec) -> Child:
    """Return an agent's process behind the walls of its unit, not yet started."""
    home = site.folder.root
    identity = site.folder.identity_path(spec.name)
    child = device_process(
        spec, identity, home / "agents" / spec.name, "digits", home / f"{spec.name}.log"
    )
    child._argv = walled(unit, *child._argv)
    child._cwd = ROOT
    return child


@pytest.mark.parametrize(
    ("command", "spec"),
    [
        ("iot", DeviceSpec("device-1", profile="pi", engine="numpy")),
        ("client", DeviceSpec("device-1", engine="numpy")),
        ("client", DeviceSpec("device-1", engine="torch")),
    ],
    ids=["pi, numpy", "edge, numpy", "edge, torch"],
)
def test_an_agent_trains_behind_the_walls(
    site: Site, units: dict[str, Path], command: str, spec: DeviceSpec
) -> None:
    if spec.engine == "torch":
        pytest.importorskip("torch")
    home = site.folder.root
    child = agent(site, units[command], spec)
    child.start()
    try:
        with site.connect() as client:
            wait_for_devices(client, [spec.name], 60.0)
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert "Seccomp:\t2" in status
        done = rengo(
            *("run", "digits", "--rounds", "2", "--set", "cohort.size=1"),
            *("--set", "evaluation.on=devices", "--output", home / "out", "--json", "-"),
            home=home,
            patience_s=120,
        )
    finally:
        child.stop()
    log = (home / f"{spec.name}.log").read_text()
    assert done.code == 0, done.err + log
    assert json.loads(done.out)["rounds_completed"] == 2
    assert "Traceback" not in log
    assert "Operation not permitted" not in log, log
    training = (home / "agents" / spec.name / "training.log").read_text()
    assert "not permitted" not in training, training


def test_the_unit_of_a_pi_alone_forbids_code_in_memory(units: dict[str, Path]) -> None:
    found = {command: settings_of(path.read_text()) for command, path in units.items()}
    assert found["iot"]["MemoryDenyWriteExecute"] == "yes"
    assert "MemoryDenyWriteExecute" not in found["client"]
    assert {each["SystemCallFilter"] for each in found.values()} == {"@system-service"}

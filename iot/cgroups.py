"""A control group (version 1 or 2) for the training process, where this process may create one."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from iot.profile import Budget

_LOG = logging.getLogger(__name__)
_PERIOD_US = 100_000
_MOUNT = Path("sys/fs/cgroup")


@dataclass(frozen=True)
class ControlGroup:
    """The folders of one group: in version 1 one for each controller, in version 2 a single one."""

    folders: tuple[Path, ...]

    @classmethod
    def create(cls, name: str, budget: Budget, *, root: Path = Path("/")) -> ControlGroup | None:
        """Return a group with the budget's limits; None where it has none or creating fails."""
        if budget.memory is None and budget.cpu_share is None:
            return None
        mount = root / _MOUNT
        own = _own_groups(root)
        try:
            if (mount / "cgroup.controllers").is_file():
                return _version_2(mount / own.get("", "").lstrip("/"), name, budget)
            return _version_1(mount, own, name, budget)
        except OSError as error:
            _LOG.info("no control group for training: %s", error)
            return None

    def add(self, pid: int) -> bool:
        """Move a process in; False when that is not allowed."""
        try:
            for folder in self.folders:
                (folder / "cgroup.procs").write_text(str(pid), "ascii")
        except OSError as error:
            _LOG.warning("training runs outside its control group: %s", error)
            return False
        return True

    def oom_kills(self) -> int:
        """Return how many processes of the group the kernel has killed for lack of memory."""
        for path in (
            folder / name
            for folder in self.folders
            for name in ("memory.events", "memory.oom_control")
        ):
            if path.is_file():
                lines = path.read_text("ascii").splitlines()
                counts = dict(line.split(" ", 1) for line in lines if " " in line)
                return int(counts.get("oom_kill", 0))
        return 0

    def remove(self) -> None:
        """Remove the group; one that still has a process stays and is used again."""
        for folder in self.folders:
            try:
                folder.rmdir()
            except OSError as error:
                _LOG.info("control group %s stays: %s", folder, error)


def _own_groups(root: Path) -> dict[str, str]:
    """Return this process's group by controller; version 2 has one, under the name ""."""
    try:
        lines = (root / "proc/self/cgroup").read_text("ascii").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _version_1(mount: Path, own: dict[str, str], name: str, budget: Budget) -> ControlGroup | None:
    wanted = {}
    if budget.memory is not None:
        wanted["memory"] = {"memory.limit_in_bytes": int(budget.memory)}
    if budget.cpu_share is not None:
        quota = int(budget.cpu_share * _PERIOD_US)
        wanted["cpu"] = {"cpu.cfs_period_us": _PERIOD_US, "cpu.cfs_quota_us": quota}
    folders = []
    for controller, values in wanted.items():
        parent = mount / controller / own.get(controller, "").lstrip("/")
        if not (parent / "cgroup.procs").is_file():
            # in a container the path is the host's, and the mount itself is our group
            parent = mount / controller
        if not (parent / "cgroup.procs").is_file():
            return None
        folder = parent / name
        folder.mkdir(exist_ok=True)
        folders.append(folder)
        for key, value in values.items():
            (folder / key).write_text(str(value), "ascii")
    return ControlGroup(tuple(folders))


def _version_2(parent: Path, name: str, budget: Budget) -> ControlGroup | None:
    """Return a group below our own, if ours is delegated to us (systemd: Delegate=yes)."""
    available = (parent / "cgroup.controllers").read_text("ascii").split()
    wanted = [
        controller
        for controller, limit in (("memory", budget.memory), ("cpu", budget.cpu_share))
        if limit is not None
    ]
    if not set(wanted) <= set(available) or not os.access(parent / "cgroup.procs", os.W_OK):
        return None
    if set((parent / "cgroup.procs").read_text("ascii").split()) - {str(os.getpid())}:
        return None
    # the kernel allows no process in a group that enables controllers for its children
    agent = parent / "agent"
    agent.mkdir(exist_ok=True)
    (agent / "cgroup.procs").write_text(str(os.getpid()), "ascii")
    switches = " ".join(f"+{controller}" for controller in wanted)
    (parent / "cgroup.subtree_control").write_text(switches, "ascii")
    folder = parent / name
    folder.mkdir(exist_ok=True)
    if budget.memory is not None:
        (folder / "memory.max").write_text(str(int(budget.memory)), "ascii")
    if budget.cpu_share is not None:
        quota = int(budget.cpu_share * _PERIOD_US)
        (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}", "ascii")
    return ControlGroup((folder,))

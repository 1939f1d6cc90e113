"""Installs an agent as a service: its user, its files and its unit."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rengo.device.config_file import SYSTEM_FILE
from rengo.device.systemd import UNIT, ServiceUnit, device_groups, systemd_version, verify
from rengo.site.folder import default_home
from runtime.errors import ConfigError
from runtime.files import atomic_write, make_folder
from runtime.processes.environments import LINKS, launcher, this_environment

USER = "rengo"
HOME = Path("/var/lib/rengo")
_HOMES = (Path("/home"), Path("/root"))


@dataclass(frozen=True)
class InstallRequest:
    """What the person asked for.

    Attributes:
        settings: of the file that is written, where there is none yet.
        per_user: a unit of the person's own manager, which needs no root.
        root: another file system, in which files are written and nothing is started; "/" is here.
    """

    command: str
    config: Path | None
    settings: dict[str, Any]
    per_user: bool = False
    root: Path = Path("/")
    memory_max: str = "75%"
    cpu_quota: str = "100%"


@dataclass(frozen=True)
class Installation:
    """What is written where. The identity moves to the service's own user; two may not use it."""

    wanted: InstallRequest
    service: ServiceUnit
    unit: Path
    config_text: str | None
    launcher_text: str | None
    identity: tuple[Path, Path] | None

    @property
    def at_home(self) -> bool:
        """Whether this is for the machine that runs."""
        return self.wanted.root == Path("/")

    def carry_out(self, say: Callable[[str], None]) -> None:
        """Carry out the plan; a second time changes only the unit and the launcher.

        Raises:
            ConfigError: this takes root, or a step failed; says which.
        """
        own = bool(self.service.user) and self.at_home
        if own and os.geteuid() != 0:
            raise ConfigError(
                "installing a service for the machine takes root: run it by sudo, or add --user "
                "for a service of your own"
            )
        if own:
            _ensure_user(say)
        for folder in (self.service.data_dir, self.service.config.parent):
            make_folder(self._placed(folder))
        self._write_files(say)
        if own:
            _give(HOME)
        self._write(self.unit, self.service.text(), 0o644, say)
        if self.at_home:
            self._start(say)

    def _write_files(self, say: Callable[[str], None]) -> None:
        if self.identity is not None:
            before, after = self.identity
            make_folder(self._placed(after.parent))
            atomic_write(self._placed(after), before.read_bytes())
        if self.config_text is not None:
            self._placed(self.service.config.parent).chmod(0o755)
            self._write(self.service.config, self.config_text, 0o644, say)
        if self.launcher_text is not None:
            self._write(self.service.program, self.launcher_text, 0o755, say)
        if self.identity is not None:
            # last: until the agent's file names the new identity, the old one is the only one
            before.unlink()
            say(f"moved the identity {before} to {after}")

    def _write(self, path: Path, text: str, mode: int, say: Callable[[str], None]) -> None:
        atomic_write(self._placed(path), text.encode(), mode)
        say(f"wrote {self._placed(path)}")

    def _placed(self, path: Path) -> Path:
        return self.wanted.root / path.relative_to("/")

    def _start(self, say: Callable[[str], None]) -> None:
        found = verify(self.unit, user=self.wanted.per_user)
        if found:
            say(f"systemd-analyze verify says: {found}")
        systemctl = shutil.which("systemctl")
        if systemctl is None or not Path("/run/systemd/system").is_dir():
            say("systemd does not run here: the unit starts with it")
            return
        manager = [systemctl, *(["--user"] if self.wanted.per_user else [])]
        for arguments in (["daemon-reload"], ["enable", "--now", UNIT]):
            _do([*manager, *arguments])
        say(f"{UNIT} runs; `rengo agent status` says what it is doing")
        if self.wanted.per_user:
            say("to have it run while you are logged out: loginctl enable-linger")


def plan(wanted: InstallRequest, identity: Path | None) -> Installation:
    """Return what would be done.

    Raises:
        ConfigError: there is nothing to install it from, or where its user could not read it.
    """
    home = default_home() if wanted.per_user else HOME
    config = wanted.config or (home / "agent.toml" if wanted.per_user else SYSTEM_FILE)
    data_dir = Path(wanted.settings.get("data_dir") or home / "agent").absolute()
    environment = this_environment()
    updatable = environment != Path(sys.base_prefix).resolve()
    service = ServiceUnit(
        command=wanted.command,
        program=environment.parent / "rengo-agent" if updatable else Path(sys.prefix) / "bin/rengo",
        config=config.absolute(),
        data_dir=data_dir,
        user="" if wanted.per_user else USER,
        memory_max=wanted.memory_max,
        cpu_quota=wanted.cpu_quota,
        systemd=systemd_version(),
        groups=() if wanted.per_user else device_groups(wanted.command),
    )
    if service.user:
        _require_readable(environment)
    script = launcher(environment.parent, data_dir / LINKS, environment) if updatable else None
    text, move = None, None
    if wanted.config is None and not config.exists():
        if identity is None:
            raise ConfigError("this machine is not a device yet; enrol it first: rengo enroll URL")
        target = identity if wanted.per_user else home / "identities" / identity.name
        move = None if target == identity else (identity, target)
        text = settings_text(
            {**wanted.settings, "identity": str(target), "data_dir": str(data_dir)}
        )
    units = Path.home() / ".config/systemd/user" if wanted.per_user else Path("/etc/systemd/system")
    return Installation(wanted, service, units / UNIT, text, script, move)


def of_file(wanted: InstallRequest, values: Mapping[str, Any]) -> InstallRequest:
    """Return the same with what the agent's file says of its data folder."""
    data_dir = values.get("data_dir")
    settings = wanted.settings if data_dir is None else {"data_dir": str(data_dir)}
    return replace(wanted, settings=settings)


def _require_readable(environment: Path) -> None:
    if any(environment.is_relative_to(home) for home in _HOMES):
        raise ConfigError(
            f"Rengo is installed in {environment}, where the service's own user may not look; "
            "install it into /opt/rengo (docs/devices.md), or add --user for a service of your own"
        )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return plain settings as TOML: text, numbers and lists of text are written as in JSON.

    >>> print(settings_text({"tasks": ["digits"], "labels": {"room": "attic"}}).splitlines()[2])
    labels = {"room" = "attic"}
    """
    # TOML knows no halves of a letter, as which JSON escapes what is beyond 16 bits
    lines = [
        f"{key} = {_value_text(value)}" for key, value in settings.items() if value is not None
    ]
    return "# An agent of Rengo; `rengo agent check-config` checks it.\n" + "\n".join(lines) + "\n"


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_value_text(name)} = {_value_text(each)}" for name, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)


def _ensure_user(say: Callable[[str], None]) -> None:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        shell = "/usr/sbin/nologin"
        _do(
            ["useradd", "--system", "--user-group", "--home-dir", str(HOME), "--shell", shell, USER]
        )
        say(f"made the user {USER}")


def _give(folder: Path) -> None:
    """Make the service's user the owner of all that lies in a folder."""
    user = pwd.getpwnam(USER)
    for place, _, names in os.walk(folder):
        for name in (".", *names):
            # links are not followed: the agent could have made one to any file
            os.chown(Path(place) / name, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _do(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise ConfigError(f"{' '.join(argv)} failed: {done.stderr.strip()}")

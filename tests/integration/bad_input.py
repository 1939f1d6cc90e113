"""What commands are given to refuse, and the exit codes."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from runtime.processes.ports import free_port
from runtime.security.identity import new_identity, write_identity

USAGE, FAILED, UNREACHABLE = 2, 3, 4


def identity_file(folder: Path, role: Any = "device", port: int = 0) -> Path:
    path = folder / f"{role}.json"
    name = "d-1" if role == "device" else str(role)
    write_identity(path, new_identity(role, "home", name, "127.0.0.1", port or free_port()))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def server_file(folder: Path, **changes: Any) -> Path:
    values = {
        "identity": folder / "server.json",
        "data_dir": folder / "data",
        "store.endpoint": f"http://127.0.0.1:{free_port()}",
        "store.access_key": "rengo",
        "store.secret": "a-secret",
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    if not (folder / "server.json").exists():
        identity_file(folder, "server")
    path = folder / "server.toml"
    lines = [
        f"{key} = {value if isinstance(value, int) else json.dumps(str(value))}"
        for key, value in values.items()
    ]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


def no_room() -> None:
    """Let no file grow beyond some bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

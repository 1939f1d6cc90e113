"""SeaweedFS makes sockets in /tmp: what a killed one left goes with the next start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.store.servers import seaweedfs


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Give a socket that nobody listens at, one in use, and a file."""
    paths = {role: tmp_path / role for role in ("master", "filer", "volume")}
    monkeypatch.setattr(seaweedfs, "_socket_path", lambda role, _: paths[role])
    with (
        socket.socket(socket.AF_UNIX) as left,
        socket.socket(socket.AF_UNIX) as used,
    ):
        left.bind(str(paths["master"]))
        used.bind(str(paths["filer"]))
        used.listen()
        paths["volume"].write_text("a file of somebody")
        yield paths


def test_only_what_nobody_listens_at_is_removed(sockets: dict[str, Path], tmp_path: Path) -> None:
    options = tmp_path / "weed.options"
    seaweedfs._remove_sockets(options)
    options.write_text(
        "dir=objects\nmaster.port=9000\nmaster.port.grpc=1\nfiler.port.grpc=2\nvolume.port.grpc=3\n"
    )
    seaweedfs._remove_sockets(options)
    assert {role: path.exists() for role, path in sockets.items()} == {
        "master": False,
        "filer": True,
        "volume": True,
    }

"""Files that are whole or absent."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.files import atomic_write


def test_it_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_mode_does_not_hang_on_the_umask_or_the_old_file(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(0o077)
    try:
        atomic_write(path, b"new", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_failed_write_leaves_the_old_bytes_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            atomic_write(path, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_kill_leaves_the_old_bytes_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    sizes = (100_000, 200_000)
    code = (
        "import sys; from pathlib import Path; from runtime.files import atomic_write\n"
        "path = Path(sys.argv[1]); print('on', flush=True)\n"
        f"while True:\n  for size in {sizes}: atomic_write(path, bytes([size % 251]) * size)"
    )
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child:
            assert child.stdout.readline() == "on\n"
            while not path.exists():
                assert child.poll() is None
            child.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) in sizes
        assert set(data) == {len(data) % 251}

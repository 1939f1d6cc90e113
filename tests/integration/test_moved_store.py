"""An embedded store is its folder: under any name, moved, and copied while another one runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from storage.store.embedded import EmbeddedStore, Kind
from storage.store.s3 import S3Store
from tests.paths import NASTIEST

_SIZE = 100_000


@contextmanager
def _serving(folder: Path, kind: Kind) -> Iterator[S3Store]:
    server = EmbeddedStore(folder, kind)
    server.start()
    try:
        store = S3Store(server.settings)
        store.ensure_bucket()
        yield store
    finally:
        server.stop()


def _files(folder: Path) -> dict[str, int]:
    """Return the files of objects with their sizes."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for name in ("blobs", "objects")
        for path in (folder / name).rglob("*")
        if path.is_file()
    }


def _read(store: S3Store, key: str) -> bytes:
    found = store.open(key)
    try:
        return b"".join(iter(lambda: found.read(1 << 20), b""))
    finally:
        found.close()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_copy_is_a_store_of_its_own(tmp_path: Path, kind: Kind) -> None:
    first, copy = tmp_path / NASTIEST, tmp_path / f"copy of {NASTIEST}"
    with _serving(first, kind) as store:
        store.put("a/old", b"x" * _SIZE)
    before = _files(first)
    assert before
    subprocess.run(["cp", "-a", first, copy], check=True)  # sockets too
    with _serving(copy, kind) as other:
        assert _read(other, "a/old") == b"x" * _SIZE
        other.put("a/new", b"y" * _SIZE)
        other.delete(["a/old"])
    assert _files(first) == before, "the copy wrote into the folder that it is a copy of"
    shutil.rmtree(first)
    with _serving(copy, kind) as other:
        assert [each.key for each in other.list("")] == ["a/new"]
        assert _read(other, "a/new") == b"y" * _SIZE
    assert {each.name for each in tmp_path.iterdir()} == {copy.name}

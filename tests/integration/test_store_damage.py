"""A real store that has lost the blocks of one document: the registry, and a site's operator."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rengo.site.site import Site
from storage.registry.registry import ModelRegistry
from storage.store.s3 import S3Store
from storage.versions.keys import RunKeys
from tests.integration.broker_fixtures import eventually
from tests.integration.commands import Told, rengo
from tests.integration.store_fixtures import bucket_of, running_store
from tests.versions import KEY, PROJECT, stored

RUN = RunKeys(PROJECT, "r")


def blocks(folder: Path) -> set[Path]:
    return {path for path in (folder / "blobs").rglob("*") if path.is_file()}


def commit(registry: ModelRegistry, store: S3Store, number: int) -> None:
    registry.commit(stored(store, "r", number))


def test_lost_blocks_of_one_manifest_concern_its_version_alone(tmp_path: Path) -> None:
    with running_store(tmp_path / "data", "juicefs") as embedded:
        store = bucket_of(embedded)
        registry = ModelRegistry(store, PROJECT, KEY)
        registry.rebuild()
        commit(registry, store, 0)
        manifest = stored(store, "r", 1)
        before = blocks(tmp_path / "data")
        registry.commit(manifest)
        lost = blocks(tmp_path / "data") - before
        assert lost
        for path in lost:
            path.unlink()
        again = ModelRegistry(store, PROJECT, KEY)
        (line,) = again.rebuild()
        assert line.startswith(f"r:1 is set aside: GET {store.settings.endpoint}")
        assert "while the store serves other objects" in line
        assert list(again.set_aside()) == [("r", 1)]
        assert [each.name for each in again.versions()] == ["r:0"]
        commit(again, store, 2)
        again.promote(again.get("r", 2), "")
        production = again.production("digits")
        assert production is not None
        assert production.name == "r:2"
        again.discard("r", 1)
        assert again.set_aside() == {}
        assert [info.key for info in store.list(RUN.prefix) if RUN.version_of(info.key) == 1] == []


def test_an_operator_sees_and_removes_a_damaged_version(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def tell(*words: str) -> Told:
        return rengo(*words, home=home)

    with Site(home) as site:
        store, keys = S3Store(site.store.settings), RunKeys("default", "lost")
        store.put(keys.version(1), b"a model")
        store.put(keys.manifest(1), b"not what a server signed")
        os.kill(site.children["server"].pid, signal.SIGKILL)
        eventually(lambda: "lost:1" in tell("models", "ls").out, 60)
        shown = tell("models", "ls").out
        assert "lost:1 is set aside until the next start of the server, or for good by" in shown
        assert tell("models", "rm", "lost:1").out == "lost:1 was removed.\n"
        assert "lost" not in tell("models", "ls").out
        assert [info.key for info in store.list(keys.prefix)] == []
        again = tell("models", "rm", "lost:1")
        assert (again.code, again.line) == (2, "no run 'lost' has a version here")
        assert tell("audit").out.count("model removed") == 1

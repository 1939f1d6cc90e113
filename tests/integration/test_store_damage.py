"""The registry on a real store that has lost the blocks of one document."""

from __future__ import annotations

from pathlib import Path

from storage.registry.registry import ModelRegistry
from storage.store.s3 import S3Store
from storage.versions.keys import RunKeys
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

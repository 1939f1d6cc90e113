"""A model registry on the store in memory."""

from __future__ import annotations

from typing import Any

import pytest

from storage.registry.registry import ModelRegistry, Version
from storage.store.memory import MemoryStore
from storage.versions.keys import RunKeys
from tests.versions import KEY, PROJECT, DictCache, stored

RUN = RunKeys(PROJECT, "r")


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000

    def __call__(self) -> int:
        self.ms += 1
        return self.ms


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore) -> ModelRegistry:
    return opened(store)


def opened(store: MemoryStore, cache: DictCache | None = None) -> ModelRegistry:
    registry = ModelRegistry(store, PROJECT, KEY, cache, Clock())
    registry.rebuild()
    return registry


def commit(
    registry: ModelRegistry, store: MemoryStore, *numbers: int, **more: Any
) -> list[Version]:
    run_id = more.pop("run_id", "r")
    return [registry.commit(stored(store, run_id, number, **more)) for number in numbers]


def stages(registry: ModelRegistry) -> dict[str, str]:
    return {version.name: version.record.stage for version in registry.versions()}

"""Object keys: built and parsed in one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.store.objects import check_key
from storage.versions.keys import RunKeys

KEYS = RunKeys("default", "digits-1")


def test_the_keys_of_the_design() -> None:
    base = "projects/default/runs/digits-1/"
    assert KEYS.prefix == base
    assert KEYS.version(7) == f"{base}global/000007.safetensors"
    assert KEYS.manifest(7) == f"{base}manifests/000007.json"
    assert KEYS.record(7) == f"{base}records/000007.json"
    assert KEYS.state(7) == f"{base}state/000007.safetensors"
    assert KEYS.update(3, 2, "pi-1") == f"{base}updates/000003/002/pi-1.upd"


@pytest.mark.parametrize(("pair", "spent"), [((2, 9), True), ((3, 1), True), ((3, 2), True)])
def test_updates_up_to_the_pair_are_spent(pair: tuple[int, int], spent: bool) -> None:
    assert KEYS.is_spent_update(KEYS.update(*pair, "d"), 3, 2) is spent


@pytest.mark.parametrize("pair", [(3, 3), (4, 1), (10, 1), (1_000_000, 1)])
def test_updates_beyond_the_pair_are_not(pair: tuple[int, int]) -> None:
    assert not KEYS.is_spent_update(KEYS.update(*pair, "d"), 3, 2)


def test_other_keys_are_neither_updates_nor_versions() -> None:
    other = RunKeys("default", "digits-10")
    for key in (other.update(1, 1, "d"), other.version(1), "x", KEYS.prefix, KEYS.updates):
        assert not KEYS.is_spent_update(key, 9, 9)
        assert KEYS.version_of(key) is None
    assert KEYS.version_of(KEYS.update(1, 1, "d")) is None
    assert not KEYS.is_spent_update(KEYS.version(1), 9, 9)


def test_a_run_is_no_prefix_of_another() -> None:
    assert not RunKeys("p", "run-10").version(0).startswith(RunKeys("p", "run-1").prefix)


names = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=64)
rounds = st.integers(0, 10_000_000)


@given(names, names, rounds, st.integers(1, 10_000_000), names)
def test_every_key_is_parsed_as_it_was_built(
    project: str, run: str, number: int, attempt: int, device: str
) -> None:
    keys = RunKeys(project, run)
    for build in (keys.version, keys.manifest, keys.record, keys.state):
        key = build(number)
        assert check_key(key) == key
        assert RunKeys.of(key) == keys
        assert keys.version_of(key) == number
    update = check_key(keys.update(number, attempt, device))
    assert keys.is_spent_update(update, number, attempt)
    assert not keys.is_spent_update(update, number, attempt - 1)
    assert not keys.is_spent_update(update, number - 1, attempt + 1)
    assert update.startswith(keys.updates)

"""What a run may leave in the store: whole versions and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from storage.store.objects import ObjectStore
from storage.versions.keys import RunKeys


def beside(keys: RunKeys, versions: Collection[int], there: Iterable[str]) -> str:
    """Return what is there beside the versions, or is missing of them; nothing when all is right.

    A version has its model and its manifest, and may have a record and the algorithm's state.
    """
    needed = {key for each in versions for key in (keys.version(each), keys.manifest(each))}
    allowed = {key for each in versions for key in (keys.record(each), keys.state(each))}
    found = set(there)
    strange, missing = sorted(found - needed - allowed), sorted(needed - found)
    told = [f"beside it {strange}"] if strange else []
    return "; ".join([*told, f"missing {missing}"] if missing else told)


def beside_in(store: ObjectStore, keys: RunKeys, versions: Collection[int]) -> str:
    """Return the same of what a store has under the run's prefix."""
    return beside(keys, versions, (info.key for info in store.list(keys.prefix)))

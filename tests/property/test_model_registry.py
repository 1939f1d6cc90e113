"""The registry under every order of operations, kills and outages, and with bugs planted in it."""

from __future__ import annotations

import types
from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from runtime.errors import RengoError
from storage.registry import registry, scan, version_store
from storage.versions import retention
from tests.laws import Violation
from tests.mutants import Mutant, load_patched
from tests.property.machine_registry import Registry
from tests.property.test_mutants import QUICK


class TestRegistry(Registry.TestCase):
    settings = settings(max_examples=30, stateful_step_count=30)


@pytest.mark.soak
class TestRegistryForLong(Registry.TestCase):
    settings = settings(max_examples=200, stateful_step_count=30)


SHORT = settings(QUICK, stateful_step_count=20)


def planted(name: str, module: types.ModuleType, patches: Mapping[str, str]) -> Mutant:
    return Mutant(name, module, patches, in_world=False)


MUTANTS = [
    planted(
        "archives before it promotes",
        registry,
        {
            "                self._versions.require_model(found)\n": (
                "                before and self._versions.stage(before, 'archived', reason)\n"
            )
        },
    ),
    planted(
        "withdraws after it has promoted",
        registry,
        {
            "self._versions.withdraw(now, reason)": "pass",
            "found = self._versions.promote(target, reason)": (
                "found = self._versions.promote(target, reason)\n"
                "            now and self._versions.withdraw(now, reason)"
            ),
        },
    ),
    planted("completes no rollback", version_store, {"if not top.record.withdrawn:": "if True:"}),
    planted("rolls back twice", registry, {"if failed is not None and": "if False and"}),
    planted(
        "archives nothing after a crash",
        version_store,
        {"return self.archive_others(top)": "return []"},
    ),
    planted(
        "takes a tag away first",
        registry,
        {
            "            tags = found.record.tags\n": (
                "            tags = found.record.tags\n"
                "            for other in self._versions.holders(label):\n"
                "                found.id != other.id and self._versions.untag(other, label)\n"
            )
        },
    ),
    planted(
        "leaves a tag twice",
        version_store,
        {"= self.holders(label)\n": "= self.holders(label)[:1]\n"},
    ),
    planted(
        "counts promotions anew",
        version_store,
        {
            "index.latest_promotion()": "0",
        },
    ),
    planted(
        "takes a failed write for none", version_store, {"self._uncertain.add(version.id)": "pass"}
    ),
    planted(
        "does not mend after an outage",
        version_store,
        {"        self._complete_interrupted()\n        with": "        with"},
    ),
    planted(
        "gives a new version an old record",
        version_store,
        {"if orphan in self._orphan_records:": "if False:"},
    ),
    planted(
        "removes the model last",
        version_store,
        {
            "self._store.delete([keys.version(number)])": "pass",
            "keys.record(number), keys.manifest(number)])": (
                "keys.record(number), keys.version(number), keys.manifest(number)])"
            ),
        },
    ),
    planted(
        "forgets a removal that failed",
        version_store,
        {"in list(self._being_removed)": "in ()"},
    ),
    planted("sweeps what has a tag", retention, {"bool(record.tags) or": ""}),
    planted("sweeps what is archived", retention, {'!= "none"': 'in ("candidate", "production")'}),
    planted(
        "keeps a version too few",
        retention,
        {"latest - policy.keep + 1": "latest - policy.keep + 2"},
    ),
]


def with_bug(mutant: Mutant) -> type[registry.ModelRegistry]:
    """Return the registry with the bug in it, or in what it stands on."""
    names: dict[types.ModuleType, dict[str, object]] = {}
    for module in (retention, scan, version_store, registry):
        patched = mutant if module is mutant.module else planted("none", module, {})
        names[module] = load_patched(patched)
    for module, needs in (
        (version_store, (scan,)),
        (registry, (retention, scan, version_store)),
    ):
        for need in needs:
            own = {name: names[need][name] for name in vars(need) if name in names[module]}
            names[module].update(own)
    found = names[registry]["ModelRegistry"]
    assert isinstance(found, type)
    return found


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_search_finds(mutant: Mutant) -> None:
    suspect = type("Planted", (Registry,), {"make": with_bug(mutant)})
    with pytest.raises((Violation, RengoError)):
        run_state_machine_as_test(suspect, settings=SHORT)

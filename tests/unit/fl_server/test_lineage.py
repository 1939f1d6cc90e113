"""A manifest says what a version was made from, also when the process began anew in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fl_server.rounds.facts import (
    Fact,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    UpdateAccepted,
    UpdateWithdrawn,
)
from fl_server.rounds.model import Model, Update
from fl_server.runs.definition import parse_definition
from fl_server.runs.lineage import Commit, Lineage, manifest_of
from fl_server.runs.record import RunRecord
from storage.versions.manifest import MAX_DOCUMENT_BYTES, Manifest, Parent

INITIAL = Model(0, "k0", "0" * 64, 5)
FIRST = Model(1, "k1", "1" * 64, 6)
SECOND = Model(2, "k2", "2" * 64, 7, "s2", "3" * 64, ((0, 7),))


def record(**models: Any) -> RunRecord:
    definition = parse_definition(
        {
            "task": "digits",
            "seed": 7,
            "algorithm": {"name": "fedprox", "mu": 0.5},
            "training": {"epochs": 2},
            "models": models,
        },
        "test",
    )
    return RunRecord(
        "run-1", definition, definition.plan("run-1", evaluators_online=False), INITIAL, 0
    )


def update(examples: int) -> Update:
    return Update("u", 9, "a" * 64, examples)


def accepted(name: str, examples: int, *, at: tuple[int, int] = (1, 1)) -> UpdateAccepted:
    return UpdateAccepted(*at, name, update(examples))


def commits(facts: list[Fact]) -> list[Commit]:
    lineage = Lineage(record())
    return [commit for fact in facts if (commit := lineage.apply(fact)) is not None]


HISTORY: list[Fact] = [
    RoundStarted(1, 1, ("a", "b", "c"), 3),
    accepted("a", 4),
    accepted("c", 9),
    RoundAbandoned(1, 1, "deadline"),
    RoundStarted(1, 2, ("a", "b", "c"), 2),
    accepted("b", 10, at=(1, 2)),
    accepted("a", 5, at=(1, 2)),
    UpdateWithdrawn(1, 2, "b", "vanished"),
    accepted("b", 11, at=(1, 2)),
    RoundClosed(1, 2, ("a", "b")),
    RoundCommitted(1, 2, FIRST),
    RoundStarted(2, 1, ("c",), 1),
    accepted("c", 3, at=(2, 1)),
    RoundClosed(2, 1, ("c",)),
    RoundCommitted(2, 1, SECOND),
]


def test_a_commit_holds_exactly_the_updates_of_its_own_attempt() -> None:
    first, second = commits(HISTORY)
    assert first == Commit(
        FIRST, 2, Parent(run_id="run-1", version=0, sha256="0" * 64), {"a": 5, "b": 11}
    )
    assert second == Commit(SECOND, 1, Parent(run_id="run-1", version=1, sha256="1" * 64), {"c": 3})


def test_the_latest_is_version_0_until_a_round_was_committed() -> None:
    assert Lineage(record()).latest == Commit(INITIAL, 0, None, {})
    parent = {"run_id": "run-0", "version": 9, "sha256": "9" * 64}
    lineage = Lineage(record(parent=parent))
    assert lineage.latest.parent == Parent(**parent)  # type: ignore[arg-type]
    for fact in HISTORY[:10]:
        lineage.apply(fact)
    assert lineage.latest.model == INITIAL
    lineage.apply(HISTORY[10])
    assert lineage.latest.model == FIRST


def manifest(commit: Commit, of: RunRecord | None = None) -> Manifest:
    return manifest_of(
        of or record(), commit, project="default", layout_hash="f" * 64, created_ms=12
    )


def test_the_manifest_says_all_of_it() -> None:
    first, second = commits(HISTORY)
    found = manifest(first)
    assert (found.name, found.attempt, found.cohort, found.cohort_size) == (
        "run-1:1",
        2,
        ["a", "b"],
        2,
    )
    assert (found.num_examples, found.seed, found.training) == (16, 7, {"epochs": 2})
    assert (found.algorithm, found.algorithm_settings) == ("fedprox", {"mu": 0.5})
    assert (found.key, found.sha256, found.size_bytes, found.state_key) == ("k1", "1" * 64, 6, "")
    assert (found.changed, manifest(second).changed) == (None, [(0, 7)])
    assert (manifest(second).state_key, manifest(second).state_sha256) == ("s2", "3" * 64)


def test_the_largest_cohort_fits_into_a_document() -> None:
    from runtime.security.signing import SecretKey  # noqa: PLC0415  (this test alone signs)

    names = {f"{'d' * 58}-{number:05d}": 1 for number in range(3000)}
    scattered = tuple((number << 30, (number << 30) + 1) for number in range(256, 512))
    found = manifest(Commit(replace(FIRST, changed=scattered), 1, None, names))
    assert found.changed == list(scattered)
    assert (len(found.cohort), found.cohort_size) == (2000, 3000)
    assert len(found.encode(SecretKey.generate())) < MAX_DOCUMENT_BYTES

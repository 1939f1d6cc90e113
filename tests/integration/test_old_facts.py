"""Every fact that an earlier commit could journal is still read as it was written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_server.canary.machine import CanaryMachine
from fl_server.kinds.canary import CanaryKind
from fl_server.kinds.sync import SyncKind
from fl_server.persistence import migration
from fl_server.persistence.database import JournalError, sa
from fl_server.persistence.journal import Journal
from fl_server.rounds.machine import RoundMachine
from fl_server.runs.record import RunRecord
from tests.old_data.restore import FACTS, holds, read


@pytest.fixture(params=FACTS, ids=lambda path: path.stem)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database as the commit wrote it."""
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as opened:
        opened.executescript(request.param.read_text())
    return path


@dataclass(frozen=True)
class Old:
    """The rows as the commit wrote them, before a journal of today opened the database."""

    runs: list[tuple[Any, ...]]
    facts: dict[str, list[tuple[str, Any]]]
    canaries: list[tuple[Any, ...]]
    canary_facts: dict[str, list[tuple[str, Any]]]


@pytest.fixture
def old(database: Path) -> Old:
    return rows_of(database)


def rows_of(database: Path) -> Old:
    runs = read(database, "SELECT run_id, definition, plan, initial, at FROM rengo_runs")
    facts = written(database, "rengo_facts", "run_id")
    if has_canary_tables(database):
        return Old(
            runs,
            facts,
            read(database, "SELECT canary_id, plan, at FROM rengo_canaries ORDER BY number"),
            written(database, "rengo_canary_facts", "canary_id"),
        )
    canaries = [row for row in runs if json.loads(row[1])["flow"] == "canary"]
    names = {row[0] for row in canaries}
    return Old(
        [row for row in runs if row[0] not in names],
        {run_id: told for run_id, told in facts.items() if run_id not in names},
        [(run_id, plan, at) for run_id, _, plan, _, at in canaries],
        {run_id: told for run_id, told in facts.items() if run_id in names},
    )


def has_canary_tables(database: Path) -> bool:
    """Whether the commit kept canaries apart from runs."""
    return bool(read(database, "SELECT 1 FROM sqlite_master WHERE name = 'rengo_canaries'"))


@pytest.fixture
def journal(database: Path, old: Old) -> Iterator[Journal]:
    del old  # read before
    opened = open_journal(database)
    yield opened
    opened.close()


def open_journal(database: Path) -> Journal:
    kinds = {"sync": SyncKind.vocabulary, "canary": CanaryKind.vocabulary}
    return Journal(f"sqlite:///{database}", kinds)


def records(journal: Journal) -> list[RunRecord[Any]]:
    return [journal.record(run_id) for run_id in journal.unfiled()]


def written(database: Path, table: str, key: str) -> dict[str, list[tuple[str, Any]]]:
    """Return the kinds and the bodies of facts as they stand in a table, by what they belong to."""
    facts: dict[str, list[tuple[str, Any]]] = {}
    for owner, kind, body in read(
        database, f"SELECT {key}, kind, body FROM {table} ORDER BY {key}, number"
    ):
        facts.setdefault(owner, []).append((kind, json.loads(body)))
    return facts


def require_same(read_back: list[Any], old: list[tuple[str, Any]]) -> None:
    for fact, (kind, body) in zip(read_back, old, strict=True):
        assert holds(plain(fact), body), f"{kind} {body} is read as {fact}"


def plain(fact: Any) -> Any:
    return json.loads(json.dumps(asdict(fact)))


def test_the_facts_of_runs(old: Old, journal: Journal) -> None:
    assert len({kind for facts in old.facts.values() for kind, _ in facts}) >= 14
    for run_id, facts in old.facts.items():
        require_same([record.fact for record in journal.facts(run_id)], facts)


def test_runs_go_on_from_what_they_were(old: Old, journal: Journal) -> None:
    of_rounds = [each for each in records(journal) if each.definition.flow == "sync"]
    for record, (run_id, definition, plan, initial, _) in zip(of_rounds, old.runs, strict=True):
        assert record.run_id == run_id
        asked = json.loads(definition)
        asked.pop("aggregation", None)  # how a sum is made is the server's own affair
        assert holds(record.definition.model_dump(mode="json"), asked)
        assert holds(plain(record.plan), json.loads(plan))
        assert holds(plain(record.initial), json.loads(initial))
        facts = [each.fact for each in journal.facts(run_id)]
        ledger = RoundMachine(record.plan, record.initial, facts).ledger
        assert ledger.phase == "ended"
        assert ledger.status == {"whole": "completed", "requested": "stopped"}.get(run_id, run_id)


def test_a_run_whose_version_0_is_awaited(database: Path, journal: Journal) -> None:
    ((run_id, definition, initial),) = read(
        database, "SELECT run_id, definition, initial FROM rengo_prepared"
    )
    (prepared,) = journal.prepared()
    assert prepared.run_id == run_id
    assert prepared.definition.task == json.loads(definition)["task"]
    assert holds(plain(prepared.awaited), json.loads(initial))


def test_canaries_are_runs_by_now(old: Old, journal: Journal) -> None:
    assert len({kind for facts in old.canary_facts.values() for kind, _ in facts}) == 5
    canaries = [each for each in records(journal) if each.definition.flow == "canary"]
    for record, (canary_id, plan, at) in zip(canaries, old.canaries, strict=True):
        assert (record.run_id, record.plan.canary_id, record.at) == (canary_id, canary_id, at)
        assert holds(plain(record.plan), json.loads(plan))
        candidate = json.loads(plan)["candidate"]
        assert (record.initial.version, record.initial.key) == (
            candidate["version"],
            candidate["key"],
        )
        assert record.definition.algorithm.settings == json.loads(plan)["algorithm_settings"]
        facts = [each.fact for each in journal.facts(canary_id, "canary")]
        require_same(facts, old.canary_facts[canary_id])
        assert CanaryMachine(record.plan, facts).state.phase == "ended"


def test_canaries_are_moved_once(database: Path, journal: Journal) -> None:
    before = records(journal)
    again = open_journal(database)
    assert records(again) == before
    again.close()
    tables = {name for (name,) in read(database, "SELECT name FROM sqlite_master")}
    assert not tables & {"rengo_canaries", "rengo_canary_facts"}


def test_a_move_that_fails_leaves_everything_as_it_was(
    database: Path, old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise sa.exc.OperationalError("update", {}, sqlite3.OperationalError("disk is full"))

    with monkeypatch.context() as patched:
        patched.setattr(migration, "_chain_facts", fails)
        with pytest.raises(JournalError):
            open_journal(database)
    assert rows_of(database) == old
    journal = open_journal(database)
    assert len(records(journal)) == len(old.runs) + len(old.canaries)
    journal.close()


def test_a_canary_that_cannot_be_moved_is_named(database: Path) -> None:
    if not has_canary_tables(database):
        return  # they are runs already
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("UPDATE rengo_canaries SET plan = '{}' WHERE number = 1")
    with pytest.raises(JournalError, match="canary-decided"):
        open_journal(database)

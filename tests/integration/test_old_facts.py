"""Every fact that an earlier commit could journal is still read as it was written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fl_server.deployment.canary.machine import CanaryMachine
from fl_server.deployment.canary_log import CanaryLog
from fl_server.persistence.journal import Journal
from fl_server.rounds.machine import RoundMachine
from tests.old_data import every_fact
from tests.old_data.restore import FACTS, holds, read


@pytest.fixture(params=FACTS, ids=lambda path: path.stem)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database as the commit wrote it."""
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as opened:
        opened.executescript(request.param.read_text())
    return path


@pytest.fixture
def journal(database: Path) -> Iterator[Journal]:
    opened = Journal(f"sqlite:///{database}")
    yield opened
    opened.close()


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


def test_the_facts_of_runs(database: Path, journal: Journal) -> None:
    old = written(database, "rengo_facts", "run_id")
    assert len({kind for facts in old.values() for kind, _ in facts}) == 14
    for run_id, facts in old.items():
        require_same([record.fact for record in journal.facts(run_id)], facts)


def test_runs_go_on_from_what_they_were(database: Path, journal: Journal) -> None:
    rows = read(database, "SELECT run_id, definition, plan, initial FROM rengo_runs")
    for record, (run_id, definition, plan, initial) in zip(journal.runs(), rows, strict=True):
        assert record.run_id == run_id
        asked = json.loads(definition)
        del asked["aggregation"]  # how a sum is made is the server's own affair
        assert holds(record.definition.model_dump(mode="json"), asked)
        assert holds(plain(record.plan), json.loads(plan))
        assert holds(plain(record.initial), json.loads(initial))
        facts = [each.fact for each in journal.facts(run_id)]
        ledger = RoundMachine(record.plan, record.initial, facts).ledger
        assert ledger.phase == "ended"
        assert ledger.status == {"whole": "completed"}.get(run_id, run_id)


def test_a_run_whose_version_0_is_awaited(database: Path, journal: Journal) -> None:
    ((run_id, definition, initial),) = read(database, "SELECT * FROM rengo_prepared")
    (prepared,) = journal.prepared()
    assert prepared.run_id == run_id
    assert prepared.definition.task == json.loads(definition)["task"]
    assert holds(plain(prepared.awaited), json.loads(initial))


def test_the_facts_of_canaries(database: Path, journal: Journal) -> None:
    old = written(database, "rengo_canary_facts", "canary_id")
    assert len({kind for facts in old.values() for kind, _ in facts}) == 5
    plans = read(database, "SELECT canary_id, plan FROM rengo_canaries ORDER BY number")
    records = CanaryLog(journal.database).canaries()
    for record, (canary_id, plan) in zip(records, plans, strict=True):
        assert record.plan.canary_id == canary_id
        assert holds(plain(record.plan), json.loads(plan))
        require_same(list(record.facts), old[canary_id])
        assert CanaryMachine(record.plan, record.facts).state.phase == "ended"


def test_what_is_journalled_today_can_be_recorded_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    every_fact.write(path)
    assert set(written(path, "rengo_facts", "run_id")) == set(every_fact.RUNS)

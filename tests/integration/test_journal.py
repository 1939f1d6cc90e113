"""The journal's laws on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from fl_server.canary.events import OrdersOpened
from fl_server.kinds.canary import CanaryKind
from fl_server.persistence import migration
from fl_server.persistence.database import JournalError
from fl_server.persistence.journal import DamagedRun, Journal
from fl_server.persistence.tables import FactRow, RunRow
from fl_server.rounds.facts import (
    FACTS,
    EvaluationDeclined,
    EvaluationOrdered,
    EvaluationRecorded,
    Fact,
    OrderDeclined,
    RequestFailed,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    RoundStarted,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunResumed,
    RunStopped,
    RunStoppedEarly,
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
    VersionJudged,
)
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import AwaitedModel, PreparedRun, RunRecord
from runtime.errors import ConfigError
from runtime.processes.ports import free_port
from tests.integration.postgres import PASSWORD, Cluster, running_cluster
from tests.old_data.every_fact import canary_plan

UPDATE = Update("u/d-1", 10, "a" * 64, 5, {"loss": 0.1}, {"train_s": 0.5})
MODEL = Model(1, "k/1", "b" * 64, 100, "s/1", "c" * 64, ((0, 16), (40, 1 << 40)))
AWAITED = AwaitedModel("k/0", 100)
EVERY_FACT: list[Fact] = [
    RoundOpened(1, 1, MODEL),
    RoundStarted(1, 1, ("d-1", "d-2"), 2),
    UpdateAccepted(1, 1, "d-1", UPDATE),
    UpdateRefused(1, 1, "d-2", "damaged: 'ü' \x00 😀 " + "x" * 2000),
    UpdateWithdrawn(1, 1, "d-1", "gone"),
    OrderDeclined(1, 1, "d-1", ""),
    RoundClosed(1, 1, ("d-1",)),
    RoundAbandoned(1, 1, "too few"),
    RequestFailed(1, 2, "too few again"),
    RoundCommitted(1, 2, MODEL),
    EvaluationOrdered(1, ("d-1", "d-2")),
    EvaluationDeclined(1, "d-2", "busy", permanent=True),
    EvaluationRecorded(1, "d-1", 5, {"accuracy": 1 / 3}, {"bytes_down": 1.0}),
    VersionJudged(1, 1 / 3, True),
    RunPaused(),
    RunResumed(),
    RunCompleted(),
    RunStoppedEarly("no better version"),
    RunStopped("by the operator"),
    RunFailed("nobody came"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@dataclass
class Database:
    """An empty database of either kind."""

    url: str
    name: str

    def engine(self) -> sa.Engine:
        return sa.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        yield Database(f"sqlite:///{tmp_path / 'journal.sqlite'}", "journal.sqlite")
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    found = Database(cluster.url, str(cluster.port))
    yield found
    engine = found.engine()
    with engine.begin() as connection:
        for table in (
            *("rengo_facts", "rengo_runs", "rengo_meta", "rengo_prepared", "rengo_reports"),
        ):
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()


@pytest.fixture
def journal(database: Database) -> Iterator[Journal]:
    made = Journal(database.url)
    yield made
    made.close()


def record(run_id: str = "r") -> RunRecord:
    definition = parse_definition(
        {"task": "digits", "algorithm": {"name": "fedprox", "mu": 0.5}, "seed": (1 << 63) - 1},
        "test",
    )
    plan = Plan(run_id, rounds=10, cohort_size=2, quorum=2, deadline_s=0.1)
    return RunRecord(run_id, definition, plan, Model(0, "k/0", "0" * 64, 7), 1_700_000_000.25)


def records(journal: Journal) -> list[RunRecord]:
    return [journal.record(run_id) for run_id in journal.unfiled()]


def facts_of(journal: Journal, run_id: str = "r") -> list[Fact]:
    return [row.fact for row in journal.facts(run_id)]


def test_every_fact_has_a_sample() -> None:
    assert {type(fact).__name__ for fact in EVERY_FACT} == FACTS.keys()


def test_what_is_written_is_read_by_the_next_life(journal: Journal, database: Database) -> None:
    journal.add_run(record())
    journal.append("r", EVERY_FACT[:5])
    journal.append("r", [])
    journal.append("r", EVERY_FACT[5:])
    again = Journal(database.url)
    assert records(again) == [record()]
    assert records(again)[0].definition.algorithm.settings == {"mu": 0.5}
    assert facts_of(again) == EVERY_FACT
    again.append("r", [RunPaused()])
    assert facts_of(again) == [*EVERY_FACT, RunPaused()]
    again.close()


def test_a_version_of_before_changes_were_known_is_read(
    journal: Journal, database: Database
) -> None:
    journal.append("r", [RoundCommitted(1, 2, MODEL)])
    body = asdict(RoundCommitted(1, 2, MODEL))
    del body["model"]["changed"]
    row = FactRow("r", 0, "RoundCommitted", json.dumps(body), journal.facts("r")[0].at)
    engine = database.engine()
    with engine.begin() as connection:
        changed = {"v": row.body, "d": row.digest("")}
        connection.execute(sa.text("UPDATE rengo_facts SET body = :v, digest = :d"), changed)
    engine.dispose()
    assert facts_of(journal) == [RoundCommitted(1, 2, replace(MODEL, changed=None))]


def test_facts_carry_the_time(journal: Journal) -> None:
    before = time.time()
    journal.append("r", [RunPaused()])
    (row,) = journal.facts("r")
    assert before <= row.at <= time.time()


def test_runs_keep_to_themselves_and_to_their_order(journal: Journal) -> None:
    for run_id in ("z", "a", "m"):
        journal.add_run(record(run_id))
        journal.append(run_id, [RunFailed(run_id)])
    assert [each.run_id for each in records(journal)] == ["z", "a", "m"]
    assert facts_of(journal, "a") == [RunFailed("a")]
    assert facts_of(journal, "none") == []


def test_the_epoch_grows_at_every_start(database: Database) -> None:
    found = []
    for _ in range(3):
        journal = Journal(database.url)
        found.append(journal.next_epoch())
        journal.close()
    assert found == [1, 2, 3]


def test_a_run_id_is_taken_once(journal: Journal) -> None:
    journal.add_run(record())
    with pytest.raises(JournalError, match="journal"):
        journal.add_run(record())
    assert len(records(journal)) == 1


def test_facts_are_written_all_or_none(journal: Journal, database: Database) -> None:
    """A second writer on the same run is refused, and nothing of its batch stays."""
    journal.append("r", [RunPaused()])
    second = Journal(database.url)
    second.append("r", [RunResumed()])
    with pytest.raises(JournalError):
        journal.append("r", [RunPaused(), RunResumed(), RunFailed("x")])
    second.close()
    assert facts_of(journal) == [RunPaused(), RunResumed()]


def test_prepared_runs_last_until_they_are_submitted_or_forgotten(
    journal: Journal, database: Database
) -> None:
    for run_id in ("r", "s", "t"):
        journal.prepare(PreparedRun(run_id, record().definition, AWAITED))
    journal.add_run(record("r"))
    journal.forget_prepared("s")
    again = Journal(database.url)
    assert again.prepared() == [PreparedRun("t", record().definition, AWAITED)]
    again.close()


@pytest.mark.parametrize("column", ["definition", "initial", "digest"])
def test_a_damaged_prepared_run_is_removed_alone(
    column: str, journal: Journal, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for run_id in ("r", "s"):
        journal.prepare(PreparedRun(run_id, record().definition, AWAITED))
    with journal.database.begin() as connection:
        change = f"UPDATE rengo_prepared SET {column} = replace({column}, '0', '1')"
        assert connection.execute(sa.text(f"{change} WHERE run_id = 'r'")).rowcount == 1
    for _ in range(2):
        assert [each.run_id for each in journal.prepared()] == ["s"]
    assert caplog.messages == ["run r, whose upload is awaited, is damaged: submit it anew"]


def test_prepared_runs_of_before_there_were_checksums_are_read(
    journal: Journal, database: Database
) -> None:
    journal.prepare(PreparedRun("r", record().definition, AWAITED))
    with journal.database.begin() as connection:
        connection.execute(sa.text("ALTER TABLE rengo_prepared DROP COLUMN digest"))
        connection.execute(sa.text("UPDATE rengo_meta SET value = 3 WHERE name='schema_version'"))
    for _ in range(2):
        again = Journal(database.url)
        assert again.prepared() == [PreparedRun("r", record().definition, AWAITED)]
        again.close()


def test_what_append_returned_from_survives_a_kill(journal: Journal, database: Database) -> None:
    for _ in range(3):
        known = len(facts_of(journal))
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.journal_writer", database.url],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        with child:
            said = [child.stdout.readline() for _ in range(10)]
            child.send_signal(signal.SIGKILL)
            said += child.stdout.readlines()
        told = int([line for line in said if line.endswith("\n")][-1])
        found = len(facts_of(journal)) - known
        assert found % 2 == 0, "half a batch"
        assert told * 2 <= found <= told * 2 + 2


def test_another_version_is_left_alone(database: Database) -> None:
    Journal(database.url).close()
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE rengo_meta SET value = 9 WHERE name='schema_version'"))
    engine.dispose()
    with pytest.raises(ConfigError, match=r"another version of Rengo \(schema 9") as caught:
        Journal(database.url)
    assert database.name in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_canaries_in_tables_of_their_own_are_moved_once(database: Database) -> None:
    Journal(database.url).close()
    plan = canary_plan("canary-1")
    row = {"canary_id": "canary-1", "plan": json.dumps(asdict(plan)), "at": 5.0}
    fact = {"canary_id": "canary-1", "number": 0, "kind": "OrdersOpened", "body": "{}", "at": 6.0}
    old, engine = migration._metadata, database.engine()
    with engine.begin() as connection:
        old.create_all(connection)
        connection.execute(sa.insert(old.tables["rengo_canaries"]), row)
        connection.execute(sa.insert(old.tables["rengo_canary_facts"]), fact)
        connection.execute(sa.text("UPDATE rengo_meta SET value = 1 WHERE name='schema_version'"))
    for _ in range(2):
        journal = Journal(database.url, {"canary": CanaryKind.vocabulary})
        (found,) = records(journal)
        assert (found.run_id, found.plan, found.at) == ("canary-1", plan, 5.0)
        (told,) = journal.facts("canary-1", "canary")
        assert (told.fact, told.at) == (OrdersOpened(), 6.0)
        journal.append("canary-1", [])
        journal.close()
    assert not {*sa.inspect(engine).get_table_names()} & {*old.tables}
    engine.dispose()


@pytest.mark.parametrize(
    ("column", "value"),
    [("kind", "UpdateRefused"), ("body", "{"), ("at", 1.0), ("number", 7), ("digest", "0")],
)
def test_a_damaged_fact_is_named(
    column: str, value: object, journal: Journal, database: Database
) -> None:
    journal.add_run(record())
    journal.append("r", EVERY_FACT)
    engine = database.engine()
    change = f"UPDATE rengo_facts SET {column} = :v WHERE kind = 'UpdateAccepted'"
    with engine.begin() as connection:
        connection.execute(sa.text(change), {"v": 700 if column == "number" else value})
    engine.dispose()
    with pytest.raises(DamagedRun, match=r"run r: fact [23] or the one before it"):
        journal.facts("r")


def test_a_fact_that_this_version_does_not_know_is_no_damage(
    journal: Journal, database: Database
) -> None:
    journal.add_run(record())
    journal.append("r", [RunPaused()])
    (told,) = journal.facts("r")
    row = FactRow("r", 0, "NoSuchFact", "{}", told.at)
    digest = row.digest(RunRow("r", *_columns(journal)).digest)
    engine = database.engine()
    with engine.begin() as connection:
        change = {"k": row.kind, "d": digest}
        connection.execute(sa.text("UPDATE rengo_facts SET kind = :k, digest = :d"), change)
    engine.dispose()
    with pytest.raises(ConfigError, match="unknown fact 'NoSuchFact'") as caught:
        journal.facts("r")
    assert database.name in str(caught.value)


def _columns(journal: Journal) -> tuple[str, str, str, float]:
    with journal.database.begin() as connection:
        query = sa.text("SELECT definition, plan, initial, at FROM rengo_runs")
        definition, plan, initial, at = connection.execute(query).one()
    return definition, plan, initial, at


@pytest.mark.parametrize("column", ["definition", "plan", "initial"])
def test_a_damaged_run_is_named(column: str, journal: Journal, database: Database) -> None:
    journal.add_run(record())
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE rengo_runs SET {column} = '[]'"))
    engine.dispose()
    with pytest.raises(DamagedRun, match="damaged run r"):
        journal.record("r")


@pytest.mark.parametrize("column", ["definition", "plan", "initial", "digest"])
def test_a_bit_that_makes_a_text_no_text_concerns_its_run_alone(
    column: str, tmp_path: Path
) -> None:
    """The highest bit of a letter: SQLite refuses such a text, and all that it read with it."""
    journal = Journal(tmp_path / "journal.sqlite")
    for name in ("r", "s"):
        journal.add_run(replace(record(), run_id=name))
        journal.append(name, [RunPaused()])
    with journal.database.begin() as connection:
        flipped = f"CAST(X'F2' || substr({column}, 2) AS TEXT)"
        connection.execute(
            sa.text(f"UPDATE rengo_runs SET {column} = {flipped} WHERE run_id = 'r'")
        )
        connection.execute(
            sa.text("UPDATE rengo_facts SET body = CAST(X'FB7D' AS TEXT) WHERE run_id = 'r'")
        )
    first, second = journal.unfiled()
    with pytest.raises(DamagedRun):
        journal.record(first)
    with pytest.raises(DamagedRun):
        journal.facts("r")
    assert journal.record(second).run_id == "s"
    assert [each.fact for each in journal.facts("s")] == [RunPaused()]
    journal.close()


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(ConfigError, match=r"journal\.sqlite: .*not a database"):
        Journal(f"sqlite:///{path}")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/journal\.sqlite: unable to open"):
        Journal(f"sqlite:///{tmp_path}/none/journal.sqlite")


@pytest.mark.parametrize(
    "url", ["", "nonsense", "nosuch://host/db", "sqlite+nosuch:///x", "postgresql+nosuch://h/d"]
)
def test_a_url_that_is_none_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a driver that is not there makes the file before it is missed
    with pytest.raises(ConfigError, match="journal URL is not usable"):
        Journal(url)


def test_a_database_that_cannot_be_reached_is_one_clear_error() -> None:
    port = free_port()
    began = time.monotonic()
    with pytest.raises(JournalError) as caught:
        Journal(f"postgresql://rengo:{PASSWORD}@127.0.0.1:{port}/postgres")
    assert not isinstance(caught.value, ConfigError)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "refused" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert time.monotonic() - began < 15


def test_a_wrong_password_is_one_clear_error(cluster: Cluster) -> None:
    with pytest.raises(JournalError, match="password authentication failed") as caught:
        Journal(cluster.url.replace(PASSWORD, "another-password"))
    assert "another-password" not in str(caught.value)


def test_a_database_that_went_and_came_is_used_again() -> None:
    with running_cluster() as cluster:
        journal = Journal(cluster.url)
        journal.append("r", [RunPaused()])
        cluster.stop("immediate")
        with pytest.raises(JournalError):
            journal.append("r", [RunResumed()])
        cluster.start()
        assert facts_of(journal) == [RunPaused()], "what was appended survives the crash"
        journal.append("r", [RunResumed()])
        assert facts_of(journal) == [RunPaused(), RunResumed()]
        journal.close()


def test_sqlite_is_durable(tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{tmp_path / 'j.sqlite'}")
    with journal.database.begin() as connection:
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar() == 2
    journal.close()

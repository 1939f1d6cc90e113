"""What brings an older journal to the schema of today, one version at a time.

Schema 2 has canaries, which had tables of their own, as runs of a kind. Schema 3 has digests over
runs and facts, and the reports of runs that have ended. Schema 4 has digests over prepared runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fl_server.persistence import tables
from fl_server.persistence.database import JournalUnusable, Migration, add_column, sa

_MODEL = ("version", "key", "sha256", "size_bytes")
_metadata = sa.MetaData()
_old_canaries = sa.Table(
    "rengo_canaries",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("canary_id", sa.String(64), unique=True, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
_old_facts = sa.Table(
    "rengo_canary_facts",
    _metadata,
    sa.Column("canary_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)


def move_canaries(connection: sa.Connection) -> None:
    """Move every canary and its facts into the tables of runs."""
    if not sa.inspect(connection).has_table(_old_canaries.name):
        return
    old = connection.execute(sa.select(_old_canaries).order_by(_old_canaries.c.number)).all()
    rows = [_run_row(row) for row in old]
    told = [
        {"run_id": row.canary_id, "number": row.number, "kind": row.kind, "body": row.body}
        | {"at": row.at}
        for row in connection.execute(sa.select(_old_facts))
    ]
    for table, new in ((tables.runs, rows), (tables.facts, told)):
        if new:
            connection.execute(sa.insert(table), new)
    _metadata.drop_all(connection)


def add_digests(connection: sa.Connection) -> None:
    """Give runs and facts their digests, as they are now."""
    runs, facts = tables.runs, tables.facts
    for column in (runs.c.digest, runs.c.filed_at, facts.c.digest):
        add_column(connection, column)
    tables.runs_by_filing.create(connection, checkfirst=True)
    rows = connection.execute(sa.select(runs).order_by(runs.c.number)).all()
    for row in rows:
        digest = tables.run_row(row).digest
        of_run = sa.update(runs).where(runs.c.run_id == row.run_id)
        connection.execute(of_run.values(digest=digest))
        _chain_facts(connection, row.run_id, digest)


def add_digests_of_prepared(connection: sa.Connection) -> None:
    """Give the runs whose version 0 is awaited their digests, as they are now."""
    prepared = tables.prepared
    add_column(connection, prepared.c.digest)
    for row in connection.execute(sa.select(prepared)).all():
        of_run = sa.update(prepared).where(prepared.c.run_id == row.run_id)
        connection.execute(of_run.values(digest=tables.prepared_row(row).digest))


def _chain_facts(connection: sa.Connection, run_id: str, digest: str) -> None:
    facts = tables.facts
    query = sa.select(facts).where(facts.c.run_id == run_id).order_by(facts.c.number)
    changes = []
    for row in connection.execute(query).all():
        digest = tables.fact_row(row).digest(digest)
        changes.append({"of_run": run_id, "at_number": row.number, "digest": digest})
    if changes:
        one = (
            facts.c.run_id == sa.bindparam("of_run"),
            facts.c.number == sa.bindparam("at_number"),
        )
        connection.execute(sa.update(facts).where(*one), changes)


def _run_row(row: Any) -> dict[str, Any]:
    """Return a canary's row among the runs; its plan stays as it is."""
    try:
        plan = json.loads(row.plan)
        model = {name: plan["candidate"][name] for name in _MODEL}
        definition = {
            "flow": "canary",
            "task": plan["task"],
            "rounds": 1,
            "seed": plan["seed"],
            "algorithm": {**plan["algorithm_settings"], "name": plan["algorithm"]},
            "training": plan["training"],
            "bundle": plan.get("bundle"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise JournalUnusable(f"the journal holds a damaged canary {row.canary_id}") from error
    return {
        "run_id": row.canary_id,
        "definition": json.dumps(definition),
        "plan": row.plan,
        "initial": json.dumps(model),
        "at": row.at,
    }


MIGRATIONS: Mapping[int, Migration] = {
    1: move_canaries,
    2: add_digests,
    3: add_digests_of_prepared,
}

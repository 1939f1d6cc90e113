"""Canaries once had tables of their own: schema 2 has them in the journal's, as runs of a kind."""

from __future__ import annotations

import json
from typing import Any

from fl_server.persistence.database import JournalUnusable, Migration, sa

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


def move_canaries(runs: sa.Table, facts: sa.Table) -> Migration:
    """Return what moves every canary and its facts into the tables of runs."""

    def move(connection: sa.Connection) -> None:
        if not sa.inspect(connection).has_table(_old_canaries.name):
            return
        old = connection.execute(sa.select(_old_canaries).order_by(_old_canaries.c.number)).all()
        rows = [_run_row(row) for row in old]
        told = [
            {"run_id": row.canary_id, "number": row.number, "kind": row.kind, "body": row.body}
            | {"at": row.at}
            for row in connection.execute(sa.select(_old_facts))
        ]
        for table, new in ((runs, rows), (facts, told)):
            if new:
                connection.execute(sa.insert(table), new)
        _metadata.drop_all(connection)

    return move


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

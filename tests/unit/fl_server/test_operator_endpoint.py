"""Operations over MQTT: every request one reply, no reply larger than a message, lists in pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from broker.wire.messages import MAX_MESSAGE_BYTES, OperatorReply, OperatorRequest
from fl_server.dataplane.plane import DataPlane
from fl_server.kinds.sync import SyncFlow
from fl_server.operations.mqtt import PAGE_BYTES, OperatorEndpoint
from fl_server.persistence import tables
from fl_server.persistence.database import sa
from fl_server.rounds.model import Model
from fl_server.rounds.plan import Plan
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import RunRecord
from runtime.errors import Corrupt
from tests.messages import wire
from tests.operations import Disk, Life

RUNS = 1000
DEFINITION = parse_definition({"task": "digits", "rounds": 2}, "test")


@dataclass
class Client:
    """A client of an endpoint, which keeps what it was sent."""

    life: Life
    replies: list[tuple[str, OperatorReply]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what the endpoint keeps in memory."""
        self.endpoint = OperatorEndpoint(
            self.life.operations, lambda who, reply: self.replies.append((who, reply))
        )

    def send(self, operation: str, request_id: str = "q", **arguments: Any) -> None:
        request = OperatorRequest(request_id=request_id, operation=operation, arguments=arguments)
        self.endpoint.handle("operator", request)

    def ask(self, operation: str, request_id: str = "q", **arguments: Any) -> OperatorReply:
        self.send(operation, request_id, **arguments)
        self.life.plane.run()
        ((who, reply),) = self.replies
        self.replies.clear()
        assert (who, reply.request_id) == ("operator", request_id)
        assert len(wire(reply)) < MAX_MESSAGE_BYTES
        return reply


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    life = Life(Disk(tmp_path))
    yield Client(life)
    life.end()


def add_runs(life: Life, *run_ids: str) -> None:
    """Add runs that go on: to the journal at once, without a write to the disk for each."""
    with life.journal.database.begin() as connection:
        for run_id in run_ids:
            plan = Plan(run_id, rounds=2, cohort_size=2, quorum=1, seed=7)
            record = RunRecord(run_id, DEFINITION, plan, Model(0, "k/0", "0" * 64, 1), 100.0)
            row = {"run_id": run_id, "definition": "{}", "plan": "{}", "initial": "", "at": 100.0}
            connection.execute(sa.insert(tables.runs), row)
            life.runner.records[run_id] = record
            life.runner.flows[run_id] = SyncFlow(record, (), cast(DataPlane, life.plane))


def remove_run(life: Life, run_id: str) -> None:
    with life.journal.database.begin() as connection:
        connection.execute(sa.delete(tables.runs).where(tables.runs.c.run_id == run_id))
    del life.runner.records[run_id], life.runner.flows[run_id]


def pages(client: Client, operation: str) -> Iterator[list[dict[str, Any]]]:
    after: str | None = ""
    while after is not None:
        result = client.ask(operation, **({"after": after} if after else {})).result
        after = result.pop("next", None)
        ((_, rows),) = result.items()
        yield rows


def test_a_thousand_runs_come_in_pages_and_all_at_once_without_a_limit(client: Client) -> None:
    add_runs(client.life, *(f"run-{number:04d}-{'x' * 40}" for number in range(RUNS)))
    found = list(pages(client, "runs_ls"))
    assert len(found) > 1
    assert all(
        len(wire(OperatorReply(request_id="q", result={"runs": p}))) > PAGE_BYTES * 0.9
        for p in found[:-1]
    )
    everything = client.life.do("runs_ls")["runs"]
    assert len(everything) == RUNS
    assert [row for page in found for row in page] == everything


def test_all_pages_are_of_one_moment(client: Client) -> None:
    add_runs(client.life, *(f"run-{number:04d}" for number in range(RUNS)))
    first = client.ask("runs_ls")
    add_runs(client.life, "later")
    rest = client.ask("runs_ls", after=first.result["next"])
    assert client.ask("runs_ls", after=first.result["next"]) == rest, "a lost page is sent again"
    assert client.ask("runs_ls", "r").result["runs"][0]["run_id"] == "later"


def test_a_restart_between_two_pages_repeats_no_row(client: Client) -> None:
    add_runs(client.life, *(f"run-{number:04d}" for number in range(RUNS)))
    first = client.ask("runs_ls").result
    client.restart()
    add_runs(client.life, "later")
    second = client.ask("runs_ls", after=first["next"]).result
    rows = [*first["runs"], *second["runs"]]
    assert [row["run_id"] for row in rows] == [f"run-{n:04d}" for n in range(RUNS)][::-1][
        : len(rows)
    ]
    gone = first["runs"][-1]["run_id"]
    client.restart()
    remove_run(client.life, gone)
    third = client.ask("runs_ls", after=first["next"]).result
    assert third["runs"][0]["run_id"] in {row["run_id"] for row in second["runs"][:2]}


@pytest.mark.parametrize("after", ["x", "1", ":", "-1:run", "1:" + "x" * 257, "1" * 10 + ":x", 7])
def test_what_is_no_place_in_a_list_is_refused(client: Client, after: Any) -> None:
    reply = client.ask("runs_ls", after=after)
    assert (reply.exit_code, reply.result) == (2, {})
    assert reply.error == "runs_ls: 'after' is no place in a list"


def test_a_request_that_comes_again_while_it_takes_long_has_one_reply(client: Client) -> None:
    for _ in range(3):
        client.send("bundles_ls")
    assert client.replies == []
    client.life.plane.run()
    assert [reply.result for _, reply in client.replies] == [{"bundles": []}]


@pytest.mark.parametrize(
    ("operation", "arguments", "exit_code"),
    [
        ("runs_show", {"run_id": "none"}, 2),
        ("runs_show", {}, 2),
        ("nothing", {}, 2),
        ("audit_verify", {}, 0),
    ],
)
def test_an_outcome_has_the_command_line_s_exit_code(
    client: Client, operation: str, arguments: dict[str, Any], exit_code: int
) -> None:
    reply = client.ask(operation, **arguments)
    assert reply.exit_code == exit_code
    assert bool(reply.error) == (exit_code != 0)


def test_what_fails_has_exit_code_3(client: Client) -> None:
    client.life.do("devices_admit", devices=[])
    client.life.do("runs_prepare", definition={"task": "digits"}, size_bytes=1)
    client.life.plane.check_initial = _absent  # type: ignore[method-assign]
    (prepared,) = client.life.journal.prepared()
    reply = client.ask("runs_submit", run_id=prepared.run_id, sha256="0" * 64)
    assert (reply.exit_code, reply.error) == (3, "it has another sha256")


def _absent(*_: object) -> None:
    raise Corrupt("it has another sha256")

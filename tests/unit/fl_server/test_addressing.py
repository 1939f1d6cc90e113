"""Whom a server tells its flows of: the devices that their runs address, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import DeviceInfo, DeviceState, RunDocument
from fl_server.flows.events import DeviceDeclined, DeviceLeft
from fl_server.kinds.sync import SyncFlow
from fl_server.rounds.facts import RoundStarted
from fl_server.rounds.model import Model
from fl_server.runs.definition import parse_definition
from tests.flows import FlowServer

MODEL = Model(0, "k", "0" * 64, 4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlowServer]:
    made = FlowServer(tmp_path)
    yield made
    made.close()


def info(profile: str = "pi", **labels: str) -> DeviceInfo:
    return DeviceInfo(
        role="trainer",
        profile=profile,
        engine="numpy",
        cpus=4,
        ram_bytes=4 << 30,
        accelerators=[],
        versions={},
        tasks=["digits"],
        labels=labels,
    )


def says(server: FlowServer, device_id: str, message: DeviceInfo) -> None:
    """Have a device say what it is."""
    server.presence.store_info(device_id, message)
    server.runner.handle_traits(device_id)


def labels(server: FlowServer, device_id: str, **given: str) -> None:
    """Have the operator label a device."""
    server.labels[device_id] = given
    server.runner.handle_traits(device_id)


def begin(server: FlowServer, run_id: str = "r", **changes: Any) -> None:
    values = {"task": "digits", "evaluation": {"on": "none"}, "cohort": {"size": 2}, **changes}
    definition = parse_definition(values, "test")
    server.runner.begin(server.runner.new_record(run_id, definition, MODEL))


def cohorts(server: FlowServer, run_id: str = "r") -> list[tuple[str, ...]]:
    facts = server.journal.facts(run_id, "sync")
    return [row.fact.cohort for row in facts if isinstance(row.fact, RoundStarted)]


def test_a_run_invites_only_whom_it_names(server: FlowServer) -> None:
    server.online("a", "b", "c", "d")
    begin(server, target=["b", "d"])
    assert cohorts(server) == [("b", "d")]


def test_a_run_invites_only_who_fulfils_its_conditions(server: FlowServer) -> None:
    for name, profile in (("a", "cpu"), ("b", "pi"), ("c", "pi")):
        says(server, name, info(profile))
    server.online("a", "b", "c")
    begin(server, where=["profile=pi", "ram>=4GB"])
    assert cohorts(server) == [("b", "c")]


def test_who_has_not_said_what_it_is_fits_once_it_has(server: FlowServer) -> None:
    begin(server, where=["profile=pi"])
    server.online("a", "b")
    says(server, "a", info("pi"))
    assert cohorts(server) == []
    says(server, "b", info("pi"))
    assert cohorts(server) == [("a", "b")]


def test_a_label_counts_as_soon_as_the_operator_gives_it(server: FlowServer) -> None:
    for name in ("a", "b", "c"):
        says(server, name, info(lab="x"))
    server.online("a", "b", "c")
    begin(server, where=["lab=y"])
    begin(server, "other", where=["lab=x"])
    assert cohorts(server, "other") != []
    labels(server, "b", lab="y")
    assert cohorts(server) == []
    labels(server, "c", lab="y")
    assert cohorts(server) == [("b", "c")], "the operator's comes before the device's own"


def test_who_no_longer_fits_is_not_waited_for_and_not_invited_again(server: FlowServer) -> None:
    for name in ("a", "b", "c"):
        labels(server, name, lab="x")
    server.online("a", "b")
    begin(server, where=["lab=x"])
    assert cohorts(server) == [("a", "b")]
    labels(server, "a", lab="y")
    server.online("c")
    for name in ("b",):
        server.runner.handle("r", DeviceDeclined(name, "train", 1, 1, "busy"))
    flow = server.runner.flows["r"]
    assert isinstance(flow, SyncFlow)
    assert "a" in flow.machine._roster.left
    server.presence.devices.pop("b")
    server.runner.handle_presence(DeviceLeft("b"), None)
    server.online("b")
    labels(server, "a", lab="x")
    assert "a" not in flow.machine._roster.left


def test_who_goes_on_offline_is_not_told_of_when_its_labels_change(server: FlowServer) -> None:
    labels(server, "a", lab="x")
    begin(server, where=["lab=x"], cohort={"size": 1})
    labels(server, "a", lab="y")
    labels(server, "a", lab="x")
    assert cohorts(server) == []


def test_an_evaluator_measures_for_every_run(server: FlowServer) -> None:
    server.online("e", role="evaluator")
    begin(server, target=["a"], evaluation={"on": "evaluators"}, cohort={"size": 1})
    flow = server.runner.flows["r"]
    assert isinstance(flow, SyncFlow)
    assert list(flow.machine._roster.accepting("evaluator")) == ["e"]


def test_a_restart_changes_nothing(server: FlowServer) -> None:
    labels(server, "a", lab="x")
    labels(server, "b", lab="x")
    server.online("a", "b", "c")
    begin(server, where=["lab=x"])
    before = cohorts(server)
    server.crash()
    server.online("c", "b", "a")
    server.crash()
    server.online("a", "b", "c")
    assert cohorts(server) == before == [("a", "b")]
    flow = server.runner.flows["r"]
    assert isinstance(flow, SyncFlow)
    assert list(flow.machine._roster.accepting("trainer")) == ["a", "b"]


def test_whom_a_run_addresses_stands_in_its_document(server: FlowServer) -> None:
    begin(server, target=["group:lab"], where=["ram>=4GB"])
    begin(server, "other")
    addressed, everybody = server.said(RunDocument)[-2:]
    assert (addressed.target, addressed.where) == (["group:lab"], ["ram>=4GB"])
    assert "target" not in everybody.model_dump(), "which devices of before could not read"


def test_what_was_said_of_a_run_goes_with_it(server: FlowServer) -> None:
    server.online("a")
    begin(server, target=["a"], cohort={"size": 1})
    assert server.runner._opened.addressed["r"].answers == {"a": True}
    server.runner._opened.remove("r")
    assert server.runner._opened.addressed == {}


def test_the_presence_of_a_device_that_a_run_does_not_address_is_no_news(
    server: FlowServer,
) -> None:
    begin(server, target=["a"], cohort={"size": 1})
    server.online("b")
    state = DeviceState(status="training", boot_id="b", tasks=["digits"])
    event = server.presence.apply_state("b", state)
    assert event is not None
    server.runner.handle_presence(event, state)
    assert cohorts(server) == []

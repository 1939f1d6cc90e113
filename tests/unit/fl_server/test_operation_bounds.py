"""Every field of every operation, at its bounds and beyond: an answer each time, and no fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import OperatorReply, OperatorRequest
from fl_server.faults import Faults
from fl_server.operations.catalogue import OPERATIONS, Operation
from fl_server.operations.mqtt import OperatorEndpoint
from fl_server.persistence.database import JournalError
from fl_server.runs.definition import RunDefinition
from runtime.errors import ConfigError, InvalidTransition
from tests.bounds import (
    SIZES,
    WILD,
    documents,
    found_by,
    numbers,
    replaced,
    sample,
    values,
    variations,
)
from tests.messages import wire
from tests.operations import Disk, Life

USAGE, FAILED = 2, 3
WELL_EVERY = 2000


class Site:
    """The operations of a server, asked as over MQTT."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begin()

    def begin(self) -> None:
        self.life = Life(Disk(self.folder))
        self.faults = self.life.operations._context.faults
        self.replies: list[OperatorReply] = []
        self.asked = 0
        self.endpoint = OperatorEndpoint(
            self.life.operations, lambda _, reply: self.replies.append(reply), self.faults
        )

    def ask(self, operation: str, arguments: dict[str, Any]) -> OperatorReply:
        self.asked += 1
        request = OperatorRequest(
            request_id=f"q-{self.asked}", operation=operation, arguments=arguments
        )
        self.endpoint.handle("operator", request)
        self.life.plane.run()
        (reply,) = self.replies
        self.replies.clear()
        assert wire(reply)
        return reply

    def restart(self) -> None:
        self.life.end()
        self.begin()

    def is_well(self) -> None:
        """See that nothing went wrong, and that what was written can be read and listed."""
        assert not self.faults.counted
        self.restart()
        for name in ("server_info", "devices_ls", "audit_ls", "runs_ls", "models_ls"):
            assert self.ask(name, {}).exit_code == 0, name
        assert self.ask("audit_verify", {}).exit_code == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.life.end()


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_number_of_an_operation_gets_an_answer(
    site: Site, operation: Operation[Any, Any]
) -> None:
    for path, value, arguments in variations(operation.arguments):
        reply = site.ask(operation.name, arguments)
        assert reply.exit_code in {0, USAGE, FAILED}, (path, value)
        assert "internal error" not in reply.error, (path, value)
    site.is_well()


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_field_of_an_operation_may_hold_anything(
    site: Site, operation: Operation[Any, Any]
) -> None:
    whole = sample(operation.arguments)
    for name in (*whole, "more"):
        for value in WILD:
            reply = site.ask(operation.name, {**whole, name: value})
            assert "internal error" not in reply.error, (name, value)
            if name == "more":
                assert (reply.exit_code, "unknown key 'more'" in reply.error) == (USAGE, True)
    site.is_well()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_any_arguments_of_an_operation_get_an_answer(
    site: Site, operation: Operation[Any, Any], count: int
) -> None:
    for at, arguments in enumerate(found_by(documents(operation.arguments), count), 1):
        reply = site.ask(operation.name, arguments)
        assert reply.exit_code in {0, USAGE, FAILED}, arguments
        assert "internal error" not in reply.error, arguments
        if at % WELL_EVERY == 0:
            site.is_well()
    site.is_well()


@pytest.mark.parametrize("count", SIZES)
def test_any_definition_gets_an_answer(site: Site, count: int) -> None:
    for at, found in enumerate(found_by(documents(RunDefinition), count), 1):
        given = {"task": "digits", "flow": "sync", "flow_settings": {}, "training": {}}
        definition = {**found, **given, "algorithm": {"name": "fedavg"}} if at % 3 else found
        arguments = {"definition": definition, "size_bytes": 100}
        reply = site.ask("runs_prepare", arguments)
        assert reply.exit_code in {0, USAGE}, (definition, reply.error)
        if at % WELL_EVERY == 0:
            site.is_well()
    assert site.life.journal.prepared()
    site.is_well()


def test_every_number_of_a_definition_gets_an_answer(site: Site) -> None:
    """What is accepted is written, read again and shown."""
    whole = {**sample(RunDefinition), "algorithm": {"name": "fedprox"}, "training": {}}
    whole |= {"flow": "sync", "flow_settings": {}, "task": "digits", "bundle": None}
    whole["models"] = {"keep": 3}
    whole["cohort"] = {"size": 2, "fit": "time"}
    tried = [
        (path, value)
        for path, hint in numbers(RunDefinition)
        for value in values(hint)
        if path[0] not in {"bundle", "models"}
    ]
    tried += [(("algorithm", "mu"), value) for value in values(float)]
    tried += [(("training", "learning_rate"), value) for value in values(float)]
    for path, value in tried:
        arguments = {"definition": replaced(whole, path, value), "size_bytes": 100}
        reply = site.ask("runs_prepare", arguments)
        assert reply.exit_code in {0, USAGE}, (path, value, reply.error)
    site.is_well()


@pytest.mark.parametrize("where", ["training", "flow_settings", "algorithm", "more"])
@pytest.mark.parametrize("value", WILD)
def test_what_settings_cannot_hold_is_told(site: Site, where: str, value: Any) -> None:
    """Seen before: bytes within the training settings ended the server."""
    definition: dict[str, Any] = {"task": "digits", where: {"a": value, "name": "fedavg"}}
    reply = site.ask("runs_prepare", {"definition": definition, "size_bytes": 100})
    holds = where == "training" and not isinstance(value, bytes | dict) and value != 1 << 63
    assert reply.exit_code == (0 if holds or (value == {} and where == "training") else USAGE)
    site.is_well()


# --- errors that nobody foresaw -----------------------------------------------------------------


UNFORESEEN = [(each, OverflowError) for each in OPERATIONS.values()]
UNFORESEEN.append((OPERATIONS["runs_stop"], InvalidTransition))  # type: ignore[arg-type]


@pytest.mark.parametrize(("operation", "error"), UNFORESEEN, ids=lambda it: getattr(it, "name", ""))
def test_an_error_within_an_operation_has_an_id_in_the_log(
    site: Site,
    operation: Operation[Any, Any],
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    binding = site.life.operations._table[operation.name]

    def fails(*_: object) -> Any:
        raise error("too large")

    monkeypatch.setitem(
        site.life.operations._table, operation.name, type(binding)(operation, fails)
    )
    replies = [site.ask(operation.name, sample(operation.arguments)) for _ in range(2)]
    assert {reply.exit_code for reply in replies} == {FAILED}
    (fault_id,) = site.faults.counted
    assert all(fault_id in reply.error for reply in replies)
    traced = [each for each in caplog.records if each.exc_info]
    assert [fault_id in each.message for each in traced] == [True], "logged once"
    site.restart()
    assert site.ask("server_info", {}).exit_code == 0, "it is not begun again"


def test_a_reply_that_cannot_be_sent_is_told(tmp_path: Path) -> None:
    sent: list[OperatorReply] = []

    def reply(_: str, message: OperatorReply) -> None:
        if message.result:
            raise ConfigError("an operator_reply message cannot hold this")
        sent.append(message)

    life, faults = Life(Disk(tmp_path)), Faults()
    endpoint = OperatorEndpoint(life.operations, reply, faults)
    endpoint.handle("operator", OperatorRequest(request_id="q", operation="runs_ls", arguments={}))
    assert [(each.request_id, each.exit_code) for each in sent] == [("q", FAILED)]
    assert next(iter(faults.counted)) in sent[0].error
    life.end()


def test_a_journal_that_cannot_be_written_ends_the_process(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise JournalError("the disk is full")

    monkeypatch.setattr(site.life.members, "rotate", full)
    with pytest.raises(JournalError):
        site.ask("devices_rotate", {"device_id": "a"})

"""What an operator can do, written once: the command line comes over MQTT, a console over HTTP.

Each operation validates its arguments by a model of its own and returns plain data, or a
``Deferred`` whose work is done off the owner's thread. All are called on the owner's thread.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from broker.wire.messages import KeyText, Message, Sha256
from fl_server.dataplane.urls import URL_LIFETIME_S
from fl_server.flows.events import PauseRequested, ResumeRequested, StopRequested
from fl_server.flows.flow import Flow
from fl_server.kinds.sync import SyncFlow
from fl_server.members.presence import DevicePresence
from fl_server.members.rules import MAX_USES, AuditEvent, DeviceRecord
from fl_server.operations.arguments import (
    PAGE_BYTES,
    Arguments,
    Deferred,
    Name,
    NoArguments,
    OneRun,
    Result,
)
from fl_server.operations.bundles import BundleOperations
from fl_server.operations.models import ModelOperations
from fl_server.rounds.events import Model
from fl_server.runs import report
from fl_server.runs.definition import RunDefinition, parse_definition
from fl_server.runs.record import AwaitedModel, PreparedRun
from runtime.config import validate
from runtime.errors import ConfigError, NotFound
from runtime.security.join_token import CLAIM_PREFIX
from storage.versions.manifest import Parent

if TYPE_CHECKING:
    from fl_server.server import Server

MAX_MODEL_BYTES = 1 << 36
_DEVICE_ROW_BYTES = 16_000
_DEFINITION_BYTES = 32 << 10
_AUDIT_ROWS = 200
_LONGEST_INVITATION_S = 366 * 24 * 3600.0
Group = Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,64}$")]
_STEERED = {PauseRequested: "paused", ResumeRequested: "resumed", StopRequested: "stopped"}


class Page(Arguments):
    """Where to go on: behind the last id of the page before, empty for the first page."""

    after: Annotated[str, Field(max_length=64)] = ""


class Definition(Arguments):
    """A run definition, as in its TOML file, and version 0's size.

    ``parent`` is the sha256 of the version of this project that version 0 was made from, if any.
    """

    definition: dict[str, Any]
    size_bytes: Annotated[int, Field(ge=1, le=MAX_MODEL_BYTES)]
    parent: Sha256 | None = None


class RunSubmission(OneRun):
    """A prepared run, and the hash of the version 0 that was sent."""

    sha256: Sha256


class Invitation(Arguments):
    """A join token to be made."""

    group: Group = ""
    project: Name = "default"
    uses: Annotated[int, Field(ge=1, le=MAX_USES)] = 1
    lifetime_s: Annotated[float, Field(ge=1, le=_LONGEST_INVITATION_S)] = 3600.0


class NewDevice(Arguments):
    """A device whose identity the operator made, on the site itself or for an external broker."""

    id: Name
    public_key: KeyText
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    password: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,256}$")]
    group: Group = ""
    index: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] = 1


class NewDevices(Arguments):
    """Devices to be admitted together."""

    devices: Annotated[list[NewDevice], Field(max_length=500)]


class OneDevice(Arguments):
    """Names a device."""

    device_id: Name


class AuditPage(Arguments):
    """The latest entries, or those before a number."""

    before: Annotated[int, Field(ge=1)] | None = None


class Operations:
    """The operations of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._caller = ""
        # run -> its preparation and when it was last heard of, by the monotonic clock
        self._prepared: dict[str, tuple[PreparedRun, float]] = {
            run.run_id: (run, time.monotonic()) for run in server.journal.prepared()
        }
        self._table: dict[str, tuple[type[Arguments], Callable[[Any], Result | Deferred]]] = {
            "server_info": (NoArguments, self.server_info),
            "devices_ls": (Page, self.devices_ls),
            "devices_invite": (Invitation, self.devices_invite),
            "devices_admit": (NewDevices, self.devices_admit),
            "devices_rotate": (OneDevice, self.devices_rotate),
            "devices_revoke": (OneDevice, self.devices_revoke),
            "audit_ls": (AuditPage, self.audit_ls),
            "audit_verify": (NoArguments, self.audit_verify),
            "runs_ls": (NoArguments, self.runs_ls),
            "runs_show": (OneRun, self.runs_show),
            "runs_prepare": (Definition, self.runs_prepare),
            "runs_renew": (OneRun, self.runs_renew),
            "runs_submit": (RunSubmission, self.runs_submit),
            "runs_pause": (OneRun, self.runs_pause),
            "runs_resume": (OneRun, self.runs_resume),
            "runs_stop": (OneRun, self.runs_stop),
            **ModelOperations(server, lambda: self._caller, self._in_use).table,
            **BundleOperations(server, lambda: self._caller, self._definitions).table,
        }

    def call(self, operation: str, arguments: dict[str, Any], caller: str) -> Result | Deferred:
        """Do one operation for ``caller``, an operator's id.

        Raises:
            ConfigError: there is no such operation, or the arguments are wrong.
            RengoError: as the operation says.
        """
        if operation not in self._table:
            raise ConfigError(f"no operation {operation!r}; there are: {', '.join(self._table)}")
        model, method = self._table[operation]
        self._caller = caller
        return method(validate(model, arguments, operation))

    # --- reading ------------------------------------------------------------------------------

    def server_info(self, _: NoArguments) -> Result:
        """What this server is and what it has refused."""
        server = self._server
        return {
            "domain": server.domain,
            "epoch": server.epoch,
            "runs": len(server.runner.submitted()),
            "devices_online": sum(each.online for each in server.presence.devices.values()),
            "refused_messages": dict(server.gate.refused),
        }

    def devices_ls(self, page: Page) -> Result:
        """Every device that was ever admitted, by id; ``more`` says that pages follow."""
        rows: list[Result] = []
        left = PAGE_BYTES
        members, present = self._server.members.devices, self._server.presence.devices
        for device_id in sorted(members.keys() | present.keys()):
            if device_id <= page.after:
                continue
            row = _device_row(device_id, members.get(device_id), present.get(device_id))
            row |= _reported(self._server.presence.reports(device_id))
            left -= len(json.dumps(row))
            if rows and left < 0:
                return {"devices": rows, "more": True}
            rows.append(row)
        return {"devices": rows, "more": False}

    def runs_ls(self, _: NoArguments) -> Result:
        """Every run in one row, the latest first."""
        rows = [self._summary(each) for each in self._server.runner.submitted()[::-1][:200]]
        return {"runs": [row | {"reason": row["reason"][:200]} for row in rows]}

    def runs_show(self, arguments: OneRun) -> Result:
        """One run with its rounds, refusals, devices and metrics."""
        flow = self._flow(arguments.run_id)
        if not isinstance(flow, SyncFlow):
            return self._summary(flow.run_id)
        facts = self._server.journal.facts(arguments.run_id)
        shown = report.report(flow.record, flow.machine.ledger, facts)
        for row in shown["devices"]:
            device = self._server.presence.devices.get(row["id"])
            info = None if device is None else device.info
            row["profile"] = "" if info is None else info.profile[:32]
            row["engine"] = "" if info is None else info.engine[:32]
        return shown

    # --- members ------------------------------------------------------------------------------

    def devices_invite(self, wanted: Invitation) -> Deferred:
        """Make a join token; answered when the broker admits its holder."""
        members = self._server.members
        token = members.invite(
            self._caller,
            group=wanted.group,
            project=wanted.project,
            uses=wanted.uses,
            lifetime_s=wanted.lifetime_s,
        )
        result = {"token": token.text, "token_id": token.id, "url": members.site.url}
        return Deferred(members.settle, lambda _: result)

    def devices_admit(self, wanted: NewDevices) -> Deferred:
        """Admit devices by their identities; says which of them are (still) revoked."""
        members = self._server.members
        members.admit(
            self._caller, [DeviceRecord(**device.model_dump()) for device in wanted.devices]
        )
        revoked = [
            device.id for device in wanted.devices if members.devices[device.id].status != "active"
        ]
        return Deferred(members.settle, lambda _: {"revoked": revoked})

    def devices_rotate(self, wanted: OneDevice) -> Result:
        """Give a device another password, now or when it is there again."""
        self._server.members.rotate(self._caller, wanted.device_id)
        device = self._server.presence.devices.get(wanted.device_id)
        return {"device_id": wanted.device_id, "online": device is not None and device.online}

    def devices_revoke(self, wanted: OneDevice) -> Deferred:
        """Take a device or a join token out; answered when the broker has cut it off."""
        server, members = self._server, self._server.members
        result = {"revoked": wanted.device_id}
        if wanted.device_id.startswith(CLAIM_PREFIX):
            members.withdraw(self._caller, wanted.device_id)
            return Deferred(members.settle, lambda _: result)
        device = members.revoke(self._caller, wanted.device_id)

        def forgotten(_: object) -> Result:
            server.forget_device(device)
            return result

        return Deferred(lambda: members.cut_off(device), forgotten)

    def audit_ls(self, page: AuditPage) -> Result:
        """What was done, the latest first."""
        entries = self._server.registry.audit(before=page.before, limit=_AUDIT_ROWS)
        return {"entries": [asdict(entry) for entry in entries]}

    def audit_verify(self, _: NoArguments) -> Result:
        """How many entries the audit log has; AuditAltered when it is not as it was written."""
        return {"entries": self._server.registry.verify_audit()}

    # --- submitting ---------------------------------------------------------------------------

    def runs_prepare(self, arguments: Definition) -> Result | Deferred:
        """Check a definition and say where version 0 goes."""
        self._forget_old()
        definition = self._complete(arguments)
        run_id = f"{definition.task[:40]}-{secrets.token_hex(4)}"
        key = self._server.data.keys(run_id).version(0)
        prepared = PreparedRun(run_id, definition, AwaitedModel(key, arguments.size_bytes))
        self._server.journal.prepare(prepared)
        return self._place(prepared)

    def runs_renew(self, arguments: OneRun) -> Result | Deferred:
        """Say again where version 0 of a prepared run goes, by fresh URLs."""
        return self._place(self._prepared_run(arguments.run_id))

    def _place(self, prepared: PreparedRun) -> Result | Deferred:
        store, uploads = self._server.store, self._server.data.uploads
        awaited, run_id = prepared.awaited, prepared.run_id
        self._prepared[run_id] = (prepared, time.monotonic())
        url = store.presign_put(awaited.key, URL_LIFETIME_S)
        result: Result = {"run_id": run_id, "url": url, "headers": store.upload_headers}
        if not uploads.is_large(awaited.size_bytes):
            return result
        return Deferred(
            lambda: uploads.place(awaited.key, awaited.size_bytes),
            lambda parts: {**result, "parts": parts.model_dump()},
        )

    def _prepared_run(self, run_id: str) -> PreparedRun:
        if run_id not in self._prepared:
            raise ConfigError(f"run {run_id} was not prepared, or too long ago")
        return self._prepared[run_id][0]

    def runs_submit(self, arguments: RunSubmission) -> Result | Deferred:
        """Start a prepared run whose version 0 is in the store; asked again, say so again."""
        if arguments.run_id in self._server.runner.flows:
            return {"run_id": arguments.run_id}
        prepared = self._prepared_run(arguments.run_id)
        self._note("run submitted", arguments.run_id)
        data, model = self._server.data, prepared.awaited.model(arguments.sha256)
        return Deferred(
            lambda: data.check_initial(prepared.run_id, model),
            lambda _: self._start(prepared, model),
        )

    def _complete(self, arguments: Definition) -> RunDefinition:
        """Return the definition with the version that it begins with, if it is one of ours."""
        definition = parse_definition(arguments.definition, "run definition")
        self._server.runner.kind_of(definition).check(definition)
        size = len(definition.model_dump_json())
        if size > _DEFINITION_BYTES:
            raise ConfigError(f"a run definition of {size} bytes, at most {_DEFINITION_BYTES}")
        parent = None
        if arguments.parent is not None:
            found = self._server.models.find(arguments.parent).manifest
            parent = Parent(run_id=found.run_id, version=found.version, sha256=found.sha256)
        if definition.bundle is not None:
            self._require_bundle(definition)
        models = definition.models.model_copy(update={"parent": parent})
        return definition.model_copy(update={"models": models})

    def _require_bundle(self, definition: RunDefinition) -> None:
        """Raise where the site has no such bundle of the run's task."""
        section = definition.bundle
        assert section is not None
        bundle = self._server.bundles.known(section.sha256)
        if bundle.signed.manifest.name != definition.task:
            raise ConfigError(f"bundle {bundle.name} is not of task {definition.task!r}")
        if bundle.size_bytes != section.size_bytes:
            raise ConfigError(f"bundle {bundle.name} has {bundle.size_bytes} bytes")

    def _definitions(self) -> dict[str, RunDefinition]:
        """Return the definitions of the runs that go on or are being prepared."""
        going = {
            run_id: self._server.runner.records[run_id].definition
            for run_id, flow in self._server.runner.flows.items()
            if not flow.ended
        }
        prepared = {run_id: run.definition for run_id, (run, _) in self._prepared.items()}
        return going | prepared

    def _in_use(self, run_id: str) -> bool:
        flow = self._server.runner.flows.get(run_id)
        return run_id in self._prepared or (flow is not None and not flow.ended)

    def _start(self, prepared: PreparedRun, initial: Model) -> Result:
        run_id = prepared.run_id
        if self._prepared.pop(run_id, None) is None:
            return {"run_id": run_id}
        record = self._server.runner.new_record(run_id, prepared.definition, initial)
        self._server.start_run(record)
        return {"run_id": run_id}

    def _forget_old(self) -> None:
        now = time.monotonic()
        for run_id, (prepared, heard_s) in list(self._prepared.items()):
            if now - heard_s > URL_LIFETIME_S:
                del self._prepared[run_id]
                self._server.journal.forget_prepared(run_id)
                self._server.data.discard_prepared(prepared)

    # --- steering -----------------------------------------------------------------------------

    def runs_pause(self, arguments: OneRun) -> Result:
        """Let the open round finish and start no new one."""
        return self._steer(arguments.run_id, PauseRequested())

    def runs_resume(self, arguments: OneRun) -> Result:
        """Let a paused run go on."""
        return self._steer(arguments.run_id, ResumeRequested())

    def runs_stop(self, arguments: OneRun) -> Result:
        """End a run with the versions committed so far."""
        return self._steer(arguments.run_id, StopRequested())

    def _steer(
        self, run_id: str, event: PauseRequested | ResumeRequested | StopRequested
    ) -> Result:
        flow = self._flow(run_id)
        if flow.ended:
            raise ConfigError(f"run {run_id} has ended: {self._summary(run_id)['status']}")
        self._note(f"run {_STEERED[type(event)]}", run_id)
        self._server.runner.handle(run_id, event)
        return self._summary(run_id)

    def _note(self, act: str, subject: str) -> None:
        self._server.members.note(AuditEvent(self._caller, act, subject))

    def _flow(self, run_id: str) -> Flow:
        if run_id not in self._server.runner.submitted():
            raise NotFound(f"no run {run_id!r}; `rengo runs ls` lists them")
        return self._server.runner.flows[run_id]

    def _summary(self, run_id: str) -> Result:
        """Return a run in one row."""
        flow = self._server.runner.flows[run_id]
        if isinstance(flow, SyncFlow):
            return report.summary(flow.record, flow.machine.ledger)
        return report.summary_of_document(
            self._server.runner.records[run_id], flow.document(self._server.epoch)
        )


def _reported(reports: Mapping[str, Message]) -> Result:
    """Return what a device reports of itself, by kind; less of what says too much."""
    said = {kind: report.model_dump() for kind, report in reports.items()}
    return {kind: each for kind, each in said.items() if len(json.dumps(each)) < _DEVICE_ROW_BYTES}


def _device_row(
    device_id: str, member: DeviceRecord | None, device: DevicePresence | None
) -> Result:
    """Return what is known of a device; less of one that says too much of itself."""
    row: Result = {"id": device_id, "status": "enrolled", "role": "-", "tasks": [], "info": None}
    if device is not None:
        row |= device.state.model_dump()
        row["info"] = None if device.info is None else device.info.model_dump()
        if len(json.dumps(row)) > _DEVICE_ROW_BYTES:
            row |= {"tasks": [], "info": None}
    if member is not None:
        row |= {
            "group": member.group,
            "project": member.project,
            "public_key": member.public_key,
            "token": member.token_id,
            "admitted_by": member.admitted_by,
            "admitted_at": member.admitted_at,
            "rotating": bool(member.next_password),
        }
        if member.status != "active":
            row["status"] = "revoked"
    return row

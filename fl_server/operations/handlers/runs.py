"""What an operator can do with runs: look, prepare, submit, pause, resume, stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from fl_server.dataplane.urls import URL_LIFETIME_S
from fl_server.flows.events import PauseRequested, ResumeRequested, StopRequested
from fl_server.flows.flow import Flow
from fl_server.kinds.failed import FailedFlow
from fl_server.kinds.sync import SyncFlow
from fl_server.members.rules import AuditEvent
from fl_server.operations import catalogue
from fl_server.operations.arguments import Definition, LatestRuns, OneRun, RunSubmission
from fl_server.operations.call import Binding, Call, Deferred
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers import run_report
from fl_server.operations.handlers.addressed import addressed, candidates, require_known
from fl_server.operations.handlers.ended_runs import infos_of, report_of, unreadable
from fl_server.operations.results.runs import (
    RunAddressed,
    RunList,
    RunReport,
    RunStarted,
    RunSummary,
    RunUpload,
)
from fl_server.persistence.history import Listed
from fl_server.rounds.model import Model
from fl_server.runs.definition import RunDefinition, parse_definition
from fl_server.runs.record import AwaitedModel, FactRecord, PreparedRun
from runtime.errors import ConfigError, NotFound
from storage.versions.manifest import Parent

_DEFINITION_BYTES = 32 << 10
ReportType = TypeVar("ReportType", bound=RunSummary)
_Steering: TypeAlias = PauseRequested | ResumeRequested | StopRequested
_STEERED: dict[type[_Steering], str] = {
    PauseRequested: "paused",
    ResumeRequested: "resumed",
    StopRequested: "stopped",
}


class RunOperations:
    """The operations on runs."""

    def __init__(self, context: OperationsContext) -> None:
        self._context = context
        # run -> its preparation and when it was last asked for, by the monotonic clock
        self._prepared: dict[str, tuple[PreparedRun, float]] = {
            run.run_id: (run, time.monotonic()) for run in context.journal.prepared()
        }

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries out each operation."""
        return (
            Binding(catalogue.RUNS_LS, self.runs_ls),
            Binding(catalogue.RUNS_SHOW, self.runs_show),
            Binding(catalogue.RUNS_DEVICES, self.runs_devices),
            Binding(catalogue.RUNS_PREPARE, self.runs_prepare),
            Binding(catalogue.RUNS_RENEW, self.runs_renew),
            Binding(catalogue.RUNS_SUBMIT, self.runs_submit),
            Binding(catalogue.RUNS_PAUSE, self.runs_pause),
            Binding(catalogue.RUNS_RESUME, self.runs_resume),
            Binding(catalogue.RUNS_STOP, self.runs_stop),
        )

    # --- reading ------------------------------------------------------------------------------

    def definitions(self) -> dict[str, RunDefinition]:
        """Return the definitions of the runs that go on or are being prepared."""
        runs = self._context.runs
        going = {
            run_id: runs.records[run_id].definition
            for run_id, flow in runs.flows.items()
            if not flow.ended
        }
        prepared = {run_id: run.definition for run_id, (run, _) in self._prepared.items()}
        return going | prepared

    def is_needed(self, run_id: str) -> bool:
        """Whether a run goes on or is being prepared."""
        flow = self._context.runs.flows.get(run_id)
        return run_id in self._prepared or (flow is not None and not flow.ended)

    def runs_ls(self, wanted: LatestRuns, _: Call) -> RunList:
        """Return the latest runs in one row each, the latest first."""
        runs = self._context.runs
        going = set(runs.submitted())
        # canaries that go on are found too, and passed over
        found = runs.history.listed(wanted.last + len(runs.flows) - len(going))
        rows = [
            self._summary(each.run_id) if each.run_id in runs.flows else _kept(each)
            for each in found
            if each.run_id in going or each.run_id not in runs.flows
        ]
        return RunList(runs=rows[: wanted.last])

    def runs_show(self, wanted: OneRun, _: Call) -> RunReport:
        """Return one run with its rounds, refusals, devices and metrics."""
        runs, infos = self._context.runs, infos_of(self._context.presence)
        if wanted.run_id not in runs.flows and self._is_kept(wanted.run_id):
            return report_of(runs.history.report(wanted.run_id) or {}, infos)
        flow = self._flow(wanted.run_id)
        record = runs.records[wanted.run_id]
        facts: Sequence[FactRecord] = ()
        if not isinstance(flow, FailedFlow):  # its facts may be what cannot be read
            facts = self._context.journal.facts(wanted.run_id, record.definition.flow)
        document = flow.document(runs.epoch)
        report = self._with_wait(run_report.report_of(record, flow, facts, document, infos))
        if report.phase not in {"gathering", "waiting"} or report.status != "running":
            return report
        return report.model_copy(update={"addressed": self._addressed(wanted.run_id)})

    def runs_devices(self, wanted: OneRun, _: Call) -> RunAddressed:
        """Return which devices can train in a run now, and why the others do not."""
        if not self._is_kept(wanted.run_id):
            self._flow(wanted.run_id)  # else there is none
        return self._addressed(wanted.run_id)

    def _addressed(self, run_id: str) -> RunAddressed:
        definition = self._context.runs.definition(run_id)
        assert definition is not None
        return addressed(run_id, definition, candidates(self._context))

    # --- submitting ---------------------------------------------------------------------------

    def runs_prepare(self, wanted: Definition, call: Call) -> RunUpload | Deferred[RunUpload]:
        """Check a definition and say where version 0 goes.

        The run's id follows from the request's salt, which is written with the preparation; so a
        request that comes again prepares nothing anew, and gets fresh URLs.
        """
        self._discard_old()
        if call.repeated:
            task = str(wanted.definition.get("task", ""))
            return self._upload(self.prepared(run_id_of(task, call)))
        definition = self._complete(wanted)
        run_id = run_id_of(definition.task, call)
        key = self._context.data.keys(run_id).version(0)
        prepared = PreparedRun(run_id, definition, AwaitedModel(key, wanted.size_bytes))
        with call.identified():
            self.prepare(prepared)
        return self._upload(prepared)

    def prepare(self, prepared: PreparedRun) -> None:
        """Write a run down whose version 0 is awaited; it is removed if none comes."""
        self._discard_old()
        self._context.journal.prepare(prepared)
        self._prepared[prepared.run_id] = (prepared, time.monotonic())

    def runs_renew(self, wanted: OneRun, _: Call) -> RunUpload | Deferred[RunUpload]:
        """Say again where version 0 of a prepared run goes, by fresh URLs."""
        return self._upload(self.prepared(wanted.run_id))

    def _upload(self, prepared: PreparedRun) -> RunUpload | Deferred[RunUpload]:
        store, uploads = self._context.store, self._context.data.uploads
        awaited, run_id = prepared.awaited, prepared.run_id
        self._prepared[run_id] = (prepared, time.monotonic())
        url = store.presign_put(awaited.key, URL_LIFETIME_S)
        upload = RunUpload(run_id=run_id, url=url, headers=store.upload_headers)
        if not uploads.is_large(awaited.size_bytes):
            return upload
        return Deferred(
            lambda: uploads.parts_for(awaited.key, awaited.size_bytes),
            lambda parts: upload.model_copy(update={"parts": parts}),
        )

    def prepared(self, run_id: str) -> PreparedRun:
        """Return a run that was prepared."""
        if run_id not in self._prepared:
            raise ConfigError(f"run {run_id} was not prepared, or too long ago")
        return self._prepared[run_id][0]

    def runs_submit(self, wanted: RunSubmission, call: Call) -> RunStarted | Deferred[RunStarted]:
        """Start a prepared run whose version 0 is in the store.

        The answer is written with the run. A run that goes on already is not started again.
        """
        runs = self._context.runs
        if wanted.run_id in runs.flows or runs.history.has(wanted.run_id):
            return RunStarted(run_id=wanted.run_id)
        prepared = self.prepared(wanted.run_id)
        data, model = self._context.data, prepared.awaited.model(wanted.sha256)
        return Deferred(
            lambda: data.check_initial(prepared.run_id, model),
            lambda _: self.start(prepared, model, call),
        )

    def start(self, prepared: PreparedRun, initial: Model, call: Call) -> RunStarted:
        """Start a prepared run from its version 0, which is in the store; its answer goes with it.

        One that was started meanwhile is not started again.
        """
        run_id = prepared.run_id
        started = RunStarted(run_id=run_id)
        if self._prepared.pop(run_id, None) is None:
            return started
        record = self._context.runs.new_record(run_id, prepared.definition, initial)
        act = AuditEvent(call.caller, "run submitted", run_id)
        with call.together(lambda: started, lambda: [act]):
            self._context.runs.begin(record)
        return started

    def _complete(self, wanted: Definition) -> RunDefinition:
        """Return the definition with the version that it begins with, if it is one of ours."""
        definition = parse_definition(wanted.definition, "run definition")
        self._context.runs.check(definition)
        require_known(
            definition.addressed,
            [*self._context.members.devices, *self._context.presence.devices],
        )
        size = len(definition.model_dump_json())
        if size > _DEFINITION_BYTES:
            raise ConfigError(f"a run definition of {size} bytes, at most {_DEFINITION_BYTES}")
        parent = None
        if wanted.parent is not None:
            found = self._context.models.find(wanted.parent).manifest
            parent = Parent(run_id=found.run_id, version=found.version, sha256=found.sha256)
        if definition.bundle is not None:
            self._require_bundle(definition)
        models = definition.models.model_copy(update={"parent": parent})
        return definition.model_copy(update={"models": models})

    def _require_bundle(self, definition: RunDefinition) -> None:
        """Raise where the site has no such bundle of the run's task."""
        section = definition.bundle
        assert section is not None
        bundle = self._context.bundles.known(section.sha256)
        if bundle.signed.manifest.name != definition.task:
            raise ConfigError(f"bundle {bundle.name} is not of task {definition.task!r}")
        if bundle.size_bytes != section.size_bytes:
            raise ConfigError(f"bundle {bundle.name} has {bundle.size_bytes} bytes")

    def _discard_old(self) -> None:
        """Remove what was prepared so long ago that its upload URLs have expired."""
        now = time.monotonic()
        for run_id, (prepared, asked_s) in list(self._prepared.items()):
            if now - asked_s > URL_LIFETIME_S:
                del self._prepared[run_id]
                self._context.journal.forget_prepared(run_id)
                self._context.data.discard_prepared(prepared)

    # --- steering -----------------------------------------------------------------------------

    def runs_pause(self, wanted: OneRun, call: Call) -> RunSummary:
        """Let the open round finish and start no new one."""
        return self._steer(wanted.run_id, PauseRequested(), call)

    def runs_resume(self, wanted: OneRun, call: Call) -> RunSummary:
        """Let a paused run go on."""
        return self._steer(wanted.run_id, ResumeRequested(), call)

    def runs_stop(self, wanted: OneRun, call: Call) -> RunSummary:
        """End a run with the versions committed so far."""
        return self._steer(wanted.run_id, StopRequested(), call)

    def _steer(self, run_id: str, event: _Steering, call: Call) -> RunSummary:
        """Give the run's flow the event; the answer is written with the facts that follow."""
        is_kept = run_id not in self._context.runs.flows and self._is_kept(run_id)
        if is_kept or self._flow(run_id).ended:
            raise ConfigError(f"run {run_id} has ended: {self._summary(run_id).status}")
        act = AuditEvent(call.caller, f"run {_STEERED[type(event)]}", run_id)
        with call.together(lambda: self._summary(run_id), lambda: [act]):
            self._context.runs.handle(run_id, event)
        return self._summary(run_id)

    def _flow(self, run_id: str) -> Flow:
        if run_id not in self._context.runs.submitted():
            raise NotFound(f"no run {run_id!r}; `rengo runs ls` lists them")
        return self._context.runs.flows[run_id]

    def _is_kept(self, run_id: str) -> bool:
        """Whether a run that an operator submitted is history."""
        return self._context.runs.history.is_listed(run_id)

    def _summary(self, run_id: str) -> RunSummary:
        runs = self._context.runs
        flow = runs.flows.get(run_id)
        if flow is None:
            return _kept(Listed(run_id, runs.history.summary(run_id)))
        document = None if isinstance(flow, SyncFlow) else flow.document(self._context.runs.epoch)
        return self._with_wait(run_report.summary_of(runs.records[run_id], flow, document))

    def _with_wait(self, report: ReportType) -> ReportType:
        found = self._context.data.waiting(report.run_id)
        if found is None:
            return report
        wait = {"waiting": found.reason[:2000], "waiting_since": found.since_s}
        return report.model_copy(update=wait)


def _kept(row: Listed) -> RunSummary:
    try:
        return RunSummary.read(row.summary or {})
    except ValidationError as error:
        return unreadable(row.run_id, f"its row in the journal cannot be read: {error}")


def run_id_of(task: str, call: Call) -> str:
    """Return the id of the run that a request asks for, the same whenever it comes."""
    return f"{task[:40]}-{call.derive('run id').hex()[:8]}"

"""What an operator can do with runs: look, prepare, submit, pause, resume, stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fl_server.members.rules import AuditEvent
from fl_server.operations import catalogue, run_report
from fl_server.operations.arguments import Definition, NoArguments, OneRun, RunSubmission
from fl_server.operations.call import Binding, Call, Deferred
from fl_server.operations.context import OperationsContext, Steering
from fl_server.operations.results import RunList, RunReport, RunStarted, RunSummary, RunUpload
from fl_server.persistence.journal import AwaitedModel, PreparedRun, RunRecord
from fl_server.rounds.events import Model, PauseRequested, ResumeRequested, StopRequested
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.workload import known_speeds
from fl_server.runs.active import URL_LIFETIME_S, ActiveRun
from fl_server.runs.definition import RunDefinition, parse_definition
from runtime.errors import ConfigError, NotFound
from storage.versions.manifest import Parent

_DEFINITION_BYTES = 32 << 10
_STEERED = {PauseRequested: "paused", ResumeRequested: "resumed", StopRequested: "stopped"}


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
        going = {
            run_id: run.record.definition
            for run_id, run in self._context.runs.items()
            if not run.ended
        }
        prepared = {run_id: run.definition for run_id, (run, _) in self._prepared.items()}
        return going | prepared

    def is_needed(self, run_id: str) -> bool:
        """Whether a run goes on or is being prepared."""
        run = self._context.runs.get(run_id)
        return run_id in self._prepared or (run is not None and not run.ended)

    def runs_ls(self, _: NoArguments, __: Call) -> RunList:
        """Return every run in one row, the latest first."""
        runs = reversed(list(self._context.runs.values()))
        return RunList(runs=[_summary(run) for run in runs])

    def runs_show(self, wanted: OneRun, _: Call) -> RunReport:
        """Return one run with its rounds, refusals, devices and metrics."""
        run = self._run(wanted.run_id)
        facts = self._context.journal.facts(wanted.run_id)
        present = self._context.presence.devices
        infos = {name: each.info for name, each in present.items() if each.info is not None}
        return run_report.report(run.record, run.machine.ledger, facts, infos)

    # --- submitting ---------------------------------------------------------------------------

    def runs_prepare(self, wanted: Definition, call: Call) -> RunUpload | Deferred[RunUpload]:
        """Check a definition and say where version 0 goes.

        The run's id follows from the request's salt, which is written with the preparation; so a
        request that comes again prepares nothing anew, and gets fresh URLs.
        """
        self._discard_old()
        digits = call.derive("run id").hex()[:8]
        if call.repeated:
            task = str(wanted.definition.get("task", ""))
            return self._upload(self._prepared_run(_run_id(task, digits)))
        definition = self._complete(wanted)
        run_id = _run_id(definition.task, digits)
        key = self._context.data.keys(run_id).version(0)
        prepared = PreparedRun(run_id, definition, AwaitedModel(key, wanted.size_bytes))
        with call.identified():
            self._context.journal.prepare(prepared)
        return self._upload(prepared)

    def runs_renew(self, wanted: OneRun, _: Call) -> RunUpload | Deferred[RunUpload]:
        """Say again where version 0 of a prepared run goes, by fresh URLs."""
        return self._upload(self._prepared_run(wanted.run_id))

    def _upload(self, prepared: PreparedRun) -> RunUpload | Deferred[RunUpload]:
        store, uploads = self._context.store, self._context.data.uploads
        awaited, run_id = prepared.awaited, prepared.run_id
        self._prepared[run_id] = (prepared, time.monotonic())
        url = store.presign_put(awaited.key, URL_LIFETIME_S)
        upload = RunUpload(run_id=run_id, url=url, headers=store.upload_headers)
        if not uploads.is_large(awaited.size_bytes):
            return upload
        return Deferred(
            lambda: uploads.place(awaited.key, awaited.size_bytes),
            lambda parts: upload.model_copy(update={"parts": parts}),
        )

    def _prepared_run(self, run_id: str) -> PreparedRun:
        if run_id not in self._prepared:
            raise ConfigError(f"run {run_id} was not prepared, or too long ago")
        return self._prepared[run_id][0]

    def runs_submit(self, wanted: RunSubmission, call: Call) -> RunStarted | Deferred[RunStarted]:
        """Start a prepared run whose version 0 is in the store.

        The answer is written with the run. A run that goes on already is not started again.
        """
        if wanted.run_id in self._context.runs:
            return RunStarted(run_id=wanted.run_id)
        prepared = self._prepared_run(wanted.run_id)
        data, model = self._context.data, prepared.awaited.model(wanted.sha256)
        return Deferred(
            lambda: data.check_initial(prepared.run_id, model),
            lambda _: self._start(prepared, model, call),
        )

    def _start(self, prepared: PreparedRun, initial: Model, call: Call) -> RunStarted:
        run_id, wanted = prepared.run_id, prepared.definition
        started = RunStarted(run_id=run_id)
        if self._prepared.pop(run_id, None) is None:
            return started
        online = self._context.presence.online(wanted.task, bundled=wanted.bundled)
        evaluators = any(device.state.role == "evaluator" for device in online)
        plan = wanted.plan(
            run_id, evaluators_online=evaluators, speeds=known_speeds(self._runs_like(wanted))
        )
        with call.together(lambda: started, [AuditEvent(call.caller, "run submitted", run_id)]):
            self._context.start_run(RunRecord(run_id, wanted, plan, initial, time.time()))
        return started

    def _complete(self, wanted: Definition) -> RunDefinition:
        """Return the definition with the version that it begins with, if it is one of ours."""
        definition = parse_definition(wanted.definition, "run definition")
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

    def _runs_like(self, wanted: RunDefinition) -> list[Ledger]:
        """Return the runs, oldest first, whose steps are like those of this one."""
        return [
            run.machine.ledger
            for run in self._context.runs.values()
            if (run.record.definition.task, run.record.definition.training)
            == (wanted.task, wanted.training)
        ]

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

    def _steer(self, run_id: str, event: Steering, call: Call) -> RunSummary:
        """Give the run's machine the event; the answer is written with the facts that follow."""
        run = self._run(run_id)
        if run.ended:
            raise ConfigError(f"run {run_id} has ended: {run.machine.ledger.status}")
        act = AuditEvent(call.caller, f"run {_STEERED[type(event)]}", run_id)
        with call.together(lambda: _summary(run), [act]):
            self._context.steer(run, event)
        return _summary(run)

    def _run(self, run_id: str) -> ActiveRun:
        run = self._context.runs.get(run_id)
        if run is None:
            raise NotFound(f"no run {run_id!r}; `rengo runs ls` lists them")
        return run


def _summary(run: ActiveRun) -> RunSummary:
    return run_report.summary(run.record, run.machine.ledger)


def _run_id(task: str, digits: str) -> str:
    return f"{task[:40]}-{digits}"

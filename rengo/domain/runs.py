"""The parent's orders as runs of the domain's own server.

An order to train is one round on request; its sums become the update that the domain's agent sends.
Called on the server's owner thread; what blocks is done by the data plane's threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from broker.wire.messages import Order
from fl_client.session.events import Job, JobFailed, JobKey, JobOutcome, WorkFinished
from fl_server.rounds.commands import ReportRound
from fl_server.rounds.events import CompletionReported, RoundRequested
from fl_server.rounds.model import Model
from fl_server.runs.definition import RunDefinition
from fl_server.server import Server
from rengo.domain.evaluation import EvaluationRequested, VersionEvaluated
from rengo.domain.flow import FLOW, ChangeMade, DomainFlow, RoundGivenUp
from rengo.domain.settings import DomainCohort
from runtime.bounds import MAX_EXAMPLES
from runtime.config import validate
from runtime.errors import ConfigError, Corrupt, NotFound, RengoError
from runtime.files import file_sha256
from storage.updates.forwarded import answering, read_whole
from storage.updates.info import Origin, UpdateInfo
from storage.updates.stream import write_update
from storage.weights import read_safetensors

_LOG = logging.getLogger(__name__)
# of the parent's time: what is left is for the way up
_SHARE_OF_TIME = 0.8
_COPY_BYTES = 1 << 20
_OTHERS_RUN = "a run with this id is the domain's own"


@dataclass(frozen=True)
class JobFiles:
    """Where a job's model and vectors lie, and where its update goes."""

    model: Path
    vectors: Path | None
    update: Path


@dataclass(frozen=True)
class _Awaited:
    job: Job
    files: JobFiles
    began_s: float

    @property
    def order(self) -> Order:
        return self.job.order


class DomainRuns:
    """The runs of the parent's.

    Args:
        post: takes the event that a job ends with; any thread may call it.
        name: the domain's as its parent knows it.
    """

    def __init__(
        self,
        server: Server,
        cohort: DomainCohort,
        local_rounds: int,
        name: str,
        post: Callable[[object], None],
    ) -> None:
        self._server = server
        self._cohort = cohort
        self._local_rounds = local_rounds
        self._name = name
        self._post = post
        self._awaited: dict[JobKey, _Awaited] = {}
        self._stored: set[tuple[str, str]] = set()

    def restore(self) -> None:
        """Listen to the runs that an earlier process began."""
        for run_id in self._server.runner.of(DomainFlow):
            self._server.runner.listen(run_id, partial(self._reported, run_id))

    # --- the worker's orders ------------------------------------------------------------------

    def begin(self, job: Job, files: JobFiles) -> None:
        """Begin a job; it ends as ``WorkFinished`` or ``JobFailed``."""
        try:
            flow = self._flow(job.order)
            number = self._number(job.key)
            if flow is not None:
                self._require_current(flow, job, number)
        except ConfigError as error:
            self._post(JobFailed(job.key, str(error)[:2000], permanent=True))
            return
        except RengoError as error:
            self._post(JobFailed(job.key, str(error)[:2000]))
            return
        self._awaited[job.key] = _Awaited(job, files, time.monotonic())
        base = self._base(job.order, number)
        data = self._server.data
        data.start_task(
            lambda: data.patiently(lambda: self._store(base, files), job.key.run_id),
            lambda _: self._request(job.key, base),
            lambda error: self._fail(job.key, str(error)),
            in_order=True,
            run_id=job.key.run_id,
        )

    def cancel(self) -> None:
        """Await nothing more: the parent went on."""
        self._awaited.clear()

    def end(self, run_id: str) -> None:
        """End a run that has ended at the parent."""
        flow = self._server.runner.flows.get(run_id)
        if isinstance(flow, DomainFlow) and not flow.ended:
            ended = CompletionReported("the parent's run has ended")
            self._server.runner.handle(run_id, ended)

    # --- the parent's model -------------------------------------------------------------------

    def _number(self, key: JobKey) -> int:
        """Return the number here of the version that an order names."""
        version = key.round if key.action == "evaluate" else key.round - 1
        return version * self._local_rounds

    def _base(self, order: Order, number: int) -> Model:
        model, vectors = order.model, order.vectors
        assert model is not None
        keys = self._server.data.keys(order.run_id)
        found = Model(
            number,
            keys.base(number),
            model.sha256,
            model.size_bytes,
            scalars=tuple(sorted(order.scalars.items())),
        )
        if vectors is None:
            return found
        return replace(
            found,
            state_key=keys.base_state(number),
            state_sha256=vectors.sha256,
            state_bytes=vectors.size_bytes,
        )

    def _store(self, base: Model, files: JobFiles) -> None:
        """Put the parent's model where the devices find it. Blocks."""
        parts = [(base, files.model)]
        if base.state is not None and files.vectors is not None:
            parts.append((base.state, files.vectors))
        store = self._server.store
        for model, path in parts:
            name = (model.key, model.sha256)
            if name in self._stored and self._is_there(model):
                continue
            with path.open("rb") as file:
                store.put(model.key, file, model.size_bytes)
            self._stored.add(name)

    def _is_there(self, model: Model) -> bool:
        try:
            return self._server.store.head(model.key).size == model.size_bytes
        except NotFound:
            return False

    # --- rounds -------------------------------------------------------------------------------

    def _flow(self, order: Order) -> DomainFlow | None:
        """Return the flow of an order's run, None where it is not begun yet.

        Raises:
            ConfigError: the run is over here, or another one has its id.
        """
        runner = self._server.runner
        flow = runner.flows.get(order.run_id)
        if flow is None and not runner.knows(order.run_id):
            return None
        if flow is not None and not isinstance(flow, DomainFlow):
            raise ConfigError(_OTHERS_RUN)
        if flow is None or flow.ended:
            reason = "" if flow is None else flow.machine.ledger.reason
            raise ConfigError(f"the run is over in this domain: {reason or 'it has ended'}")
        return flow

    def _require_current(self, flow: DomainFlow, job: Job, number: int) -> None:
        """Raise where the flow cannot do a round of that number any more.

        Raises:
            Corrupt: it has done so with another model.
        """
        ledger = flow.machine.ledger
        if job.key.action != "train" or flow.local_rounds != self._local_rounds:
            return
        here, wanted = flow.parent_round(ledger.round), job.key.round
        if flow.machine.ledger.made is not None:
            here = flow.parent_round(ledger.made.version) if ledger.made is not None else here
        is_same = ledger.base_sha256 == job.model.sha256 or self._local_rounds > 1
        if wanted < here or (wanted == here and ledger.made is not None and not is_same):
            raise Corrupt(
                f"round {wanted} of the run was done here from another model, up to round {here}: "
                "the parent was restored from an earlier backup"
            )

    def _request(self, key: JobKey, base: Model) -> None:
        """Have the run do what was ordered; one that is new begins."""
        awaited = self._awaited.get(key)
        if awaited is None:
            return
        order, runner = awaited.order, self._server.runner
        try:
            if self._flow(order) is None:
                record = runner.new_record(key.run_id, self._definition(order), base)
                runner.begin(record)
                runner.listen(key.run_id, partial(self._reported, key.run_id))
        except RengoError as error:
            self._fail(key, str(error), permanent=isinstance(error, ConfigError))
            return
        left_s = _SHARE_OF_TIME * order.time_left_s
        if key.action == "train":
            number = base.version + 1
            request = RoundRequested(number, base, dict(order.training), left_s)
            runner.handle(key.run_id, request)
        else:
            asked = (key.round, base, order.evaluators or "devices")
            runner.handle(key.run_id, EvaluationRequested(*asked, dict(order.training), left_s))

    def _definition(self, order: Order) -> RunDefinition:
        local_rounds, cohort = self._local_rounds, self._cohort
        values: dict[str, Any] = {
            "flow": FLOW,
            "flow_settings": self._flow_settings(order),
            "task": order.task,
            "seed": order.seed,
            "algorithm": {"name": order.algorithm, **order.algorithm_settings},
            "training": dict(order.training),
            "transforms": [dict(each) for each in order.transforms],
            "cohort": cohort.section(),
            "evaluation": {"on": "none"},
            "models": {"keep": 2 * local_rounds + 2},
        }
        return validate(RunDefinition, values, f"the parent's run {order.run_id}")

    def _flow_settings(self, order: Order) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if self._local_rounds > 1:
            settings["local_rounds"] = self._local_rounds
        if order.singly:
            settings["singly"] = True
        return settings

    # --- what comes of it ---------------------------------------------------------------------

    def _reported(self, run_id: str, report: object) -> None:
        match report:
            case ReportRound() | ChangeMade():
                number = (report.round - 1) // self._local_rounds + 1
                for awaited in self._of(run_id, "train", number):
                    self._answer(awaited, report)
            case RoundGivenUp():
                for awaited in self._of(
                    run_id, "train", None if report.permanent else report.round
                ):
                    self._fail(awaited.job.key, report.reason, permanent=report.permanent)
            case VersionEvaluated():
                for awaited in self._of(run_id, "evaluate", report.version):
                    self._evaluated(awaited, report)

    def _of(self, run_id: str, action: str, number: int | None) -> list[_Awaited]:
        return [
            each
            for key, each in list(self._awaited.items())
            if (key.run_id, key.action) == (run_id, action) and number in {None, key.round}
        ]

    def _evaluated(self, awaited: _Awaited, found: VersionEvaluated) -> None:
        key = awaited.job.key
        if not found.num_examples:
            self._fail(key, found.reason, permanent=True)
            return
        del self._awaited[key]
        took_s = time.monotonic() - awaited.began_s
        outcome = JobOutcome(found.num_examples, dict(found.metrics), took_s)
        self._post(WorkFinished(key, outcome))

    def _answer(self, awaited: _Awaited, made: ReportRound | ChangeMade) -> None:
        """Make the update that the parent gets, and tell the agent."""
        key, data = awaited.job.key, self._server.data
        began_s = awaited.began_s

        def work() -> JobOutcome:
            return data.patiently(lambda: self._write(awaited, made), key.run_id)

        def told(outcome: JobOutcome) -> None:
            if self._awaited.pop(key, None) is not None:
                took_s = time.monotonic() - began_s
                self._post(WorkFinished(key, replace(outcome, train_s=took_s)))

        data.start_task(
            work,
            told,
            lambda error: self._fail(key, str(error)),
            in_order=True,
            run_id=key.run_id,
        )

    def _write(self, awaited: _Awaited, made: ReportRound | ChangeMade) -> JobOutcome:
        """Write the update to its file. Blocks."""
        target = awaited.files.update
        source, whole = target.with_suffix(".made"), target.with_suffix(".part")
        try:
            self._fetch(made.model, source)
            if isinstance(made, ReportRound):
                outcome = self._as_answer(awaited, source, whole)
            else:
                outcome = self._as_change(awaited, source, made, whole)
            whole.replace(target)
            return outcome
        finally:
            source.unlink(missing_ok=True)
            whole.unlink(missing_ok=True)

    def _fetch(self, made: Model, path: Path) -> None:
        with self._server.store.open(made.key) as stream, path.open("wb") as file:
            while block := stream.read(_COPY_BYTES):
                file.write(block)
        if file_sha256(path) != made.sha256:
            raise Corrupt(f"{made.key} is not what was put there")

    def _as_answer(self, awaited: _Awaited, source: Path, target: Path) -> JobOutcome:
        with source.open("rb") as stream, target.open("wb") as out:
            header = read_whole(stream, str(source))
            part = header.sums or header.forwarded
            if part is None:
                raise Corrupt(f"{source} holds no sums")
            origin = self._origin(awaited.job, header.layout_hash, header.kind)
            written = answering(stream, header, origin, out)
        return JobOutcome(
            header.num_examples,
            dict(header.metrics),
            header_sha256=written.header_sha256,
            size_bytes=written.size_bytes,
            population=part.population,
        )

    def _as_change(
        self, awaited: _Awaited, source: Path, made: ChangeMade, target: Path
    ) -> JobOutcome:
        before, after = read_safetensors(awaited.files.model), read_safetensors(source)
        origin = self._origin(awaited.job, before.layout.hash, "delta")
        examples = min(made.num_examples, MAX_EXAMPLES)
        with target.open("wb") as out:
            info = UpdateInfo(**vars(origin), num_examples=examples)
            written = write_update(out, info, after.vector - before.vector)
        return JobOutcome(
            examples,
            {},
            header_sha256=written.header_sha256,
            size_bytes=written.size_bytes,
            population=made.population,
        )

    def _origin(self, job: Job, layout_hash: str, kind: str) -> Origin:
        values: Mapping[str, Any] = {
            "run_id": job.key.run_id,
            "round": job.key.round,
            "attempt": job.key.attempt,
            "device_id": self._name,
            "base_sha256": job.model.sha256,
            "layout_hash": layout_hash,
            "kind": kind,
        }
        return Origin(**values)

    def _fail(self, key: JobKey, reason: str, *, permanent: bool = False) -> None:
        if self._awaited.pop(key, None) is not None:
            _LOG.warning("no answer to %s: %s", key, reason)
            self._post(JobFailed(key, reason[:2000], permanent=permanent))

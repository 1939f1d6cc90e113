"""One run in the server: its record, its machine, and the messages that are made of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from broker.wire.messages import (
    ModelRef,
    Order,
    PartsRef,
    Patch,
    RunDocument,
    RunEvent,
    RunStatus,
    UploadRef,
)
from fl_server.persistence.journal import FactRecord, RunRecord
from fl_server.rounds.events import ArmTimer, Fact, Model, RoundCommitted, RoundStarted, SendOrder
from fl_server.rounds.machine import RoundMachine
from fl_server.runs.lineage import Lineage
from fl_server.runs.patches import patches_to
from storage.store.objects import ObjectStore
from storage.versions.keys import RunKeys

URL_LIFETIME_S = 900
_SHARE_URL_S = 60.0
_MAX_LISTED = 1500
_MAX_LISTED_IN_EVENT = 200


@dataclass
class ActiveRun:
    """A run with its machine and the making of its versions; ``keys`` are its object keys."""

    record: RunRecord
    machine: RoundMachine
    keys: RunKeys
    lineage: Lineage
    _deadline: tuple[int, int, float] = field(default=(0, 0, 0.0))
    _signed: tuple[str, str, float] = field(default=("", "", 0.0), repr=False)
    _patches: tuple[str, list[Patch]] = field(default=("", []), repr=False)

    @classmethod
    def from_journal(
        cls, record: RunRecord, facts: Iterable[FactRecord], keys: RunKeys
    ) -> ActiveRun:
        """Return the run as its facts left it."""
        known = [row.fact for row in facts]
        lineage = Lineage(record)
        for fact in known:
            lineage.take(fact)
        return cls(record, RoundMachine(record.plan, record.initial, known), keys, lineage)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen in it."""
        return self.machine.ledger.phase == "ended"

    def deadline_armed(self, command: ArmTimer) -> None:
        """Remember until when the open round collects, so that orders can say the time left."""
        due = time.monotonic() + command.seconds
        self._deadline = (command.round, command.attempt, due)

    def awaits(self, command: SendOrder) -> bool:
        """Whether an order to train, made a while ago, is still to be sent."""
        ledger = self.machine.ledger
        is_open = ledger.phase == "collecting"
        current = (command.round, command.attempt) == (ledger.round, ledger.attempt)
        return is_open and current and command.device_id not in ledger.answered

    def order(
        self,
        command: SendOrder,
        store: ObjectStore,
        epoch: int,
        parts: PartsRef | None = None,
    ) -> Order:
        """Return the order's message, with fresh URLs; ``parts`` is where a large update goes."""
        definition, ledger = self.record.definition, self.machine.ledger
        model = ledger.model
        upload = None
        if command.action == "train":
            key = self.keys.update(command.round, command.attempt, command.device_id)
            upload = UploadRef(
                url=store.presign_put(key, URL_LIFETIME_S),
                key=key,
                headers=store.upload_headers,
                parts=parts,
            )
        return Order(
            epoch=epoch,
            action=command.action,
            run_id=self.record.run_id,
            round=command.round,
            attempt=command.attempt,
            task=definition.task,
            algorithm=definition.algorithm.name,
            algorithm_settings=definition.algorithm.settings,
            training=self._training(command),
            seed=definition.seed,
            model=ModelRef(
                url=self._model_url(store, model.key),
                key=model.key,
                sha256=model.sha256,
                size_bytes=model.size_bytes,
                patches=self._patches_to(model, ledger.earlier),
            ),
            upload=upload,
            time_left_s=self._time_left_s(command),
        )

    def _training(self, command: SendOrder) -> dict[str, Any]:
        """Return the definition's training settings with what is fitted to the device."""
        settings = self.record.definition.training
        work = self.machine.ledger.work.get(command.device_id)
        if command.action != "train" or work is None:
            return settings
        return settings | work.overrides()

    def _model_url(self, store: ObjectStore, key: str) -> str:
        """Return a URL that a whole cohort shares: signing one for each costs more than it."""
        now_s = time.monotonic()
        known, url, signed_s = self._signed
        if known != key or now_s - signed_s > _SHARE_URL_S:
            url = store.presign_get(key, URL_LIFETIME_S)
            self._signed = (key, url, now_s)
        return url

    def _patches_to(self, model: Model, earlier: Sequence[Model]) -> list[Patch]:
        known, patches = self._patches
        if known != model.sha256:
            patches = patches_to(model, earlier)
            self._patches = (model.sha256, patches)
        return patches

    def _time_left_s(self, command: SendOrder) -> float:
        round_number, attempt, due = self._deadline
        if command.action == "train" and (command.round, command.attempt) == (
            round_number,
            attempt,
        ):
            return max(0.0, due - time.monotonic())
        plan = self.machine.plan
        return plan.deadline_s if command.action == "train" else plan.evaluation_deadline_s

    def document(self, epoch: int) -> RunDocument:
        """Return the retained document."""
        definition, ledger = self.record.definition, self.machine.ledger
        version = max(ledger.evaluations, default=0)
        status: RunStatus = ledger.status
        if status == "running" and ledger.phase == "gathering":
            status = "waiting"
        return RunDocument(
            run_id=self.record.run_id,
            task=definition.task,
            algorithm=definition.algorithm.name,
            status=status,
            reason=ledger.reason[:2000],
            round=ledger.round,
            attempt=ledger.attempt,
            rounds=self.machine.plan.rounds,
            epoch=epoch,
            phase=ledger.phase,
            deadline_s=self.machine.plan.deadline_s,
            cohort=list(ledger.cohort[:_MAX_LISTED]),
            answered=sorted(ledger.answered)[:_MAX_LISTED],
            model_sha256=ledger.model.sha256,
            accuracy=ledger.metric(version, "accuracy"),
            loss=ledger.metric(version, "loss"),
        )

    def event(self, fact: Fact) -> RunEvent:
        """Return the stream's line for a fact."""
        ledger = self.machine.ledger
        detail: dict[str, Any] = asdict(fact)
        if isinstance(fact, RoundStarted):
            detail["cohort"] = fact.cohort[:_MAX_LISTED_IN_EVENT]
            detail["work"] = {name: detail["work"][name] for name in detail["cohort"] if fact.work}
        if isinstance(fact, RoundCommitted):
            del detail["model"]["changed"]  # up to 256 ranges, of use to no reader
        if "included" in detail:
            detail["included"] = detail["included"][:_MAX_LISTED_IN_EVENT]
        return RunEvent(
            run_id=self.record.run_id,
            name=type(fact).__name__,
            round=detail.pop("round", ledger.round),
            attempt=detail.pop("attempt", ledger.attempt),
            detail=detail,
        )

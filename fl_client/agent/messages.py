"""The messages that a device publishes, each made for its own topic and signed."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import cast

from pydantic import ValidationError

from broker.session.outbox import Outbox
from broker.session.publication import Publication
from broker.session.signer import MessageSigner, new_boot_id
from broker.wire.messages import (
    Action,
    Compute,
    Decline,
    DeviceInfo,
    DeviceState,
    Message,
    ModelRequest,
    PasswordKept,
    Progress,
    Request,
    Result,
    UpdateRef,
    Usage,
)
from broker.wire.topics import Topics
from fl_client.jobs.transfer import TransferCost
from fl_client.machine.accelerators import CPU, Accelerator, precision
from fl_client.machine.hardware import describe
from fl_client.session.events import Job, JobKey, JobOutcome, SendDecline
from fl_client.settings import AgentSettings
from fl_client.training.frames import TrainingJob
from runtime.bounds import is_plausible
from runtime.errors import InvalidTransition, RengoError
from runtime.security.identity import Identity

_RESULT = re.compile(
    r"result/([^/]+)/(train|evaluate|exchange)/(\d+)/(\d+)(?:/([a-z0-9_-]*)/(\d+))?"
)


class DeviceMessages:
    """Makes the device's messages; ``boot_id`` tells one connection of the device from others.

    A broker may publish the will of a connection after the next one is up; by the boot id the
    server knows that it is of an earlier connection.

    Attributes:
        broker: its address.
    """

    def __init__(
        self,
        identity: Identity,
        settings: AgentSettings,
        engine: str,
        tasks: list[str],
        accelerators: tuple[Accelerator, ...] = (CPU,),
    ) -> None:
        self._signer = MessageSigner(identity.id, identity.secret_key)
        self._process = new_boot_id()
        self._device_id = identity.id
        self._topics = Topics(identity.domain)
        self._domain = identity.domain
        self.broker = f"{identity.host}:{identity.port}"
        self._settings = settings
        self._engine = engine
        self._tasks = tasks
        self._accelerators = accelerators

    @property
    def boot_id(self) -> str:
        """What the messages of the current connection carry."""
        return self._signer.boot_id

    def description(self) -> dict[str, str]:
        """Return whose messages these are, and where they go."""
        return {"device": self._device_id, "domain": self._domain, "broker": self.broker}

    def subscriptions(self) -> list[str]:
        """Return the topics that the device subscribes to."""
        return [
            self._topics.device(self._device_id, "task"),
            self._topics.device(self._device_id, "receipt"),
            self._topics.server_state,
            self._topics.run("+", "state"),
            *(self._topics.model(task) for task in self._tasks),
        ]

    def will(self) -> Publication:
        """Return the will of a new connection, whose boot id all later messages have."""
        self._signer.boot_id = new_boot_id(self._process)
        return self.state("lost")

    def state(self, status: str, epoch: int = 0) -> Publication:
        """Return the retained presence; ``epoch`` is why the server is ignored, 0 if it is not."""
        state = DeviceState.model_validate(
            {
                "status": status,
                "boot_id": self.boot_id,
                "role": self._settings.role,
                "tasks": self._tasks,
                "bundles": self._settings.bundles.offered,
                "epoch": epoch,
            }
        )
        return self._write("state", state, retain=True)

    def info(self) -> Publication:
        """Return the retained description of the device."""
        return self._write("info", self.description_of_machine(), retain=True)

    def description_of_machine(self) -> DeviceInfo:
        """Return what the device is and can do."""
        hardware = describe()
        return DeviceInfo(
            role=self._settings.role,
            profile=self._settings.profile,
            engine=self._engine,
            cpus=hardware.cpus,
            ram_bytes=hardware.ram_bytes,
            accelerators=hardware.accelerators,
            compute=_compute(self._accelerators, self._settings),
            versions=hardware.versions,
            tasks=self._tasks,
            labels=self._settings.labels,
        )

    def health(self, health: Message) -> Publication:
        """Return the retained report of the machine's health."""
        return self._write("health", health, retain=True)

    def data(self, report: Message) -> Publication:
        """Return the retained report of the device's own data."""
        return self._write("data", report, retain=True)

    def request(self, key: JobKey) -> Publication:
        """Return the request for the order again, with fresh URLs."""
        return self._write(
            "request",
            Request(**asdict(key)),
        )

    def model_request(self, task: str, sha256: str) -> Publication:
        """Return the request for a URL of a production model."""
        return self._write("request", ModelRequest(task=task, sha256=sha256))

    def decline(self, command: SendDecline) -> Publication:
        """Return the answer to an order that is not taken."""
        decline = Decline(
            **asdict(command.key),
            reason=command.reason[:2000],
            unusable=command.unusable,
            permanent=command.permanent,
            traceback=list(command.traceback),
        )
        return self._write("ack", decline)

    def password_kept(self, rotation: int) -> Publication:
        """Return the message that a new password is on disk."""
        return self._write("ack", PasswordKept(rotation=rotation))

    def progress(self, job: TrainingJob, fraction: float, loss: float | None) -> Publication:
        """Return the progress of a job."""
        progress = Progress(
            run_id=job.run_id,
            round=job.round,
            attempt=job.attempt,
            fraction=min(1.0, max(0.0, fraction)),
            loss=loss if loss is not None and is_plausible(loss) else None,
        )
        return self._write("progress", progress)

    def result(self, job: Job, cost: TransferCost | None) -> Publication:
        """Return the report of a job that is done.

        Args:
            job: it has an outcome.
            cost: what its transfers took, where this process knows of it.
        """
        outcome, upload = job.outcome, job.order.upload
        if outcome is None:
            raise InvalidTransition(f"{job.key} is reported without an outcome")
        update = None
        if upload is not None:
            update = UpdateRef(
                key=upload.key, size_bytes=outcome.size_bytes, header_sha256=outcome.header_sha256
            )
        result = Result(
            **asdict(job.key),
            num_examples=outcome.num_examples,
            metrics=outcome.metrics,
            update=update,
            usage=_usage(outcome, cost),
            payload=outcome.payload,
            population=outcome.population,
        )
        return self._write("result", result)

    def problem(self, job: Job) -> str:
        """Return why no message can hold the result of a job that is done, "" where one can."""
        try:
            self.result(job, None)
        except (ValidationError, RengoError) as error:
            return " ".join(str(error).split())[:500]
        return ""

    @staticmethod
    def outbox_key(key: JobKey) -> str:
        """Return the name of a job's result in the outbox."""
        name = f"result/{key.run_id}/{key.action}/{key.round}/{key.attempt}"
        # as they were named before there were phases: an outbox may hold such
        return f"{name}/{key.phase}/{key.seq}" if key.phase or key.seq else name

    @staticmethod
    def keys_in(outbox: Outbox) -> set[JobKey]:
        """Return the jobs whose results are in the outbox."""
        found = (_RESULT.fullmatch(row.key) for row in outbox.pending())
        return {_key_of(*match.groups()) for match in found if match}

    def _write(self, leaf: str, message: Message, *, retain: bool = False) -> Publication:
        return self._signer.sign(self._topics.device(self._device_id, leaf), message, retain=retain)


def _usage(outcome: JobOutcome, cost: TransferCost | None) -> Usage:
    return Usage(
        train_s=outcome.train_s,
        bytes_down=0 if cost is None else cost.bytes_down,
        bytes_up=0 if cost is None else cost.bytes_up,
        peak_rss_bytes=outcome.peak_rss_bytes,
        transfer_s=0.0 if cost is None else cost.transfer_s,
        steps=outcome.steps,
        steps_s=outcome.steps_s,
        full_steps=outcome.full_steps,
        micro_batch=outcome.micro_batch,
    )


def _compute(accelerators: tuple[Accelerator, ...], settings: AgentSettings) -> list[Compute]:
    wanted: str = settings.precision
    if wanted == "auto" and accelerators[0].name:
        wanted = precision(accelerators)
    return [
        Compute(
            name=each.name or "auto",
            model=each.model,
            memory_bytes=each.memory_bytes,
            capability=each.capability,
            precision=wanted,
        )
        for each in accelerators
    ]


def _key_of(
    run_id: str, action: str, number: str, attempt: str, phase: str | None, seq: str | None
) -> JobKey:
    step = (int(number), int(attempt), phase or "", int(seq or 0))
    return JobKey(run_id, cast("Action", action), *step)

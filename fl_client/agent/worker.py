"""The device's workshop: one training process, warm for one task, whose events the agent reads.

``submit``, ``cancel`` and ``close`` belong to the agent's owner thread.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from typing import Any

from broker.wire.messages import Order
from fl_client.agent.resource_policy import ResourcePolicy
from fl_client.bundles.store import DeviceBundles
from fl_client.collectors.places import data_place
from fl_client.jobs.folder import DeviceFolder
from fl_client.machine.accelerators import CPU, Accelerator, environment
from fl_client.session.events import (
    Event,
    Job,
    JobFailed,
    JobKey,
    Memory,
    Outcome,
    WorkFinished,
)
from fl_client.settings import AgentSettings
from fl_client.training import child as training
from fl_client.training.frames import TrainingJob
from runtime.processes.memory import give_back

_LOG = logging.getLogger(__name__)


class TrainingWorker:
    """Runs jobs one at a time in a child process.

    Args:
        tasks: what each task is loaded by, installed or come as a bundle.
        post: takes the child's events; called on a thread of its own, only enqueues.
    """

    def __init__(
        self,
        device_id: str,
        settings: AgentSettings,
        engine: str,
        tasks: DeviceBundles,
        folder: DeviceFolder,
        post: Callable[[object], None],
        steward: ResourcePolicy,
        accelerators: tuple[Accelerator, ...] = (CPU,),
    ) -> None:
        self._device_id = device_id
        self._settings = settings
        self._engine = engine
        self._tasks = tasks
        self._folder = folder
        self._post = post
        self._steward = steward
        self._accelerators = accelerators
        self._child: training.TrainingChild | None = None
        self._task = ""
        self._run_id = ""
        self._used_s = 0.0
        self._load_failure = ""

    @property
    def child_pid(self) -> int | None:
        """The training process, None when there is none."""
        return self._child.pid if self._child is not None and self._child.running else None

    def submit(self, job: Job) -> None:
        """Start the work of a job; it ends as an event that ``translate`` reads."""
        order, key = job.order, job.key
        leaves_state = key.action != "evaluate"
        self._run_id = key.run_id
        self._folder.trim_log()
        self._warm(order).submit(
            TrainingJob(
                action=key.action,
                run_id=key.run_id,
                round=key.round,
                attempt=key.attempt,
                phase=key.phase,
                seq=key.seq,
                payload=order.payload,
                device_id=self._device_id,
                algorithm=order.algorithm,
                algorithm_settings=order.algorithm_settings,
                training=order.training,
                seed=order.seed,
                shrink=job.shrink,
                memory_bytes=self._steward.memory_bytes(),
                **self._model(job),
                update_path=None if order.upload is None else str(self._folder.update(key)),
                state_path=str(self._folder.state(key)) if leaves_state else None,
                next_state_path=str(self._folder.next_state(key)) if leaves_state else None,
                **(self._checkpoint(key) if key.action == "train" else {}),
            )
        )

    def _model(self, job: Job) -> dict[str, Any]:
        if job.order.model is None:
            return {}
        self._folder.use_model(job)
        path = self._folder.model(job)
        return {"model_path": str(path), "base_sha256": job.order.model.sha256}

    def _checkpoint(self, key: JobKey) -> dict[str, Any]:
        """Return where the training goes on from; what other orders left is removed."""
        path, settings = self._folder.checkpoint(key), self._settings
        self._folder.drop_checkpoints(but=path)
        if not settings.checkpoint_mib:
            return {}
        return {
            "checkpoint_path": str(path),
            "checkpoint_every_s": settings.checkpoint_s,
            "checkpoint_bytes": settings.checkpoint_mib << 20,
        }

    def cancel(self) -> None:
        """End the work that is under way, if any."""
        if self._child is not None and self._child.busy:
            self._child.kill()

    def run_ended(self, run_id: str) -> None:
        """End the process if that run was its last; others' documents come again at any time."""
        if run_id == self._run_id:
            self.close("its run has ended")

    def close(self, why: str) -> None:
        """End the process, if it runs."""
        if self._child is not None and self._child.running:
            _LOG.info("training process ends: %s", why)
            self._child.stop()
            give_back()  # of what its rounds took
        self._child = None

    def idle_left_s(self) -> float | None:
        """Return how long the warm process may still wait, None when there is nothing to end."""
        if self._child is None or not self._child.running or self._child.busy:
            return None
        return max(0.0, self._used_s + self._settings.keep_warm_s - time.monotonic())

    def translate(self, event: object) -> Event | training.ChildProgressed | None:
        """Return what a child's event means to the session, None when nothing."""
        self._used_s = time.monotonic()
        match event:
            case training.ChildProgressed():
                return event
            case training.ChildFinished(job=job):
                return WorkFinished(_key(job), _outcome(event))
            case training.ChildFailed(job=None, reason=reason):
                self._load_failure = reason  # the process ends next, and takes its job along
            case training.ChildFailed(job=TrainingJob() as job):
                memory: Memory = "short" if event.out_of_memory else "enough"
                return JobFailed(
                    _key(job), event.reason, event.retryable, memory, unusable=event.unusable
                )
            case training.ChildDied(job=job, reason=reason, expected=False):
                _LOG.warning("%s", reason)
                failure, self._load_failure = self._load_failure, ""
                if job is not None:
                    memory = "enough"
                    if event.returncode == -signal.SIGKILL:
                        memory = "short" if self._steward.ran_short() else "suspected"
                    return JobFailed(_key(job), failure or reason, not failure, memory)
            case training.ChildReady(pid=pid):
                _LOG.info("training process %d is ready", pid)
        return None

    def _warm(self, order: Order) -> training.TrainingChild:
        placed = self._tasks.environment_of(order)
        if self._child is not None and self._task != placed.name:
            self.close("another task is next")
        if self._child is None:
            settings = self._settings
            self._task = placed.name
            self._child = training.TrainingChild(
                training.ChildSettings(
                    task=placed.spec,
                    python=placed.python,
                    engine=self._engine,
                    device_id=self._device_id,
                    index=settings.index,
                    count=settings.count,
                    role=settings.role,
                    data_seed=settings.data_seed,
                    profile=settings.family,
                    folder=settings.folder,
                    accelerators=tuple(each.name for each in self._accelerators if each.name),
                    precision=settings.precision,
                    compile=settings.compile,
                    loader_threads=settings.loader_threads,
                    data=data_place(settings, order.task),
                ),
                self._post,
                log=self._folder.training_log,
                environment={**self._steward.environment(), **environment(self._accelerators)},
                started=self._steward.limit_process,
            )
        self._used_s = time.monotonic()
        return self._child


def _key(job: TrainingJob) -> JobKey:
    return JobKey(job.run_id, job.action, job.round, job.attempt, job.phase, job.seq)


def _outcome(event: training.ChildFinished) -> Outcome:
    result = event.result
    return Outcome(
        result.num_examples,
        result.metrics,
        result.train_s,
        result.peak_rss_bytes,
        result.header_sha256 or "",
        result.size_bytes,
        result.steps,
        result.steps_s,
        result.full_steps,
        result.micro_batch,
        result.keeps_state,
        result.payload,
    )

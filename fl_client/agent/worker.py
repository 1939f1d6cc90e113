"""Does an agent's jobs in a training process, and says what the process's events mean."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from broker.wire.messages import Order
from fl_client.agent.resource_policy import ResourcePolicy
from fl_client.bundles.store import DeviceBundles, TaskEnvironment
from fl_client.collectors.places import data_place
from fl_client.jobs.folder import DeviceFolder
from fl_client.machine.accelerators import CPU, Accelerator
from fl_client.machine.accelerators import environment as accelerator_environment
from fl_client.machine.oom_kills import OomKills
from fl_client.session.events import (
    Event,
    Job,
    JobFailed,
    JobKey,
    JobOutcome,
    Memory,
    WorkFinished,
)
from fl_client.settings import AgentSettings
from fl_client.training import child as training
from fl_client.training.frames import TrainingJob
from runtime.processes.memory import give_back

_LOG = logging.getLogger(__name__)
_TOLD_LINES = 20
_OF_MEMORY = {"short": ": out of memory", "suspected": ": out of memory?"}


@dataclass(frozen=True)
class WorkerSetup:
    """What does not change while the worker lives."""

    device_id: str
    settings: AgentSettings
    engine: str
    accelerators: tuple[Accelerator, ...] = (CPU,)


class TrainingWorker:
    """Runs jobs one at a time in a child process, which is kept warm for one task.

    ``submit``, ``cancel`` and ``close`` belong to the agent's owner thread.

    Args:
        bundles: say what each task is loaded by, installed or come as a bundle.
        post: takes the child's events; called on a thread of its own, only enqueues.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        bundles: DeviceBundles,
        folder: DeviceFolder,
        policy: ResourcePolicy,
        post: Callable[[object], None],
    ) -> None:
        self._setup = setup
        self._bundles = bundles
        self._folder = folder
        self._policy = policy
        self._post = post
        self._child: training.TrainingChild | None = None
        self._task = ""
        self._run_id = ""
        self._used_s = 0.0
        self._load_failure: training.ChildFailed | None = None
        self._gathers = False
        self._oom_kills = OomKills()
        self._log_start = 0

    @property
    def child_pid(self) -> int | None:
        """The training process, None when there is none."""
        return self._child.pid if self._child is not None and self._child.running else None

    def submit(self, job: Job) -> None:
        """Start the work of a job; it ends as an event that ``translate`` reads."""
        self._run_id = job.key.run_id
        self._folder.trim_log()
        self._log_start = self._folder.log_size()
        child = self._warm(job.order)
        self._oom_kills.begin()
        child.submit(self._training_job(job))

    def _training_job(self, job: Job) -> TrainingJob:
        order, key, folder = job.order, job.key, self._folder
        leaves_state = key.action != "evaluate"
        return TrainingJob(
            **asdict(key),
            payload=order.payload,
            device_id=self._setup.device_id,
            algorithm=order.algorithm,
            algorithm_settings=order.algorithm_settings,
            training=order.training,
            seed=order.seed,
            shrink=job.shrink,
            memory_bytes=self._policy.memory_bytes(),
            update_path=None if order.upload is None else str(folder.update(key)),
            state_path=str(folder.state(key)) if leaves_state else None,
            next_state_path=str(folder.next_state(key)) if leaves_state else None,
            **self._model(job),
            **(self._checkpoint(key) if key.action == "train" else {}),
        )

    def _model(self, job: Job) -> dict[str, Any]:
        """Return where the order's model lies, if it has one."""
        if job.order.model is None:
            return {}
        self._folder.mark_latest_model(job)
        path = self._folder.model(job)
        return {"model_path": str(path), "base_sha256": job.order.model.sha256}

    def _checkpoint(self, key: JobKey) -> dict[str, Any]:
        """Return the settings of the training's checkpoint; those of other orders are removed."""
        path, settings = self._folder.checkpoint(key), self._setup.settings
        self._folder.remove_checkpoints(but=path)
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

    def end_run(self, run_id: str) -> None:
        """End the process if its last job was of this run, which has ended."""
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
        return max(0.0, self._used_s + self._setup.settings.keep_warm_s - time.monotonic())

    def translate(self, event: object) -> Event | training.ChildProgressed | None:
        """Return what a child's event means to the session, None when nothing."""
        self._used_s = time.monotonic()
        match event:
            case training.ChildProgressed():
                return event
            case training.ChildFinished(job=job):
                return WorkFinished(_key(job), _outcome(event))
            case training.ChildFailed(job=None):
                self._load_failure = event  # the process ends next, and takes its job along
                self._tell(event.reason)
            case training.ChildFailed(job=TrainingJob() as job):
                self._tell(event.reason)
                memory: Memory = "short" if event.out_of_memory else "enough"
                # a device that gathers its data may have some later
                temporary = event.retryable or event.out_of_memory or self._gathers
                return JobFailed(
                    _key(job),
                    event.reason,
                    event.retryable,
                    memory,
                    unusable=event.unusable,
                    permanent=not (temporary or event.unusable),
                    traceback=event.traceback,
                )
            case training.ChildDied(expected=False):
                return self._died(event)
            case training.ChildReady(pid=pid):
                _LOG.info("training process %d is ready", pid)
        return None

    def _tell(self, reason: str) -> None:
        """Log why a job failed, with what the training process printed about it."""
        printed = "".join(
            f"\n    {line}" for line in self._folder.log_since(self._log_start, _TOLD_LINES)
        )
        end = f"; the end of {self._folder.training_log}:{printed}" if printed else ""
        _LOG.warning("training failed: %s%s", reason, end)

    def _died(self, event: training.ChildDied) -> JobFailed | None:
        memory: Memory = "enough"
        if event.returncode == -signal.SIGKILL:
            memory = "short" if self._policy.killed_for_memory() else self._oom_kills.verdict()
        reason = event.reason + _OF_MEMORY.get(memory, "")
        failure, self._load_failure = self._load_failure, None
        if failure is None:
            self._tell(reason)
        if event.job is None:
            return None
        if failure is None:
            return JobFailed(_key(event.job), reason, retryable=True, memory=memory)
        return JobFailed(
            _key(event.job), failure.reason, permanent=True, traceback=failure.traceback
        )

    def _warm(self, order: Order) -> training.TrainingChild:
        """Return the process for the order's task; another task's ends."""
        environment = self._bundles.environment_of(order)
        if self._child is not None and self._task != environment.name:
            self.close("another task is next")
        if self._child is None:
            self._task = environment.name
            accelerators = accelerator_environment(self._setup.accelerators)
            self._child = training.TrainingChild(
                self._child_settings(order.task, environment),
                self._post,
                log=self._folder.training_log,
                environment={**self._policy.environment(), **accelerators},
                started=self._policy.limit_process,
            )
        self._used_s = time.monotonic()
        self._gathers = order.task in self._setup.settings.data
        return self._child

    def _child_settings(self, task: str, environment: TaskEnvironment) -> training.ChildSettings:
        setup, settings = self._setup, self._setup.settings
        return training.ChildSettings(
            task=environment.spec,
            python=environment.python,
            engine=setup.engine,
            device_id=setup.device_id,
            index=settings.index,
            count=settings.count,
            role=settings.role,
            data_seed=settings.data_seed,
            profile=settings.family,
            folder=settings.folder,
            accelerators=tuple(each.name for each in setup.accelerators if each.name),
            precision=settings.precision,
            compile=settings.compile,
            loader_threads=settings.loader_threads,
            data=data_place(settings, task),
            partition=settings.partition,
        )


def _key(job: TrainingJob) -> JobKey:
    return JobKey(job.run_id, job.action, job.round, job.attempt, job.phase, job.seq)


def _outcome(event: training.ChildFinished) -> JobOutcome:
    result = event.result
    return JobOutcome(
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

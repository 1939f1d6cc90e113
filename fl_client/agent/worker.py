"""Does an agent's jobs in training processes, and says what the processes' events mean."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from broker.wire.messages import Order
from fl_client.agent.resource_policy import ResourcePolicy
from fl_client.agent.warm import WarmProcesses
from fl_client.bundles.store import DeviceBundles, TaskEnvironment
from fl_client.collectors.places import data_place
from fl_client.jobs.folder import DeviceFolder
from fl_client.machine.accelerators import CPU, Accelerator
from fl_client.machine.accelerators import environment as accelerator_environment
from fl_client.machine.hardware import ram_bytes
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

_LOG = logging.getLogger(__name__)
_TOLD_LINES = 20
# of the machine's memory, for processes that wait for the next order of their run
_IDLE_SHARE = 8
_OF_MEMORY = {"short": ": out of memory", "suspected": ": out of memory?"}


@dataclass(frozen=True)
class WorkerSetup:
    """What does not change while the worker lives."""

    device_id: str
    settings: AgentSettings
    engine: str
    accelerators: tuple[Accelerator, ...] = (CPU,)


class TrainingWorker:
    """Runs jobs one at a time, each in the process of its task, which is kept warm.

    Runs of several tasks take turns without a start each time: the processes of the others wait, as
    long as they hold little of the machine's memory. Where memory is limited one is kept, since a
    job may take all of it; so it is with accelerators, whose memory a process does not give back.

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
        self._warm = WarmProcesses(_idle_bytes(setup, policy), setup.settings.keep_warm_s)
        self._load_failure: training.ChildFailed | None = None
        self._gathers = False
        self._oom_kills = OomKills()
        self._log_start = 0

    @property
    def child_pids(self) -> list[int]:
        """The training processes, the one that was used last at the end."""
        return self._warm.pids()

    def submit(self, job: Job) -> None:
        """Start the work of a job; it ends as an event that ``translate`` reads."""
        self._folder.trim_log()
        self._log_start = self._folder.log_size()
        child = self._process_for(job.order)
        self._oom_kills.begin()
        child.submit(self._training_job(job))

    def _training_job(self, job: Job) -> TrainingJob:
        order, key, folder = job.order, job.key, self._folder
        return TrainingJob(
            **asdict(key),
            payload=order.payload,
            device_id=self._setup.device_id,
            algorithm=order.algorithm,
            algorithm_settings=order.algorithm_settings,
            training=order.training,
            seed=order.seed,
            width=order.width,
            shrink=job.shrink,
            memory_bytes=self._policy.memory_bytes(),
            update_path=None if order.upload is None else str(folder.update(key)),
            vectors_path=None if (vectors := folder.vectors(job)) is None else str(vectors),
            scalars=order.scalars,
            transforms=order.transforms,
            state_path=str(folder.state(key)),
            next_state_path=None if key.action == "evaluate" else str(folder.next_state(key)),
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
        self._warm.kill_busy()

    def end_run(self, run_id: str) -> None:
        """End the process of a run that has ended, unless another run goes on with it."""
        self._warm.end_run(run_id)

    def end_idle(self) -> None:
        """End the processes that have waited long enough."""
        self._warm.end_idle()

    def close(self, why: str) -> None:
        """End every process."""
        self._warm.end_all(why)

    def idle_left_s(self) -> float | None:
        """Return how long until :meth:`end_idle` has something to end, None when it has not."""
        return self._warm.idle_left_s()

    def translate(self, event: object) -> Event | training.ChildProgressed | None:
        """Return what a child's event means to the session, None when nothing."""
        self._warm.touch()
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
                self._free(memory)
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
            self._free(memory)
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

    def _free(self, memory: Memory) -> None:
        """Have the job that ran short of memory done again without others beside it."""
        if memory != "enough":
            self._warm.end_waiting("memory is short")

    def _process_for(self, order: Order) -> training.TrainingChild:
        """Return the process for the order's task."""
        environment = self._bundles.environment_of(order)
        self._gathers = order.task in self._setup.settings.data
        child = self._warm.use(environment.name, order.run_id)
        if child is None:
            accelerators = accelerator_environment(self._setup.accelerators)
            child = training.TrainingChild(
                self._child_settings(order.task, environment),
                self._post,
                log=self._folder.training_log,
                environment={**self._policy.environment(), **accelerators},
                started=self._policy.limit_process,
            )
            self._warm.add(environment.name, child, order.run_id)
        return child

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


def _idle_bytes(setup: WorkerSetup, policy: ResourcePolicy) -> int:
    """Return what processes may hold that wait beside the one that works."""
    on_cpu = all(each.kind == "cpu" for each in setup.accelerators)
    return ram_bytes() // _IDLE_SHARE if on_cpu and not policy.memory_bytes() else 0


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

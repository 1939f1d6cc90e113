"""What an agent is at, as a document for `rengo agent status`."""

from __future__ import annotations

from typing import Any

from broker.wire.messages import MAX_EXCHANGE_BYTES, Order
from fl_client.agent.resource_policy import Need
from fl_client.jobs.folder import DeviceFolder
from fl_client.session.events import Job, JobKey
from fl_client.session.machine import DeviceSession
from fl_client.settings import AgentSettings
from runtime.processes.rss import rss_bytes
from storage.transfer.byte_ranges import length


def standing(machine: DeviceSession, waiting_messages: int, child: int | None) -> dict[str, Any]:
    """Return what the session and the training process are at.

    ``busy`` is why the agent must not end now, "" when nothing is lost by it.
    """
    active = machine.active
    return {
        "presence": machine.presence,
        "job": None if active is None else _as_dict(active),
        "waiting": [_as_dict(job) for job in machine.waiting],
        "reporting": [_as_dict(job) for job in machine.reporting.values()],
        "busy": _busy(machine),
        "outbox": waiting_messages,
        "training_process": None
        if child is None
        else {"pid": child, "rss_bytes": rss_bytes(child)},
    }


def about(settings: AgentSettings, engine: str, tasks: list[str]) -> dict[str, Any]:
    """Return what does not change while the agent runs."""
    return {
        "engine": engine,
        "profile": settings.profile,
        "role": settings.role,
        "tasks": tasks,
        "data_dir": str(settings.data_dir),
    }


def is_known(machine: DeviceSession, key: JobKey) -> bool:
    """Return whether the device is at this very job already."""
    jobs = [*machine.waiting, *([machine.active] if machine.active else [])]
    return key in machine.reporting or any(job.key == key for job in jobs)


def needed(order: Order, machine: DeviceSession, folder: DeviceFolder) -> Need:
    """Return what an order would cost, beside what is promised to the orders taken before."""
    jobs = [*machine.waiting, *([machine.active] if machine.active else [])]
    promised = [_traffic(Job(job.key, job.order), folder) for job in jobs]
    down, up = _traffic(Job(JobKey.of(order), order), folder)
    return Need(
        download_bytes=down,
        upload_bytes=up,
        # the update beside the state that its algorithm leaves
        disk_bytes=down + 2 * up,
        promised_bytes=sum(sum(each) for each in promised),
    )


def _traffic(job: Job, folder: DeviceFolder) -> tuple[int, int]:
    model = job.order.model
    size = MAX_EXCHANGE_BYTES if model is None else model.size_bytes
    up = 0 if job.order.upload is None else size
    if model is None or folder.model(job).is_file():
        return 0, up
    earlier = folder.earlier_model(job)
    return (size if earlier is None else length(earlier.changed)), up


def gains(job: Job) -> dict[str, Any]:
    """Return what came of a job, for the list of the last rounds."""
    outcome = job.outcome
    if outcome is None:
        return {}
    return {
        "num_examples": outcome.num_examples,
        "train_s": round(outcome.train_s, 3),
        "metrics": outcome.metrics,
        "size_bytes": outcome.size_bytes,
        "peak_rss_bytes": outcome.peak_rss_bytes,
    }


def _busy(machine: DeviceSession) -> str:
    jobs = [*([machine.active] if machine.active else []), *machine.waiting]
    if jobs:
        return f"it is at work for {_name(jobs[0].key)}"
    for key in machine.reporting:
        return f"the server has not yet confirmed {_name(key)}"
    return ""


def _name(key: JobKey) -> str:
    what = "evaluation" if key.action == "evaluate" else "round"
    return f"{what} {key.round} of {key.run_id}"


def _as_dict(job: Job) -> dict[str, Any]:
    key = job.key
    return {
        "run": key.run_id,
        "action": key.action,
        "round": key.round,
        "attempt": key.attempt,
        "task": job.order.task,
        "stage": job.stage,
    }

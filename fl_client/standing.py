"""What an agent is at, as a document for `rengo agent status`."""

from __future__ import annotations

from typing import Any

from fl_client.desk import rss_bytes
from fl_client.session import DeviceSession, Job, JobKey
from fl_client.settings import AgentSettings


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
    at_work = machine.active is not None and machine.active.key == key
    return at_work or key in machine.reporting


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

"""What an agent is doing, as plain data for `rengo agent status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_client.session.events import Job, JobKey
from fl_client.session.machine import DeviceSession
from fl_client.settings import AgentSettings
from runtime.processes.rss import rss_bytes


def setup_document(settings: AgentSettings, engine: str, tasks: list[str]) -> dict[str, Any]:
    """Return what does not change while the agent runs."""
    return {
        "engine": engine,
        "profile": settings.profile,
        "role": settings.role,
        "tasks": tasks,
        "data_dir": str(settings.data_dir),
    }


def session_document(
    machine: DeviceSession, waiting_messages: int, children: Sequence[int]
) -> dict[str, Any]:
    """Return the jobs, the outbox, and of the training processes the latest and what all hold.

    ``busy`` is why the agent must not end now, "" when nothing is lost by it.
    """
    active = machine.active
    return {
        "presence": machine.presence,
        "job": None if active is None else _job_document(active),
        "waiting": [_job_document(job) for job in machine.waiting],
        "reporting": [_job_document(job) for job in machine.reporting.values()],
        "busy": _busy(machine),
        "outbox": waiting_messages,
        "training_process": _processes(children),
    }


def result_document(job: Job) -> dict[str, Any]:
    """Return what came of a job, for the list of the last rounds."""
    outcome = job.outcome
    if outcome is None:
        return {}
    return {
        "num_examples": outcome.num_examples,
        "train_s": round(outcome.train_s, 3),
        "metrics": outcome.metrics,
        "size_bytes": outcome.size_bytes or len(outcome.payload),
        "peak_rss_bytes": outcome.peak_rss_bytes,
    }


def _processes(children: Sequence[int]) -> dict[str, Any] | None:
    if not children:
        return None
    held = [found for pid in children if (found := rss_bytes(pid)) is not None]
    return {"pid": children[-1], "rss_bytes": sum(held) if held else None}


def _busy(machine: DeviceSession) -> str:
    if machine.unfinished:
        return f"it is at work for {_name(machine.unfinished[0].key)}"
    for key in machine.reporting:
        return f"the server has not yet confirmed {_name(key)}"
    return ""


def _name(key: JobKey) -> str:
    match key.action:
        case "exchange":
            return f"phase {key.phase!r} of round {key.round} of {key.run_id}"
        case "evaluate":
            return f"evaluation {key.round} of {key.run_id}"
    return f"round {key.round} of {key.run_id}"


def _job_document(job: Job) -> dict[str, Any]:
    key = job.key
    step = {"phase": key.phase, "seq": key.seq} if key.action == "exchange" else {}
    return {
        "run": key.run_id,
        "action": key.action,
        "round": key.round,
        "attempt": key.attempt,
        **step,
        "task": job.order.task,
        "stage": job.stage,
    }

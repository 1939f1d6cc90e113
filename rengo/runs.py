"""Submitting a run, following it, and fetching its model, over an operator's connection."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.messages import DeviceInfo, DeviceState, RunDocument, RunEvent
from fl_client.tasks.registry import load_task
from rengo.operator import News, OperatorClient
from runtime.errors import RunFailed, TransportError
from storage.transfers import Transfers
from storage.weights import write_safetensors

_ENDED = frozenset({"completed", "stopped", "failed"})
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        accuracy: of the last measured version; None where nobody measured.
        history: a row for each round's attempt: outcome, seconds, included, refused, accuracy.
        model_path: the final model, once it was fetched.
    """

    run_id: str
    status: str
    accuracy: float | None
    history: list[dict[str, Any]]
    report: dict[str, Any]
    model_path: Path | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON document of ``--json``."""
        report = self.report
        keys = ("run_id", "task", "rounds_completed", "accuracy", "loss")
        device_keys = ("id", "profile", "engine", "rounds", "peak_rss_bytes")
        return {
            **{key: report[key] for key in keys},
            "model_path": None if self.model_path is None else str(self.model_path),
            "model_sha256": report["model_sha256"],
            "wall_s": report["wall_s"],
            "round_s": report["round_s"],
            "bytes_up": report["bytes_up"],
            "bytes_down": report["bytes_down"],
            "devices": [{key: row[key] for key in device_keys} for row in report["devices"]],
        }


@dataclass
class Follower:
    """What is known of a run while it goes on; a view draws it."""

    run_id: str
    document: RunDocument | None = None
    devices: dict[str, DeviceState] = field(default_factory=dict)
    infos: dict[str, DeviceInfo] = field(default_factory=dict)
    events: list[RunEvent] = field(default_factory=list)
    accuracies: dict[int, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    def take(self, news: News) -> None:
        """Take a message in."""
        message = news.message
        match message:
            case RunDocument() if message.run_id == self.run_id:
                self.document = message
            case RunEvent() if message.run_id == self.run_id:
                self._event(message)
            case DeviceState():
                self.devices[news.address.id] = message
            case DeviceInfo():
                self.infos[news.address.id] = message

    @property
    def ended(self) -> bool:
        """Whether the run's document says that it has ended."""
        return self.document is not None and self.document.status in _ENDED

    def _event(self, event: RunEvent) -> None:
        self.events.append(event)
        usage = event.detail.get("usage") or event.detail.get("update", {}).get("usage", {})
        self.bytes_up += int(usage.get("bytes_up", 0))
        self.bytes_down += int(usage.get("bytes_down", 0))
        if event.name == "EvaluationRecorded" and "accuracy" in event.detail["metrics"]:
            self.accuracies[event.round] = event.detail["metrics"]["accuracy"]


def submit(client: OperatorClient, task: str, definition: Mapping[str, Any]) -> str:
    """Build version 0 from the task here, upload it and start the run; return its id.

    Args:
        task: a name or ``FILE.py:CLASS``; its code runs in this process.
        definition: the run definition's keys; ``task`` is filled in.
    """
    loaded = load_task(task)
    values = {"task": loaded.name, "training": {}, **definition}
    weights = loaded.initial_weights(int(values.get("seed", 0)))
    with tempfile.TemporaryDirectory(prefix="rengo-submit-") as folder:
        path = Path(folder) / "initial.safetensors"
        with path.open("wb") as file:
            write_safetensors(weights, file)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        arguments = {
            "definition": values,
            "sha256": sha256,
            "size_bytes": path.stat().st_size,
        }
        prepared = client.call("runs_prepare", arguments)
        Transfers().upload(prepared["url"], path)
    client.call("runs_submit", {"run_id": prepared["run_id"]})
    run_id: str = prepared["run_id"]
    return run_id


def wait_for_devices(
    client: OperatorClient,
    names: Iterable[str],
    timeout_s: float,
    watch: Callable[[dict[str, DeviceState]], None] | None = None,
) -> None:
    """Return when every named device is there; TransportError names those that are not."""
    waiting, there = set(names), {}
    deadline = time.monotonic() + timeout_s
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            missing = ", ".join(sorted(waiting))
            raise TransportError(f"not there within {timeout_s:.0f} s: {missing}")
        for news in client.news(min(left, _LOOK_EVERY_S)):
            if isinstance(news.message, DeviceState) and news.message.status == "ready":
                there[news.address.id] = news.message
                waiting.discard(news.address.id)
                if watch is not None:
                    watch(there)
            if not waiting:
                break


def follow(
    client: OperatorClient, run_id: str, watch: Callable[[Follower], None] | None = None
) -> RunResult:
    """Return when the run has ended; ``watch`` is called with every piece of news.

    Raises:
        RunFailed: it ended without its model, and why.
    """
    follower = Follower(run_id)
    while not follower.ended:
        for news in client.news(_LOOK_EVERY_S):
            follower.take(news)
            if watch is not None:
                watch(follower)
            if follower.ended:
                break
        if watch is not None:
            watch(follower)
    report = client.call("runs_show", {"run_id": run_id})
    if report["status"] == "failed":
        raise RunFailed(f"run {run_id} failed: {report['reason']}")
    return RunResult(run_id, report["status"], report["accuracy"], report["history"], report)


def fetch_model(client: OperatorClient, result: RunResult, output: Path) -> RunResult:
    """Bring the run's model to ``output/{run_id}/model.safetensors``."""
    reference = client.call("model_url", {"run_id": result.run_id})
    path = output / result.run_id / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    Transfers().download(
        reference["url"], path, sha256=reference["sha256"], size=reference["size_bytes"]
    )
    return RunResult(
        result.run_id, result.status, result.accuracy, result.history, result.report, path
    )

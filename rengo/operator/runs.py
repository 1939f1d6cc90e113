"""Submitting a run, following it, and fetching its model, over an operator's connection."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker.wire.messages import DeviceState, RunDocument
from fl_client.tasks.base import Task
from fl_client.tasks.registry import load_task
from fl_client.tasks.user_code import initial_weights_of
from fl_server.operations.catalogue import (
    MODELS_SHOW,
    MODELS_URL,
    RUNS_DEVICES,
    RUNS_PREPARE,
    RUNS_RENEW,
    RUNS_SHOW,
    RUNS_SUBMIT,
)
from fl_server.operations.results.members import DeviceRow
from fl_server.operations.results.runs import RunUpload
from fl_server.selection.targets import RunTarget
from rengo.operator.client import OperatorClient
from rengo.operator.definitions import check_definition, with_goals
from rengo.operator.layout_match import fit
from rengo.operator.models import FetchedVersion
from rengo.operator.progress import ENDED, DeviceTable, RunProgress
from rengo.operator.result import RunResult
from runtime.errors import ConfigError, RunNotCompleted, TransportError
from runtime.files import file_sha256
from storage.transfer.multipart import MultipartTarget
from storage.weights import (
    NotFinite,
    Weights,
    require_same_constants,
    write_safetensors,
)

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_ASK_EVERY_S = 5.0
_SUBMIT_S = 30.0
_READ_BYTES_S = 10e6


def submit(
    client: OperatorClient,
    task: str,
    definition: Mapping[str, Any],
    initial: FetchedVersion | None = None,
) -> str:
    """Build version 0 from the task here, upload it and start the run; return its id.

    Args:
        task: a name or ``FILE.py:CLASS``; its code runs in this process.
        definition: the run definition's keys; ``task`` is filled in, and the cohort's size.
        initial: version 0, instead of the fresh weights of the task's model.

    Raises:
        Mismatch: ``initial`` does not fit the task's model; names each difference.
    """
    loaded = load_task(task)
    filled = check_definition(loaded, definition)
    named = {"task": loaded.name, **with_goals(loaded, filled)}
    values = with_cohort_size(client, loaded.name, named)
    weights = version_0(loaded, int(values.get("seed", 0)), initial)
    with tempfile.TemporaryDirectory(prefix="rengo-submit-") as folder:
        path = Path(folder) / "initial.safetensors"
        with path.open("wb") as file:
            write_safetensors(weights, file)
        size_bytes = path.stat().st_size
        wanted = {"definition": values, "size_bytes": size_bytes, **parent_of(client, initial)}
        prepared = client.request(RUNS_PREPARE, wanted)
        with ThreadPoolExecutor(1, "hash") as beside:
            sha256 = beside.submit(file_sha256, path)
            _upload(client, prepared, path)
    # the server reads version 0 and hashes it before it answers
    patience_s = _SUBMIT_S + size_bytes / _READ_BYTES_S
    submission = {"run_id": prepared.run_id, "sha256": sha256.result()}
    return client.request(RUNS_SUBMIT, submission, timeout_s=patience_s).run_id


def _upload(client: OperatorClient, prepared: RunUpload, path: Path) -> None:
    if prepared.parts is None:
        client.transfers().upload(prepared.url, path, headers=prepared.headers)
        return
    run = {"run_id": prepared.run_id}
    client.transfers().upload_in_parts(
        _parts_of(prepared), path, renew=lambda: _parts_of(client.request(RUNS_RENEW, run))
    )


def _parts_of(upload: RunUpload) -> MultipartTarget:
    parts = upload.parts
    if parts is None:
        raise TransportError(f"the server takes version 0 of {upload.run_id} in parts no more")
    return MultipartTarget(parts.upload_id, parts.part_bytes, parts.urls, parts.complete_url)


def version_0(task: Task, seed: int, initial: FetchedVersion | None) -> Weights:
    """Return version 0 of a run of the task.

    Raises:
        Mismatch: ``initial`` does not fit the task's model.
        ConfigError: a value of ``initial`` is not finite, where the task's model has another.
    """
    fresh = initial_weights_of(task, seed)
    if initial is None:
        return fresh
    weights = fit(initial.weights, fresh.layout, initial.name, f"the model of task {task.name}")
    try:
        require_same_constants(weights, fresh, initial.name)
    except NotFinite as error:
        raise ConfigError(str(error)) from error
    return weights


def parent_of(client: OperatorClient, initial: FetchedVersion | None) -> dict[str, str]:
    """Return the argument that names version 0's parent, where that is a version of this site."""
    if initial is None or initial.manifest is None:
        return {}
    sha256 = initial.manifest.sha256
    try:
        client.request(MODELS_SHOW, {"name": sha256})
    except ConfigError:
        return {}  # the version of a downloaded file may have been removed
    return {"parent": sha256}


def with_cohort_size(
    client: OperatorClient, task_name: str, definition: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the definition with a cohort's size, by default the online trainers that fit it."""
    cohort = definition.get("cohort", {})
    if not isinstance(cohort, Mapping) or "size" in cohort:
        return dict(definition)
    target = RunTarget.read(definition.get("target", ()), definition.get("where", ()))
    trainers = [
        device
        for device in client.devices()
        if device.role == "trainer"
        and device.status in {"ready", "training"}
        and target.misfit(device.traits) is None
        and _can_run(device, task_name, bundled="bundle" in definition)
    ]
    return {**definition, "cohort": {**cohort, "size": max(1, len(trainers))}}


def _can_run(device: DeviceRow, task_name: str, *, bundled: bool) -> bool:
    """Whether a device has the task, or may take it as the run's bundle."""
    taken = {task_name, "*"}.intersection(device.bundles or ())
    return task_name in device.tasks or (bundled and bool(taken))


def wait_for_devices(
    client: OperatorClient,
    names: Iterable[str],
    timeout_s: float,
    watch: Callable[[DeviceTable], None] | None = None,
    devices: DeviceTable | None = None,
) -> None:
    """Return when every named device is ready.

    What a device published while the broker made this client's subscriptions may not have reached
    it. The server has it, and is asked every five seconds.

    Args:
        watch: called after every message, and every half second without any; an exception that it
            raises ends the waiting.
        devices: is given what comes of devices meanwhile.

    Raises:
        TransportError: the time is over; names the devices that are not ready.
    """
    devices = DeviceTable() if devices is None else devices
    waiting = set(names)
    deadline = time.monotonic() + timeout_s
    asked_s = time.monotonic()
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            missing = ", ".join(sorted(waiting))
            raise TransportError(f"not there within {timeout_s:.0f} s: {missing}")
        if time.monotonic() - asked_s >= _ASK_EVERY_S:
            waiting -= _ready(client, min(left, _ASK_EVERY_S))
            asked_s = time.monotonic()
        for news in client.news(min(left, _LOOK_EVERY_S)):
            devices.apply(news)
            message = news.message
            if isinstance(message, DeviceState) and message.status == "ready":
                waiting.discard(news.address.id)
            if watch is not None:
                watch(devices)
            if not waiting:
                break
        if watch is not None:
            watch(devices)


def _ready(client: OperatorClient, timeout_s: float) -> set[str]:
    """Return the devices that are ready by the server's list; none while it does not answer."""
    try:
        devices = client.devices(timeout_s=timeout_s)
    except TransportError as error:
        _LOG.debug("who is ready is not known: %s", error)
        return set()
    return {device.id for device in devices if device.status == "ready"}


def follow(
    client: OperatorClient,
    run_id: str,
    watch: Callable[[RunProgress], None] | None = None,
    devices: DeviceTable | None = None,
) -> RunResult:
    """Return when the run has ended.

    Args:
        watch: called after every message, and every half second without any.
        devices: what is known of devices on this connection already.

    Raises:
        RunFailed: it ended without its model, and why.
    """
    follower = RunProgress(run_id, DeviceTable() if devices is None else devices)
    run = {"run_id": run_id}
    shown = client.request(RUNS_SHOW, run)
    follower.set_definition(shown)
    follower.addressed = shown.addressed
    asked_s = time.monotonic()
    while not follower.is_complete:
        for news in client.news(_LOOK_EVERY_S):
            follower.apply(news)
            if watch is not None:
                watch(follower)
            if follower.is_complete:
                break
        if follower.waits and time.monotonic() - asked_s >= _ASK_EVERY_S:
            follower.addressed = client.request(RUNS_DEVICES, run)
            asked_s = time.monotonic()
        if watch is not None:
            watch(follower)
    report = client.request(RUNS_SHOW, run)
    if report.status == "failed":
        raise RunNotCompleted(f"run {run_id} failed: {report.reason}")
    return RunResult(run_id, report.status, report.accuracy, report.history, report)


def wait_for_ends(client: OperatorClient, run_ids: Iterable[str]) -> None:
    """Return when every one of these runs has ended.

    The server is asked every five seconds too: of runs that ended long ago no document is retained.
    """
    waiting, asked_s = set(run_ids), -math.inf
    while waiting:
        if time.monotonic() - asked_s >= _ASK_EVERY_S:
            shown = [client.request(RUNS_SHOW, {"run_id": each}) for each in sorted(waiting)]
            waiting -= {run.run_id for run in shown if run.phase == "ended"}
            asked_s = time.monotonic()
        for news in client.news(_LOOK_EVERY_S) if waiting else ():
            message = news.message
            if isinstance(message, RunDocument) and message.status in ENDED:
                waiting.discard(message.run_id)


def fetch_model(client: OperatorClient, result: RunResult, output: Path) -> RunResult:
    """Download the run's model to ``output/{run_id}/model.safetensors``.

    Where the run looked for its best version, that goes beside it as ``best.safetensors``.
    """
    folder = output / result.run_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    model = _download(client, result.run_id, folder / "model.safetensors")
    version = result.report.best_version
    if version is None:
        return replace(result, model_path=model)
    # its tag may be on its way to the store
    best = _download(client, f"{result.run_id}:{version}", folder / "best.safetensors")
    return replace(result, model_path=model, best_model_path=best)


def _download(client: OperatorClient, name: str, path: Path) -> Path:
    model = client.request(MODELS_URL, {"name": name})
    client.transfers().download(model.url, path, sha256=model.sha256, size=model.size_bytes)
    return path

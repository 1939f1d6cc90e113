"""An agent's folder: where models, updates and client state lie, and when they go."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fl_client.session.events import Job, JobKey
from runtime.errors import Corrupt
from runtime.files import file_sha256, make_folder, sync_folder
from storage.transfer.byte_ranges import EarlierVersion, length
from storage.transfer.multipart import uploaded_parts_path

_KEPT_MODELS = 2
_MAX_LOG_BYTES, _KEPT_LOG_BYTES = 1 << 20, 1 << 16


class DeviceFolder:
    """The paths below one agent's data folder; created 0700.

    Attributes:
        training_log: what the training process prints.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.training_log = root / "training.log"
        make_folder(root)
        for name in ("models", "updates", "state", "checkpoints"):
            make_folder(root / name)
        # the latest may be gone on with; nobody asks for those of earlier power cuts
        self._keep_latest("models/*.part", 1)
        self._keep_latest("checkpoints/*.ckpt", 1)

    def model(self, job: Job) -> Path:
        """The order's model, once it has been fetched and verified."""
        return self._model(job, job.model.sha256)

    def earlier_model(self, job: Job) -> EarlierVersion | None:
        """Return the model here that, as the order has it, least must be fetched beside."""
        here = [
            EarlierVersion(path, patch.changed)
            for patch in job.model.patches
            if (path := self._model(job, patch.base_sha256)).is_file()
        ]
        return min(here, key=lambda earlier: length(earlier.changed), default=None)

    def drop_partial_model(self, job: Job) -> None:
        """Remove what a download that nobody needs any more has left."""
        if job.order.model is None:
            return
        path = self.model(job)
        path.with_name(f"{path.name}.part").unlink(missing_ok=True)

    def update(self, key: JobKey) -> Path:
        """The job's update, or its answer where that goes to the store."""
        return self.root / "updates" / f"{key.run_id}-{_step(key)}.upd"

    def state(self, key: JobKey) -> Path:
        """The run's state on this device, as of its last result that was accepted."""
        return self.root / "state" / f"{key.run_id}.safetensors"

    def next_state(self, key: JobKey) -> Path:
        """The run's state after this job, until its result is accepted."""
        return self.root / "state" / f"{key.run_id}.{_step(key)}.next"

    def trim_log(self) -> None:
        """Keep the end of a long training log; called while the training process does nothing."""
        try:
            size = self.training_log.stat().st_size
        except FileNotFoundError:
            return
        if size <= _MAX_LOG_BYTES:
            return
        with self.training_log.open("r+b") as log:
            log.seek(-_KEPT_LOG_BYTES, os.SEEK_END)
            end = log.read()
            log.seek(0)
            log.write(end)
            log.truncate()

    def checkpoint(self, key: JobKey) -> Path:
        """What a training goes on from after a power cut."""
        return self.root / "checkpoints" / f"{key.run_id}.{key.round}-{key.attempt}.ckpt"

    def drop_checkpoints(self, *, but: Path | None = None) -> None:
        """Remove the checkpoints, whole or in part, except one: a device trains one thing."""
        for path in (self.root / "checkpoints").iterdir():
            if path != but:
                path.unlink(missing_ok=True)

    def is_whole(self, job: Job) -> bool:
        """Whether the job's update is what training wrote, also after a power cut."""
        if job.outcome is None:
            return False
        # for what a start finds of an earlier one: seldom anything
        from storage.updates.header import verify_file  # noqa: PLC0415

        try:
            if job.key.action == "exchange":
                return file_sha256(self.update(job.key)) == job.outcome.header_sha256
            verify_file(self.update(job.key), header_sha256=job.outcome.header_sha256)
        except (Corrupt, OSError):
            return False
        return True

    def sweep(self, wanted: Iterable[JobKey]) -> None:
        """Remove what all other jobs left to be sent: a power cut leaves what nobody knows."""
        kept = set()
        for key in wanted:
            if key.action != "evaluate":
                update = self.update(key)
                kept |= {update, uploaded_parts_path(update), self.next_state(key)}
        for path in [
            *self.root.glob("updates/*"),
            *self.root.glob("state/*.next"),
            *self.root.glob("state/*.part"),
        ]:
            if path not in kept:
                path.unlink(missing_ok=True)

    def settle_orphan(self, key: JobKey, *, accepted: bool) -> None:
        """Settle a job that a power cut took out of the journal, if its files lie here."""
        files = (self.update(key), self.next_state(key))
        if key.action != "evaluate" and any(path.exists() for path in files):
            self.settle(key, accepted=accepted)

    def use_model(self, job: Job) -> None:
        """Take a job's model for the latest, also when the clock has jumped back."""
        path = self.model(job)
        others = [each.stat().st_mtime for each in path.parent.iterdir() if each != path]
        if path.exists() and others and path.stat().st_mtime <= max(others):
            os.utime(path, (max(others) + 1, max(others) + 1))

    def settle(self, key: JobKey, *, accepted: bool, active: Job | None = None) -> None:
        """Remove a job's files; the state that its training wrote stays only if it counted.

        Args:
            key: the job that has ended.
            accepted: whether it counted.
            active: the job that is at work, whose model stays.
        """
        if key.action != "evaluate":
            update = self.update(key)
            update.unlink(missing_ok=True)
            uploaded_parts_path(update).unlink(missing_ok=True)
            self.checkpoint(key).unlink(missing_ok=True)
            kept, written = self.state(key), self.next_state(key)
            if written.exists() and accepted:
                written.replace(kept)
                # the server counts on it from now on
                sync_folder(kept.parent)
            else:
                written.unlink(missing_ok=True)
        in_use = None if active is None or active.order.model is None else self.model(active)
        self._keep_latest("models/*.safetensors", _KEPT_MODELS, but=in_use)

    def forget_models(self, run_id: str) -> None:
        """Remove the models of a run that has ended, whole or in part, and its checkpoint."""
        for name in ("models", "checkpoints"):
            for path in (self.root / name).glob(f"{run_id}.*"):
                path.unlink(missing_ok=True)

    def forget_state(self, run_id: str) -> None:
        """Remove the algorithm's state of a run that has ended: no other run reads it."""
        (self.root / "state" / f"{run_id}.safetensors").unlink(missing_ok=True)

    def _model(self, job: Job, sha256: str) -> Path:
        # no run id holds a dot, so a run's files are told apart from all others'
        return self.root / "models" / f"{job.key.run_id}.{sha256}.safetensors"

    def _keep_latest(self, pattern: str, count: int, but: Path | None = None) -> None:
        found = sorted(self.root.glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in found[:-count]:
            if path != but:
                path.unlink(missing_ok=True)


def _step(key: JobKey) -> str:
    """Return what tells a job's files from those of the run's other jobs."""
    step = f"{key.round}-{key.attempt}"
    if key.action == "exchange" or key.phase or key.seq:
        step += f".{key.action}-{key.phase}-{key.seq}"
    return step

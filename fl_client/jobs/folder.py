"""An agent's folder: the paths of models, updates, states and checkpoints, and their removal."""

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
_TOLD_LOG_BYTES = 16 << 10


class DeviceFolder:
    """The paths below one agent's data folder; created 0700.

    Attributes:
        training_log: what the training process prints.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.training_log = root / "training.log"
        make_folder(root)
        for name in ("models", "vectors", "updates", "state", "checkpoints"):
            make_folder(root / name)
        # only the latest can be resumed; older ones are left from earlier power cuts
        self._keep_latest("models/*.part", 1)
        self._keep_latest("vectors/*.part", 1)
        self._keep_latest("checkpoints/*.ckpt", 1)

    def model(self, job: Job) -> Path:
        """The order's model, once it has been fetched and verified."""
        return self._model(job, job.model.sha256)

    def vectors(self, job: Job) -> Path | None:
        """The algorithm's server vectors that came with the order, None where it names none."""
        reference = job.order.vectors
        if reference is None:
            return None
        return self.root / "vectors" / f"{job.key.run_id}.{reference.sha256}.safetensors"

    def earlier_model(self, job: Job) -> EarlierVersion | None:
        """Return the version here of whose patches the least is to download, None without one."""
        here = [
            EarlierVersion(path, patch.changed)
            for patch in job.model.patches
            if (path := self._model(job, patch.base_sha256)).is_file()
        ]
        return min(here, key=lambda earlier: length(earlier.changed), default=None)

    def remove_partial_model(self, job: Job) -> None:
        """Remove what a cancelled download has left."""
        if job.order.model is None:
            return
        for path in (self.model(job), self.vectors(job)):
            if path is not None:
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

    def log_size(self) -> int:
        """Return where the training log ends now."""
        try:
            return self.training_log.stat().st_size
        except FileNotFoundError:
            return 0

    def log_since(self, start: int, lines: int) -> list[str]:
        """Return the last lines of the training log after ``start``, at most so many."""
        try:
            with self.training_log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(start, end - _TOLD_LOG_BYTES))
                text = log.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def checkpoint(self, key: JobKey) -> Path:
        """What a training resumes from after a power cut."""
        return self.root / "checkpoints" / f"{key.run_id}.{_step(key)}.ckpt"

    def remove_checkpoints(self, *, but: Path | None = None) -> None:
        """Remove all checkpoints, whole or in part, except one: a device trains one at a time."""
        for path in (self.root / "checkpoints").iterdir():
            if path != but:
                path.unlink(missing_ok=True)

    def has_whole_update(self, job: Job) -> bool:
        """Return whether the job's file is what its work wrote: a power cut may have damaged it."""
        if job.outcome is None:
            return False
        # a start seldom finds such a file
        from storage.updates.header import verify_file  # noqa: PLC0415

        try:
            if job.key.action == "exchange":
                return file_sha256(self.update(job.key)) == job.outcome.header_sha256
            verify_file(self.update(job.key), header_sha256=job.outcome.header_sha256)
        except (Corrupt, OSError):
            return False
        return True

    def remove_all_but(self, wanted: Iterable[JobKey]) -> None:
        """Remove the files of all other jobs: a power cut leaves files whose job is lost."""
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

    def remove_lost_job(self, key: JobKey, *, accepted: bool) -> None:
        """Remove the files, if there are any, of a job that a power cut took out of the journal."""
        files = (self.update(key), self.next_state(key))
        if key.action != "evaluate" and any(path.exists() for path in files):
            self.remove_job(key, accepted=accepted)

    def mark_latest_model(self, job: Job) -> None:
        """Make a job's model the latest file, also when the clock has jumped back."""
        path = self.model(job)
        others = [each.stat().st_mtime for each in path.parent.iterdir() if each != path]
        if path.exists() and others and path.stat().st_mtime <= max(others):
            os.utime(path, (max(others) + 1, max(others) + 1))

    def remove_job(self, key: JobKey, *, accepted: bool, active: Job | None = None) -> None:
        """Remove a job's files; the state that it wrote becomes the run's state if it counted.

        Args:
            key: the job that has ended.
            accepted: whether its result counted.
            active: the job that is under way, whose model stays.
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
        in_use = None if active is None else self.vectors(active)
        self._keep_latest("vectors/*.safetensors", 1, but=in_use)

    def remove_models(self, run_id: str) -> None:
        """Remove the models of a run that has ended, whole or in part, and its checkpoint."""
        for name in ("models", "vectors", "checkpoints"):
            for path in (self.root / name).glob(f"{run_id}.*"):
                path.unlink(missing_ok=True)

    def remove_state(self, run_id: str) -> None:
        """Remove the state of a run that has ended: no other run reads it."""
        (self.root / "state" / f"{run_id}.safetensors").unlink(missing_ok=True)

    def _model(self, job: Job, sha256: str) -> Path:
        # no run id has a dot, so that no run's files match another run's pattern
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

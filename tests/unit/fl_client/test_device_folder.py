"""A device's folder: which model an order's is made from, and what a power cut may leave."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from broker.wire.messages import Order, Patch, UploadRef
from fl_client.jobs.folder import DeviceFolder
from fl_client.session.events import Job, JobKey, JobOutcome
from storage.transfer.byte_ranges import EarlierVersion
from storage.transfer.multipart import uploaded_parts_path
from tests.messages import EXCHANGE, SAMPLES

NEAR, FAR, OTHER = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def job() -> Job:
    order = SAMPLES["order"]
    assert isinstance(order, Order)
    patches = [
        Patch(base_sha256=NEAR, changed=[(0, 10)]),
        Patch(base_sha256=FAR, changed=[(0, 10), (20, 25)]),
    ]
    model = order.model.model_copy(update={"patches": patches})
    return Job(JobKey("r", "train", 1, 1), order.model_copy(update={"model": model}))


def hold(folder: DeviceFolder, *hashes: str, run_id: str = "r") -> None:
    for sha256 in hashes:
        (folder.root / "models" / f"{run_id}.{sha256}.safetensors").touch()


def test_the_model_that_needs_the_fewest_bytes_is_taken(tmp_path: Path, job: Job) -> None:
    folder = DeviceFolder(tmp_path)
    hold(folder, FAR, NEAR)
    assert folder.earlier_model(job) == EarlierVersion(
        tmp_path / "models" / f"r.{NEAR}.safetensors", [(0, 10)]
    )


def test_a_model_of_longer_ago_will_do(tmp_path: Path, job: Job) -> None:
    folder = DeviceFolder(tmp_path)
    hold(folder, FAR)
    earlier = folder.earlier_model(job)
    assert earlier is not None
    assert earlier.changed == [(0, 10), (20, 25)]


def test_neither_another_runs_model_nor_one_that_is_not_named_nor_half_of_one(
    tmp_path: Path, job: Job
) -> None:
    folder = DeviceFolder(tmp_path)
    hold(folder, OTHER)
    hold(folder, NEAR, run_id="another")
    (tmp_path / "models" / f"r.{NEAR}.safetensors.part").touch()
    assert folder.earlier_model(job) is None


KEY = JobKey("r", "train", 2, 1)


def leave(path: Path, text: str = "x") -> Path:
    path.write_text(text)
    return path


def test_what_nobody_knows_is_swept(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    known = folder.update(KEY)
    kept = [leave(known), leave(uploaded_parts_path(known))]
    state = [leave(folder.state(KEY)), leave(folder.next_state(KEY))]
    leave(folder.next_state(JobKey("r", "train", 1, 1)))
    leave(tmp_path / "state" / "r.1-1.next.part")
    unknown = folder.update(JobKey("r", "train", 1, 1))
    for path in (unknown, uploaded_parts_path(unknown), unknown.with_name(f"{unknown.name}.part")):
        leave(path)
    folder.remove_all_but([KEY, JobKey("r", "evaluate", 1, 1)])
    assert sorted((tmp_path / "updates").iterdir()) == sorted(kept)
    assert sorted((tmp_path / "state").iterdir()) == sorted(state)


@pytest.mark.parametrize("with_update", [True, False])
@pytest.mark.parametrize(("accepted", "state"), [(True, "new"), (False, "old")])
def test_a_job_out_of_the_journal_is_settled_by_its_files(
    accepted: bool, state: str, with_update: bool, tmp_path: Path
) -> None:
    folder = DeviceFolder(tmp_path)
    kept = leave(folder.state(KEY), "old")
    pending = leave(folder.next_state(KEY), "new")
    folder.remove_lost_job(JobKey("r", "train", 1, 1), accepted=accepted)
    assert pending.exists()
    if with_update:
        leave(folder.update(KEY))
    folder.remove_lost_job(KEY, accepted=accepted)
    assert kept.read_text() == state
    assert not pending.exists()
    assert not folder.update(KEY).exists()


def test_of_checkpoints_a_device_keeps_one(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    old, new = folder.checkpoint(JobKey("r", "train", 1, 1)), folder.checkpoint(KEY)
    for age, path in enumerate((old, new)):
        os.utime(leave(path), (age, age))
    folder = DeviceFolder(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [new]
    leave(new.with_name(f"{new.name}.part"))
    leave(old)
    folder.remove_checkpoints(but=new)
    assert list((tmp_path / "checkpoints").iterdir()) == [new]
    folder.remove_models("another")
    assert new.exists()
    folder.remove_models("r")
    assert not new.exists()


def test_a_job_that_is_settled_leaves_no_checkpoint(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    leave(folder.checkpoint(KEY))
    folder.remove_job(KEY, accepted=False)
    assert not folder.checkpoint(KEY).exists()


def test_the_training_log_is_bounded(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    folder.trim_log()
    with folder.training_log.open("ab", buffering=0) as child:  # as the training process has it
        for number in range(30_000):
            child.write(b"%06d a warning that comes in every round of training\n" % number)
        folder.trim_log()
        child.write(b"the last word\n")
    text = folder.training_log.read_bytes()
    assert len(text) < 100_000
    assert text.endswith(b"029999 a warning that comes in every round of training\nthe last word\n")


def test_a_clock_that_jumps_back_takes_no_model_from_a_job(tmp_path: Path, job: Job) -> None:
    """The new file is the oldest by its date: the machine has started without a clock chip."""
    folder = DeviceFolder(tmp_path)
    hold(folder, NEAR, FAR)
    model = folder.model(job)
    model.touch()
    os.utime(model, (10.0, 10.0))
    folder.remove_job(JobKey("r", "evaluate", 1, 1), accepted=True, active=job)
    assert model.exists()
    folder.mark_latest_model(job)
    hold(folder, OTHER)
    os.utime(tmp_path / "models" / f"r.{OTHER}.safetensors", (20.0, 20.0))
    folder.remove_job(JobKey("r", "evaluate", 2, 1), accepted=True)
    assert model.exists(), "the next order is patched from what was used last"
    assert not (tmp_path / "models" / f"r.{OTHER}.safetensors").exists()


def test_the_state_of_a_run_goes_with_it(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    state, others = folder.state(KEY), folder.state(JobKey("another", "train", 1, 1))
    leave(state)
    leave(others)
    folder.remove_state("r")
    assert not state.exists()
    assert others.exists()


def test_the_files_of_an_exchange_are_its_own_and_go_with_its_receipt(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    order = EXCHANGE.model_copy(update={"upload": UploadRef(url="u", key="k")})
    key = JobKey.of(order)
    others = (
        replace(key, seq=0),
        replace(key, phase="reveal"),
        replace(key, phase="", seq=0),
        JobKey(key.run_id, "train", key.round, key.attempt),
    )
    assert len({folder.update(each) for each in (key, *others)}) == 1 + len(others)
    assert len({folder.next_state(each) for each in (key, *others)}) == 1 + len(others)
    # what a device of before there were exchanges has on its disk
    assert folder.update(others[-1]).name == "sum-1-2-1.upd"
    assert folder.next_state(others[-1]).name == "sum-1.2-1.next"
    folder.update(key).write_bytes(b"answer")
    folder.next_state(key).write_bytes(b"after")
    sha256 = hashlib.sha256(b"answer").hexdigest()
    job = Job(key, order, "uploading", JobOutcome(0, {}, header_sha256=sha256, size_bytes=6))
    assert folder.has_whole_update(job)
    folder.remove_all_but([key])
    folder.remove_job(key, accepted=True, active=job)
    assert folder.state(key).read_bytes() == b"after"
    assert not folder.update(key).exists()
    folder.update(key).write_bytes(b"another")
    assert not folder.has_whole_update(job)

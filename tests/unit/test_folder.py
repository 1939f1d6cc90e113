"""Which of the models in a device's folder an order's model is made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.messages import Order, Patch
from fl_client.folder import DeviceFolder
from fl_client.session import Job, JobKey
from storage.patches import Earlier
from tests.messages import SAMPLES

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
    assert folder.earlier_model(job) == Earlier(
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

"""The argument of a collector's process. It contains no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fl_client.datasets.device import Device
from fl_client.datasets.settings import DataPlace


class CollectorOrder(BaseModel):
    """One task's source, and the device that its sensor is on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: DataPlace
    spec: str
    device_id: str
    index: int = 0
    count: int = 1
    role: Literal["trainer", "evaluator"] = "trainer"
    seed: int = 0
    profile: str = "cpu"
    folder: Path | None = None

    def device(self) -> Device:
        """Return the device that is passed to the task."""
        return Device(
            id=self.device_id,
            index=self.index,
            count=self.count,
            role=self.role,
            seed=self.seed,
            profile=self.profile,
            folder=self.folder,
            data=self.place,
        )

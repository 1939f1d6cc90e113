"""A device's settings: the agent's own, with what it may use and how it watches itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fl_client.settings import AgentSettings
from iot.profile import Budget


class HealthSettings(BaseModel):
    """How often a device looks at itself, and says so.

    Attributes:
        look_s: between two looks; while training, and near a guard, four times as often.
        quiet_s: the shortest pause between two reports.
        report_s: the longest pause.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    look_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    quiet_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    report_s: Annotated[float, Field(gt=0, le=604_800)] = 900.0


class DeviceSettings(AgentSettings):
    """What a device's agent is told; the section ``budget`` goes over the profile's preset."""

    budget: Budget = Budget()
    health: HealthSettings = HealthSettings()


class PiSettings(DeviceSettings):
    """The same for ``rengo iot``, where the board tells its profile."""

    engine: Literal["auto", "torch", "numpy"] = "numpy"
    profile: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "pi"

"""A device's settings: the agent's own, its budget, and how often health is measured and sent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fl_client.settings import AgentSettings
from iot.profile import Budget


class HealthSettings(BaseModel):
    """How often health is measured and reported.

    Attributes:
        look_s: between two measurements; four times as often in training and while it is paused.
        quiet_s: the shortest time between two reports.
        report_s: the longest time between two reports.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    look_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    quiet_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    report_s: Annotated[float, Field(gt=0, le=604_800)] = 900.0


class DeviceSettings(AgentSettings):
    """The agent's settings; ``budget`` overrides single values of the profile's preset."""

    budget: Budget = Budget()
    health: HealthSettings = HealthSettings()


class PiSettings(DeviceSettings):
    """The same for ``rengo iot``, whose profile follows from the board's model."""

    engine: Literal["auto", "torch", "numpy"] = "numpy"
    profile: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "pi"

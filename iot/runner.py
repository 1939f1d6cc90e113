"""The Raspberry Pi runner: the device agent with the numpy engine and a board's budget."""

from __future__ import annotations

from fl_client.agent.agent import Agent
from fl_client.agent.build import build_agent
from fl_client.agent.status.server import StatusServer
from iot.policy import machine_policy
from iot.settings import DeviceSettings
from runtime.errors import ConfigError
from runtime.security.identity import Identity

ENGINE = "numpy"


def make_agent(
    settings: DeviceSettings, identity: Identity, status: StatusServer | None = None
) -> Agent:
    """Return the agent of a constrained device.

    Raises:
        ConfigError: the settings ask for an engine that does not fit such a device.
    """
    if settings.engine != ENGINE:
        raise ConfigError(
            f"the Raspberry Pi runner trains on the {ENGINE} engine, not on {settings.engine!r}; "
            "for torch on a Pi use `rengo client`"
        )
    return build_agent(settings, identity, status, machine_policy(settings, identity.id))

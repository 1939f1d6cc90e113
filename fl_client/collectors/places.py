"""Which data an agent has of its own, and where those of each task are.

If its settings name none, ``fl_client.datasets`` is not loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.errors import ConfigError

if TYPE_CHECKING:
    from fl_client.datasets.settings import DataPlace
    from fl_client.settings import AgentSettings


def data_place(agent: AgentSettings, task: str) -> DataPlace | None:
    """Return where a task's data are, None where the agent's settings say nothing of them."""
    settings = agent.data.get(task)
    if settings is None:
        return None
    from fl_client.datasets.settings import DataPlace  # noqa: PLC0415  see above

    folder = agent.data_dir.absolute() / "data" / task
    return DataPlace(task=task, folder=folder, settings=settings)


def data_places(agent: AgentSettings, tasks: Sequence[str]) -> list[DataPlace]:
    """Return where the data of each task are.

    Args:
        tasks: those that are installed.

    Raises:
        ConfigError: a section is of no task that may run here.
    """
    offered = agent.bundles.offered
    for task in sorted(agent.data.keys() - {*tasks}):
        if {task, "*"}.isdisjoint(offered):
            bundles = f", bundles: {', '.join(offered)}" if offered else ""
            raise ConfigError(
                f"[data.{task}] is of no task of this device (tasks: {', '.join(tasks)}{bundles})"
            )
    found = (data_place(agent, task) for task in sorted(agent.data))
    return [place for place in found if place is not None]


def unread_sensors(agent: AgentSettings, tasks: Sequence[str]) -> list[str]:
    """Return the tasks with a sensor that are not installed: nothing reads these sensors.

    They come as bundles. A bundle runs for an order, and the policy is checked for each: one that
    ran without an order could neither expire nor be withdrawn.
    """
    return [
        task
        for task in sorted(agent.data)
        if task not in tasks and agent.data[task].source.kind == "sensor"
    ]

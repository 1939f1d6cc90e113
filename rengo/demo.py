"""The demo: broker, store, server, an evaluator and six devices, each a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.messages import DeviceState
from rengo.devices import DeviceSpec
from rengo.runs import Follower, RunResult, fetch_model, follow, submit, wait_for_devices
from rengo.site import Site

_DEVICES_START_S = 90.0
_EVALUATOR = "evaluator-1"


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does."""

    task: str = "digits"
    rounds: int = 15
    clients: int = 6
    seed: int = 0
    output: Path = Path("rengo-output")


def fleet(clients: int) -> list[DeviceSpec]:
    """Return the demo's devices: the last is a Pi, the one before it a GPU edge, then an evaluator.

    >>> [spec.name for spec in fleet(3)]
    ['edge-1', 'gpu-1', 'pi-1', 'evaluator-1']
    """
    profiles = ["cpu"] * max(0, clients - 2) + ["gpu", "pi"][-min(2, clients) :]
    counts = {"cpu": 0, "gpu": 0, "pi": 0}
    names = {"cpu": "edge", "gpu": "gpu", "pi": "pi"}
    devices = []
    for index, profile in enumerate(profiles):
        counts[profile] += 1
        devices.append(
            DeviceSpec(
                f"{names[profile]}-{counts[profile]}",
                profile=profile,  # type: ignore[arg-type]
                engine="numpy" if profile == "pi" else "auto",
                index=index,
                count=clients,
            )
        )
    evaluator = DeviceSpec(_EVALUATOR, engine="numpy", role="evaluator", count=clients)
    return [*devices, evaluator]


def definition(settings: DemoSettings) -> dict[str, Any]:
    """Return the demo's run definition."""
    return {
        "rounds": settings.rounds,
        "seed": settings.seed,
        "cohort": {
            "size": settings.clients,
            "quorum": max(1, settings.clients - 2),
            "deadline_s": 120.0,
            "gather_s": 5.0,
        },
        "evaluation": {"on": "evaluators"},
    }


def run_demo(
    settings: DemoSettings,
    joined: Callable[[dict[str, DeviceState]], None],
    watch: Callable[[Follower], None],
    more: dict[str, Any] | None = None,
) -> RunResult:
    """Run the demo from start to end; nothing is left running.

    Args:
        joined: called when a device is ready.
        watch: called with every piece of news of the run.
        more: keys to lay over the demo's run definition.
    """
    devices = fleet(settings.clients)
    with Site() as site:
        site.start_devices(devices, settings.task)
        with site.connect() as client:
            wait_for_devices(client, [each.name for each in devices], _DEVICES_START_S, joined)
            run_id = submit(client, settings.task, definition(settings) | (more or {}))
            result = follow(client, run_id, watch)
            return fetch_model(client, result, settings.output)

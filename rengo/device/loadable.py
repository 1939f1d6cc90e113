"""What an agent would refuse at its start, beside the form of its file: it is loaded as there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fl_client.collectors.places import data_places
from fl_client.machine.accelerators import for_orders
from fl_client.machine.hardware import available_engines
from fl_client.tasks.listing import resolve
from fl_client.tasks.registry import load_task
from iot.settings import DeviceSettings
from rengo.device.config_file import Problem
from runtime.errors import ConfigError
from runtime.security.identity import read_identity


def load_problems(settings: DeviceSettings) -> Iterator[Problem]:
    """Yield what keeps an agent of these settings from its work; tasks are loaded to find out."""
    yield from _of(
        "identity", "name a device's file, or enrol: rengo enroll URL", _identity, settings
    )
    names = []
    for spec in settings.tasks:
        try:
            reference = resolve(spec)
            names.append(reference.name)
            load_task(reference.spec)
        # the file is the user's own code
        except Exception as error:  # noqa: BLE001
            yield Problem("tasks", "", str(error), "mend the task, or name another one")
    yield from _of("engine", "choose another engine, or install it", _engine, settings)
    yield from _of("data", "mend the section, or remove it", lambda it: _data(it, names), settings)


def _of(
    key: str, mend: str, load: Callable[[DeviceSettings], None], settings: DeviceSettings
) -> Iterator[Problem]:
    try:
        load(settings)
    except ConfigError as error:
        yield Problem(key, "", str(error), mend)


def _identity(settings: DeviceSettings) -> None:
    identity = read_identity(settings.identity)
    if identity.role != "device":
        raise ConfigError(f"{settings.identity} is of the role {identity.role}, not of a device")


def _engine(settings: DeviceSettings) -> None:
    engines = available_engines()
    engine = settings.engine
    if engine == "auto":
        engine = "torch" if "torch" in engines else "numpy"
    if engine not in engines:
        raise ConfigError(f"{engine} is not installed")
    for_orders(settings.accelerators, profile=settings.family, engine=engine)


def _data(settings: DeviceSettings, tasks: list[str]) -> None:
    if not settings.data:
        return
    from fl_client.collectors.mqtt import read_password  # noqa: PLC0415  few devices have any
    from fl_client.datasets.settings import MqttSource  # noqa: PLC0415

    for place in data_places(settings, tasks):
        source = place.settings.source
        if isinstance(source, MqttSource):
            read_password(source.password_file)
            _require_file(source.ca)


def _require_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise ConfigError(f"{path} is not there")

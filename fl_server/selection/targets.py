"""Whom a run addresses: devices and groups by name, and conditions on them. Pure.

Journalled in the run's definition, and so the same after a restart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fl_server.selection.conditions import Condition, parse
from fl_server.selection.traits import DeviceTraits
from runtime.errors import ConfigError

_GROUP = "group:"
_TARGET = re.compile(r"(group:)?[a-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Misfit:
    """Why a device does not take part.

    Attributes:
        cause: the same for every device that is left out by the same thing.
        reason: of this device.
    """

    cause: str
    reason: str


@dataclass(frozen=True)
class RunTarget:
    """Whom a run addresses: any of the names, and of these who fulfils every condition.

    Attributes:
        names: of devices and domains, and of groups as ``group:NAME``; empty for all.
    """

    names: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def read(cls, target: Sequence[str], where: Sequence[str]) -> RunTarget:
        """Return the target that a run's definition says.

        Raises:
            ConfigError: a name is none, or a condition says nothing.
        """
        for name in target:
            if _TARGET.fullmatch(name) is None:
                raise ConfigError(
                    f"{name[:80]!r} is no target; name a device or a domain, or group:NAME"
                )
        return cls(tuple(target), tuple(parse(text) for text in where))

    @property
    def is_everybody(self) -> bool:
        """Whether it leaves nobody out."""
        return not self.names and not self.conditions

    @property
    def device_names(self) -> list[str]:
        """The names that are not of groups."""
        return [name for name in self.names if not name.startswith(_GROUP)]

    @property
    def group_names(self) -> list[str]:
        """The groups."""
        return [name.removeprefix(_GROUP) for name in self.names if name.startswith(_GROUP)]

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset(self.names)

    def misfit(self, device: DeviceTraits) -> Misfit | None:
        """Return why the run does not address a device, None where it does."""
        return self.left_out(device) or self.unmet(device)

    def left_out(self, device: DeviceTraits) -> Misfit | None:
        """Return that none of the names is of a device, None where one is."""
        if self.names and not self._named & {device.id, f"{_GROUP}{device.group}"}:
            group = f"is in group {device.group}" if device.group else "is in no group"
            return Misfit(f"not {_listed(self.names)}", f"{group}, and not of the target")
        return None

    def unmet(self, device: DeviceTraits) -> Misfit | None:
        """Return which condition a device does not fulfil, None where it fulfils all."""
        for condition in self.conditions:
            reason = condition.misfit(device)
            if reason:
                return Misfit(f"not {condition}", reason)
        return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""A virtual fleet: which kinds of devices there are, and which client is which. Pure.

``phone=80,pi-4=20`` names presets with their shares; a TOML file has tables ``[[device]]``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from rengo.simulation.virtual.devices import DeviceModel
from rengo.simulation.virtual.draws import lognormal
from rengo.simulation.virtual.presets import PRESETS
from runtime.config import validate
from runtime.errors import ConfigError

MAX_KINDS = 256


@dataclass(frozen=True)
class Kind:
    """A kind of device, and what share of the clients are of it, against the other shares."""

    name: str
    share: float
    model: DeviceModel


@dataclass(frozen=True)
class Traits:
    """How fast one device is: its kind with what differs from device to device."""

    model: DeviceModel
    speed: float
    link: float


class _Table(BaseModel):
    """A table ``[[device]]``; keys of its own are those of a device model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = ""
    preset: Annotated[str, Field(max_length=64)] = ""
    share: Annotated[float, Field(gt=0, le=1e9)] = 1.0


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_KINDS)]


class VirtualFleet:
    """The devices of ``count`` clients: who is of which kind, and how each one differs."""

    def __init__(self, kinds: Sequence[Kind], count: int, seed: int) -> None:
        self.kinds, self.count, self.seed = tuple(kinds), count, seed
        self._kind_of = _dealt(self.kinds, count, seed)

    def kind(self, index: int) -> Kind:
        """Return the kind of a client's device."""
        return self.kinds[int(self._kind_of[index])]

    def traits(self, index: int) -> Traits:
        """Return what a client's device is like."""
        model, place = self.kind(index).model, (self.seed, index)
        speed = lognormal(model.speed_sigma, "speed", *place)
        return Traits(model, speed, lognormal(model.link_sigma, "link", *place))

    def description(self) -> dict[str, Any]:
        """Return what the devices depend on, as plain data."""
        kinds = [[kind.name, kind.share, kind.model.model_dump()] for kind in self.kinds]
        return {"kinds": kinds, "count": self.count, "seed": self.seed}

    def sizes(self) -> dict[str, int]:
        """Return how many clients are of each kind."""
        found = np.bincount(self._kind_of, minlength=len(self.kinds))
        return {kind.name: int(found[place]) for place, kind in enumerate(self.kinds)}


def parse_shares(text: str) -> tuple[Kind, ...]:
    """Return the kinds of ``phone=80,pi-4=20``; a name alone has the share 1.

    Raises:
        ConfigError: no such preset, or a share that is no number above 0.
    """
    kinds: dict[str, Kind] = {}
    for item in text.split(","):
        name, equals, given = item.strip().partition("=")
        share = _share(given) if equals else 1.0
        if name not in PRESETS:
            raise ConfigError(f"fleet {text!r}: {_choose(name)}")
        if share is None:
            raise ConfigError(f"fleet {text!r}: the share {given!r} is not a number above 0")
        if name in kinds:
            raise ConfigError(f"fleet {text!r}: {name} is named twice")
        kinds[name] = Kind(name, share, PRESETS[name])
    return tuple(kinds.values())


def parse_tables(values: Mapping[str, Any], source: str) -> tuple[Kind, ...]:
    """Return the kinds of a fleet file.

    Args:
        source: the file's name, for errors.

    Raises:
        ConfigError: a key or a value is wrong, with the table's number.
    """
    kinds: dict[str, Kind] = {}
    for number, table in enumerate(validate(_File, values, source).device, start=1):
        where = f"{source}, device {number}"
        entry = validate(_Table, table, where)
        name = entry.name or entry.preset
        if not name:
            raise ConfigError(f"{where}: it needs a name or a preset")
        if entry.preset and entry.preset not in PRESETS:
            raise ConfigError(f"{where}: {_choose(entry.preset)}")
        if name in kinds:
            raise ConfigError(f"{where}: there are two devices {name!r}; give one a name")
        given = {**_values_of(entry.preset), **(entry.model_extra or {})}
        kinds[name] = Kind(name, entry.share, validate(DeviceModel, given, where))
    return tuple(kinds.values())


def _values_of(preset: str) -> dict[str, Any]:
    return PRESETS[preset].model_dump() if preset else {}


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if math.isfinite(share) and share > 0 else None


def _choose(name: str) -> str:
    near = difflib.get_close_matches(name, PRESETS, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}{meant}"


def _dealt(kinds: Sequence[Kind], count: int, seed: int) -> NDArray[np.uint8]:
    """Return each client's kind: whole numbers nearest to the shares, in an order of the seed's."""
    shares = np.array([kind.share for kind in kinds])
    wanted = shares / shares.sum() * count
    sizes = np.floor(wanted).astype(np.int64)
    # the largest remainders get what is left
    for place in np.argsort(-(wanted - sizes), kind="stable")[: count - int(sizes.sum())]:
        sizes[place] += 1
    dealt = np.repeat(np.arange(len(kinds), dtype=np.uint8), sizes)
    return np.random.default_rng([seed, len(kinds)]).permutation(dealt)

"""Algorithms by name: those of this folder, whose files name them, and those of other packages.

Another package adds one by an entry point of the group ``rengo.algorithms``, whose name is the
algorithm's and whose value is its class.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import ConfigError
from runtime.listing import nearest, with_settings

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from algorithms.base import Algorithm

GROUP = "rengo.algorithms"
_NOT_ALGORITHMS = frozenset({"base", "description", "registry", "transforms"})


def names() -> list[str]:
    """Return the names of all algorithms, without importing any."""
    return sorted({*_own_names(), *_of_others()})


def load(name: str, settings: Mapping[str, Any] | None = None) -> Algorithm:
    """Return the algorithm ``name`` with ``settings`` over its defaults.

    Raises:
        ConfigError: no such algorithm, no such setting, or a value that it refuses; the text
            names the nearest right one and lists the choices.
    """
    return with_settings(f"algorithm {name}", algorithm_class(name), settings or {})


@functools.cache
def algorithm_class(name: str) -> type[Algorithm]:
    """Return the class of the algorithm ``name``; raises ConfigError for a name not listed."""
    if name in _own_names():
        return _class_of(name)
    other = _of_others().get(name)
    if other is None:
        raise ConfigError(
            f"no algorithm {name!r}{nearest(name, names())} (`rengo algorithms` lists them)"
        )
    return _class_of_other(other)


@functools.cache
def _own_names() -> frozenset[str]:
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return frozenset(name for name in found if name not in _NOT_ALGORITHMS and name[0] != "_")


@functools.cache
def _of_others() -> dict[str, EntryPoint]:
    from importlib import metadata  # noqa: PLC0415  loads much that devices seldom need

    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def _class_of(name: str) -> type[Algorithm]:
    from algorithms.base import Algorithm  # noqa: PLC0415  numpy loads only when one is used

    module = importlib.import_module(f"algorithms.{name}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Algorithm)
        and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise ConfigError(f"algorithms/{name}.py must define one Algorithm, it has {len(own)}")
    return own[0]


def _class_of_other(point: EntryPoint) -> type[Algorithm]:
    from algorithms.base import Algorithm  # noqa: PLC0415  numpy loads only when one is used

    try:
        found: Any = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"algorithm {point.name} ({point.value}): {error}") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigError(f"algorithm {point.name} ({point.value}): it is no class of Algorithm")
    return found

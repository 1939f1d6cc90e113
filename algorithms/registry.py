"""Algorithms by name: the name is the name of the file, and the listing is the folder's."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.bounds import MAX_HYPER_PARAMETER
from runtime.errors import ConfigError
from runtime.records import FieldError, build

if TYPE_CHECKING:
    from algorithms.base import Algorithm

_NOT_ALGORITHMS = frozenset({"base", "registry"})


def names() -> list[str]:
    """Return the names of all algorithms, without importing any."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if name not in _NOT_ALGORITHMS and name[0] != "_")


def load(name: str, settings: Mapping[str, Any] | None = None) -> Algorithm:
    """Return the algorithm ``name`` with ``settings`` over its defaults.

    Raises:
        ConfigError: no such algorithm, no such setting, or a value that it refuses; the text
            lists the choices.
    """
    algorithm = algorithm_class(name)
    given = dict(settings or {})
    allowed = [field.name for field in fields(algorithm)]
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"algorithm {name} has no setting {key!r}; it has: {', '.join(allowed) or 'none'}"
            )
    return _validated(algorithm, name, given)


@functools.cache
def algorithm_class(name: str) -> type[Algorithm]:
    """Return the class of the algorithm ``name``; raises ConfigError for a name not listed."""
    if name not in names():
        raise ConfigError(f"no algorithm {name!r}; there are: {', '.join(names())}")
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


def _validated(algorithm: type[Algorithm], name: str, given: dict[str, Any]) -> Algorithm:
    for key, value in given.items():
        if isinstance(value, int | float) and not abs(value) <= MAX_HYPER_PARAMETER:
            raise ConfigError(
                f"algorithm {name}, setting {key}: must be within ±{MAX_HYPER_PARAMETER:g} "
                f"(got {value!r})"
            )
    try:
        return build(algorithm, given)
    except FieldError as error:
        got = given.get(error.field)
        raise ConfigError(
            f"algorithm {name}, setting {error.field}: {error.reason} (got {got!r})"
        ) from error

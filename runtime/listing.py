"""Classes by name: one in each file of a package, whose name is the class's in configuration."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from runtime.bounds import MAX_HYPER_PARAMETER
from runtime.errors import ConfigError
from runtime.records import FieldError, build

T = TypeVar("T")


@dataclass(frozen=True)
class ClassListing(Generic[T]):
    """The files of a package but ``base`` and those that begin with an underscore.

    Attributes:
        package: its import path.
        what: what one of the classes is called, for messages.
        kind: what they derive from: a frozen dataclass, whose fields are settings.
    """

    package: str
    what: str
    kind: type[T]

    def names(self) -> list[str]:
        """Return the names, without importing any."""
        path = importlib.import_module(self.package).__path__
        found = (module.name for module in pkgutil.iter_modules(path))
        return sorted(name for name in found if name != "base" and name[0] != "_")

    def load(self, name: str, settings: Mapping[str, Any] | None = None) -> T:
        """Return the one of that name with ``settings`` over its defaults.

        Raises:
            ConfigError: no such one, no such setting, or a value that it refuses; the text names
                the nearest right one and lists the choices.
        """
        # only a listed name is imported: it may come from a message
        if name not in self.names():
            choices = self.names()
            raise ConfigError(
                f"no {self.what} {name[:64]!r}{nearest(name, choices)} (there are: "
                f"{', '.join(choices)})"
            )
        return with_settings(f"{self.what} {name}", self._class(name), settings or {})

    def _class(self, name: str) -> type[T]:
        module = importlib.import_module(f"{self.package}.{name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, self.kind)
            and value.__module__ == module.__name__
        ]
        if len(own) != 1:
            raise ConfigError(f"{module.__name__} must define one {self.what}, it has {len(own)}")
        return own[0]


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the question whether the nearest of the choices was meant, "" where none is near."""
    found = difflib.get_close_matches(word, list(choices), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def with_settings(called: str, kind: type[T], given: Mapping[str, Any]) -> T:
    """Return an object of a dataclass of settings, with its defaults for what is not given.

    Args:
        called: the object, as messages name it.

    Raises:
        ConfigError: it has no such setting, or refuses the value.
    """
    allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in allowed:
            raise ConfigError(
                f"{called} has no setting {key!r}{nearest(key, allowed)} "
                f"(it has: {', '.join(allowed) or 'none'})"
            )
        if isinstance(value, int | float) and not abs(value) <= MAX_HYPER_PARAMETER:
            raise ConfigError(
                f"{called}, setting {key}: must be within ±{MAX_HYPER_PARAMETER:g} (got {value!r})"
            )
    try:
        return build(kind, given)
    except FieldError as error:
        got = given.get(error.field)
        raise ConfigError(
            f"{called}, setting {error.field}: {error.reason} (got {got!r})"
        ) from error

"""The codecs of updates: one file each, and the file's name is the codec's name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from runtime.errors import ConfigError
from storage.codecs.base import Codec


def names() -> list[str]:
    """Return the names of the codecs, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load(name: str, settings: Mapping[str, Any] | None = None) -> Codec:
    """Return the codec of that name.

    Raises:
        ConfigError: no such codec, or it has no such setting; the text lists the choices.
    """
    # only a listed name is imported: it may come from a peer
    if name not in names():
        raise ConfigError(f"codec {name[:64]!r} is not one of {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Codec)
        and value.__module__ == module.__name__
    )
    try:
        codec: Codec = found(**(settings or {}))
    except TypeError as error:
        raise ConfigError(f"codec {name}: {error}") from error
    return codec

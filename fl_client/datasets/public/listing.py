"""The published data sets that Rengo knows: a listing of this folder."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from fl_client.datasets.public.published import Published
from runtime.errors import ConfigError

_NOT_DATA_SETS = frozenset({"files", "images", "listing", "published"})


def names() -> list[str]:
    """Return their names, without importing any."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if name not in _NOT_DATA_SETS)


def published(name: str) -> Published:
    """Return what is known of a data set.

    Raises:
        ConfigError: there is none of this name; the text lists the choices.
    """
    if name not in names():
        raise ConfigError(f"no data set {name!r}; there are: {', '.join(names())}")
    module = importlib.import_module(f"fl_client.datasets.public.{name}")
    found: Published = module.DATASET
    return found

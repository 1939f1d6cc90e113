"""The backends of the simulator: one file each, and the file's name is the backend's name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from rengo.simulation.backend import Backend, BackendSetup
from runtime.errors import ConfigError


def names() -> list[str]:
    """Return the names of the backends, sorted, without importing any."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name[0] != "_")


def require_known(name: str) -> None:
    """Raise ConfigError where there is no such backend, with the choices."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no backend {name!r}; there are: {', '.join(names())}{meant}")


def open_backend(name: str, setup: BackendSetup) -> Backend:
    """Return the backend of that name, ready to train.

    Raises:
        ConfigError: there is no such backend, or it cannot do this simulation; says why.
        MissingExtra: its library is not installed.
    """
    require_known(name)
    module = importlib.import_module(f"{__name__}.{name}")
    backend: Backend = module.open_backend(setup)
    return backend

"""Loads a task: one of this folder, one of an installed package, or a class in a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fl_client.own_packages import shadowed_in
from fl_client.tasks.attributes import require_valid
from fl_client.tasks.base import Task
from fl_client.tasks.listing import built_in, imported_modules, installed, names
from fl_client.tasks.loading import loading
from fl_client.tasks.user_code import place_of
from runtime.errors import ConfigError, MissingExtra

_EXTRAS = {"torch": "torch"}


def load_task(spec: str) -> Task:
    """Return the task that ``spec`` names.

    Args:
        spec: a name that ``listing.names()`` has, one of Rengo's with a model of its choice
            (``mnist-cnn``), or ``path/to/file.py:Class``. As with a script, modules beside the
            file can be imported.

    Raises:
        ConfigError: there is no such task, or it cannot be loaded; the text lists the choices or
            says what went wrong and where.
    """
    path, separator, class_name = spec.rpartition(":")
    if separator and path.endswith(".py"):
        return _instance(spec, _from_file(spec, Path(path)), class_name)
    if spec in built_in():
        return _only_task(spec, importlib.import_module(f"fl_client.tasks.{spec}"))
    for point in installed():
        if point.name == spec:
            module = _imported(spec, point.module)
            return _instance(spec, module, point.attr)
    name, dash, model = spec.partition("-")
    if dash and name in built_in():
        return _with_model(load_task(name), spec, model)
    raise ConfigError(
        f"no task {spec!r}; there are: {', '.join(names())}, or your own class as FILE.py:CLASS"
    )


def _from_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"task {spec}: there is no file {path.resolve()}")
    name = f"rengo_task_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path.resolve())
    if found is None or found.loader is None:
        raise ConfigError(f"task {spec}: {path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    _require_no_shadowed_import(spec, path)
    # dataclasses and torch loaders that pickle look up their module here
    sys.modules[name] = module
    try:
        with loading(path):
            found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _load_error(spec, error, path) from error
    return module


def _require_no_shadowed_import(spec: str, path: Path) -> None:
    """Raise where the file imports a module beside it that has the name of a package of Rengo's."""
    beside = {
        each.parent.name if each.stem == "__init__" else each.stem: each
        for each in shadowed_in(path.resolve().parent)
    }
    # every task imports rengo, and can mean no other
    beside.pop("rengo", None)
    for name in sorted(beside.keys() & imported_modules(path)) if beside else ():
        raise ConfigError(
            f"task {spec}: `import {name}` means a package of Rengo's, not {beside[name]}: give "
            "that another name"
        )


def _imported(spec: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        found = importlib.util.find_spec(module_name.partition(".")[0])
        raise _load_error(spec, error, Path((found and found.origin) or ".")) from error


def _load_error(spec: str, error: BaseException, path: Path) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return MissingExtra(error.name, _EXTRAS[error.name])
    where = "" if isinstance(error, ImportError | SyntaxError) else f" ({place_of(error, path)})"
    return ConfigError(f"task {spec} cannot be loaded: {type(error).__name__}: {error}{where}")


def _only_task(spec: str, module: ModuleType) -> Task:
    own = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise ConfigError(f"tasks/{spec}.py must define one Task, it has {len(own)}")
    return _instance(spec, module, own[0])


def _with_model(task: Task, spec: str, model: str) -> Task:
    """Return a task as ``task``, with another of its models."""
    choices: tuple[str, ...] = getattr(task, "models", ())
    if model not in choices:
        among = f"it has: {', '.join(choices)}" if choices else "it has but one"
        raise ConfigError(f"task {spec}: {task.name} has no model {model!r}; {among}")
    kind = type(task)
    chosen = {"name": spec, "architecture": model, "__module__": kind.__module__}
    named: type[Task] = type(kind.__name__, (kind,), chosen)
    return named()


def _instance(spec: str, module: ModuleType, class_name: str) -> Task:
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        choices = ", ".join(
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Task) and value is not Task
        )
        raise ConfigError(
            f"task {spec}: no Task class {class_name!r}; the file has: {choices or 'none'}"
        )
    try:
        task = found()
    except (Exception, SystemExit) as error:
        raise _load_error(spec, error, Path(module.__file__ or ".")) from error
    require_valid(task, spec)
    return task

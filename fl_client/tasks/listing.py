"""The names of tasks, found without running their code.

The agent's process needs a task's name but must not load its libraries, so a file is parsed, not
imported. The name is the class's literal ``name`` or the class's name in snake case, as for
``Task``.
"""

from __future__ import annotations

import ast
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "rengo.tasks"
_NOT_TASKS = frozenset(
    {
        *("attributes", "base", "context", "exchange", "listing", "loading", "narrow", "registry"),
        *("split", "torch_module", "user_code"),
    }
)
_LEVEL = re.compile(r"[a-z0-9_-]{1,64}")


def names() -> list[str]:
    """Return the names of the built-in and the installed tasks, without importing any."""
    return sorted({*built_in(), *(point.name for point in installed())})


def built_in() -> list[str]:
    """Return the names of the tasks in this folder: those of its files."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return [name for name in found if name not in _NOT_TASKS and name[0] != "_"]


def installed() -> list[EntryPoint]:
    """Return the tasks that installed packages declare."""
    # slow, and not needed for a built-in task
    from importlib.metadata import entry_points  # noqa: PLC0415

    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


def is_named(spec: str) -> bool:
    """Return whether ``spec`` is the name of a built-in or an installed task, not a file's class.

    A built-in task may be named with one of its models: ``mnist-cnn``.
    """
    return spec in names() or spec.partition("-")[0] in built_in()


def snake_case(class_name: str) -> str:
    """Return ``MyTask`` as ``my_task``: the default name of a task."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports by absolute names, with their parent packages.

    Raises:
        ConfigError: it cannot be read, or is no Python.
    """
    names: set[str] = set()
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    return {".".join(each[:count]) for each in parts for count in range(1, len(each) + 1)}


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text("utf-8"), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class TaskReference:
    """A task's name on the network and its argument for ``load_task``, with an absolute path."""

    name: str
    spec: str


def resolve(spec: str) -> TaskReference:
    """Return the task that ``spec`` names: an installed one, or ``FILE.py:CLASS``.

    Raises:
        ConfigError: there is no such task, file or class, or its name is not usable.
    """
    path_text, separator, class_name = spec.rpartition(":")
    if not (separator and path_text.endswith(".py")):
        if not is_named(spec):
            raise ConfigError(
                f"no task {spec!r}; there are: {', '.join(names())}, "
                "or your own class as FILE.py:CLASS"
            )
        return TaskReference(spec, spec)
    path = Path(path_text).resolve()
    name = _name_in(path, class_name, spec)
    if not _LEVEL.fullmatch(name):
        raise ConfigError(
            f"task {spec}: the name {name!r} must be 1 to 64 of a-z, 0-9, '_' and '-'"
        )
    return TaskReference(name, f"{path}:{class_name}")


def _name_in(path: Path, class_name: str, spec: str) -> str:
    try:
        tree = _parsed(path)
    except ConfigError as error:
        raise ConfigError(f"task {spec}: {error}") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if class_name not in classes:
        choices = ", ".join(classes) or "none"
        raise ConfigError(f"task {spec}: no class {class_name!r}; the file has: {choices}")
    for statement in classes[class_name].body:
        value = _assigned_name(statement)
        if value is None:
            continue
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
        raise ConfigError(f"task {spec}: `name` must be a plain string")
    return snake_case(class_name)


def _assigned_name(statement: ast.stmt) -> ast.expr | None:
    match statement:
        case ast.Assign(targets=[ast.Name(id="name")], value=value):
            return value
        case ast.AnnAssign(target=ast.Name(id="name"), value=value):
            return value
    return None

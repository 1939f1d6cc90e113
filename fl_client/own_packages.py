"""Which of several packages of one name is imported: Rengo's own, whatever lies before it.

Rengo's top-level packages have plain names (``storage``, ``broker``). A user's module of such a
name, beside a task or on PYTHONPATH, comes first on ``sys.path`` and would take its place. This
module is loaded by its path too, before any of these packages: it imports none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OWN_PACKAGES = frozenset(
    {"algorithms", "broker", "fl_client", "fl_server", "iot", "rengo", "runtime", "storage"}
)
HOME = Path(__file__).resolve().parent.parent


class OwnPackages(MetaPathFinder):
    """Finds Rengo's packages where this one lies, before anything else is asked."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a top-level package of Rengo's, None for every other module."""
        if path is not None or name not in OWN_PACKAGES:
            return None
        return PathFinder.find_spec(name, [str(HOME)], target)


def prefer_own_packages() -> None:
    """Have Rengo's packages found first, from now on.

    Raises:
        ImportError: another module of such a name was imported already; names its file.
    """
    for name in OWN_PACKAGES & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and not Path(file).resolve().is_relative_to(HOME):
            raise ImportError(
                f"{file} has the name of a package of Rengo's and was imported before it: give it "
                f"another name than {name}, or import rengo first"
            )
    # by name: this module may have been loaded twice
    if not any(type(each).__name__ == OwnPackages.__name__ for each in sys.meta_path):
        sys.meta_path.insert(0, OwnPackages())


def command(module: str, python: Path | None = None, *options: str) -> list[str]:
    """Return the command that runs a module of Rengo's, whatever lies where Python looks.

    Args:
        module: what ``python -m`` would be given.
        python: another interpreter than this one.
        options: of the interpreter.
    """
    # -P: modules are not looked for in the working folder
    interpreter = sys.executable if python is None else str(python)
    return [interpreter, "-P", *options, str(HOME / "rengo_start.py"), module]


def shadowed_in(folder: Path) -> list[Path]:
    """Return the modules of a folder that cannot be imported, since Rengo's have their names."""
    if folder.resolve() == HOME:
        return []
    places = ((folder / f"{name}.py", folder / name / "__init__.py") for name in OWN_PACKAGES)
    return sorted(path for pair in places for path in pair if path.is_file())

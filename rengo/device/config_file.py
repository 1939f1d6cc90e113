"""An agent's TOML file: where it is, and what is wrong with it, line by line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rengo.site.folder import default_home
from runtime.config import NotToml, from_environment, merge, parse_toml

PREFIX = "RENGO_AGENT"
SYSTEM_FILE = Path("/etc/rengo/agent.toml")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*[.=]""")
_TABLE = re.compile(r"\s*\[+\s*([^\]]+?)\s*\]+")
_TOML_LINE = re.compile(r"\(at line (\d+)")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one key.

    Attributes:
        key: ``a.b``; "" for the whole file.
        place: ``line 3``, or the variable that gives the value; "" where the key is missing.
    """

    key: str
    place: str
    what: str
    mend: str

    def lines(self) -> Iterator[str]:
        """Yield it as it is shown."""
        where = ", ".join(part for part in (self.place, self.key) if part) or "the file"
        yield f"{where}: {self.what}"
        yield f"      mend: {self.mend}"


@dataclass(frozen=True)
class Checked:
    """A file and what is wrong with it; ``values`` are the settings as far as they can be read."""

    source: str
    values: dict[str, Any]
    overridden: dict[str, str]
    problems: list[Problem]


def own_file() -> Path | None:
    """Return the agent's file of this user; None where there is none."""
    path = default_home() / "agent.toml"
    return path if path.is_file() else None


def usual_file() -> Path | None:
    """Return the agent's file of this user, else the machine's; None where there is neither."""
    return own_file() or (SYSTEM_FILE if SYSTEM_FILE.is_file() else None)


def check(path: Path | None, model: type[BaseModel]) -> Checked:
    """Return what is wrong with a file and with the environment that is laid over it."""
    source = "the environment" if path is None else str(path)
    try:
        text = "" if path is None else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        problem = Problem("", "", why, f"name the agent's file by --config, or make {path}")
        return Checked(source, {}, {}, [problem])
    try:
        values = parse_toml(text)
    except NotToml as error:
        found = _TOML_LINE.search(str(error))
        place = "" if found is None else f"line {found[1]}"
        mend = 'a line reads key = value; text stands in "double quotes", a list in [ ]'
        return Checked(source, {}, {}, [Problem("", place, f"not TOML: {error}", mend)])
    variables = _variables(model, PREFIX)
    overridden = {key: name for name, key in variables.items() if name in os.environ}
    merge(values, from_environment(model, PREFIX))
    problems = [*_strange_variables(variables), *_invalid(model, values, text, overridden)]
    return Checked(source, values, overridden, problems)


def _invalid(
    model: type[BaseModel], values: Mapping[str, Any], text: str, overridden: Mapping[str, str]
) -> Iterator[Problem]:
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        for each in error.errors(include_url=False):
            path = [str(part) for part in each["loc"] if isinstance(part, str)]
            key = ".".join(path)
            place = overridden.get(key) or _place(text, path)
            what, mend = _explain(model, path, each["type"], each["msg"])
            yield Problem(key, place, what, mend)


def _place(text: str, path: list[str]) -> str:
    number = line_of(text, path)
    return "" if number is None else f"line {number}"


def _explain(model: type[BaseModel], path: list[str], kind: str, message: str) -> tuple[str, str]:
    """Return what is wrong and how it is mended."""
    message = message.removeprefix("Value error, ")
    known = _keys(model, path[:-1])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        return "unknown key", f"{hint} (known: {', '.join(sorted(known))})"
    if kind == "missing":
        return "is missing", f"add a line: {path[-1]} = …, or set {_variable(path)}"
    if not path:
        return message, "see docs/devices.md"
    default = model.model_fields.get(path[0])
    usual = (
        "" if default is None or default.is_required() else f"; the default is {default.default!r}"
    )
    return message[:1].lower() + message[1:], f"change it{usual if len(path) == 1 else ''}"


def line_of(text: str, path: list[str]) -> int | None:
    """Return the line of a key, else of its table; None where neither stands there.

    >>> line_of('a = 1\\n[budget]\\ndisk = 2', ["budget", "disk"])
    3
    """
    table: list[str] = []
    nearest = None
    for number, line in enumerate(text.splitlines(), 1):
        header, key = _TABLE.match(line), _KEY.match(line)
        if header is not None:
            table = [part.strip(" \"'") for part in header[1].split(".")]
            if table == path:
                return number
        elif key is not None:
            full = [*table, key[1]]
            if full == path:
                return number
            if full == path[: len(full)]:
                nearest = number
    return nearest


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    current = model
    for part in path:
        field = current.model_fields.get(part)
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        current = inner
    return list(current.model_fields)


def _variable(path: list[str]) -> str:
    return "_".join([PREFIX, "__".join(part.upper() for part in path)])


def _variables(model: type[BaseModel], prefix: str) -> dict[str, str]:
    """Return each variable that the settings know, with its key."""
    found = {}
    for name, field in model.model_fields.items():
        variable, kind = f"{prefix}_{name.upper()}", field.annotation
        found[variable] = name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = _variables(kind, f"{variable}_")
            found |= {deep: f"{name}.{key}" for deep, key in inner.items()}
    return found


def _strange_variables(known: Mapping[str, str]) -> Iterator[Problem]:
    for name in sorted(os.environ):
        if name.startswith(f"{PREFIX}_") and name not in known:
            near = difflib.get_close_matches(name, list(known), 1)
            hint = f"did you mean {near[0]}?" if near else f"unset {name}"
            yield Problem("", name, "no setting is called so", hint)

"""Configuration: a TOML file per role, every key also by environment, errors that name it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_origin

from pydantic import AfterValidator, BaseModel, ValidationError

from runtime.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
# one that was relative to the working folder at the start, which a task may change
AbsolutePath: TypeAlias = Annotated[Path, AfterValidator(Path.absolute)]
# Python reads no longer ones from text
_LONG_NUMBER = re.compile(r"\d(?:_?\d){4300}")


class NotToml(ValueError):
    """A text that is not TOML, or holds what cannot be read; the text says where, if known."""


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a text in TOML holds.

    Raises:
        NotToml: it is not TOML, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise NotToml("it is nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        raise NotToml(str(error)) from error
    except ValueError as error:
        found = _LONG_NUMBER.search(text)
        where = "" if found is None else f" (at line {text.count(chr(10), 0, found.start()) + 1})"
        raise NotToml(f"a whole number has more digits than any setting takes{where}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's content; ConfigError names the file and the line."""
    try:
        return parse_toml(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except NotToml as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def validate(model: type[M], values: Mapping[str, Any], source: str) -> M:
    """Return the validated settings.

    Raises:
        ConfigError: one line that names the source, each wrong key and how it is wrong.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            where = ".".join(str(part) for part in problem["loc"]) or "the whole"
            if problem["type"] == "extra_forbidden":
                known = ", ".join(sorted(_known_keys(model, problem["loc"])))
                problems.append(f"unknown key '{where}' (known: {known})")
            else:
                problems.append(f"'{where}': {problem['msg'].removeprefix('Value error, ')}")
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: type[BaseModel] = model
    for part in location[:-1]:
        field = current.model_fields.get(str(part))
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        current = inner
    return list(current.model_fields)


def from_environment(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """Return the settings found in the environment as ``{prefix}_{KEY}``, nested by ``__``.

    A list is written ``a,b``, a table ``a=1,b=2``, and both may be written as in TOML.
    """
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        variable, kind = f"{prefix}_{name.upper()}", field.annotation
        if variable in os.environ:
            found[name] = _from_text(os.environ[variable], get_origin(kind), variable)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested = from_environment(kind, f"{variable}_")
            if nested:
                found[name] = nested
    return found


def _from_text(text: str, kind: Any, variable: str) -> Any:
    if kind not in {list, dict}:
        return text
    if text.lstrip().startswith(("[", "{")):
        try:
            return parse_toml(f"value = {text}")["value"]
        except NotToml as error:
            raise ConfigError(f"{variable} is not valid TOML: {error}") from error
    items = [item.strip() for item in text.split(",") if item.strip()]
    if kind is list:
        return items
    pairs = [item.partition("=") for item in items]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"{variable} is not of the form key=value,key=value")
    return {key.strip(): value.strip() for key, _, value in pairs}


def load(
    model: type[M], path: Path | None, prefix: str, overrides: Mapping[str, Any] | None = None
) -> M:
    """Return the settings of a role: file, then environment, then ``overrides`` (flags)."""
    values: dict[str, Any] = {} if path is None else read_toml(path)
    merge(values, from_environment(model, prefix))
    merge(values, overrides or {})
    return validate(model, values, str(path) if path else f"settings ({prefix}_… and flags)")


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Lay ``values`` over ``into``, table by table."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """Return the path and the value of a ``a.b=value`` flag; the value is read as TOML.

    A value that is not TOML is taken as text, so that quotes are not needed on a command line.
    """
    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r} is not of the form key=value")
    try:
        return path, parse_toml(f"value = {value}")["value"]
    except NotToml:
        return path, value

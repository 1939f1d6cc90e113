"""Writes docs/run-settings.md: python -m tests.run_settings_page > docs/run-settings.md"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from fl_client.models.settings import TrainingSettings
from fl_server.runs.definition import RunDefinition
from runtime.records import Bounds
from tests.schema_text import type_text

_INTRO = """\
# Settings of a run

This page is written from the code by `python -m tests.run_settings_page`; a test compares the two.

`rengo run` takes every key by `--set KEY=VALUE`, as `rengo demo` does, or in a file by `--config`:

```toml
rounds = 20

[cohort]
size = 5
deadline_s = 300
```

What a run does not set is the default. A key that does not exist or a value that is not allowed is
refused before the run begins, with the key in the message.
"""
_ALGORITHM = """\
One of them is `algorithm.mu` of `fedprox`; `rengo algorithms NAME` lists those of an algorithm with
their defaults.
"""
_TRAINING = """\
A task declares how it is trained, and a run may set any of it otherwise. The default is the task's;
what the task does not declare either is here.
"""
_HEAD = ["| key | value | default | |", "| --- | --- | --- | --- |"]
_BOUNDS = {
    "least": "minimum",
    "above": "exclusiveMinimum",
    "most": "maximum",
    "below": "exclusiveMaximum",
}


def render() -> str:
    """Return the whole page."""
    schema = RunDefinition.model_json_schema()
    parts = [_INTRO, "## The run\n", _table(list(_rows(RunDefinition, schema, schema, "")))]
    for name, section in _sections():
        rows = [*_rows(section, schema["$defs"][section.__name__], schema, f"{name}.")]
        parts += [f"## `{name}`\n", f"{inspect.getdoc(section)}\n"]
        parts += [_ALGORITHM] if name == "algorithm" else []
        parts.append(_table(rows))
        if name == "algorithm":
            parts += ["## `training`\n", _TRAINING, _table([*_training_rows()])]
    return "\n".join(parts)


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the tables of a definition with their types."""
    for name, field in RunDefinition.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                yield name, kind


def _rows(
    model: type[BaseModel], part: dict[str, Any], schema: dict[str, Any], prefix: str
) -> Iterator[str]:
    """Yield a row for each key, tables left out."""
    meanings, tables = meanings_of(model), {name for name, _ in _sections()} | {"training"}
    for name, field in part["properties"].items():
        if not prefix and name in tables:
            continue
        default = "required" if name in part.get("required", ()) else _value(field.get("default"))
        yield _row(prefix + name, type_text(_present(field)), default, meanings[name])


def _present(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional field where it is there."""
    options = [each for each in field.get("anyOf", ()) if each.get("type") != "null"]
    return options[0] if options else field


def _training_rows() -> Iterator[str]:
    hints = get_type_hints(TrainingSettings, include_extras=True)
    meanings = meanings_of(TrainingSettings)
    for field in fields(TrainingSettings):
        text = type_text(_schema_of(hints[field.name]))
        yield _row(f"training.{field.name}", text, _value(field.default), meanings[field.name])


def _schema_of(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of an annotated number or of a choice."""
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    kind, bounds = get_args(hint)
    assert isinstance(bounds, Bounds)
    if get_origin(kind) is tuple:
        items = _schema_of(Annotated[get_args(kind)[0], Bounds()])
        return {"type": "array", "items": items, "maxItems": bounds.length}
    limits = {word: getattr(bounds, name) for name, word in _BOUNDS.items()}
    return {
        "type": {int: "integer", float: "number"}[kind],
        **{word: limit for word, limit in limits.items() if math.isfinite(limit)},
    }


def meanings_of(kind: type[Any]) -> dict[str, str]:
    """Return the docstring that stands below each field of a class, in one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[ast.unparse(field.target)] = " ".join(text.split())
    return found


def _row(key: str, value: str, default: str, meaning: str) -> str:
    return f"| `{key}` | {value} | {default} | {meaning} |"


def _table(rows: list[str]) -> str:
    return "\n".join([*_HEAD, *rows]) + "\n"


def _value(default: Any) -> str:
    if default is None:
        return ""
    return f"`{list(default) if isinstance(default, tuple) else default}`"


if __name__ == "__main__":
    print(render(), end="")

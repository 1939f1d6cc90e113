"""The types of a JSON schema in words, for the pages that are written from the code."""

from __future__ import annotations

from typing import Any

_NAMED = {r"^[a-z0-9_-]{1,64}$": "id", r"^[0-9a-f]{64}$": "64 hex digits"}


def type_text(field: dict[str, Any]) -> str:
    """Return a field of a JSON schema in words: its type and its bounds."""
    if "anyOf" in field:
        return " or ".join(type_text(option) for option in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']!r}`"
    if field.get("pattern") in _NAMED:
        return _NAMED[field["pattern"]]
    kind = field.get("type", "any")
    if field.get("format") == "binary":
        return f"bytes, up to {field['maxLength']}"
    match kind:
        case "null":
            return "nil"
        case "array":
            return f"list of {_inner(field['items'])}{_bounds(field)}"
        case "object":
            values = field.get("additionalProperties")
            inner = _inner(values) if isinstance(values, dict) else "any"
            return f"map of {inner}{_bounds(field)}"
    return f"{kind}{_bounds(field)}"


def _inner(field: dict[str, Any]) -> str:
    text = type_text(field)
    return f"({text})" if "," in text else text


def _bounds(field: dict[str, Any]) -> str:
    words = {
        "pattern": "matches `{}`",
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
        "maxLength": "up to {} characters",
        "maxItems": "up to {}",
        "maxProperties": "up to {} keys",
    }
    said = [text.format(field[key]) for key, text in words.items() if key in field]
    return f", {', '.join(said)}" if said else ""

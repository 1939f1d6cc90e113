"""Conditions on devices, as ``--where`` has them: ``profile=pi``, ``ram>=4GB``, ``lab!=a,b``. Pure.

A condition is a name, an operator and one value or several, of which any may hold::

    lab                 it has the label lab            !lab        it has not
    lab=a,b             its value is a or b             lab!=a      it is another, or there is none
    profile=pi*         * stands for any letters
    cpus>=4  ram>=4GB   numbers, and sizes with their unit
    accelerators>=1     how many there are              accelerators=*rtx*     one is named so
    version.torch>=2.4  versions, number by number

A name that is no attribute is a label; ``label.NAME`` is one always. Sizes within a tenth of each
other count as equal, since a machine keeps some of its memory for itself: a board of 4 GB says that
it has 3.98 GB. No text is ever evaluated as code.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from fl_server.selection.traits import DeviceTraits
from runtime.errors import ConfigError

Operator: TypeAlias = Literal["has", "lacks", "=", "!=", "<", "<=", ">", ">="]
Kind: TypeAlias = Literal["text", "number", "size", "names", "version", "label"]

MAX_CONDITION = 256
_ORDERED = frozenset({"<", "<=", ">", ">="})
_KINDS: dict[str, Kind] = {
    "id": "text",
    "kind": "text",
    "profile": "text",
    "engine": "text",
    "group": "text",
    "cpus": "number",
    "ram": "size",
    "accelerators": "names",
}
_OTHER_NAMES = {"cpu": "cpus", "memory": "ram", "accelerator": "accelerators"}
_UNITS: dict[str, int] = {"B": 1} | {
    f"{letter}{small}B": base**power
    for power, letter in enumerate("kMGT", start=1)
    for small, base in (("", 1000), ("i", 1024))
}
_UNIT_OF = {unit.lower(): unit for unit in _UNITS}
_CONDITION = re.compile(
    r"\s*(?P<not>!?)(?P<name>[A-Za-z][A-Za-z0-9_./-]{0,63})\s*"
    r"(?:(?P<op>!=|<=|>=|==|=|<|>)(?P<value>[^=<>!].*|))?"
)
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,5}")
_SAME_SIZE = 0.1


@dataclass(frozen=True)
class Condition:
    """One condition on a device.

    Attributes:
        values: as they were written, in its unit; empty for ``has`` and ``lacks``.
    """

    kind: Kind
    name: str
    operator: Operator
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        prefix = {"label": "label.", "version": "version."}.get(self.kind, "")
        mark = {"has": "", "lacks": "!"}.get(self.operator)
        if mark is not None:
            return f"{mark}{prefix}{self.name}"
        return f"{prefix}{self.name}{self.operator}{','.join(self.values)}"

    def misfit(self, device: DeviceTraits) -> str:
        """Return why the condition does not hold for a device, "" where it does."""
        return _MISFITS[self.kind](self, device)


# --- reading --------------------------------------------------------------------------------------


def parse(text: str) -> Condition:
    """Return the condition that a text says.

    Raises:
        ConfigError: it says none; names what is wrong and what comes nearest.
    """
    found = _CONDITION.fullmatch(text) if len(text) <= MAX_CONDITION else None
    if found is None:
        raise ConfigError(
            f"{text[:80]!r} is no condition; write one as profile=pi, ram>=4GB or lab=a,b"
        )
    kind, name = _named(found["name"], text)
    if found["op"] is None:
        return _bare(kind, name, text, is_not=bool(found["not"]))
    if found["not"]:
        raise ConfigError(
            f"{text!r}: ! stands before a label alone; write {name}!={found['value']}"
        )
    operator = _operator("=" if found["op"] == "==" else found["op"])
    values = tuple(value.strip() for value in found["value"].split(","))
    _check(Condition(kind, name, operator, values), text)
    return Condition(kind, name, operator, values)


def _operator(text: str) -> Operator:
    [operator] = [each for each in get_args(Operator) if each == text]
    found: Operator = operator
    return found


def _named(name: str, text: str) -> tuple[Kind, str]:
    """Return what kind of thing a name names; a name that is nearly an attribute's is refused."""
    for kind, prefix in (("label", "label."), ("version", "version.")):
        if name.startswith(prefix) and len(name) > len(prefix):
            named: Kind = "label" if kind == "label" else "version"
            return named, name[len(prefix) :]
    name = _OTHER_NAMES.get(name, name)
    if name in _KINDS:
        return _KINDS[name], name
    head, dot, rest = name.partition(".")
    known = ["label", "version"] if dot else list(_KINDS)
    near = difflib.get_close_matches(head.lower(), known, 1, cutoff=0.75)
    if near:
        raise ConfigError(
            f"{text!r}: there is no {name}; did you mean {near[0]}{dot}{rest}? "
            f"(A label is label.{name}.)"
        )
    return "label", name


def _bare(kind: Kind, name: str, text: str, *, is_not: bool) -> Condition:
    if kind not in {"label", "names"}:
        raise ConfigError(f"{text!r} compares {name} with nothing; write {name}=VALUE")
    return Condition(kind, name, "lacks" if is_not else "has")


def _check(condition: Condition, text: str) -> None:
    """Raise ConfigError where the values are not of the condition's kind."""
    name, operator, values = condition.name, condition.operator, condition.values
    if not all(values):
        raise ConfigError(f"{text!r} has an empty value")
    if operator in _ORDERED and len(values) > 1:
        raise ConfigError(f"{text!r}: {operator} takes one value")
    if condition.kind == "text" and operator in _ORDERED:
        raise ConfigError(f"{text!r}: {name} has no order; use = or !=")
    if condition.kind == "names" and operator not in _ORDERED:
        return
    must_be_number = condition.kind in {"number", "names"} or (
        condition.kind == "label" and operator in _ORDERED
    )
    for value in values:
        if condition.kind == "size":
            _bytes(value, text)
        elif condition.kind == "version" and _VERSION.fullmatch(value) is None:
            raise ConfigError(f"{text!r}: {value!r} is no version, as 2.4")
        elif must_be_number and _NUMBER.fullmatch(value) is None:
            raise ConfigError(f"{text!r}: {value!r} is no number")


def _bytes(value: str, text: str) -> float:
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ConfigError(f"{text!r}: {value!r} is no size, as 512MB or 4GiB")
    unit = _UNIT_OF.get(found[2].lower())
    if unit is None:
        near = difflib.get_close_matches(found[2].lower(), _UNIT_OF, 1)
        hint = f"did you mean {_UNIT_OF[near[0]]}?" if near else "as 512MB or 4GiB"
        what = f"no unit {found[2]}" if found[2] else f"{value} has no unit"
        raise ConfigError(f"{text!r}: {what}, {hint}")
    size: float = float(found[1]) * _UNITS[unit]
    return size


# --- what holds -----------------------------------------------------------------------------------


def _text(condition: Condition, device: DeviceTraits) -> str:
    if condition.name in {"id", "group"}:
        own: str | None = device.id if condition.name == "id" else device.group
    elif device.info is None:
        own = None
    elif condition.name == "kind":
        own = "domain" if device.info.is_domain else "device"
    else:
        own = str(getattr(device.info, condition.name))
    if own is None:
        return _UNKNOWN
    return _equality(condition, own)


def _equality(condition: Condition, own: str) -> str:
    equal = any(_is_like(value, own) for value in condition.values)
    if equal == (condition.operator == "="):
        return ""
    said = f"is {own[:64]}" if own else "is empty"
    return f"{condition.name} {said}" + ("" if equal else f", not {_or(condition.values)}")


def _label(condition: Condition, device: DeviceTraits) -> str:
    own, name = device.label(condition.name), condition.name
    if own is None and device.info is None:
        return _UNKNOWN
    match condition.operator:
        case "has":
            return "" if own is not None else f"has no label {name}"
        case "lacks":
            return "" if own is None else f"has the label {name}"
        case "!=" if own is None:
            return ""
    if own is None:
        return f"has no label {name}"
    if condition.operator not in _ORDERED:
        return _equality(condition, own)
    if _NUMBER.fullmatch(own) is None:
        return f"{name} is {own[:64]}, no number"
    return _comparison(condition, [_sign(float(own), float(condition.values[0]))], own)


def _number(condition: Condition, device: DeviceTraits) -> str:
    if device.info is None:
        return _UNKNOWN
    cpus = device.info.cpus
    return _comparison(condition, [_sign(cpus, float(v)) for v in condition.values], f"{cpus}")


def _names(condition: Condition, device: DeviceTraits) -> str:
    if device.info is None:
        return _UNKNOWN
    there = device.accelerators
    match condition.operator:
        case "has":
            return "" if there else "has no accelerators"
        case "lacks":
            return f"has accelerators: {len(there)}" if there else ""
        case "=" | "!=":
            some = any(_is_like(value, name) for value in condition.values for name in there)
            shown = ", ".join(there)[:200] or "none"
            return "" if some == (condition.operator == "=") else f"accelerators are {shown}"
    signs = [_sign(len(there), float(value)) for value in condition.values]
    return _comparison(condition, signs, f"{len(there)}")


def _size(condition: Condition, device: DeviceTraits) -> str:
    if device.info is None:
        return _UNKNOWN
    own = float(device.info.ram_bytes)
    sizes = [_bytes(value, value) for value in condition.values]
    signs = [0 if abs(own - each) <= _SAME_SIZE * each else _sign(own, each) for each in sizes]
    return _comparison(condition, signs, f"{own / 1e9:.3g} GB")


def _version(condition: Condition, device: DeviceTraits) -> str:
    if device.info is None:
        return _UNKNOWN
    own = device.info.versions.get(condition.name)
    if own is None:
        return "" if condition.operator == "!=" else f"has no {condition.name}"
    numbers, signs = _numbers(own), []
    for wanted in map(_numbers, condition.values):
        # 2.4 is every 2.4.x: as many numbers are compared as were written
        signs.append(_sign((*numbers, *(0,) * len(wanted))[: len(wanted)], wanted))
    return _comparison(condition, signs, own[:64], f"version.{condition.name}")


def _comparison(condition: Condition, signs: Sequence[int], shown: str, name: str = "") -> str:
    """Return why a condition does not hold, "" where it does.

    Args:
        signs: of what the device has, against each value: -1 is less, 0 equal, 1 more.
        shown: what the device has.
        name: of what is compared, where it is not the condition's.
    """
    holds = [_HOLDS[condition.operator](sign) for sign in signs]
    if all(holds) if condition.operator == "!=" else any(holds):
        return ""
    has = f"{name or condition.name} is {shown}"
    if condition.operator == "!=":
        return has
    operator = "" if condition.operator == "=" else f"{condition.operator} "
    return f"{has}, not {operator}{_or(condition.values)}"


def _or(values: Sequence[str]) -> str:
    return " or ".join(values)


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, without what follows them in 2.10.0+cpu or 0.4rc1."""
    found = _VERSION.match(version)
    return () if found is None else tuple(int(part) for part in found[0].split("."))


def _sign(own: Any, wanted: Any) -> int:
    return int(own > wanted) - int(own < wanted)


def _is_like(pattern: str, text: str) -> bool:
    """Whether a text is what a pattern says, in which * stands for any letters; case is no matter.

    >>> _is_like("pi*", "pi4"), _is_like("*rtx*", "cuda:0 NVIDIA RTX A5000"), _is_like("pi", "pi4")
    (True, True, False)
    """
    first, *others = pattern.lower().split("*")
    text = text.lower()
    if not others:
        return text == first
    *middle, last = others
    if not text.startswith(first):
        return False
    at = len(first)
    for piece in middle:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return len(text) - at >= len(last) and text.endswith(last)


_UNKNOWN = "has not said what it is"
_HOLDS: dict[str, Callable[[int], bool]] = {
    "=": lambda sign: sign == 0,
    "!=": lambda sign: sign != 0,
    "<": lambda sign: sign < 0,
    "<=": lambda sign: sign <= 0,
    ">": lambda sign: sign > 0,
    ">=": lambda sign: sign >= 0,
}
_MISFITS: dict[Kind, Callable[[Condition, DeviceTraits], str]] = {
    "text": _text,
    "label": _label,
    "number": _number,
    "names": _names,
    "size": _size,
    "version": _version,
}

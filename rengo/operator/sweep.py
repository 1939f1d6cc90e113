"""The runs of an experiment: every combination of swept settings, each with every seed. Pure."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.config import NotToml, merge, parse_assignment, parse_toml
from runtime.errors import ConfigError

MAX_RUNS = 1000


@dataclass(frozen=True)
class SweptKey:
    """A setting and the values that it takes, as they were given."""

    key: str
    values: tuple[tuple[str, Any], ...]

    @classmethod
    def parse(cls, text: str) -> SweptKey:
        """Return ``key=a,b,c`` read.

        >>> SweptKey.parse("algorithm.mu=0,0.1").values
        (('0', 0), ('0.1', 0.1))

        Raises:
            ConfigError: it is not of that form, or has a value twice.
        """
        key, _, values = text.partition("=")
        parts = _parts(values)
        if not key.strip() or not all(parts) or len(parts) < 1:
            raise ConfigError(f"--sweep {text!r} is not of the form key=a,b,c")
        if len(set(parts)) < len(parts):
            raise ConfigError(f"--sweep {text!r} has a value twice")
        if key.strip() in {"seed", "group", "variant", "task"}:
            instead = "; --seeds N gives several" if key.strip() == "seed" else ""
            raise ConfigError(f"--sweep {text!r}: {key.strip()} is not swept{instead}")
        return cls(
            key.strip(), tuple((each, parse_assignment(f"{key}={each}")[1]) for each in parts)
        )

    def setting(self, value: Any) -> dict[str, Any]:
        """Return the key's setting to one value, as nested tables."""
        nested: Any = value
        for part in reversed(self.key.split(".")):
            nested = {part: nested}
        found: dict[str, Any] = nested
        return found


def definitions(
    base: Mapping[str, Any], sweeps: Sequence[SweptKey], seeds: int, group: str
) -> list[dict[str, Any]]:
    """Return the definition of each run of the experiment, the seeds of a variant side by side.

    Args:
        base: the definition without what is swept; the seeds count up from its own.
        seeds: how many runs each variant has.

    Raises:
        ConfigError: a key is swept twice, or there would be too many runs.
    """
    keys = [sweep.key for sweep in sweeps]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"a key is swept twice: {', '.join(keys)}")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least 1")
    first = base.get("seed", 0)
    if not isinstance(first, int):
        raise ConfigError(f"seed {first!r} is no whole number")
    found: list[dict[str, Any]] = []
    for chosen in itertools.product(*(sweep.values for sweep in sweeps)):
        pairs = list(zip(sweeps, chosen, strict=True))
        variant = ", ".join(f"{sweep.key}={text}" for sweep, (text, _) in pairs)
        for seed in range(first, first + seeds):
            if len(found) == MAX_RUNS:
                raise ConfigError(f"more than {MAX_RUNS} runs")
            definition = copy.deepcopy(dict(base))
            for sweep, (_, value) in pairs:
                merge(definition, sweep.setting(value))
            found.append({**definition, "seed": seed, "group": group, "variant": variant})
    return found


def _parts(values: str) -> list[str]:
    """Return the texts between commas that are in no brackets."""
    try:
        parse_toml(f"value = [{values}]")
    except NotToml:
        return [part.strip() for part in values.split(",")]
    return [part.strip() for part in _split(values)]


def _split(values: str) -> Iterator[str]:
    depth, part, quote = 0, "", ""
    for letter in values:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if letter == "," and not depth and not quote:
            yield part
            part = ""
        else:
            part += letter
    yield part

"""Reads examples from CSV files that another program appends to."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from fl_client.datasets.sample import BadSample, NoData, Sample, SampleReader
from fl_client.datasets.settings import CsvSource, DataSettings
from runtime.errors import ConfigError, Unavailable


def newest_first(
    source: CsvSource, settings: DataSettings, refused: Counter[str]
) -> Iterator[Sample]:
    """Yield the examples, the last line first; of a folder, the newest file first.

    An incomplete last line is ignored until it is complete; an unusable line is counted.

    Raises:
        NoData: there is no such file or folder.
        ConfigError: a column that the settings name is not there.
        Unavailable: the disk failed.
    """
    reader = SampleReader(source, settings.classes, textual=True)
    for path in _newest_files(source.path):
        newest: deque[Sample] = deque(maxlen=settings.store.max_examples)
        try:
            newest.extend(_samples(path, source, reader, refused))
        except FileNotFoundError:
            continue  # removed by log rotation
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
        while newest:
            yield newest.pop()


def _newest_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise NoData(f"{path} is not there")
    return sorted(path.glob("*.csv"), key=lambda each: (each.stat().st_mtime_ns, each.name))[::-1]


def _samples(
    path: Path, source: CsvSource, reader: SampleReader, refused: Counter[str]
) -> Iterator[Sample]:
    with path.open("r", encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(_whole_lines(file), delimiter=source.delimiter)
        header = next(rows, None)
        if header is None:
            return
        _require_columns(path, header, source)
        while True:
            try:
                row = next(rows)
                if len(row) != len(header):
                    raise BadSample(f"a line of {path} has another number of columns", "length")
                yield reader.read(dict(zip(header, row, strict=True)))
            except StopIteration:
                return
            except csv.Error:
                refused["csv"] += 1
            except BadSample as error:
                refused[error.reason] += 1


def _whole_lines(file: TextIO) -> Iterator[str]:
    for line in file:
        if line.endswith(("\n", "\r")):
            yield line


def _require_columns(path: Path, header: list[str], source: CsvSource) -> None:
    named = [feature.name for feature in source.features]
    named += [name for name in (source.label, source.id, source.group, source.time) if name]
    missing = [name for name in named if name not in header]
    if missing:
        raise ConfigError(
            f"{path} has no column {', '.join(missing)}; its columns are: {', '.join(header)}"
        )
    twice = sorted({name for name in named if header.count(name) > 1})
    if twice:
        raise ConfigError(f"{path} has more than one column {', '.join(twice)}: rename all but one")

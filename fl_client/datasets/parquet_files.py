"""Reads examples from Parquet files, and from Arrow files such as Hugging Face's `datasets` writes.

Only this source needs pyarrow.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_client.datasets.pictures import read_picture
from fl_client.datasets.sample import BadSample, NoData, Sample, SampleReader, digest
from fl_client.datasets.settings import DataSettings, ParquetSource
from runtime.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    import pyarrow as pa

_ENDINGS = (".parquet", ".arrow")
_ROWS_AT_ONCE = 256


def newest_first(
    source: ParquetSource, settings: DataSettings, refused: Counter[str]
) -> Iterator[Sample]:
    """Yield the examples, the last row first; of a folder, the newest file first.

    A file that cannot be read (incomplete, damaged) is counted and skipped, and tried again the
    next time; so is an unusable row.

    Raises:
        NoData: there is no such file or folder.
        ConfigError: pyarrow is not installed, or a column that the settings name is not there.
        Unavailable: the disk failed.
    """
    read = _reader(source, settings)
    for path in _newest_files(source.path):
        try:
            for row in _rows(path, source):
                try:
                    yield read(row)
                except BadSample as error:
                    refused[error.reason] += 1
        except BadSample as error:
            refused[error.reason] += 1


class _Pictures:
    """Turns rows into samples whose features are pictures."""

    def __init__(self, source: ParquetSource, settings: DataSettings) -> None:
        self._source = source
        # the label and the group are read as those of any record
        schema = source.model_copy(update={"features": []})
        self._records = SampleReader(schema, settings.classes)

    def __call__(self, row: Mapping[str, Any]) -> Sample:
        value = row[self._source.picture]
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(content, bytes):
            raise BadSample(f"{self._source.picture} holds no picture", "missing")
        try:
            picture = read_picture(io.BytesIO(content), self._source.picture, self._source)
        except (OSError, ValueError, SyntaxError) as error:
            raise BadSample(f"{self._source.picture}: {error}", "unreadable") from error
        others = {name: row[name] for name in row if name != self._source.picture}
        found = self._records.read(others)
        identity = found.id if self._source.id else digest("content", content)
        return Sample(identity, found.group, found.label, picture)


def _reader(source: ParquetSource, settings: DataSettings) -> Any:
    if source.picture:
        return _Pictures(source, settings)
    return SampleReader(source, settings.classes).read


def _newest_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise NoData(f"{path} is not there")
    found = []
    for each in path.rglob("*"):
        if each.suffix in _ENDINGS and not each.name.startswith("."):
            try:
                found.append((each.stat().st_mtime_ns, each))
            except FileNotFoundError:
                continue  # just removed
    return [each for _, each in sorted(found, reverse=True)]


def _rows(path: Path, source: ParquetSource) -> Iterator[Mapping[str, Any]]:
    """Yield a file's rows as records, the last first."""
    try:
        import pyarrow as pa  # noqa: PLC0415  (optional, only for this source)
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs `pip install pyarrow`") from error
    try:
        for table in _tables(path, _columns(source)):
            for start in reversed(range(0, table.num_rows, _ROWS_AT_ONCE)):
                rows = table.slice(start, _ROWS_AT_ONCE).to_pylist()
                yield from (_plain(row) for row in reversed(rows))
    except FileNotFoundError:
        return  # just removed
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        raise BadSample(f"{path} cannot be read: {error}", "unreadable") from error
    except OSError as error:
        if error.errno is None:
            # what pyarrow says of a damaged page
            raise BadSample(f"{path} cannot be read: {error}", "unreadable") from error
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error


def _tables(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Yield a file's parts, the last first: what is in memory at a time is one of them."""
    import pyarrow as pa  # noqa: PLC0415  see above
    from pyarrow import ipc, parquet  # noqa: PLC0415

    if path.suffix != ".arrow":
        with parquet.ParquetFile(path) as file:
            _require_columns(path, file.schema_arrow.names, columns)
            for number in reversed(range(file.num_row_groups)):
                yield file.read_row_group(number, columns)
        return
    # mapped: batches are views of the file
    with pa.memory_map(str(path)) as mapped:
        head = mapped.read(6)
        mapped.seek(0)
        opened = ipc.open_file(mapped) if head == b"ARROW1" else ipc.open_stream(mapped)
        table = opened.read_all()
        _require_columns(path, table.schema.names, columns)
        yield table.select(columns)


def _columns(source: ParquetSource) -> list[str]:
    named = [source.picture, *(feature.name for feature in source.features)]
    named += [source.label, source.id, source.group, source.time]
    return list(dict.fromkeys(name for name in named if name))


def _require_columns(path: Path, there: list[str], columns: list[str]) -> None:
    missing = [name for name in columns if name not in there]
    if missing:
        raise ConfigError(
            f"{path} has no column {', '.join(missing)}; its columns are: {', '.join(there)}"
        )


def _plain(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record whose times are text, as in other sources."""
    return {
        name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()
    }

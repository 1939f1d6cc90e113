"""The registry's documents as last read from the store, so that a start reads only a few again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from fl_server.persistence.database import Database, sa
from storage.registry.scan import Document

SCHEMA_VERSION = 1
# how many values one statement names: SQLite took 999 at most until 2020
_BATCH = 500
_metadata = sa.MetaData()
_documents = sa.Table(
    "rengo_documents",
    _metadata,
    sa.Column("key", sa.String(512), primary_key=True),
    sa.Column("etag", sa.String(256), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)


class DocumentTable:
    """A ``storage.registry.scan.DocumentCache`` in the server's database. Any thread may call it.

    Raises:
        JournalUnusable: another version of Rengo wrote it.
        JournalError: as every method.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        database.prepare(_metadata, "documents_version", SCHEMA_VERSION)

    def get(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """See :meth:`storage.registry.scan.DocumentCache.get`."""
        found: dict[str, bytes] = {}
        with self._database.begin() as connection:
            for keys in _batches(wanted):
                query = sa.select(_documents).where(_documents.c.key.in_(keys))
                for key, etag, data in connection.execute(query):
                    if wanted[key] == etag:
                        found[key] = bytes(data)
        return found

    def put(self, documents: Iterable[Document]) -> None:
        """See :meth:`storage.registry.scan.DocumentCache.put`."""
        rows = {
            each.key: {"key": each.key, "etag": each.etag, "data": each.data} for each in documents
        }
        with self._database.begin() as connection:
            for keys in _batches(rows):
                connection.execute(sa.delete(_documents).where(_documents.c.key.in_(keys)))
                connection.execute(sa.insert(_documents), [rows[key] for key in keys])

    def forget(self, keys: Iterable[str]) -> None:
        """See :meth:`storage.registry.scan.DocumentCache.forget`."""
        with self._database.begin() as connection:
            for batch in _batches(keys):
                connection.execute(sa.delete(_documents).where(_documents.c.key.in_(batch)))


def _batches(keys: Iterable[str]) -> Iterator[Sequence[str]]:
    rest = iter(keys)
    while batch := list(islice(rest, _BATCH)):
        yield batch

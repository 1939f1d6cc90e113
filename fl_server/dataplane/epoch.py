"""The server's epoch in the store as well: a server whose journal is lost must not go below."""

from __future__ import annotations

import logging
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from runtime.bounds import MAX_TOTAL
from runtime.errors import NotFound, StorageError, Unavailable
from runtime.retry import retrying
from storage.store.objects import ObjectStore
from storage.versions.keys import epoch_key

_MOST_BYTES = 1024
_LOG = logging.getLogger(__name__)
_PATIENCE = retrying((Unavailable,), attempts=3, total_s=5.0)


class _EpochDocument(BaseModel):
    # far below what a message holds, so that there is room for later ones
    epoch: Annotated[int, Field(ge=0, le=MAX_TOTAL // 2)]


class StoredEpoch:
    """One project's object. Blocks.

    A server starts without it too: it matters only where the journal is lost.
    """

    def __init__(self, store: ObjectStore, project: str) -> None:
        self._store = store
        self._key = epoch_key(project)

    def read(self) -> int:
        """Return the epoch that the store has seen, 0 where there is none that can be read."""
        try:
            return _PATIENCE(self._read)
        except NotFound:
            return 0
        except (StorageError, ValidationError) as error:
            _LOG.warning("the epoch in the store cannot be read (%s): %s", self._key, error)
            return 0

    def _read(self) -> int:
        with self._store.open(self._key) as stream:
            return _EpochDocument.model_validate_json(stream.read(_MOST_BYTES)).epoch

    def write(self, epoch: int) -> None:
        """Replace it."""
        document = _EpochDocument(epoch=epoch).model_dump_json().encode()
        try:
            _PATIENCE(self._store.put, self._key, document)
        except StorageError as error:
            _LOG.warning("the epoch cannot be written to the store (%s): %s", self._key, error)

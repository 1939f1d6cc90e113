"""The versions that a run goes on from: fetched, and put back where the store has lost one."""

from __future__ import annotations

import logging
from pathlib import Path

from fl_server.aggregation.model_cache import ModelCache
from fl_server.rounds.model import Model
from runtime.errors import Corrupt, NotFound
from storage.store.objects import Objects
from storage.store.serving import damage_told
from storage.weights import Layout, read_layout

_LOG = logging.getLogger(__name__)


class BaseLost(Corrupt):
    """What the run goes on from is not in the store any more, or not as it was."""


class BaseModels:
    """The base of each round of one run.

    Attributes:
        copies: local copies of versions.
    """

    def __init__(self, copies: ModelCache, store: Objects) -> None:
        self.copies = copies
        self._store = store
        self._layouts: dict[str, Layout] = {}

    def layout(self, base: Model) -> Layout:
        """Return the layout of a version, from its local copy; raises as ``fetch`` does."""
        layout = self._layouts.get(base.sha256)
        if layout is None:
            with self.fetch(base).open("rb") as file:
                layout, _ = read_layout(file)
            self._layouts = {base.sha256: layout}
        return layout

    def fetch(self, model: Model) -> Path:
        """Return a local copy; where the store gives other bytes, they are asked for once more.

        Raises:
            BaseLost: the store does not have it as it was committed.
            Unavailable: the store cannot be reached now; try again.
        """
        try:
            return self.copies.fetch(model)
        except Corrupt as error:
            _LOG.warning("%s; it is fetched again", error)
        except NotFound as error:
            raise BaseLost(str(error)) from error
        try:
            return self.copies.fetch(model)
        except (NotFound, Corrupt) as error:
            raise BaseLost(str(error)) from error

    def require_stored(self, model: Model) -> None:
        """Return when devices can fetch a version; what the store has lost is put back.

        Raises:
            BaseLost: there is no whole copy here.
            Unavailable: the store cannot be reached now; try again.
        """
        try:
            damage_told(self._store, lambda: self.copies.verify(model))
        except (NotFound, Corrupt) as error:
            if not self.copies.has(model):
                raise BaseLost(str(error)) from error
            _LOG.warning("%s: put back from the server's own copy", error)
            with self.copies.fetch(model).open("rb") as file:
                self._store.put(model.key, file, model.size_bytes)

    def forget(self) -> None:
        """Remove every local copy."""
        self.copies.forget()

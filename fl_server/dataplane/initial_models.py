"""Where runs begin: version 0, which a submitter uploaded or another run has made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fl_server.aggregation.model_cache import ModelCache
from fl_server.dataplane.uploads import Uploads
from fl_server.dataplane.workers import Done, Workers
from fl_server.rounds.model import Model
from fl_server.runs.record import PreparedRun
from runtime.errors import ConfigError, Corrupt
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore
from storage.store.serving import is_serving
from storage.versions.keys import RunKeys
from storage.weights import read_layout, require_finite, stored_size


class InitialModels(Workers):
    """The byte work of runs that begin; see :class:`fl_server.dataplane.plane.DataPlane`."""

    def __init__(
        self,
        store: ObjectStore,
        registry: ModelRegistry,
        folder: Path,
        post: Callable[[Done], None],
    ) -> None:
        super().__init__(post, lambda: is_serving(store))
        self.store = store
        self.registry = registry
        self.uploads = Uploads(store)
        self._folder = folder

    def keys(self, run_id: str) -> RunKeys:
        """Return the keys of a run."""
        return RunKeys(self.registry.project, run_id)

    def check_initial(self, run_id: str, model: Model) -> None:
        """Return when version 0 is in the store and can be trained; store a local copy. Blocks.

        Raises:
            NotFound, Corrupt: it is not there, or not what was promised.
            ConfigError: there is nothing in it to train.
            NotFinite: it has values that are not finite.
        """
        size = self.store.head(model.key).size
        if size != model.size_bytes:
            raise Corrupt(f"{model.key} has {size} bytes, expected {model.size_bytes}")
        models = self._models_of(run_id)
        try:
            with models.fetch(model).open("rb") as file:
                layout, _ = read_layout(file)
            if stored_size(layout) != size:
                raise Corrupt(f"{model.key} has {size} bytes, its tensors end elsewhere")
            if layout.size == 0:
                raise ConfigError("the model has no float parameters to train")
            with models.fetch(model).open("rb") as file:
                require_finite(file, "version 0")
            self.uploads.abort(model.key)
        except BaseException:
            models.forget()
            raise

    def adopt_version(self, source: Model, run_id: str) -> Model:
        """Return a version of another run as version 0 of this one, with its server state. Blocks.

        Both are copied, so that nothing which is done with the other run touches this one.

        Raises:
            NotFound, Corrupt: the version or its state is not there, or not what was committed.
        """
        keys = self.keys(run_id)
        size = self._copy(run_id, source, keys.version(0))
        model = replace(source, version=0, key=keys.version(0), size_bytes=size, changed=None)
        if source.state is not None:
            size = self._copy(run_id, source.state, keys.state(0))
            model = replace(model, state_key=keys.state(0), state_bytes=size)
        self.check_initial(run_id, model)
        return model

    def _copy(self, run_id: str, source: Model, key: str) -> int:
        """Copy an object that is what it should be; return its size."""
        with self._models_of(run_id).fetch(source).open("rb") as file:
            return self.store.put(key, file).size

    def discard_prepared(self, prepared: PreparedRun) -> None:
        """Leave nothing of a run that nobody submitted."""
        awaited, keys = prepared.awaited, self.keys(prepared.run_id)
        self.discard(awaited.key)
        self.discard(keys.state(0))
        self._models_of(prepared.run_id).forget()
        if self.uploads.is_large(awaited.size_bytes):
            self.in_order(lambda: self.uploads.abort_all(keys))

    def forget_copies(self, run_id: str) -> None:
        """Remove the local copies of a run's models, after the run's earlier work."""
        self.in_order(self._models_of(run_id).forget, run_id)

    def _models_of(self, run_id: str) -> ModelCache:
        return ModelCache(self._folder / run_id, self.store)

    def discard(self, key: str) -> None:
        """Delete one object in the background."""
        self.in_order(lambda: self.store.delete([key]))

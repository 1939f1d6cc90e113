"""What an operator can do with a run that has ended: go on from its last version, in a new run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from algorithms.base import Algorithm
from algorithms.registry import load as load_algorithm
from fl_server.operations import catalogue
from fl_server.operations.arguments import Extension
from fl_server.operations.call import Binding, Call, Deferred
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers.runs import RunOperations, run_id_of
from fl_server.operations.results.runs import RunStarted
from fl_server.rounds.facts import RoundCommitted
from fl_server.rounds.model import Model
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import AwaitedModel, PreparedRun
from runtime.errors import ConfigError, NotFound
from storage.versions.manifest import Manifest, Parent


class ExtensionOperations:
    """The operation that goes on where a run ended.

    It makes a new run of the same definition: its version 0 is the ended run's last version, with
    the server state that belongs to that. What devices keep for the ended run is not carried over.

    Args:
        runs: prepares and starts runs.
    """

    def __init__(self, context: OperationsContext, runs: RunOperations) -> None:
        self._context = context
        self._runs = runs

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries out each operation."""
        return (Binding(catalogue.RUNS_EXTEND, self.runs_extend),)

    def runs_extend(self, wanted: Extension, call: Call) -> RunStarted | Deferred[RunStarted]:
        """Start a run that goes on from the last version of one that has ended.

        The new run's id follows from the request's salt, which is written with the preparation; so
        a request that comes again goes on with the same run.
        """
        before = self._ended(wanted.run_id)
        manifest = self._last_version(wanted.run_id)
        run_id = run_id_of(manifest.task, call)
        runs = self._context.runs
        if run_id in runs.flows or runs.history.has(run_id):
            return RunStarted(run_id=run_id)
        if not call.repeated:
            definition = self._definition(before, wanted, manifest)
            key = self._context.data.keys(run_id).version(0)
            awaited = AwaitedModel(key, manifest.size_bytes)
            with call.identified():
                self._runs.prepare(PreparedRun(run_id, definition, awaited))
        prepared, data = self._runs.prepared(run_id), self._context.data
        source = self._model(before, manifest)
        return Deferred(
            lambda: data.adopt_version(source, run_id),
            lambda model: self._runs.start(prepared, model, call),
        )

    def _ended(self, run_id: str) -> RunDefinition:
        """Return the definition of a run in rounds that has ended."""
        definition = self._context.runs.definition(run_id)
        if definition is None:
            raise NotFound(f"no run {run_id!r}; `rengo runs ls` lists them")
        if definition.flow != "sync":
            raise ConfigError(f"run {run_id} is of kind {definition.flow}, and has no rounds")
        if self._runs.is_needed(run_id):
            raise ConfigError(f"run {run_id} has not ended: let it end or stop it first")
        return definition

    def _last_version(self, run_id: str) -> Manifest:
        versions = self._context.models.versions(run_id)
        last = max(versions, key=lambda version: version.manifest.version, default=None)
        if last is None:
            raise ConfigError(f"run {run_id} has no version to go on from")
        return last.manifest

    def _model(self, before: RunDefinition, manifest: Manifest) -> Model:
        """Return a version with all of the algorithm's server state.

        Its scalars stand in the facts alone.
        """
        for row in self._context.journal.facts(manifest.run_id, before.flow):
            if isinstance(row.fact, RoundCommitted) and row.fact.round == manifest.version:
                return row.fact.model
        algorithm = load_algorithm(before.algorithm.name, before.algorithm.settings)
        if manifest.version and type(algorithm).advance is not Algorithm.advance:
            raise ConfigError(
                f"what run {manifest.run_id} did is no longer kept, and with it a part of the "
                f"algorithm's server state; a new run begins with its model by --from "
                f"{manifest.run_id}"
            )
        state = (manifest.state_key, manifest.state_sha256)
        return Model(manifest.version, manifest.key, manifest.sha256, manifest.size_bytes, *state)

    def _definition(
        self, before: RunDefinition, wanted: Extension, manifest: Manifest
    ) -> RunDefinition:
        parent = Parent(run_id=manifest.run_id, version=manifest.version, sha256=manifest.sha256)
        schedule = before.schedule
        changed = {
            "rounds": wanted.rounds,
            "seed": _seed(before.seed, manifest),
            "models": before.models.model_copy(update={"parent": parent}),
            "schedule": schedule.model_copy(update={"after": schedule.after + manifest.version}),
        }
        # a copy is not validated, and the rounds are new
        definition = RunDefinition.model_validate(
            before.model_copy(update=changed).model_dump(exclude_defaults=True)
        )
        self._context.runs.check(definition)
        return definition


def _seed(before: int, manifest: Manifest) -> int:
    """Return a seed by which cohorts and batches do not repeat those of the run before."""
    text = f"{before}/{manifest.run_id}/{manifest.version}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

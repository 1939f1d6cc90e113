"""What each committed version was made from: what a manifest needs of a run's facts."""

from __future__ import annotations

from dataclasses import dataclass

from fl_server.rounds.facts import (
    Fact,
    RequestFailed,
    RoundAbandoned,
    RoundCommitted,
    RoundOpened,
    UpdateAccepted,
    UpdateWithdrawn,
)
from fl_server.rounds.model import Model
from fl_server.rounds.plan import Plan
from fl_server.runs.record import RunRecord
from runtime.bounds import total
from storage.versions.manifest import MAX_COHORT, Manifest, Parent


@dataclass(frozen=True)
class Commit:
    """A committed version and its making.

    Attributes:
        attempt: the round's attempt that was committed; 0 for version 0.
        examples: the included devices with their numbers of examples.
    """

    model: Model
    attempt: int
    parent: Parent | None
    examples: dict[str, int]


class Lineage:
    """A run's latest commit.

    Attributes:
        latest: version 0 until a round was committed.
    """

    def __init__(self, record: RunRecord[Plan]) -> None:
        self.latest = Commit(record.initial, 0, record.definition.models.parent, {})
        self._run_id = record.run_id
        self._accepted: dict[str, int] = {}
        self._base = record.initial

    def apply(self, fact: Fact) -> Commit | None:
        """Apply the next fact; return the commit that it made, if it made one."""
        match fact:
            case RoundOpened():
                self._base = fact.base
            case UpdateAccepted():
                self._accepted[fact.device_id] = fact.update.num_examples
            case UpdateWithdrawn():
                del self._accepted[fact.device_id]
            case RoundAbandoned() | RequestFailed():
                self._accepted = {}
            case RoundCommitted():
                self.latest = Commit(fact.model, fact.attempt, self._parent(), self._accepted)
                self._accepted, self._base = {}, fact.model
                return self.latest
        return None

    def _parent(self) -> Parent | None:
        """Return the version that the round began with, None where it is no version of this run."""
        before = self.latest.model
        if self._base.sha256 != before.sha256:
            return None
        return Parent(run_id=self._run_id, version=before.version, sha256=before.sha256)


def manifest_of(
    record: RunRecord[Plan], commit: Commit, *, project: str, layout_hash: str, created_ms: int
) -> Manifest:
    """Return the manifest of a version."""
    definition, model = record.definition, commit.model
    cohort = sorted(commit.examples)
    return Manifest(
        project=project,
        run_id=record.run_id,
        version=model.version,
        attempt=commit.attempt,
        task=definition.task,
        algorithm=definition.algorithm.name,
        algorithm_settings=definition.algorithm.settings,
        training=definition.training,
        seed=definition.seed,
        parent=commit.parent,
        cohort=cohort[:MAX_COHORT],
        cohort_size=len(cohort),
        num_examples=total(commit.examples.values()),
        key=model.key,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        layout_hash=layout_hash,
        state_key=model.state_key,
        state_sha256=model.state_sha256,
        changed=None if model.changed is None else list(model.changed),
        created_ms=created_ms,
    )

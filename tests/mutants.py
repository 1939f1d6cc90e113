"""Planted bugs: small patches of the two machines' source, applied in memory.

Each must be found, by the stateful suite or by the world, or a suite has gone blind. A patch
whose anchor no longer stands in the source exactly once fails loudly.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from fl_client.session import machine as real_session
from fl_client.session.machine import DeviceSession
from fl_server.rounds import best as real_best
from fl_server.rounds import evaluation as real_evaluation
from fl_server.rounds import gathering as real_gathering
from fl_server.rounds import ledger as real_state
from fl_server.rounds import machine as real_rounds
from fl_server.rounds import roster as real_roster
from fl_server.rounds import updates as real_updates
from fl_server.rounds.machine import RoundMachine

# the modules of the round machine's parts, and the class that is each one's interface
PARTS = {
    real_state: "Ledger",
    real_best: "BestVersion",
    real_evaluation: "VersionEvaluation",
    real_gathering: "Gathering",
    real_roster: "Roster",
    real_updates: "UpdateIntake",
}


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        module: the module whose source is patched.
        patches: what stands in it -> what stands there instead.
        in_world: whether the world has to find it.
    """

    name: str
    module: types.ModuleType
    patches: Mapping[str, str] = field(hash=False)
    in_world: bool = True

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    def machine(self) -> type[RoundMachine]:
        """Return the round machine with the bug."""
        if self.module is real_session:
            return RoundMachine
        if self.module is real_rounds:
            found: type[RoundMachine] = load_patched(self)["RoundMachine"]
            return found
        whole = load_patched(Mutant("a part of it", real_rounds, {}))
        part = PARTS[self.module]
        whole[part] = load_patched(self)[part]
        replaced: type[RoundMachine] = whole["RoundMachine"]
        return replaced

    def session(self) -> type[DeviceSession]:
        """Return the device session with the bug."""
        if self.module is not real_session:
            return DeviceSession
        names = load_patched(self)
        names.update({k: v for k, v in vars(real_session).items() if k != "DeviceSession"})
        found: type[DeviceSession] = names["DeviceSession"]
        return found


def load_patched(mutant: Mutant) -> dict[str, Any]:
    """Return the names of the patched module."""
    source = inspect.getsource(mutant.module)
    for old, new in mutant.patches.items():
        if source.count(old) != 1:
            pytest.fail(f"mutant {mutant.name!r}: its anchor stands {source.count(old)} times")
        source = source.replace(old, new)
    module = types.ModuleType(mutant.module.__name__)
    exec(compile(source, f"<{mutant.name}>", "exec"), module.__dict__)
    return module.__dict__


ROUND_MUTANTS = [
    Mutant(
        "accepts while aggregating",
        real_state,
        {
            'return self.phase == "collecting" and (round_number, attempt)': (
                'return self.phase in {"collecting", "aggregating"} and (round_number, attempt)'
            )
        },
    ),
    Mutant(
        "counts a duplicate",
        real_updates,
        {"if counted is not None:": "if False:"},
    ),
    Mutant(
        "timers forget the attempt",
        real_rounds,
        {
            "if (event.round, event.attempt) != (ledger.round, ledger.attempt):": (
                "if event.round != ledger.round:"
            )
        },
    ),
    Mutant(
        "closes below the quorum",
        real_rounds,
        {
            "enough = len(ledger.accepted) >= self.plan.quorum": (
                "enough = len(ledger.accepted) >= self.plan.quorum - 1"
            )
        },
    ),
    Mutant(
        "arms no deadline at resume",
        real_rounds,
        {
            'case "collecting":\n                self._arm_collecting(step)\n': (
                'case "collecting":\n'
            )
        },
    ),
    Mutant(
        "drops the receipt of a duplicate",
        real_updates,
        {
            'step.commands.append(receipt_of(event, "accepted" if same else "refused", reason))': (
                "pass"
            ),
        },
    ),
    Mutant(
        "cohort ignores draining",
        real_roster,
        {"if its_role == role and device_id not in self._draining": "if its_role == role"},
    ),
    Mutant(
        "takes the sum of an older attempt",
        real_rounds,
        {
            'if ledger.phase != "aggregating" or pair != (ledger.round, ledger.attempt):': (
                'if ledger.phase != "aggregating":'
            )
        },
        in_world=False,
    ),
    Mutant(
        "discards an included update",
        real_updates,
        {"if not ledger.uses_objects_of(event.round, event.attempt):": "if True:"},
    ),
    Mutant(
        "leaves an update that came after its sweep",
        real_updates,
        {"if not ledger.uses_objects_of(event.round, event.attempt):": "if False:"},
    ),
    Mutant(
        "waits for the dead",
        real_rounds,
        {"owing - (self._roster.left - set(self._updates.verifying))": "owing"},
    ),
    Mutant(
        "forgets who left while its update was being checked",
        real_rounds,
        {"(self._roster.left - set(self._updates.verifying))": "self._roster.left"},
    ),
    Mutant(
        "adds nothing again at resume",
        real_rounds,
        {
            'if ledger.phase in {"collecting", "aggregating"}:\n                place': (
                "if False:\n                place"
            )
        },
    ),
    Mutant(
        "gathers only once",
        real_rounds,
        {"self._gathering.fired(event.timer)": "pass"},
    ),
    Mutant(
        "a check outlives its attempt",
        real_rounds,
        {
            "self._return_armed = False\n        self._updates.forget()\n": (
                "self._return_armed = False\n"
            ),
            "self._updates.forget()\n        step.commands.append(SweepRound(ledger": (
                "step.commands.append(SweepRound(ledger"
            ),
        },
    ),
    Mutant(
        "does not ask again for what vanished",
        real_rounds,
        {
            "event.reason), step)\n            self._order(event.device_id, step)": (
                "event.reason), step)"
            )
        },
    ),
    Mutant(
        "starts rounds while paused",
        real_rounds,
        {
            'if self.ledger.phase != "gathering" or self.ledger.status != "running":': (
                'if self.ledger.phase != "gathering":'
            )
        },
    ),
    Mutant(
        "sweeps nothing at the end",
        real_rounds,
        {
            "self.ledger.record(fact, step)\n        step.commands.append(SweepRun())": (
                "self.ledger.record(fact, step)"
            )
        },
    ),
    Mutant(
        "waits for the deadline when every update was refused",
        real_rounds,
        {"elif ledger.all_unusable or deadline or not owing": "elif deadline"},
        in_world=False,
    ),
    Mutant(
        "tries for ever what is always refused",
        real_rounds,
        {"if ledger.repeats_itself or": "if"},
        in_world=False,
    ),
    Mutant(
        "takes an order that was not taken for an update that was refused",
        real_state,
        {"if isinstance(fact, UpdateRefused) or fact.unusable or fact.permanent:": "if True:"},
        in_world=False,
    ),
    Mutant(
        "one attempt too many",
        real_rounds,
        {
            "ledger.attempt - ledger.excused >= self.plan.max_attempts": (
                "ledger.attempt - ledger.excused > self.plan.max_attempts"
            )
        },
        in_world=False,
    ),
    Mutant(
        "counts an evaluation that nobody ordered",
        real_evaluation,
        {"return ordered and not measured and": "return not measured and"},
    ),
    Mutant(
        "fails a run whose devices decline for now",
        real_rounds,
        {"self.plan.max_attempts and not excused": "self.plan.max_attempts"},
        in_world=False,
    ),
    Mutant(
        "invites who declined for now",
        real_gathering,
        {
            "[each for each in online if each not in self.resting] if self.resting else online": (
                "online"
            )
        },
        in_world=False,
    ),
    Mutant(
        "waits for the silent in each round",
        real_rounds,
        {"not here - self._gathering.silent": "not here"},
        in_world=False,
    ),
    Mutant(
        "does not look after its orders",
        real_rounds,
        {
            'step)\n        self._arm("resend", RESEND_S, step)\n\n    def _arm_evaluation': (
                "step)\n\n    def _arm_evaluation"
            )
        },
        in_world=False,
    ),
    Mutant(
        "waits for the deadline when all have answered",
        real_rounds,
        {"or deadline or not owing or (": "or deadline or ("},
        in_world=False,
    ),
    Mutant(
        "does not wait for who may return",
        real_rounds,
        {"(nobody_came and not here)": "not here"},
        in_world=False,
    ),
]
BEST_MUTANTS = [
    Mutant(
        "judges before all have measured",
        real_best,
        {"if ledger.evaluators[version] - set(answers) - self._roster.left:": "if False:"},
    ),
    Mutant(
        "waits for the measurements of who left",
        real_best,
        {"- set(answers) - self._roster.left:": "- set(answers):"},
    ),
    Mutant(
        "takes every version for a better one",
        real_best,
        {"rule.is_better(value, before)": "rule.is_better(value, None)"},
    ),
    Mutant(
        "keeps the best without a tag",
        real_best,
        {"step.commands.append(TagBest(version))": "pass"},
    ),
    Mutant(
        "is patient for a round too long",
        real_best,
        {"ledger.judged - version < rule.patience": "ledger.judged - version <= rule.patience"},
    ),
    Mutant(
        "leaves versions unjudged at the end",
        real_rounds,
        {"if not isinstance(fact, RunStoppedEarly):": "if False:"},
    ),
]
LEDGER_MUTANTS = [
    Mutant(
        "an abandoned attempt keeps its updates",
        real_state,
        {"self.accepted, self.refused = {}, {}": "self.refused = {}"},
    ),
    Mutant(
        "commits a round twice",
        real_state,
        {"self._next(fact.round + 1, 1)": "self._next(fact.round, self.attempt)"},
    ),
    Mutant(
        "gives up when all were refused once",
        real_state,
        {"self.all_unusable and self._causes() == self.causes": "self.all_unusable"},
        in_world=False,
    ),
    Mutant(
        "a withdrawn update stays counted",
        real_state,
        {
            "del self._counted[(fact.round, fact.attempt, fact.device_id)]": "pass",
        },
    ),
    Mutant(
        "the attempt goes back after the last commit",
        real_state,
        {"self._next(self.round, self.attempt)": "self._next(self.round, 1)"},
    ),
]
SESSION_MUTANTS = [
    Mutant(
        "obeys an order of an old epoch",
        real_session,
        {"if order.epoch < self.epoch or self._is_over(key):": "if self._is_over(key):"},
    ),
    Mutant(
        "does not report after a cancelled upload",
        real_session,
        {
            'commands.append(CancelJob(job.key))\n        if job.stage == "uploading":': (
                "commands.append(CancelJob(job.key))\n        if False:"
            )
        },
    ),
    Mutant(
        "trains again while its result is pending",
        real_session,
        {"elif key in self.reporting:": "elif False:"},
    ),
    Mutant(
        "forgets a job before its receipt",
        real_session,
        {
            "commands.append(SendResult(reported))": (
                "commands.append(SendResult(reported))\n"
                "        commands.append(ForgetJob(job.key, accepted=True))"
            )
        },
    ),
    Mutant(
        "uploads before it has kept the job",
        real_session,
        {"commands.append(KeepJob(self.active))": "pass"},
    ),
    Mutant(
        "forgets a job whose upload failed",
        real_session,
        {
            'case UpdateUploaded() | JobFailed(), "uploading":': (
                'case UpdateUploaded(), "uploading":'
            )
        },
    ),
    Mutant(
        "starts a second job over the first",
        real_session,
        {"self._next_job() if self.active is None else None": "self._next_job()"},
    ),
    Mutant(
        "does not say what it is at",
        real_session,
        {"if self.presence != self._presence:": "if False:"},
    ),
]
EVERY_MUTANT = [*ROUND_MUTANTS, *BEST_MUTANTS, *LEDGER_MUTANTS, *SESSION_MUTANTS]

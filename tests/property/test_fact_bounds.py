"""Every fact with every field at its bounds: fold, document, report and event of its run.

A story has each kind of fact once at least, in an order that the ledger lets in, and is told after
each. What was written by a release with other bounds may lie beyond: then the run may have failed
when the server starts, and no other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import pytest
from annotated_types import Ge, Le, Lt, MaxLen
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from pydantic import TypeAdapter

from broker.wire.messages import RunDocument, Usage
from broker.wire.messages.base import Finite, Id, Metrics, Sha256, Size
from fl_server.canary import events as c
from fl_server.canary.state import CanaryState, judge
from fl_server.dataplane.plane import DataPlane
from fl_server.kinds.canary import CanaryFlow
from fl_server.kinds.sync import SyncFlow
from fl_server.operations.handlers.run_report import report_of
from fl_server.operations.results.base import encoded_bytes
from fl_server.operations.results.models import CanaryReport
from fl_server.rounds import facts as f
from fl_server.rounds.model import Model, Update
from fl_server.rounds.workload import OrderWork
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import FactRecord, RunRecord
from runtime.bounds import MAX_EXAMPLES, MAX_ROUNDS
from tests.bounds import ANYWHERE, SIZES, WILD, found_by, paths, replaced, searching, within
from tests.flows import FlowServer
from tests.messages import wire
from tests.property.machine_canary import plan_of
from tests.property.test_bounds import INITIAL, Plane, flow_of

AT_ONCE = 50
Story: TypeAlias = list[Any]
Round = Annotated[int, Ge(1), Le(MAX_ROUNDS)]
# others follow
FewerAttempts = Annotated[int, Ge(1), Lt(MAX_ROUNDS - 1)]
Examples = Annotated[int, Ge(1), Le(MAX_EXAMPLES)]
# what the server itself says of an error: longer than what a device may
Reason = Annotated[str, MaxLen(4000)]
Key = Annotated[str, MaxLen(512)]
SAID = within(Reason)
# what JSON holds; the journal's digests are right, so that it is read
STRAYS = st.sampled_from([each for each in (*WILD, *ANYWHERE) if "b'" not in repr(each)])
AT = st.sampled_from([0.0, 101.0, 4e9])
ENDINGS: dict[str, Callable[[str], Any]] = {
    "completed": lambda _: f.RunCompleted(),
    "stopped": f.RunStopped,
    "stopped early": f.RunStoppedEarly,
    "failed": f.RunFailed,
}


# numbers become floats where a message is read
METRICS = within(Metrics).map(TypeAdapter[Any](Metrics).validate_python)
USAGE = within(Usage).map(lambda body: Usage.model_validate(body).model_dump())


@st.composite
def models(draw: DrawFn, version: int) -> Model:
    changed = within(list[tuple[Size, Size]]).map(lambda each: tuple(map(tuple, each)))
    hashes = (draw(within(Key)), draw(within(Sha256)))
    return Model(
        version,
        draw(within(Key)),
        draw(within(Sha256)),
        draw(within(Size)),
        *hashes,
        draw(st.none() | changed),
        draw(within(Size)),
        draw(METRICS.map(lambda found: tuple(found.items()))),
    )


@st.composite
def updates(draw: DrawFn) -> Update:
    reference = (draw(within(Key)), draw(within(Size)), draw(within(Sha256)))
    return Update(*reference, draw(within(Examples)), draw(METRICS), draw(USAGE))


@st.composite
def stories(draw: DrawFn, ending: str) -> Story:
    """Return the facts of a run with one requested round, which may be any."""
    cohort = tuple(draw(st.lists(within(Id), min_size=3, max_size=6, unique=True)))
    a, b, d = cohort[:3]
    number, attempt = draw(within(Round)), draw(within(FewerAttempts))
    place, again, last = ((number, attempt + more) for more in range(3))
    works = st.builds(OrderWork, within(Size), within(Size), st.floats(0, 1, exclude_min=True))
    work = draw(st.dictionaries(st.sampled_from(cohort), works))
    evaluated = (draw(within(Round)), draw(st.sampled_from(cohort)))
    facts = [
        f.RoundOpened(*place, draw(models(number - 1))),
        f.RunPaused(),
        f.RunResumed(),
        f.RoundStarted(*place, cohort, draw(within(Size)), work),
        f.UpdateAccepted(*place, a, draw(updates())),
        f.UpdateRefused(*place, b, draw(SAID)),
        f.OrderDeclined(*place, d, draw(SAID), draw(st.booleans()), draw(st.booleans())),
        f.UpdateWithdrawn(*place, a, draw(SAID)),
        f.RoundAbandoned(*place, draw(SAID), draw(st.booleans())),
        f.RoundStarted(*again, cohort, draw(within(Size)), work),
        f.RequestFailed(*again, draw(SAID)),
        f.RoundOpened(*last, draw(models(number - 1))),
        f.RoundStarted(*last, cohort, draw(within(Size)), work, draw(within(Size))),
        f.UpdateAccepted(*last, a, draw(updates())),
        f.UpdateAccepted(*last, b, draw(updates())),
        f.RoundClosed(*last, tuple(sorted((a, b)))),
        f.RoundCommitted(*last, draw(models(number))),
        f.EvaluationOrdered(evaluated[0], cohort),
        f.EvaluationDeclined(evaluated[0], b, draw(SAID), draw(st.booleans())),
        f.EvaluationRecorded(*evaluated, draw(within(Examples)), draw(METRICS), draw(USAGE)),
        f.VersionJudged(
            evaluated[0], draw(st.none() | within(Finite).map(float)), draw(st.booleans())
        ),
    ]
    if ending == "stopped early":  # before the last round's model is there
        facts = facts[: [type(each) for each in facts].index(f.RoundCommitted)]
    return [*facts, ENDINGS[ending](draw(SAID))]


def run_of(facts: Story) -> SyncFlow:
    """Return the run of a story, before its facts."""
    return flow_of([], rounds=facts[0].round, on_request=True)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_fact_of_a_run_can_be_told(ending: str, count: int) -> None:
    @searching(count)
    @given(stories(ending), AT)
    def search(facts: Story, at: float) -> None:
        flow, rows = run_of(facts), list[FactRecord]()
        for fact in facts:
            flow.machine.ledger.apply(fact)
            rows.append(FactRecord(fact, at))
            wire(flow.event_of(fact))
            document = flow.document(1)
            wire(document)
            shown = report_of(flow.record, flow, rows, document, {})
            encoded_bytes(shown)
            json.dumps(shown.document(), allow_nan=False)
        again = run_of(facts)
        for fact in as_read(facts):
            again.machine.ledger.apply(fact)
        assert again.machine.ledger == flow.machine.ledger

    search()


def test_the_stories_have_every_fact() -> None:
    told = {
        type(fact)
        for ending in ENDINGS
        for [facts] in [found_by(stories(ending), 1)]
        for fact in facts
    }
    assert told == set(f.FACTS.values())


def as_read(facts: Story) -> Iterator[Any]:
    """Yield facts as a journal gives them back."""
    for fact in facts:
        text = json.dumps(asdict(fact), allow_nan=False)
        yield TypeAdapter(type(fact)).validate_json(text)


# --- canaries -----------------------------------------------------------------------------------


@st.composite
def canaries(draw: DrawFn) -> Story:
    """Return the facts of a canary of two devices, one of which declines."""
    measured = [
        c.SideMeasured("a", side, draw(within(Examples)), draw(METRICS))
        for side in draw(st.permutations(["production", "candidate"]))
    ]
    declined = c.SideDeclined("b", draw(st.sampled_from(["production", "candidate"])), draw(SAID))
    state = CanaryState(("a", "b"))
    facts = [c.OrdersOpened(), *measured, declined]
    for fact in facts:
        state.apply(fact)
    verdict = judge(plan_of(("a", "b"), 1), state)
    judged = draw(st.sampled_from([verdict, replace(verdict, reason=draw(SAID))]))
    return [*facts, judged, c.Settled(draw(SAID))]


@pytest.mark.parametrize("count", SIZES)
def test_every_fact_of_a_canary_can_be_told(count: int) -> None:
    plan = plan_of(("a", "b"), 1)
    definition = parse_definition({"task": "digits", "flow": "canary"}, "test")
    record = RunRecord("canary-1", definition, plan, INITIAL, 100.0)

    @searching(count)
    @given(canaries())
    def search(facts: Story) -> None:
        rows = list[FactRecord]()
        for fact in as_read(facts):
            rows.append(FactRecord(fact, 101.0))
            flow = CanaryFlow(record, rows, cast(DataPlane, Plane()))
            wire(flow.event_of(fact))
            if (document := flow.document(1)) is not None:
                wire(document)
            shown = CanaryReport(**flow.shown(1.0))
            json.dumps(shown.document(), allow_nan=False)
        assert {type(row.fact) for row in rows} == set(c.FACTS.values())
        assert flow.ended

    search()


# --- beyond the bounds --------------------------------------------------------------------------


@st.composite
def beyond(draw: DrawFn) -> Story:
    """Return the facts of a run, in which a field or two is beyond what this release lets in."""
    facts = draw(st.sampled_from(sorted(ENDINGS)).flatmap(stories))
    facts = facts[: draw(st.integers(1, len(facts)))]
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(facts) - 1))
        fields = asdict(facts[at])
        if fields:
            path = draw(st.sampled_from(list(paths(fields))))
            changed = replaced(fields, path, draw(STRAYS))
            facts[at] = type(facts[at])(**changed)
    return facts


@pytest.mark.parametrize("count", SIZES)
def test_whatever_a_journal_holds_the_site_starts(tmp_path: Path, count: int) -> None:
    """A run whose facts cannot be applied has failed, with the cause; the run beside it goes on."""
    found = found_by(beyond(), count)
    for start in range(0, len(found), AT_ONCE):
        folder = tmp_path / str(start)
        folder.mkdir()
        server = FlowServer(folder)
        begin(server, "sound", 1)
        runs = {f"run-{start + at}": facts for at, facts in enumerate(found[start:][:AT_ONCE])}
        for run_id, facts in runs.items():
            begin(server, run_id, facts[0].round)
            server.journal.append(run_id, facts)
        for _ in range(2):
            server.crash()
            server.runner.documents.publish_all()
            told = {each.run_id: each for each in server.said(RunDocument)}
            assert told.keys() == {"sound", *runs}
            assert told["sound"].status == "waiting"
            for document in told.values():
                wire(document)
                assert document.status != "failed" or document.reason, runs[document.run_id]
        server.close()
        shutil.rmtree(folder)


def begin(server: FlowServer, run_id: str, rounds: int) -> None:
    definition = parse_definition({"task": "digits"}, "test")
    record = server.runner.new_record(run_id, definition, INITIAL)
    plan = replace(record.plan, rounds=rounds, on_request=True)
    server.runner.begin(replace(record, plan=plan))

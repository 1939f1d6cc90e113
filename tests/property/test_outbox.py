"""The outbox and its replay against a dictionary: nothing lost, nothing invented."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.session.outbox import Outbox, OutboxRow, Until
from broker.session.resend import ResendQueue

RESEND_S = 10.0
KEYS = st.sampled_from("abcdef")


class OutboxAgainstADictionary(RuleBasedStateMachine):
    """A wire that may be cut, a broker that answers in any order, and a process that restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "outbox.db"
        self.outbox = Outbox(self.path)
        self.resend = ResendQueue(self.outbox, RESEND_S)
        self.model: dict[str, tuple[bytes, Until]] = {}
        self.under_way: dict[int, OutboxRow] = {}
        self.sent_here: list[int] = []
        self.next_mid = 1
        self.now_s = 0.0

    def publish(self, row: OutboxRow) -> int:
        assert self.model[row.key] == (row.payload, row.until), "a stale row was sent"
        mid, self.next_mid = self.next_mid, self.next_mid + 1
        self.under_way[mid] = row
        self.sent_here.append(row.seq)
        return mid

    @rule(key=KEYS, payload=st.binary(max_size=4), until=st.sampled_from(["puback", "confirm"]))
    def put(self, key: str, payload: bytes, until: Until) -> None:
        self.outbox.put(key, "t", payload, until=until)
        self.model[key] = (payload, until)

    @rule(key=KEYS)
    def confirm(self, key: str) -> None:
        assert self.outbox.confirm(key) == (self.model.pop(key, None) is not None)

    @rule()
    def pump(self) -> None:
        before = len(self.sent_here)
        self.resend.send_due(self.publish, self.now_s)
        again = set(self.sent_here[:before]) & set(self.sent_here[before:])
        assert all(seq not in self.waiting_for_the_broker(before) for seq in again)
        assert {row.seq for row in self.outbox.pending()} <= set(self.sent_here)

    def waiting_for_the_broker(self, before: int) -> set[int]:
        fresh = set(range(self.next_mid - (len(self.sent_here) - before), self.next_mid))
        return {row.seq for mid, row in self.under_way.items() if mid not in fresh}

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def broker_acknowledges(self, data: st.DataObject) -> None:
        mid = data.draw(st.sampled_from(sorted(self.under_way)))
        row = self.under_way.pop(mid)
        held = {each.seq for each in self.outbox.pending()}
        self.resend.handle_acknowledged([mid], self.now_s)
        if row.seq in held and row.until == "puback":
            del self.model[row.key]

    @rule(seconds=st.floats(0.1, 15))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def connection_is_lost(self) -> None:
        self.under_way.clear()
        self.sent_here.clear()
        self.resend.reset()

    @rule()
    def process_restarts(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.path)
        self.resend = ResendQueue(self.outbox, RESEND_S)
        self.under_way.clear()
        self.sent_here.clear()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert {r.key: (r.payload, r.until) for r in self.outbox.pending()} == self.model
        assert len(self.outbox) == len(self.model)
        assert self.outbox.size_bytes == sum(len(payload) for payload, _ in self.model.values())

    @invariant()
    def settled_means_answered(self) -> None:
        if self.resend.all_acknowledged:
            assert not self.under_way
            assert all(until == "confirm" for _, until in self.model.values())

    def teardown(self) -> None:
        self.outbox.close()
        self.folder.cleanup()


OutboxAgainstADictionary.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
test_outbox_against_a_dictionary = OutboxAgainstADictionary.TestCase

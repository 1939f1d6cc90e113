"""An agent with its real training process in a flow of several messages; no broker, no store."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.wire.messages import Decline, Order, Result
from fl_client.session.events import JobKey
from tests.agent_bench import Bench, receipt_of
from tests.messages import EXCHANGE

ADDS = """
    import time
    from pathlib import Path
    import numpy as np
    from fl_client.tasks.digits import Digits
    class Adds(Digits):
        def exchange(self, context):
            if context.phase == "slow":
                Path({marker!r}).touch()
                while Path({marker!r}).exists():
                    time.sleep(0.01)
            total = context.state.get("total", np.zeros(1)) + int(context.payload)
            context.keep({{"total": total}})
            return str(int(total[0])).encode(), {{"total": float(total[0])}}
    """


class Flow:
    """A server's side that asks for one answer after the other."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "slow"
        source = folder / "adds.py"
        source.write_text(textwrap.dedent(ADDS).format(marker=str(self.marker)))
        self.bench = Bench(folder, task=f"{source}:Adds", real_worker=True)
        self.bench.agent.start()

    def until(self, ready: Callable[[], object], what: str) -> None:
        """Let the agent run until something has happened."""
        until_s = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < until_s, what
            self.bench.run()
            time.sleep(0.005)

    def ask(self, phase: str, seq: int, said: int) -> Order:
        changes = {"phase": phase, "seq": seq, "payload": b"%d" % said, "task": "adds"}
        order = EXCHANGE.model_copy(update=changes)
        self.bench.run(order)
        return order

    def answer(self) -> Result:
        self.until(self.bench.session.waiting, "an answer")
        (result,) = self.bench.session.waiting()
        assert isinstance(result, Result)
        return result

    def accept(self, result: Result) -> None:
        self.bench.run(receipt_of(result))


@pytest.fixture
def flow(tmp_path: Path) -> Iterator[Flow]:
    made = Flow(tmp_path)
    yield made
    made.bench.agent.close()


def test_each_message_begins_with_what_the_last_receipt_made_permanent(flow: Flow) -> None:
    flow.ask("first", 0, 5)
    first = flow.answer()
    assert (first.phase, first.seq, first.payload) == ("first", 0, b"5")
    assert first.metrics == {"total": 5.0}
    flow.ask("second", 1, 7)
    flow.bench.run()
    assert flow.bench.session.waiting() == [first], "the state of the first is open"
    flow.accept(first)
    second = flow.answer()
    assert second.payload == b"12"
    # what is not counted leaves no state
    flow.bench.run(receipt_of(second, status="late"))
    flow.ask("third", 2, 1)
    assert flow.answer().payload == b"6"


def test_a_process_killed_within_an_exchange_is_started_again_and_answers_once(flow: Flow) -> None:
    flow.ask("slow", 0, 5)
    flow.until(flow.marker.exists, "the task is called")
    pids = flow.bench.parts.worker.child_pids
    os.kill(pids[-1], signal.SIGKILL)
    flow.marker.unlink()
    flow.until(flow.marker.exists, "the task is called again")
    assert not set(flow.bench.parts.worker.child_pids) & set(pids)
    flow.marker.unlink()
    result = flow.answer()
    assert result.payload == b"5"
    flow.accept(result)
    assert flow.bench.session.waiting() == []
    state = flow.bench.parts.folder.state(JobKey.of(EXCHANGE))
    assert state.exists()


def test_an_answer_that_is_too_large_is_declined_with_the_limit(flow: Flow) -> None:
    path = flow.bench.parts.folder.root.parent / "adds.py"
    path.write_text(path.read_text().replace("str(int(total[0])).encode()", "bytes(200_000)"))
    flow.ask("first", 0, 5)

    def declined() -> list[Decline]:
        return [each for each in flow.bench.session.published if isinstance(each, Decline)]

    flow.until(declined, "a decline")
    (decline,) = declined()
    assert (decline.action, decline.phase) == ("exchange", "first")
    assert "a payload of 200000 bytes in phase 'first'; a message holds at most 131072" in (
        decline.reason
    )
    assert not list(flow.bench.parts.folder.root.glob("state/*"))

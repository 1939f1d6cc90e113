"""A device that says as much as it can: it is not listened to, and the others' run goes on."""

from __future__ import annotations

import threading
import time

from tests.attacks.ground import GATED_TASK, Ground
from tests.attacks.intruders import Intruder, Trainer
from tests.integration.broker_fixtures import eventually
from tests.messages import SAMPLES

# mosquitto writes all that waits for the server anew with each message: more of them take minutes
AT_MOST = {"nats": 20_000, "mosquitto": 3_000}
AT_LEAST_S = 3.0
BLOCK = 100


class Flood(threading.Thread):
    """Sends past every bound of a client's own until it is told to stop."""

    def __init__(self, intruder: Intruder, topic: str, at_most: int) -> None:
        super().__init__()
        # well signed, so that each costs its reader the whole way to the refusal
        payloads = [intruder.write(topic, SAMPLES["result"], "alice") for _ in range(BLOCK)]
        self._block = b"".join(
            intruder.packet(topic, payload, number) for number, payload in enumerate(payloads, 1)
        )
        self._intruder = intruder
        self._at_most = at_most
        self._stopping = threading.Event()
        self.sent = 0

    def run(self) -> None:
        began = time.monotonic()
        while self.sent < self._at_most:
            if self._stopping.is_set() and time.monotonic() - began > AT_LEAST_S:
                return
            self._intruder.send_raw(self._block)
            self.sent += BLOCK

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def test_a_flood_is_not_listened_to_and_the_run_of_another_ends(ground: Ground) -> None:
    anna = ground.agent("anna")
    log = ground.site.folder.root / "logs" / "server.log"
    before, logged = ground.refused, log.stat().st_size
    with ground.unharmed(), ground.intruder("flooder", modern=False) as flooder:
        flood = Flood(
            flooder, ground.topics.device("flooder", "result"), AT_MOST[ground.kind.broker]
        )
        flood.start()
        try:
            run_id = ground.submit(GATED_TASK, 1, rounds=3)
            report = ground.finish(run_id)
        finally:
            flood.stop()
        assert [row["included"] for row in report["history"]] == [["anna"]] * 3
        assert flooder.connected

        def counted() -> int:
            more = ground.refused - before
            return more["rate_limited"] + more["wrong_sender"]

        eventually(lambda: counted() >= flood.sent, 60)
        ground.settle()
    assert (ground.refused - before)["rate_limited"] > flood.sent / 3
    assert anna.child.running
    assert log.stat().st_size - logged < 100_000, "a flood fills no disk"
    notes = [each["detail"]["reason"] for each in ground.audit(actor="flooder")]
    assert set(notes) == {"rate_limited", "wrong_sender"}
    assert len(notes) < 40


def test_a_device_that_was_not_listened_to_is_heard_again(ground: Ground) -> None:
    with ground.unharmed(), Trainer(ground.kind, ground.device("talker")) as talker:
        before = ground.refused
        # few and large: that many small ones a slow broker would spread over what the bound allows
        for _ in range(40):
            talker.client.publish(ground.topics.device("talker", "ack"), bytes(100_000), 1)
        eventually(lambda: (ground.refused - before)["rate_limited"] > 0, 30)

        def heard() -> bool:
            talker.be("draining")
            return ground.row("talker")["status"] == "draining"

        eventually(heard)
        ground.settle()

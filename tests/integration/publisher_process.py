"""A publisher as a process of its own, to be killed: reads one JSON object from its argument."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from broker.session.endpoint import Endpoint
from broker.session.outbox import Outbox
from broker.session.publication import Publication
from broker.session.session import MqttSession


def main() -> None:
    order = json.loads(sys.argv[1])
    name = order.get("user", "anyone")
    outbox = Outbox(Path(order["outbox"]))
    session = MqttSession(
        Endpoint("127.0.0.1", order["port"], name, f"secret-of-{name}", order["client_id"]),
        (),
        lambda _event: True,
        will=Publication(order["will"], b"gone") if "will" in order else None,
        outbox=outbox,
    )
    session.start()
    for number in range(order.get("first", 0), order.get("first", 0) + order.get("count", 0)):
        session.publish_durably(f"m{number}", order["topic"], str(number).encode(), until="puback")
    if order.get("connect"):
        session.wait_connected(20)
        print(json.dumps({"flushed": session.flush(20)}), flush=True)
    if "idle_s" in order:
        before = time.process_time()
        time.sleep(order["idle_s"])
        print(json.dumps({"cpu_s": time.process_time() - before}), flush=True)
    print(json.dumps({"pending": len(outbox)}), flush=True)
    threading.Event().wait()


main()

"""Every number of what a device or an operator may say, at its bounds and beyond, well signed.

No process may end by it, and what the server has written by it must not end the next one either.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import msgpack

from broker.wire.messages import (
    KINDS,
    Message,
    OperatorReply,
    OperatorRequest,
    Receipt,
    Result,
    decode,
)
from broker.wire.topics import parse
from fl_server.operations.catalogue import OPERATIONS
from tests.attacks.ground import Ground
from tests.attacks.intruders import PATIENCE_S, Intruder, Trainer
from tests.bounds import sample, variations
from tests.integration.broker_fixtures import eventually

DEVICES = 4
# the others change the site, and are tried in tests/unit/fl_server/test_operation_bounds.py
ASKED = ("audit_ls", "runs_prepare", "canary_begin", "bundles_prepare")
SAID = [kind for kind in KINDS.values() if kind.channel[0] == "dev" and "task" not in kind.channel]


def envelope(sender: str, kind: type[Message], seq: int, body: dict[str, Any]) -> bytes:
    head = {"v": 1, "kind": kind.kind, "sender": sender, "boot_id": "bounds", "seq": seq}
    return msgpack.packb({**head, "sent_ms": 1, "ttl_s": None, "body": body})


def bodies(run_id: str) -> Iterator[tuple[type[Message], dict[str, Any]]]:
    """Yield what a device says, about the run where it is about one."""
    for kind in SAID:
        if kind is Receipt:
            continue
        for path, _, body in variations(kind):
            named = {"run_id": run_id, "phase": "", "seq": 0, "round": 1, "attempt": 1}
            about = {name: each for name, each in named.items() if name in body}
            yield kind, {**body, **about, **({path[0]: body[path[0]]} if len(path) == 1 else {})}


def say_everything(ground: Ground, run_id: str) -> int:
    """Have several devices say it, none more than the server hears of one; return how much."""
    names = [f"bounds-{number}" for number in range(DEVICES)]
    speakers = [ground.intruder(name) for name in names]
    count = 0
    for speaker in speakers:
        speaker.__enter__()
    try:
        for count, (kind, body) in enumerate(bodies(run_id), 1):
            speaker = speakers[count % DEVICES]
            topic = ground.topics.device(speaker.name, kind.channel[1])
            data = envelope(speaker.name, kind, count, body)
            speaker.client.publish(topic, speaker.sign(topic, data), qos=1)
        for speaker in speakers:
            last = ground.topics.device(speaker.name, "progress")
            speaker.publish(last, b"x")
    finally:
        for speaker in speakers:
            speaker.__exit__()
    return count


def ask_everything(ground: Ground) -> None:
    """Have the operator ask every number; each request gets an answer."""
    operator = ground.site.operator
    request, reply = (ground.topics.operator(operator.id, leaf) for leaf in ("request", "reply"))
    asked = [
        {"operation": name, "arguments": arguments}
        for name in ASKED
        for _, _, arguments in variations(OPERATIONS[name].arguments)
    ]
    prepare = {"definition": {"task": "digits", "training": {"a": b"\xff"}}, "size_bytes": 100}
    asked += [
        {"operation": "runs_prepare", "arguments": prepare},
        {"operation": "No Such", "arguments": {}},
        {"operation": "runs_ls", "arguments": {str(n): n for n in range(200)}},
    ]
    with Intruder(ground.kind, operator) as client:
        client.subscribe(reply)
        for number, body in enumerate(asked):
            data = envelope(
                operator.id, OperatorRequest, number, {"request_id": f"bounds-{number}", **body}
            )
            client.publish(request, client.sign(request, data))

        def answers() -> dict[str, OperatorReply]:
            found = [decode(each, parse(topic), None)[1] for topic, each in client.heard]
            return {each.request_id: each for each in found if isinstance(each, OperatorReply)}

        wanted = {f"bounds-{number}" for number in range(len(asked))}
        with contextlib.suppress(AssertionError):
            eventually(lambda: wanted <= answers().keys(), 2 * PATIENCE_S)
        missing = sorted(wanted - answers().keys())
        assert not missing, [asked[int(each.removeprefix("bounds-"))] for each in missing]
        assert not [each.error for each in answers().values() if "internal error" in each.error]
        assert {answers()[f"bounds-{len(asked) - back}"].exit_code for back in (1, 2, 3)} == {2}


def test_no_number_ends_the_server_or_the_next_one(ground: Ground) -> None:
    with ground.unharmed(), Trainer(ground.kind, ground.device("bounds-0")) as member:
        run_id = ground.submit("digits", 1)
        eventually(lambda: ground.call("runs_show", {"run_id": run_id})["phase"] == "collecting")
        assert say_everything(ground, run_id) > 1000
        ask_everything(ground)
        assert ground.refused["internal_error"] == 0
        receipts = [
            message
            for topic, payload in member.heard
            if isinstance(message := decode(payload, parse(topic), None)[1], Receipt)
        ]
        reasons = {receipt.reason for receipt in receipts if receipt.status == "refused"}
        assert any("num_examples: Input should be" in reason for reason in reasons), reasons
    epoch = ground.epoch
    os.kill(ground.site.children["server"].pid, signal.SIGKILL)
    eventually(lambda: ground.epoch == epoch + 1, PATIENCE_S)
    for operation in ("devices_ls", "runs_ls", "models_ls", "audit_ls"):
        ground.call(operation)
    assert ground.call("runs_show", {"run_id": run_id})["run_id"] == run_id
    assert sample(Result)["num_examples"] == 1, "what is tried is near what is right"

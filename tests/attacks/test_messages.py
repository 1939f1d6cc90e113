"""Results that come again or altered, and what is well signed but made to break its reader."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack

import msgpack
import numpy as np

from broker.wire.limits import MAX_MESSAGE_BYTES
from broker.wire.messages import Order, Receipt, Result
from tests.attacks.ground import Ground
from tests.attacks.intruders import Intruder, Trainer, pause
from tests.chaos.test_scripted_peers import expected
from tests.integration.broker_fixtures import eventually
from tests.messages import SAMPLES, envelope

RESULT = SAMPLES["result"]
CHANCE = random.Random(8)
LARGE = MAX_MESSAGE_BYTES - 1024


def test_a_replayed_result_counts_once_and_an_altered_one_not_at_all(
    ground: Ground, mallory: Intruder
) -> None:
    topic, own = (ground.topics.device(name, "result") for name in ("alice", "mallory"))
    with ExitStack() as stack:
        stack.enter_context(ground.unharmed())
        alice, bob = (
            stack.enter_context(Trainer(ground.kind, ground.device(name)))
            for name in ("alice", "bob")
        )
        broker = stack.enter_context(Intruder(ground.kind, ground.device("alice")))
        run_id = ground.submit("digits", 2)
        orders = [each.hear(Order, run_id) for each in (alice, bob)]
        base = alice.model(orders[0]).vector
        updates = [alice.update(orders[0], 1, 40), bob.update(orders[1], 2, 7)]
        alice.upload(orders[0], updates[0].data)
        said = alice.report(orders[0], updates[0])
        assert alice.hear(Receipt, run_id).status == "accepted"

        with ground.counting(repeated=3):
            for _ in range(3):
                broker.publish(topic, said)
        altered = [
            said[:-1] + bytes([said[-1] ^ 1]),
            said.replace(b"num_examples\x28", b"num_examples\x7f"),
            bytes([said[0] ^ 1]) + said[1:],
            said[64:],
            said + b"\0",
        ]
        assert altered[1] != said
        with ground.counting(signature=len(altered) + 1):
            for payload in altered:
                broker.publish(topic, payload)
            mallory.publish(own, said)

        bob.upload(orders[1], updates[1].data)
        bob.report(orders[1], updates[1])
        vector = ground.final(run_id)
        wanted = {n: (each.vector, each.examples) for n, each in enumerate(updates)}
        assert np.array_equal(vector, expected(base, wanted))
        with ground.counting(repeated=1):
            broker.publish(topic, said)
        assert np.array_equal(ground.final(run_id), vector)


def test_messages_made_to_break_their_reader_break_nothing(ground: Ground) -> None:
    plain = envelope(RESULT, sender="bomber-0")
    body = plain["body"]

    def with_body(**changes: object) -> bytes:
        return msgpack.packb({**plain, "body": {**body, **changes}})

    small: dict[str, list[bytes]] = {
        "not_msgpack": [
            *(b"", b"\xc1", b"\xff" * 1000, CHANCE.randbytes(1000), msgpack.packb(plain) + b"\0"),
            *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
            *(b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\1", b"\xdd\x00\x10\x00\x00"),
            *(b"\x91" * 5000, b"\x81\xa1a" * 5000),
            *(msgpack.packb(msgpack.ExtType(5, b"x")), msgpack.packb(msgpack.Timestamp(1))),
            *(b"\x81\xa1\xff\x01", b"\x81\x01\x01", b"\x81\x90\x01"),
        ],
        "too_deep": [msgpack.packb(_nested(40)), with_body(metrics=_nested(40))],
        "duplicate_key": [
            b"\x82\xa1a\x01\xa1a\x02",
            msgpack.packb(plain).replace(b"\x88\xa1v\x01", b"\x89\xa1v\x01\xa1v\x01"),
        ],
        "envelope": [
            *(msgpack.packb(each) for each in (None, 1, "x", [], {}, [plain], True)),
            msgpack.packb({**plain, "more": 1}),
            msgpack.packb({**plain, "seq": -1}),
            msgpack.packb({**plain, "sender": "../alice"}),
            msgpack.packb({**plain, "seq": (1 << 64) - 1}),
        ],
        "schema_version": [msgpack.packb({**plain, "v": 2})],
        "unknown_kind": [msgpack.packb({**plain, "kind": "__class__"})],
        "wrong_place": [msgpack.packb({**plain, "kind": "order"})],
        "body": [
            with_body(num_examples=0),
            with_body(num_examples=True),
            with_body(metrics={"loss": float("nan")}),
            with_body(metrics={str(n): 0.0 for n in range(65)}),
            with_body(more=1),
            with_body(run_id="../../etc"),
            with_body(update=[1]),
            with_body(round=(1 << 64) - 1),
        ],
    }
    large: dict[str, list[bytes]] = {
        "not_msgpack": [CHANCE.randbytes(LARGE), b"\x91" * LARGE, b"\xc7" * LARGE],
        "envelope": [msgpack.packb([0] * (LARGE - 10)), msgpack.packb([{}] * (LARGE - 10))],
        "body": [with_body(metrics=[[]] * (LARGE - 1000)), with_body(run_id="x" * (LARGE - 1000))],
        "oversize": [bytes(MAX_MESSAGE_BYTES - 63), bytes(MAX_MESSAGE_BYTES + 3000)],
    }
    told = Counter({reason: len(datas) for reason, datas in small.items()})
    told.update({reason: len(datas) for reason, datas in large.items()})
    before = ground.call("runs_ls")
    with ground.unharmed(), ground.counting(**told, signature=3):
        for reason, datas in small.items():
            del reason
            _send(ground, "bomber-0", datas)
        for number, datas in enumerate(large.values(), 1):
            # each a device of its own: what is large soon reaches the bound on one
            _send(ground, f"bomber-{number}", datas)
        with ground.intruder("bomber-0") as bomber:
            topic = ground.topics.device("bomber-0", "result")
            for garbage in (b"x", CHANCE.randbytes(63), CHANCE.randbytes(5000)):
                bomber.publish(topic, garbage)
    assert ground.call("runs_ls") == before


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def _send(ground: Ground, name: str, datas: list[bytes]) -> None:
    topic = ground.topics.device(name, "result")
    with ground.intruder(name) as bomber:
        for data in datas:
            renamed = data.replace(b"\xa8bomber-0", b"\xa8" + name.encode())
            bomber.publish(topic, bomber.sign(topic, renamed))


def test_what_is_no_mqtt_or_too_large_harms_its_sender_alone(
    ground: Ground, mallory: Intruder
) -> None:
    topic = ground.topics.device("mallory", "result")
    with ground.unharmed(), ground.counting(), ground.intruder("alice") as alice:
        with ground.eyes() as eyes:
            mallory.send_raw(mallory.packet(topic, bytes(MAX_MESSAGE_BYTES + 64 * 1024)))
            eventually(lambda: not mallory.connected)
            for garbage in (b"\xff" * 64, b"\0\0", b"\x32\xff\xff\xff\xff\x7f", b"\x10\0"):
                with ground.intruder("mallory") as rude:
                    rude.send_raw(garbage)
                    eventually(lambda rude=rude: not rude.connected, 30)
            pause()
            assert not eyes.on(topic)
        assert alice.connected


def test_a_result_of_another_place_is_not_believed(ground: Ground, mallory: Intruder) -> None:
    """Signed by its own sender for one topic, and brought to another of the same sender."""
    result, request = (ground.topics.device("mallory", leaf) for leaf in ("result", "request"))
    assert isinstance(RESULT, Result)
    with ground.unharmed(), ground.counting(signature=2):
        mallory.publish(request, mallory.write(result, RESULT))
        mallory.publish(result, mallory.write(request, SAMPLES["request"]))

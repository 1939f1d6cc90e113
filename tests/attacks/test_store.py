"""What a presigned URL is good for: one object, one method, a while; and what a second PUT does.

Objects replaced after their receipt, and by a server that restarts, are in tests/chaos.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from broker.wire.messages import Order, Receipt
from tests.attacks.ground import Ground
from tests.attacks.intruders import Trainer
from tests.chaos.test_scripted_peers import expected
from tests.integration.broker_fixtures import eventually

REFUSED = {*range(400, 500), 501}


def test_a_presigned_url_opens_one_object_for_one_method(ground: Ground) -> None:
    with ExitStack() as stack:
        stack.enter_context(ground.unharmed())
        alice, mallory = (
            stack.enter_context(Trainer(ground.kind, ground.device(name)))
            for name in ("alice", "mallory")
        )
        run_id = ground.submit("digits", 2)
        hers, own = (each.hear(Order, run_id) for each in (alice, mallory))
        assert hers.upload is not None
        assert own.upload is not None
        honest = [alice.update(hers, 1, 5), mallory.update(own, 2, 6)]
        alice.upload(hers, honest[0].data)
        mallory.upload(own, honest[1].data)
        before = {each.key: each.etag for each in ground.store.list("")}

        put, get = own.upload.url, own.model.url
        key, victim = own.upload.key, hers.upload.key
        bare, _, query = put.partition("?")
        bucket = bare.removesuffix(f"/{key}")
        junk = b"x" * 1000
        tries = {
            "another's key": ("PUT", put.replace(key, victim), junk),
            "another's key, read": ("GET", get.replace(own.model.key, victim), None),
            "the model's key": ("PUT", put.replace(key, own.model.key), junk),
            "another of one's own": ("PUT", put.replace(key, key.replace("/001/", "/002/")), junk),
            "up and down again": ("PUT", f"{bare}/../alice.upd?{query}", junk),
            "up, encoded": ("PUT", f"{bare}%2f..%2falice.upd?{query}", junk),
            "read what one may write": ("GET", put, None),
            "look at what one may write": ("HEAD", put, None),
            "delete what one may write": ("DELETE", put, None),
            "post to what one may write": ("POST", put, junk),
            "write what one may read": ("PUT", get, junk),
            "delete what one may read": ("DELETE", get, None),
            "list the bucket": ("GET", f"{bucket}?{query}", None),
            "list the bucket unsigned": ("GET", f"{bucket}?list-type=2", None),
            "list all buckets": ("GET", f"{bucket.rpartition('/')[0]}/?{query}", None),
            "delete the bucket": ("DELETE", f"{bucket}?{query}", None),
            "unsigned": ("PUT", bare, junk),
            "unsigned read": ("GET", get.partition("?")[0], None),
            "another signature": ("PUT", put[:-4] + "0000", junk),
            "a longer life": ("PUT", put.replace("X-Amz-Expires=900", "X-Amz-Expires=9000"), junk),
            "multipart": ("POST", f"{put}&uploads=", None),
            "its access list": ("PUT", f"{put}&acl=", junk),
            "its tags": ("PUT", f"{put}&tagging=", junk),
            "the policy": ("PUT", f"{bucket}?{query}&policy=", junk),
            "several deletions": ("POST", f"{bucket}?{query}&delete=", junk),
        }
        answers = {name: mallory.request(*each) for name, each in tries.items()}
        assert {name: code for name, code in answers.items() if code not in REFUSED} == {}
        assert {each.key: each.etag for each in ground.store.list("")} == before

        # headers that nobody signed: neither a copy of another's object nor a public one
        source = f"/{ground.site.store.settings.bucket}/{victim}"
        mallory.request("PUT", put, b"", x_amz_copy_source=source)
        with ground.store.open(key) as stream:
            print("COPY", ground.kind.store, stream.read(100_000) == honest[0].data)
        mallory.request("PUT", put, junk, x_amz_acl="public-read")
        assert mallory.request("GET", bare) in REFUSED

        for trainer, order, update in ((alice, hers, honest[0]), (mallory, own, honest[1])):
            trainer.upload(order, update.data)
            trainer.report(order, update)
            assert trainer.hear(Receipt, run_id).status == "accepted"
        assert ground.finish(run_id)["history"][0]["refused"] == {}


def copy(ground: Ground, thief: Trainer, order: Order, source: str) -> bool:
    """Ask the store to copy an object to the order's own key; whether it did."""
    assert order.upload is not None
    bucket = ground.site.store.settings.bucket
    thief.request("PUT", order.upload.url, b"", x_amz_copy_source=f"/{bucket}/{source}")
    etags = {each.key: each.etag for each in ground.store.list("")}
    return etags.get(order.upload.key) == etags[source]


def test_a_presigned_url_pins_the_length_and_ends(ground: Ground) -> None:
    store, key = ground.store, "projects/attacks/pinned"
    with Trainer(ground.kind, ground.device("mallory")) as mallory:
        pinned = store.presign_put(key, 60, 5)
        for body in (b"", b"four", b"longer", b"x" * 100_000):
            assert mallory.request("PUT", pinned, body) in REFUSED
        assert mallory.request("PUT", pinned, b"fives") == 200
        short = {"PUT": store.presign_put(key, 1), "GET": store.presign_get(key, 1)}
        for method, url in short.items():
            body = b"late!" if method == "PUT" else None
            eventually(lambda m=method, u=url, b=body: mallory.request(m, u, b) == 403)
        store.put(key, b"fives")
        assert mallory.request("PUT", short["PUT"], b"later") == 403
        with store.open(key) as stream:
            assert stream.read(100) == b"fives"
    store.delete([key])


def test_a_second_put_is_without_effect_or_found_out(ground: Ground) -> None:
    names = ("alice", "twin", "turncoat", "copycat")
    with ExitStack() as stack:
        stack.enter_context(ground.unharmed())
        devices = {
            name: stack.enter_context(Trainer(ground.kind, ground.device(name))) for name in names
        }
        run_id = ground.submit("digits", 4, quorum=2)
        orders = {name: device.hear(Order, run_id) for name, device in devices.items()}
        base = devices["alice"].model(orders["alice"]).vector
        updates = {
            name: devices[name].update(orders[name], seed, 10 + seed)
            for seed, name in enumerate(names)
        }
        other = devices["turncoat"].update(orders["turncoat"], 9, 99)
        with ground.stopped(ground.pids[2]):  # so that it reads no object in between
            for name in names[:3]:
                devices[name].upload(orders[name], updates[name].data)
                devices[name].report(orders[name], updates[name])
            devices["twin"].upload(orders["twin"], updates["twin"].data)
            devices["turncoat"].upload(orders["turncoat"], other.data)
            # alice's update under another's key, with all that the copycat would have to know
            hers = orders["alice"].upload
            assert hers is not None
            if not copy(ground, devices["copycat"], orders["copycat"], hers.key):
                devices["copycat"].upload(orders["copycat"], updates["alice"].data)
            devices["copycat"].report(orders["copycat"], updates["alice"])
        receipts = {name: devices[name].hear(Receipt, run_id) for name in names}
        assert {name: each.status for name, each in receipts.items()} == {
            **{"alice": "accepted", "twin": "accepted"},
            **{"turncoat": "refused", "copycat": "refused"},
        }
        assert "the result named" in receipts["turncoat"].reason
        assert "its device_id is 'alice', expected 'copycat'" in receipts["copycat"].reason
        vector = ground.final(run_id)
        kept = [updates["alice"], updates["twin"]]
        wanted = {n: (each.vector, each.examples) for n, each in enumerate(kept)}
        assert np.array_equal(vector, expected(base, wanted))
        history = ground.finish(run_id)["history"][0]
        assert history["included"] == ["alice", "twin"]
        assert history["refused"].keys() == {"turncoat", "copycat"}

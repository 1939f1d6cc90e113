"""Orders on their way out: at once, or when their upload in parts was begun, or never."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from broker.wire.messages import Order
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.orders import OrderSender
from fl_server.dataplane.plane import DataPlane
from fl_server.dataplane.workers import Done, TaskDone
from fl_server.flows.events import StopRequested
from fl_server.kinds.sync import SyncFlow
from fl_server.rounds.commands import SendOrder
from fl_server.rounds.facts import Fact, RoundAbandoned, RoundClosed, RoundStarted, UpdateAccepted
from runtime.errors import AccessDenied, Unavailable
from runtime.security.signing import SecretKey
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.transfer.multipart import PartSizes
from tests.unit.fl_server.test_run import UPDATE, run_of

TRAIN = SendOrder("d-1", "train", 1, 1)
KEY = "projects/default/runs/r/updates/000001/001/d-1.upd"
STARTED = RoundStarted(1, 1, ("d-1", "d-2"), 2)


class Refusing(MemoryStore):
    """A store that begins no upload, for a while or for good."""

    def __init__(self, *failures: Exception) -> None:
        # every model is large here
        super().__init__(sizes=PartSizes(large_bytes=1, part_bytes=1 << 20))
        self.failures = list(failures)

    def begin_upload(self, key: str) -> str:
        if self.failures:
            raise self.failures.pop(0)
        return super().begin_upload(key)


class Post:
    """The owner's inbox and what went out."""

    def __init__(self, folder: Path, store: MemoryStore) -> None:
        self.inbox: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self.sent: list[tuple[str, Order]] = []
        self.store = store
        registry = ModelRegistry(store, "default", SecretKey("5e" * 32))
        self.data = DataPlane(store, registry, folder, self.inbox.put)
        self.bundles = SiteBundles(store, "default", folder / "bundles")
        self.orders = OrderSender(
            self.data,
            self.bundles,
            lambda _, order: order.time_s,
            lambda device, order: self.sent.append((device, order)),
            7,
        )

    def send(self, run: SyncFlow, command: SendOrder = TRAIN) -> None:
        self.orders.send(run, run.order(command), nullcontext())

    def turn(self) -> None:
        """Take one thing that ended, as the owner does."""
        done = self.inbox.get(timeout=10)
        assert isinstance(done, TaskDone)
        done.then()

    def still(self) -> None:
        """Return when the placing thread has done all it was given."""
        self.data._uploading.submit(lambda: None).result(10)


@pytest.fixture
def post(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Post]:
    found = Post(tmp_path, getattr(request, "param", None) or Refusing())
    yield found
    found.data.stop()


@pytest.mark.parametrize("post", [MemoryStore()], indirect=True)
def test_an_order_of_a_small_model_is_out_at_once(post: Post) -> None:
    post.send(run_of(STARTED))
    assert [(device, order.epoch) for device, order in post.sent] == [("d-1", 7)]
    upload = post.sent[0][1].upload
    assert upload is not None
    assert upload.parts is None


def test_an_order_to_evaluate_waits_for_nothing(post: Post) -> None:
    post.send(run_of(STARTED), SendOrder("d-1", "evaluate", 1, 1))
    assert len(post.sent) == 1


def test_an_order_of_a_large_model_goes_out_with_its_parts(post: Post) -> None:
    run = run_of(STARTED)
    post.send(run)
    assert post.sent == []
    post.turn()
    post.send(run)  # the device asks for fresh URLs
    post.turn()
    first, second = (order.upload for _, order in post.sent)
    assert first is not None
    assert second is not None
    assert first.parts is not None
    assert second.parts is not None
    assert first.parts.upload_id == second.parts.upload_id
    assert [(each.key, each.id) for each in post.store.uploads("")] == [
        (KEY, first.parts.upload_id)
    ]


def test_an_order_that_nobody_waits_for_any_more_is_not_sent(post: Post) -> None:
    run = run_of(STARTED)
    post.send(run)
    run.machine.handle(StopRequested())
    post.turn()
    post.still()
    assert post.sent == []
    assert list(post.store.uploads("")) == []


@pytest.mark.parametrize(
    "facts",
    [
        (UpdateAccepted(1, 1, "d-1", UPDATE),),
        (UpdateAccepted(1, 1, "d-2", UPDATE), RoundClosed(1, 1, ("d-2",))),
        (RoundAbandoned(1, 1, "too few"), RoundStarted(1, 2, ("d-1",), 1)),
    ],
    ids=["answered", "closed", "next attempt"],
)
def test_an_order_is_awaited_while_its_attempt_is_open(facts: tuple[Fact, ...]) -> None:
    run = run_of(STARTED)
    order = run.order(TRAIN)
    assert run.awaits(order)
    assert not run_of(STARTED, *facts).awaits(order)


@pytest.mark.parametrize("post", [Refusing(AccessDenied("no"))], indirect=True)
def test_a_store_that_refuses_parts_may_take_the_update_whole(post: Post) -> None:
    post.send(run_of(STARTED))
    post.turn()
    upload = post.sent[0][1].upload
    assert upload is not None
    assert (upload.key, upload.parts) == (KEY, None)


@pytest.mark.parametrize("post", [Refusing(Unavailable("down"))], indirect=True)
def test_a_store_that_cannot_be_reached_costs_time_only(post: Post) -> None:
    post.send(run_of(STARTED))
    post.turn()
    upload = post.sent[0][1].upload
    assert upload is not None
    assert upload.parts is not None

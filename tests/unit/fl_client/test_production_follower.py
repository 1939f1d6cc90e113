"""What a device holds of production: whole at every moment, never back, never in a round's way."""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rengo
from broker.wire.messages import ModelOffer, ModelRef, ProductionDocument
from fl_client.production import folder as production
from fl_client.production.folder import MODEL, ProductionFolder, load
from fl_client.production.follower import DownloadEnded, ProductionFollower
from runtime.errors import (
    AccessDenied,
    ConfigError,
    Corrupt,
    NotFound,
    PeerError,
    RengoError,
    Unavailable,
)
from runtime.security.identity import new_identity, write_identity
from runtime.security.signing import SecretKey
from storage.transfer.files import Cancelled, Transfers
from storage.versions.manifest import Manifest
from storage.weights import Weights, write_safetensors

KEY, FORGER = SecretKey("5e" * 32), SecretKey("6f" * 32)
TASK = "digits"


def body(value: float) -> bytes:
    """Return a model's file."""
    out = io.BytesIO()
    write_safetensors(Weights.from_arrays({"w": np.full(3, value, np.float32)}), out)
    return out.getvalue()


def manifest(value: float, task: str = TASK) -> Manifest:
    """Return what the server signs of ``body(value)``."""
    data = body(value)
    return Manifest(
        project="default",
        run_id="digits-1",
        version=int(value),
        attempt=1,
        task=task,
        algorithm="fedavg",
        algorithm_settings={},
        training={},
        seed=0,
        parent=None,
        cohort=[],
        cohort_size=0,
        num_examples=0,
        key=f"k/{value}",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        layout_hash="0" * 64,
        created_ms=0,
    )


def document(value: float, promotion: int, key: SecretKey = KEY) -> ProductionDocument:
    """Return the word that ``body(value)`` is in production."""
    signed = manifest(value).encode(key)
    return ProductionDocument(task=TASK, manifest=signed, promotion=promotion, epoch=1)


class Store(Transfers):
    """Downloads of ``body(value)`` by the URL ``value``, after the failures that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.urls: list[str] = []
        self.damaged = False

    def download(self, url: str, path: Path, *, cancel: threading.Event, **_: object) -> int:  # type: ignore[override]
        self.urls.append(url)
        if cancel.is_set():
            raise Cancelled("stepped aside")
        if self.failures:
            raise self.failures.pop(0)
        path.write_bytes(body(float(url)))
        return 1


@dataclass
class Device:
    """A follower whose transfer thread does nothing until it is told."""

    root: Path
    store: Store = field(default_factory=Store)
    asked: list[str] = field(default_factory=list)
    waiting: list[Callable[[], DownloadEnded]] = field(default_factory=list)
    forbidden: str = ""

    def __post_init__(self) -> None:
        self.follower = ProductionFollower(
            ProductionFolder(self.root, KEY.public),
            KEY.public,
            [TASK],
            self.store,
            lambda _, sha256: self.asked.append(sha256),
            self.waiting.append,
            lambda _: self.forbidden,
        )

    def restart(self) -> Device:
        return Device(self.root)

    def offer(self, value: float) -> None:
        known = manifest(value)
        model = ModelRef(
            url=str(value), key=known.key, sha256=known.sha256, size_bytes=known.size_bytes
        )
        self.follower.on_offer(ModelOffer(task=TASK, model=model))

    def work(self) -> None:
        """Do what the transfer thread has to do, and take its ends."""
        while self.waiting:
            self.follower.on_ended(self.waiting.pop(0)())

    def follow(self, value: float, promotion: int) -> None:
        self.follower.on_document(document(value, promotion))
        self.offer(value)
        self.work()

    def value(self) -> float:
        """Return what ``load`` gives, read and verified anew."""
        _, weights = load(self.root, TASK, KEY.public)
        return float(weights.vector[0])

    def folders(self) -> list[str]:
        return sorted(each.name for each in (self.root / "production" / TASK).iterdir())


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_what_is_promoted_is_fetched_verified_and_kept(device: Device) -> None:
    device.follow(1, 4)
    assert device.asked == [manifest(1).sha256]
    assert device.value() == 1
    assert device.folders() == [f"{4:016d}"]
    device.follow(2, 5)
    assert device.value() == 2
    assert device.folders() == [f"{5:016d}"], "the version before goes when the next is there"


def test_the_same_document_again_costs_nothing(device: Device) -> None:
    device.follow(1, 4)
    device.follow(1, 4)
    device.follow(1, 4)
    assert device.asked == [manifest(1).sha256]
    again = device.restart()
    again.follow(1, 4)
    assert again.asked == [], "what is on the disk is known after a restart"


def test_an_older_promotion_is_refused(device: Device) -> None:
    device.follow(1, 4)
    device.follow(2, 5)
    for each in (device, device.restart()):
        with pytest.raises(PeerError, match="promotion 4 of digits after 5"):
            each.follower.on_document(document(1, 4))
        with pytest.raises(PeerError):
            each.follower.on_document(document(1, 5))
        assert each.value() == 2


def test_a_promotion_older_than_one_that_is_being_fetched_is_refused(device: Device) -> None:
    device.follower.on_document(document(2, 5))
    with pytest.raises(PeerError):
        device.follower.on_document(document(1, 4))


def test_a_rollback_has_a_higher_number(device: Device) -> None:
    device.follow(1, 4)
    device.follow(2, 5)
    device.follow(1, 6)
    assert device.value() == 1
    assert device.folders() == [f"{6:016d}"]


def test_what_is_held_and_promoted_again_is_not_fetched_again(device: Device) -> None:
    device.follow(1, 4)
    device.follower.on_document(document(1, 6))
    device.work()
    assert device.store.urls == ["1"]
    assert device.folders() == [f"{6:016d}"]
    with pytest.raises(PeerError):
        device.follower.on_document(document(2, 5))
    assert device.value() == 1


def test_promotions_in_quick_succession(device: Device) -> None:
    device.follow(1, 4)
    for promotion in (6, 7, 9):
        device.follower.on_document(document(1, promotion))
    with pytest.raises(PeerError):
        device.follower.on_document(document(2, 8))
    device.work()
    assert (device.store.urls, device.folders()) == (["1"], [f"{9:016d}"])


def test_a_promotion_again_while_it_is_being_put_in_its_place(device: Device) -> None:
    device.follower.on_document(document(1, 4))
    device.offer(1)
    ended = device.waiting.pop()()
    device.follower.on_document(document(1, 6))
    device.follower.on_ended(ended)
    with pytest.raises(PeerError):
        device.follower.on_document(document(2, 5))
    device.work()
    assert (device.store.urls, device.folders()) == (["1"], [f"{6:016d}"])


def test_a_forged_manifest_has_no_effect(device: Device) -> None:
    device.follow(1, 4)
    with pytest.raises(PeerError, match="not signed"):
        device.follower.on_document(document(2, 5, FORGER))
    signed = manifest(2, task="faces").encode(KEY)
    other = ProductionDocument(task=TASK, manifest=signed, promotion=5, epoch=1)
    with pytest.raises(PeerError, match="faces"):
        device.follower.on_document(other)
    assert (device.asked[1:], device.value()) == ([], 1)


def test_a_task_that_is_not_installed_is_not_followed(device: Device) -> None:
    signed = manifest(1, task="faces").encode(KEY)
    device.follower.on_document(
        ProductionDocument(task="faces", manifest=signed, promotion=1, epoch=1)
    )
    assert device.asked == []


def test_an_offer_that_nobody_asked_for_is_nothing(device: Device) -> None:
    device.offer(1)
    device.follower.on_document(document(1, 4))
    device.offer(2)
    assert device.waiting == []


def test_a_round_goes_first(device: Device) -> None:
    device.follower.on_document(document(1, 4))
    device.offer(1)
    device.follower.interrupt()
    device.waiting.append(lambda: pytest.fail("the round's transfer"))
    [download, the_round] = device.waiting
    device.waiting.clear()
    device.follower.on_ended(download())  # ends where it is
    assert device.waiting, "its turn comes again, behind the round"
    del the_round
    device.work()
    assert device.value() == 1
    assert device.asked == [manifest(1).sha256], "by the same URL"


def test_a_newer_promotion_ends_the_fetching_of_an_older_one(device: Device) -> None:
    device.follower.on_document(document(1, 4))
    device.offer(1)
    device.follower.on_document(document(2, 5))
    device.offer(2)
    device.work()
    assert device.value() == 2
    assert device.folders() == [f"{5:016d}"]


def test_a_rollback_to_what_is_held_ends_the_fetching(device: Device) -> None:
    device.follow(1, 4)
    device.follower.on_document(document(2, 5))
    device.offer(2)
    device.store.failures = [Unavailable("gone")]
    device.follower.on_document(document(1, 6))
    device.work()
    assert device.value() == 1
    assert device.follower.left_s(0) is None, "nothing is pending"


def test_the_failed_fetching_of_what_nobody_wants_any_more_is_nothing(device: Device) -> None:
    device.follow(1, 4)
    device.store.failures = [Unavailable("gone")]
    device.follower.on_document(document(2, 5))
    device.offer(2)
    ended = device.waiting.pop()()
    device.follower.on_document(document(1, 6))
    device.follower.on_ended(ended)
    device.work()
    assert len(device.asked) == 2
    assert device.value() == 1


def test_an_offer_that_comes_twice_is_taken_once(device: Device) -> None:
    device.follower.on_document(document(1, 4))
    device.offer(1)
    device.offer(1)
    assert len(device.waiting) == 1


def test_a_version_is_on_the_disk_before_it_has_its_place(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            done.append(name)
            return original(*args)

        return call

    for name in ("_sync", "atomic_write", "sync_folder"):
        monkeypatch.setattr(production, name, noted(name, vars(production)[name]))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    device.follow(1, 4)
    assert done == ["_sync", "atomic_write", "rename", "sync_folder"]


def test_an_expired_url_is_renewed_at_once(device: Device) -> None:
    device.store.failures = [AccessDenied("expired")]
    device.follow(1, 4)
    assert len(device.asked) == 2
    device.offer(1)
    device.work()
    assert device.value() == 1


@pytest.mark.parametrize("failure", [Unavailable("down"), Corrupt("altered"), OSError(28, "full")])
def test_trouble_is_tried_again_later_and_the_last_good_one_stays(
    device: Device, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.follow(1, 4)
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    device.store.failures = [failure]
    device.follow(2, 5)
    assert device.value() == 1
    left_s = device.follower.left_s(now_s)
    assert left_s is not None
    assert 0 < left_s <= 5
    device.follower.poll(now_s + left_s - 0.01)
    assert len(device.asked) == 2
    device.follower.poll(now_s + left_s)
    assert len(device.asked) == 3
    device.offer(2)
    device.work()
    assert device.value() == 2


def test_a_server_that_does_not_answer_is_asked_again(device: Device) -> None:
    device.follower.on_document(document(1, 4))
    left_s = device.follower.left_s(time.monotonic())
    assert left_s is not None
    device.follower.poll(time.monotonic() + left_s + 1)
    assert len(device.asked) == 2
    device.follower.on_document(document(1, 4))  # it is back
    assert len(device.asked) == 3


def test_a_model_waits_while_this_device_may_not_fetch_it(device: Device) -> None:
    device.forbidden = "the data of today is spent"
    device.follower.on_document(document(1, 4))
    left_s = device.follower.left_s(time.monotonic())
    assert left_s is not None
    assert device.asked == []
    device.forbidden = ""
    device.follower.poll(time.monotonic() + left_s + 1)
    assert len(device.asked) == 1


def test_what_is_damaged_on_the_disk_is_fetched_again(device: Device) -> None:
    device.follow(1, 4)
    path = device.root / "production" / TASK / f"{4:016d}" / MODEL
    path.write_bytes(body(9))
    again = device.restart()
    again.follower.on_document(document(1, 4))
    again.work()
    again.offer(1)
    again.work()
    assert again.value() == 1


def test_a_tampered_model_is_refused(device: Device) -> None:
    device.follow(1, 4)
    path = device.root / "production" / TASK / f"{4:016d}" / MODEL
    path.write_bytes(body(9))
    with pytest.raises(Corrupt, match="as the server signed it"):
        device.value()


def test_a_tampered_manifest_is_refused(device: Device) -> None:
    device.follow(1, 4)
    place = device.root / "production" / TASK / f"{4:016d}"
    (place / MODEL).write_bytes(body(9))
    (place / production.MANIFEST).write_bytes(manifest(9).encode(FORGER))
    with pytest.raises(Corrupt, match="not signed"):
        device.value()
    (place / production.MANIFEST).unlink()
    with pytest.raises(Corrupt, match="missing"):
        device.value()


def test_the_model_of_another_task_is_refused(device: Device) -> None:
    device.follow(1, 4)
    other = device.root / "production" / "faces"
    shutil.copytree(device.root / "production" / TASK, other)
    with pytest.raises(Corrupt, match="is of task 'digits'"):
        load(device.root, "faces", KEY.public)


def test_without_a_model_it_says_so(device: Device) -> None:
    with pytest.raises(NotFound, match="no production model of task 'digits'"):
        device.value()
    with pytest.raises(ConfigError):
        load(device.root, "../digits", KEY.public)


class PowerCut(BaseException):
    """The process ends here."""


@given(
    at=st.integers(0, 12),
    then=st.sampled_from([(2.0, 5), (1.0, 5), (1.0, 6), (3.0, 7)]),
)
def test_a_power_cut_at_any_moment_leaves_a_good_version(
    tmp_path_factory: pytest.TempPathFactory, at: int, then: tuple[float, int]
) -> None:
    """Cut before the ``at``-th change on the disk; then the device goes on."""
    device = Device(tmp_path_factory.mktemp("cut"))
    device.follow(1, 4)
    steps = iter(range(1000))

    def cut(original: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if next(steps) == at:
                raise PowerCut
            return original(*args, **kwargs)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (production, "atomic_write"),
            (production, "_sync"),
            (production, "sync_folder"),
            (production, "make_folder"),
            (Path, "rename"),
            (shutil, "rmtree"),
            (Path, "write_bytes"),
        ):
            patch.setattr(owner, name, cut(getattr(owner, name)))
        try:
            device.follow(*then)
        except PowerCut:
            pass
    assert device.value() in {1.0, then[0]}, "the last good version is whole"
    again = device.restart()
    again.follow(*then)
    again.offer(then[0])
    again.work()
    assert again.value() == then[0]
    assert again.folders() == [f"{then[1]:016d}"], "and nothing else is left"


def test_the_public_function_needs_the_disk_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    identity = new_identity(
        "device", "home", "d-1", "127.0.0.1", 1883, key=FORGER, server_key=KEY.public
    )
    (home / "identities").mkdir(parents=True)
    write_identity(home / "identities" / "d-1.json", identity)
    device = Device(home / "devices" / "d-1")
    device.follow(3, 4)
    model = rengo.production_model(TASK, data_dir=device.root)
    assert model.manifest.name == "digits-1:3"
    assert model.weights.arrays()["w"].tolist() == [3, 3, 3]
    named = rengo.production_model(
        TASK, data_dir=str(device.root), identity=home / "identities" / "d-1.json"
    )
    assert named.manifest == model.manifest
    shutil.move(device.root, tmp_path / "elsewhere")
    with pytest.raises(RengoError, match="identity="):
        rengo.production_model(TASK, data_dir=tmp_path / "elsewhere")

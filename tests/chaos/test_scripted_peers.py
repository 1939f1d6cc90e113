"""Peers that send what no honest device sends, over the real broker, store and server."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker.wire.messages import Order
from fl_server.rounds.facts import RoundAbandoned, RoundCommitted, RoundStarted, UpdateWithdrawn
from rengo.cli.main import main
from storage.updates.stream import WrittenUpdate
from storage.weights import Vector, Weights, read_safetensors
from tests.chaos.arena import Arena, Opened
from tests.chaos.scripted_device import ScriptedDevice, crafted_bytes, honest_bytes
from tests.exactness import true_sum

HONEST = ("honest-1", "honest-2")
Devices = dict[str, ScriptedDevice]
Sent = tuple[bytes, WrittenUpdate, int]


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[Arena]:
    with Opened(folder, "digits") as opened:
        yield opened


@pytest.fixture
def connect(arena: Arena) -> Iterator[Callable[..., Devices]]:
    """Connect scripted devices by name; they leave at the test's end."""
    made: Devices = {}

    def start(*names: str) -> Devices:
        for name in names:
            made[name] = ScriptedDevice(arena.site.member(name), "digits")
        arena.wait_online(set(names))
        return made

    yield start
    for device in made.values():
        device.stop()


def run_of(size: int, quorum: int, rounds: int = 1, deadline_s: float = 60.0) -> dict[str, object]:
    return {
        "rounds": rounds,
        "cohort": {"size": size, "quorum": quorum, "deadline_s": deadline_s, "gather_s": 30.0},
        "evaluation": {"on": "none"},
    }


def noise(weights: Weights, seed: int) -> Vector:
    return np.random.default_rng(seed).normal(0, 0.01, weights.layout.size).astype(np.float32)


def expected(base: Vector, updates: Mapping[int, tuple[Vector, int]]) -> Vector:
    """Return the next model by the definition of the exact mean, told again here."""
    total = sum(examples for _, examples in updates.values())
    sums = [float(each) for each in true_sum(updates.values(), base.size)]
    return (base + np.array(sums) / total).astype(np.float32)


def final_vector(arena: Arena, run_id: str, folder: Path) -> Vector:
    report = arena.finish(run_id)
    path = folder / f"{run_id}.safetensors"
    with arena.store.open(report["model_key"]) as stream:
        path.write_bytes(stream.read(1 << 24))
    vector = read_safetensors(path).vector
    path.unlink()
    return vector


# --- damaged updates ------------------------------------------------------------------------------


def flipped(device: ScriptedDevice, order: Order, weights: Weights) -> Sent:
    data, written = honest_bytes(device.info(order, weights, 10), noise(weights, 3))
    body = bytearray(data)
    body[-7] ^= 0x10
    return bytes(body), written, 10


def truncated(device: ScriptedDevice, order: Order, weights: Weights) -> Sent:
    data, written = honest_bytes(device.info(order, weights, 10), noise(weights, 4))
    return data[:-100], written, 10


def wrong_shape(device: ScriptedDevice, order: Order, weights: Weights) -> Sent:
    info = device.info(order, weights, 10)
    return *crafted_bytes(info, np.zeros(weights.layout.size - 1, np.float32)), 10


def other_layout(device: ScriptedDevice, order: Order, weights: Weights) -> Sent:
    info = replace(device.info(order, weights, 10), layout_hash="0" * 64)
    return *crafted_bytes(info, noise(weights, 5)), 10


def with_value(value: float) -> Callable[[ScriptedDevice, Order, Weights], Sent]:
    def make(device: ScriptedDevice, order: Order, weights: Weights) -> Sent:
        vector = noise(weights, 6)
        vector[17] = value
        return *crafted_bytes(device.info(order, weights, 10), vector), 10

    return make


def exchanged(device: ScriptedDevice, order: Order, weights: Weights) -> Sent:
    """Tell the hash of one update and have another in the store."""
    _, told = honest_bytes(device.info(order, weights, 10), noise(weights, 7))
    data, _ = honest_bytes(device.info(order, weights, 11), noise(weights, 8))
    return data, told, 10


HOSTILE: dict[str, tuple[Callable[[ScriptedDevice, Order, Weights], Sent], str]] = {
    "flipped-bit": (flipped, "chunk 0 has sha256"),
    "truncated": (truncated, "cut off"),
    "wrong-shape": (wrong_shape, "parameters, the layout has"),
    "other-layout": (other_layout, "layout_hash"),
    "not-a-number": (with_value(float("nan")), "not finite"),
    "infinite": (with_value(float("inf")), "not finite"),
    "exchanged": (exchanged, "the result named"),
}


def test_damaged_updates_are_refused_with_reasons_and_the_honest_ones_make_the_model(
    arena: Arena, connect: Callable[..., Devices], tmp_path: Path
) -> None:
    devices = connect(*HONEST, *HOSTILE, "thief")
    run_id = arena.submit(run_of(size=len(devices), quorum=2))
    orders = {name: device.order(run_id, 1) for name, device in devices.items()}
    weights = devices[HONEST[0]].model(orders[HONEST[0]])
    for name, (make, _) in HOSTILE.items():
        data, written, examples = make(devices[name], orders[name], weights)
        devices[name].upload(orders[name], data)
        devices[name].report(orders[name], written, examples)
    for name, (_, reason) in HOSTILE.items():
        receipt = devices[name].receipt(orders[name])
        assert receipt.status == "refused", name
        assert reason in receipt.reason, (name, receipt.reason)

    victim, thief = orders[HONEST[0]], devices["thief"]
    assert victim.upload is not None
    _, stolen = honest_bytes(thief.info(orders["thief"], weights, 5), noise(weights, 10))
    thief.report(orders["thief"], stolen, 5, key=victim.upload.key)
    receipt = thief.receipt(orders["thief"])
    assert (receipt.status, "own key" in receipt.reason) == ("refused", True), receipt

    updates = {}
    for index, name in enumerate(HONEST):
        updates[index] = (noise(weights, index), 1_500_000 + index)
        updates[index][0][17] = 1e12 / (1 + index)  # as a running variance may be
        devices[name].send(orders[name], *updates[index])
        assert devices[name].receipt(orders[name]).status == "accepted"
    vector = final_vector(arena, run_id, tmp_path)
    assert np.array_equal(vector, expected(weights.vector, updates))
    shown = arena.client.call("runs_show", {"run_id": run_id})["history"][0]
    assert shown["included"] == sorted(HONEST)
    assert "own key" in shown["refused"]["thief"]
    for name, (_, reason) in HOSTILE.items():
        assert reason in shown["refused"][name], name


def test_an_object_replaced_after_its_result_was_sent_is_refused_and_not_the_verified_one(
    arena: Arena, connect: Callable[..., Devices], tmp_path: Path
) -> None:
    devices = connect("before", "after", "steady")
    run_id = arena.submit(run_of(size=3, quorum=2))
    orders = {name: device.order(run_id, 1) for name, device in devices.items()}
    before, after, steady = devices["before"], devices["after"], devices["steady"]
    weights = steady.model(orders["steady"])
    updates = {0: (noise(weights, 1), 8), 1: (noise(weights, 2), 9)}

    after.send(orders["after"], *updates[0])
    assert after.receipt(orders["after"]).status == "accepted"
    other, _ = honest_bytes(after.info(orders["after"], weights, 8), noise(weights, 3))
    after.upload(orders["after"], other)

    other, _ = honest_bytes(before.info(orders["before"], weights, 7), noise(weights, 4))
    arena.signal("server", signal.SIGSTOP)  # so that it reads no object in between
    try:
        before.send(orders["before"], noise(weights, 5), 7)
        before.upload(orders["before"], other)
    finally:
        arena.signal("server", signal.SIGCONT)
    receipt = before.receipt(orders["before"])
    assert (receipt.status, "the result named" in receipt.reason) == ("refused", True), receipt

    steady.send(orders["steady"], *updates[1])
    vector = final_vector(arena, run_id, tmp_path)
    assert np.array_equal(vector, expected(weights.vector, updates))
    shown = arena.client.call("runs_show", {"run_id": run_id})["history"][0]
    assert shown["included"] == ["after", "steady"]
    assert "the result named" in shown["refused"]["before"]


def test_a_restarted_server_finds_out_an_object_replaced_after_its_receipt(
    arena: Arena,
    connect: Callable[..., Devices],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    devices = connect("turncoat", "loyal")
    run_id = arena.submit(run_of(size=2, quorum=2))
    orders = {name: device.order(run_id, 1) for name, device in devices.items()}
    turncoat, loyal = devices["turncoat"], devices["loyal"]
    weights = loyal.model(orders["loyal"])
    updates = {0: (noise(weights, 1), 8), 1: (noise(weights, 2), 9)}

    turncoat.send(orders["turncoat"], *updates[0])
    assert turncoat.receipt(orders["turncoat"]).status == "accepted"
    other, _ = honest_bytes(turncoat.info(orders["turncoat"], weights, 7), noise(weights, 3))
    turncoat.upload(orders["turncoat"], other)
    arena.kill("server")  # which held the verified values in memory
    withdrawn = arena.wait_fact(run_id, UpdateWithdrawn, 1)
    assert (withdrawn.device_id, "the result named" in withdrawn.reason) == ("turncoat", True)

    turncoat.send(turncoat.order(run_id, 1), *updates[0])  # it was asked again
    assert turncoat.receipt(orders["turncoat"]).status == "accepted"
    loyal.send(orders["loyal"], *updates[1])
    vector = final_vector(arena, run_id, tmp_path)
    assert np.array_equal(vector, expected(weights.vector, updates))
    assert main(["runs", "show", run_id, "--data-dir", str(arena.site.folder.root)]) == 0
    assert withdrawn.reason in " ".join(capsys.readouterr().out.split())


def test_results_that_nobody_asked_for_change_nothing(
    arena: Arena, connect: Callable[..., Devices], tmp_path: Path
) -> None:
    devices = connect("busy-1", "busy-2", "busy-3")
    run_id = arena.submit(run_of(size=2, quorum=2))
    cohort = arena.wait_fact(run_id, RoundStarted, 1).cohort
    (outsider,) = (device for name, device in devices.items() if name not in cohort)
    busy, other = (devices[name] for name in cohort)
    order = busy.order(run_id, 1)
    weights = busy.model(order)
    updates = {0: (noise(weights, 1), 4), 1: (noise(weights, 2), 5)}
    assert order.upload is not None

    written = busy.send(order, *updates[0])
    assert busy.receipt(order).status == "accepted"
    outsider.report(order, written, 4, key=order.upload.key.replace(busy.id, outsider.id))
    receipt = outsider.receipt(order)
    assert (receipt.status, receipt.reason) == ("refused", "not in this round's cohort")

    _, second = honest_bytes(busy.info(order, weights, 4), noise(weights, 3))
    busy.report(order, second, 4)
    receipt = busy.receipt(order)
    assert (receipt.status, "already counted" in receipt.reason) == ("refused", True)

    early = order.model_copy(update={"round": 2})
    busy.report(early, written, 4, key=order.upload.key.replace("/000001/", "/000002/"))
    assert busy.receipt(early).status == "unknown"

    other.send(other.order(run_id, 1), *updates[1])
    vector = final_vector(arena, run_id, tmp_path)
    assert np.array_equal(vector, expected(weights.vector, updates))


# --- late, repeated and disordered results --------------------------------------------------------


def test_a_duplicate_counts_once_and_gets_the_same_receipt(
    arena: Arena, connect: Callable[..., Devices], tmp_path: Path
) -> None:
    devices = connect("twice", "once")
    run_id = arena.submit(run_of(size=2, quorum=2))
    orders = {name: device.order(run_id, 1) for name, device in devices.items()}
    weights = devices["twice"].model(orders["twice"])
    updates = {0: (noise(weights, 1), 40), 1: (noise(weights, 2), 3)}
    written = devices["twice"].send(orders["twice"], *updates[0])
    assert devices["twice"].receipt(orders["twice"]).status == "accepted"
    devices["twice"].report(orders["twice"], written, 40)
    assert devices["twice"].receipt(orders["twice"]).status == "accepted"
    devices["once"].send(orders["once"], *updates[1])
    vector = final_vector(arena, run_id, tmp_path)
    assert np.array_equal(vector, expected(weights.vector, updates))
    devices["twice"].report(orders["twice"], written, 40)
    assert devices["twice"].receipt(orders["twice"]).status == "accepted", "also after the run"


def test_a_late_and_a_reordered_result_change_nothing(
    arena: Arena, connect: Callable[..., Devices], tmp_path: Path
) -> None:
    devices = connect("quick", "slow")
    run_id = arena.submit(run_of(size=2, quorum=1, rounds=2))
    first = {name: device.order(run_id, 1) for name, device in devices.items()}
    weights = devices["quick"].model(first["quick"])
    alone = {0: (noise(weights, 1), 7)}
    devices["quick"].send(first["quick"], *alone[0])
    assert devices["quick"].receipt(first["quick"]).status == "accepted"
    devices["slow"].be("offline")  # ends the round without it; no deadline to race with
    arena.wait_fact(run_id, RoundCommitted, 1)
    devices["slow"].be("ready")
    second = {name: device.order(run_id, 2) for name, device in devices.items()}
    base = devices["quick"].model(second["quick"])
    assert np.array_equal(base.vector, expected(weights.vector, alone))
    # the slow one answers the second order before the first
    both = {0: (noise(base, 2), 5), 1: (noise(base, 3), 6)}
    devices["slow"].send(second["slow"], *both[1])
    assert devices["slow"].receipt(second["slow"]).status == "accepted"
    data, written = honest_bytes(devices["slow"].info(first["slow"], weights, 9), noise(weights, 4))
    devices["slow"].upload(first["slow"], data)
    devices["slow"].report(first["slow"], written, 9)
    assert devices["slow"].receipt(first["slow"]).status == "late"
    devices["quick"].send(second["quick"], *both[0])
    vector = final_vector(arena, run_id, tmp_path)
    assert np.array_equal(vector, expected(base.vector, both))


def test_a_result_of_a_stale_attempt_is_late(
    arena: Arena, connect: Callable[..., Devices], tmp_path: Path
) -> None:
    devices = connect("stale-1", "stale-2")
    run_id = arena.submit(run_of(size=2, quorum=2, deadline_s=6.0))
    stale = devices["stale-1"].order(run_id, 1, attempt=1)
    arena.wait_fact(run_id, RoundAbandoned, 1)
    orders = {name: device.order(run_id, 1, attempt=2) for name, device in devices.items()}
    weights = devices["stale-1"].model(stale)
    devices["stale-1"].send(stale, noise(weights, 1), 99)
    assert devices["stale-1"].receipt(stale).status == "late"
    updates = {}
    for index, (name, device) in enumerate(devices.items()):
        updates[index] = (noise(weights, 20 + index), 10 + index)
        device.send(orders[name], *updates[index])
    committed = arena.wait_fact(run_id, RoundCommitted, 1)
    assert committed.attempt == 2
    vector = final_vector(arena, run_id, tmp_path)
    assert np.array_equal(vector, expected(weights.vector, updates))

"""The server is killed from outside at any time around a request: what was answered is done once.

``test_operation_kills.py`` kills at the moments that a server can name. What a killed server has
sent, or the broker sends again to the next one, is caught by time alone: a kill falls between the
request and long after its answer. `make test` has three kills of each operation, `make soak` 25.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rengo.site.device_process import DeviceSpec
from runtime.security.identity import read_identity
from tests.chaos.arena import PATIENCE_S, Arena, Opened, wait_for

SEED = 30
KILLS, IN_EVERY_TEST = 25, 3
LATEST_S = 0.3
# each in its turn: to one whose connection is cut too often, a session returns slowly
DEVICES = [f"d-{number}" for number in range(5)]
ACTS = {
    "devices_rotate": {"rotation begun": 1, "password rotated": 1},
    "devices_invite": {"token made": 1},
}
_RNG = random.Random(SEED)
CASES = [
    pytest.param(
        operation,
        DEVICES[number % len(DEVICES)],
        _RNG.uniform(0.0, LATEST_S),
        id=f"{operation}-{number}",
        marks=() if number < IN_EVERY_TEST else pytest.mark.soak,
    )
    for operation in ACTS
    for number in range(KILLS)
]


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[Arena]:
    with Opened(folder, "digits") as opened:
        opened.start_fleet([DeviceSpec(name, engine="numpy") for name in DEVICES])
        yield opened


def rows(arena: Arena, query: str) -> list[Any]:
    path = arena.site.folder.root / "server" / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        return [value for (value,) in journal.execute(query)]


def acts(arena: Arena) -> Counter[str]:
    """Return how often each thing was done; a broker may refuse who comes while it reloads."""
    done = Counter(rows(arena, "SELECT act FROM rengo_audit"))
    del done["connection refused"]
    return done


def rotations(arena: Arena, device: str) -> int:
    (found,) = rows(arena, f"SELECT rotation FROM rengo_devices WHERE id = '{device}'")
    return int(found)


def has_latest_password(arena: Arena, device: str) -> bool:
    """Whether a device knows that the broker takes the latest password of the server."""
    identity = read_identity(arena.site.folder.identity_path(device))
    return identity.rotation == rotations(arena, device) and identity.next_password is None


# no second try: of a server that forgets its answers one kill in ten shows it
@pytest.mark.flaky(reruns=0)
@pytest.mark.parametrize(("operation", "device", "killed_s"), CASES)
def test_it_is_done_once(arena: Arena, operation: str, device: str, killed_s: float) -> None:
    before, rotated = acts(arena), rotations(arena, device)
    tokens = set(rows(arena, "SELECT id FROM rengo_tokens"))
    restarts = arena.site.restarts("server")
    kill = threading.Timer(killed_s, arena.signal, ("server", signal.SIGKILL))
    kill.start()
    try:
        arguments = {"device_id": device} if operation == "devices_rotate" else {}
        answer = arena.client.call(operation, arguments, timeout_s=PATIENCE_S)
    finally:
        kill.join()
    wait_for(lambda: arena.site.restarts("server") == restarts + 1, "the server is back")
    # it has done by then what it was to do again
    arena.client.call("server_info", timeout_s=PATIENCE_S)
    wait_for(lambda: has_latest_password(arena, device), f"{device} has its password", arena.story)
    arena.wait_online({device})
    assert acts(arena) - before == Counter(ACTS[operation])
    assert rotations(arena, device) == rotated + (operation == "devices_rotate")
    made = set(rows(arena, "SELECT id FROM rengo_tokens")) - tokens
    assert made == ({answer["token_id"]} if operation == "devices_invite" else set())

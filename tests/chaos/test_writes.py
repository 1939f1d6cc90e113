"""What a round costs a card: how often the disk is forced and how many bytes, counted by strace."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks import writes
from benchmarks.endurance import Sample, growth, look
from fl_client.tasks.registry import load_task
from tests.chaos.scripted_server import ScriptedServer
from tests.chaos.test_power_loss import RUN, Device, device, server
from tests.integration.broker_fixtures import site
from tests.support import require

__all__ = ["device", "server", "site"]
WARM, ROUNDS, IDLE_S, PATIENCE_S = 3, 20, 1.5, 60.0
DATABASES = ("outbox.sqlite", "jobs.sqlite")


class Agent:
    """An agent under strace, and rounds that it does."""

    def __init__(self, device: Device, server: ScriptedServer) -> None:
        self.device, self.server = device, server
        self.trace = device.root / "trace" / "calls"
        self.trace.parent.mkdir()
        argv = [*writes.tracing(self.trace), sys.executable, "-m", "rengo", "client"]
        argv += ["--identity", str(device.root / "identity.json"), "--engine", "numpy"]
        argv += ["--data-dir", str(device.folder), "--task", "digits", "--count", "6"]
        with device.log.open("wb") as log:
            device.process = subprocess.Popen(argv, stdout=log, stderr=log)

    @property
    def process(self) -> psutil.Process:
        assert self.device.process is not None
        (agent,) = psutil.Process(self.device.process.pid).children()
        return agent

    def open(self, number: int) -> None:
        weights = load_task("digits").initial_weights(number)
        self.server.open(number, weights, {"run_id": RUN, "task": "digits"})

    def rounds(self, count: int) -> None:
        """Do rounds, and hear the last one's end."""
        for number in range(self.server.round + 1, self.server.round + 1 + count):
            self.open(number)
            deadline = time.monotonic() + PATIENCE_S
            while number not in self.server.ledger.counted or list(
                self.device.folder.glob("updates/*")
            ):
                assert time.monotonic() < deadline, self.device.log.read_text()
                self.server.listen(0.01)

    def written(self) -> writes.Writes:
        return writes.read(self.trace, self.device.folder)

    def stop(self) -> None:
        """End the agent; strace ends with it, but hands no signal on."""
        assert self.device.process is not None
        self.process.terminate()
        self.device.process.wait(PATIENCE_S)


@pytest.fixture
def agent(device: Device, server: ScriptedServer) -> Iterator[Agent]:
    traced = subprocess.run([require("strace"), "-qq", "true"], capture_output=True, check=False)
    if traced.returncode:
        pytest.skip(f"this machine lets nobody trace: {traced.stderr.decode().strip()}")
    made = Agent(device, server)
    made.rounds(WARM)
    yield made
    made.stop()


def test_a_round_forces_the_disk_once_and_leaves_nothing(agent: Agent) -> None:
    before, samples = agent.written(), []
    for number in range(ROUNDS):
        agent.rounds(1)
        if number % 4 == 0:
            # its update goes first, its row last
            while look(number, agent.process, agent.device.folder).rows:
                agent.server.listen(0.01)
            samples.append(look(number, agent.process, agent.device.folder))
    after = agent.written()
    deadline = time.monotonic() + IDLE_S
    while time.monotonic() < deadline:
        agent.server.listen(0.1)
    idle = agent.written()
    forced = Counter(after.forced) - before.forced
    databases = sum(
        size
        for name, size in (after.written_bytes - before.written_bytes).items()
        if name.startswith(DATABASES)
    )
    written = after.bytes_in_all - before.bytes_in_all
    print(
        f"a round: {forced.total() / ROUNDS:.2f} times forced, {written / ROUNDS:.0f} bytes "
        f"written, {databases / ROUNDS:.0f} of them by the databases"
    )
    # now and then a database takes its log in, and forces both
    assert forced.total() <= ROUNDS + 4, forced
    assert set(forced) <= {f"{name}{end}" for name in DATABASES for end in ("", "-wal")}
    assert databases / ROUNDS <= 24_000
    assert idle == after or idle.bytes_in_all - after.bytes_in_all < 24_000
    assert growth(samples) == []


def test_lines_of_a_trace_are_summed_up(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    lines = [
        f'write(7<{folder}/a.sqlite-wal>, "x"..., 4096) = 4096',
        f'pwrite64(7<{folder}/a.sqlite>, "x"..., 10, 0) = 10',
        f"fdatasync(7<{folder}/a.sqlite-wal>) = 0",
        f"fsync(9<{folder}>) = 0",
        f'write(7<{folder}/a.sqlite>, "x"..., 4096) = -1 ENOSPC (No space left on device)',
        f'write(7<{tmp_path}/database-of-another>, "x", 1) = 1',
        'write(1<pipe:[77]>, "x", 1) = 1',
    ]
    (tmp_path / "calls.12").write_text("\n".join(lines))
    found = writes.read(tmp_path / "calls", folder)
    assert found.written_bytes == {"a.sqlite-wal": 4096, "a.sqlite": 10}
    assert found.forced_in_all == 2


@pytest.mark.parametrize(
    ("later", "grown"),
    [
        ({}, []),
        ({"agent_rss_bytes": 50 << 20}, []),
        ({"agent_rss_bytes": 54 << 20}, ["agent_rss_bytes grew from 52428800 to 56623104"]),
        ({"rows": 1, "files": 8}, ["files grew from 7 to 8", "rows grew from 0 to 1"]),
        ({"folder_bytes": 1 << 30}, []),
    ],
)
def test_growth_is_named(later: dict[str, int], grown: list[str]) -> None:
    first = Sample(1, 50 << 20, 9, 5, 40 << 20, 5, 2, 7, 1000, 0)
    rows = [first] * 5 + [replace(first, round=number, **later) for number in range(6, 11)]
    assert growth(rows) == grown

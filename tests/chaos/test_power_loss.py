"""A real agent loses its power at seeded moments, and its files with it: it goes on by itself.

The agent, its training, the broker and the store are real; the server is scripted, so that it can
say what it has counted. Whatever a cut leaves, the agent starts, each round counts once, and what
counts is bit for bit what an undisturbed training gives.

How many trainings go on from a checkpoint depends on the machine's pace, and on a disk that lies
there are few or none: a checkpoint is gone on from only where it is whole and the algorithm's state
beside it is the one that it was begun with. At random each of the two survives four cuts in ten,
both together one in six, and not every cut hits a training. That is why nothing is asked of that
figure; that the two suffice, and that neither does alone, has a test of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.session.outbox import Outbox
from fl_client.jobs.journal import JobJournal
from fl_client.tasks.registry import load_task
from fl_client.training.child import ChildEvent, ChildFinished, ChildSettings, TrainingChild
from fl_client.training.frames import TrainingJob
from runtime.security.identity import write_identity
from storage.updates.header import read_header
from storage.updates.stream import verified_blocks
from storage.weights import Weights, write_safetensors
from tests.chaos.powercut import cut, hit_all, remember
from tests.chaos.scripted_server import ScriptedServer
from tests.integration.broker_fixtures import DOMAIN, Site, site
from tests.integration.store_fixtures import bucket_of, running_store
from tests.messages import KEY

__all__ = ["site"]
NAME, RUN = "dev-a", "long-1"
REPOSITORY = Path(__file__).parents[2]
TASK = f"{REPOSITORY / 'tests' / 'chaos' / 'enduring.py'}:Enduring"
SEED = 2026
PATIENCE_S = 60.0
GOES_ON = "training goes on from a checkpoint"


def draw(rng: random.Random, count: int) -> list[str]:
    """Return moments to die at: in a start, between two steps of a job, or in the training.

    Of five, one is of the first kind and two of each of the others.
    """
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += rng.sample(["start", "order", "order", "after", "after"], 5)
    return [_moment(rng, each) for each in kinds[:count]]


def _moment(rng: random.Random, since: str) -> str:
    match since:
        case "start":
            return f"start:{rng.randint(1, 14)}"
        case "order":
            return f"order:{rng.randint(1, 24)}"
        case _:
            return f"after:{rng.uniform(0.0, 1.2):.3f}"


@dataclass
class Device:
    """An agent's folder, and its lives."""

    root: Path
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0

    @property
    def log(self) -> Path:
        return self.root / "agent.log"

    def start(self, moment: str = "") -> None:
        argv = [sys.executable, "-m", "tests.chaos.mortal_agent", moment, "client"]
        argv += ["--identity", str(self.root / "identity.json"), "--data-dir", str(self.folder)]
        argv += ["--task", TASK, "--engine", "numpy", "--count", "6"]
        environment = {**os.environ, "RENGO_AGENT_CHECKPOINT_S": "0.05"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdout=log, stderr=log, env=environment, cwd=REPOSITORY
            )
        self.lives += 1

    @property
    def code(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)

    def resumed(self) -> int:
        """How often a training went on from a checkpoint, as far as the log is there."""
        log = self.folder / "training.log"
        return log.read_bytes().count(GOES_ON.encode()) if log.exists() else 0


@pytest.fixture
def device(tmp_path: Path, site: Site) -> Iterator[Device]:
    identity = site.identity(NAME)
    write_identity(tmp_path / "identity.json", identity)
    made = Device(tmp_path, tmp_path / "data")
    yield made
    with contextlib.suppress(ProcessLookupError):
        if made.process is not None and made.process.poll() is None:
            made.process.send_signal(signal.SIGKILL)
            made.process.wait()


@pytest.fixture
def server(tmp_path: Path, site: Site) -> Iterator[ScriptedServer]:
    with running_store(tmp_path / "store", "juicefs") as store:
        made = ScriptedServer(site.endpoint("anyone"), bucket_of(store), NAME, DOMAIN, KEY)
        yield made
        made.stop()


def weights_of(number: int) -> Weights:
    return load_task(TASK).initial_weights(number)


def open_round(server: ScriptedServer, number: int) -> None:
    server.open(number, weights_of(number), {"run_id": RUN, "task": "enduring"})


def play(server: ScriptedServer, device: Device, lives: list[str], *, lying: bool) -> int:
    """Let the agent lose its power at each of the moments; return how often it went on."""
    rng, earlier, resumed = random.Random(SEED), device.root / "earlier", 0
    open_round(server, 1)
    for moment in lives:
        device.start(moment)
        deadline = time.monotonic() + PATIENCE_S
        while device.code is None:
            assert time.monotonic() < deadline, story(server, device)
            server.listen(0.01)
            if server.round in server.ledger.counted:
                open_round(server, server.round + 1)
        assert device.code == -signal.SIGKILL, story(server, device)
        resumed += device.resumed()
        hit = cut(device.folder, earlier, rng, lying=lying)
        note(device, f"--- cut at {moment}: {hit}")
        (device.folder / "training.log").unlink(missing_ok=True)
        if rng.random() < 0.5 or not earlier.exists():
            remember(device.folder, earlier)
    return resumed


def note(device: Device, text: str) -> None:
    with device.log.open("a") as log:
        log.write(f"{text}\n")


def story(server: ScriptedServer, device: Device) -> str:
    tail = device.log.read_text("utf-8", "replace")[-4000:]
    return f"round {server.round}, {server.ledger}\n{tail}"


def finish(server: ScriptedServer, device: Device) -> None:
    """Let the agent do one more round in peace and see that nothing is left of any."""
    device.start()
    deadline, last = time.monotonic() + PATIENCE_S, server.round + 1
    while server.round < last or last not in server.ledger.counted:
        assert time.monotonic() < deadline, story(server, device)
        assert device.code is None, story(server, device)
        server.listen(0.01)
        if server.round < last and server.round in server.ledger.counted:
            open_round(server, last)
    wait_settled(server, device)
    device.stop()
    assert unsettled(device) == [], story(server, device)


def wait_settled(server: ScriptedServer, device: Device) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while waiting(device):
        assert time.monotonic() < deadline, story(server, device)
        server.listen(0.05)


def waiting(device: Device) -> list[str]:
    found = [*device.folder.glob("updates/*"), *device.folder.glob("state/*.next")]
    return [path.name for path in [*found, *device.folder.glob("checkpoints/*")]]


def unsettled(device: Device) -> list[Any]:
    outbox = Outbox(device.folder / "outbox.sqlite")
    worklog = JobJournal(device.folder / "jobs.sqlite")
    left = [*outbox.pending(), *worklog.jobs()]
    outbox.close()
    worklog.close()
    return left


def undisturbed(folder: Path, rounds: list[int]) -> dict[int, str]:
    """Return the sha256 of each round's update as a training gives it that nobody cuts."""
    events: queue.SimpleQueue[ChildEvent] = queue.SimpleQueue()
    settings = ChildSettings(TASK, "numpy", NAME, 0, 6)
    child = TrainingChild(settings, events.put, log=folder / "reference.log")
    found = {}
    for number in rounds:
        model, update = folder / "reference.safetensors", folder / "reference.upd"
        with model.open("wb") as out:
            write_safetensors(weights_of(number), out)
        child.submit(
            TrainingJob(
                run_id=RUN,
                round=number,
                attempt=1,
                device_id=NAME,
                seed=7,
                model_path=str(model),
                base_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
                update_path=str(update),
            )
        )
        while not isinstance(event := events.get(timeout=PATIENCE_S), ChildFinished):
            pass
        digest = hashlib.sha256()
        with update.open("rb") as stream:
            sha256 = str(event.result.header_sha256)
            header = read_header(stream, header_sha256=sha256, max_bytes=1 << 26)
            for block in verified_blocks(stream, header, header.parameters):
                digest.update(block.tobytes())
        found[number] = digest.hexdigest()
    child.stop()
    return found


@pytest.mark.parametrize("cuts", [5, pytest.param(25, marks=pytest.mark.soak)])
@pytest.mark.parametrize("lying", [False, True])
def test_an_agent_goes_on_after_power_cuts_at_random_moments(
    lying: bool, cuts: int, server: ScriptedServer, device: Device, tmp_path: Path
) -> None:
    rng = random.Random(SEED + lying)
    resumed = play(server, device, draw(rng, cuts), lying=lying)
    finish(server, device)
    counted = server.ledger.counted
    print(f"{cuts} cuts, {len(counted)} rounds, {resumed} trainings resumed")
    assert sorted(counted) == list(range(1, server.round + 1))
    assert not server.ledger.refusals
    reference = undisturbed(tmp_path, sorted(counted))
    assert {number: each.vector_sha256 for number, each in counted.items()} == reference
    if not lying:
        assert not server.ledger.others
        # the algorithm's state saw every round that counted, and none twice
        states = {number: each.metrics["counted"] for number, each in counted.items()}
        assert states == {number: number - 1 for number in counted}


CHECKPOINT, STATE = "checkpoints/*.ckpt", "state/*.safetensors"


def count_round(server: ScriptedServer, device: Device, number: int) -> None:
    """Let the device work until a round is counted."""
    deadline = time.monotonic() + PATIENCE_S
    while number not in server.ledger.counted:
        assert time.monotonic() < deadline, story(server, device)
        assert device.code is None, story(server, device)
        server.listen(0.01)


def die_in_training(server: ScriptedServer, device: Device) -> None:
    """End the agent by SIGKILL once its training has written a checkpoint."""
    deadline = time.monotonic() + PATIENCE_S
    assert device.process is not None
    while not list(device.folder.glob(CHECKPOINT)):
        assert time.monotonic() < deadline, story(server, device)
        server.listen(0.005)
    training = psutil.Process(device.process.pid).children()
    device.process.kill()
    device.process.wait(PATIENCE_S)
    psutil.wait_procs(training, PATIENCE_S)
    assert list(device.folder.glob(CHECKPOINT)), "it died in the midst of its training"


@pytest.mark.parametrize(
    ("kept", "resumed"),
    [((CHECKPOINT, STATE), 1), ((STATE,), 0), ((CHECKPOINT,), 0)],
    ids=["both", "no checkpoint", "no state"],
)
def test_where_a_lying_disk_keeps_checkpoint_and_state_the_training_goes_on(
    kept: tuple[str, ...],
    resumed: int,
    server: ScriptedServer,
    device: Device,
    tmp_path: Path,
) -> None:
    open_round(server, 1)
    device.start()
    count_round(server, device, 1)
    wait_settled(server, device)
    open_round(server, 2)
    die_in_training(server, device)
    hit = hit_all(device.folder, random.Random(SEED), but=kept)
    assert {"jobs.sqlite", "outbox.sqlite"} <= {*hit}
    note(device, f"--- all was hit but {kept}: {hit}")
    (device.folder / "training.log").unlink(missing_ok=True)
    device.start()
    count_round(server, device, 2)
    assert device.resumed() == resumed
    reference = undisturbed(tmp_path, [1, 2])
    counted = server.ledger.counted
    assert {number: each.vector_sha256 for number, each in counted.items()} == reference
    # a state that the card has lost begins anew, and nothing else does
    assert counted[2].metrics["counted"] == (1 if STATE in kept else 0)
    device.stop()

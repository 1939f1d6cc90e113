"""Canaries and production on a site of real processes: ten evaluators, a good and a spoiled one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rengo
from broker.session.endpoint import Endpoint
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import ProductionDocument
from broker.wire.topics import Topics
from rengo.operator.canary import CanaryTrial, begin, follow
from rengo.operator.models import FetchedVersion, load
from rengo.operator.runs import submit
from rengo.site.device_process import DeviceSpec
from runtime.errors import ConfigError, Corrupt, RengoError
from runtime.security.identity import read_identity
from tests.chaos import gated
from tests.chaos.arena import Arena, Opened, wait_for
from tests.support import scratch

EVALUATORS = [f"eval-{number}" for number in range(1, 11)]
TRAINERS = ["t-1", "t-2"]
TASK = "digits"
WHOLE = CanaryTrial(share=1.0, max_drop=0.01, deadline_s=300.0)


def spec_of(name: str) -> DeviceSpec:
    """Return an evaluator or a trainer on the numpy engine."""
    if name in EVALUATORS:
        return DeviceSpec(name, engine="numpy", role="evaluator")
    return DeviceSpec(name, engine="numpy", index=TRAINERS.index(name), count=len(TRAINERS))


@dataclass
class Ground:
    """A site with its devices and three versions: good, better and spoiled."""

    arena: Arena
    stack: ExitStack
    good: str = ""
    better: str = ""
    said: list[str] = field(default_factory=list)

    def identity(self, name: str) -> Path:
        return self.arena.site.folder.identity_path(name)

    def folder(self, name: str) -> Path:
        return self.arena.site.folder.root / "devices" / name

    def train(self, rounds: int, initial: FetchedVersion | None = None) -> str:
        """Return the last version of a run."""
        values: dict[str, Any] = {"rounds": rounds, "training": {"local_epochs": 2}}
        run_id = submit(self.arena.client, TASK, values, initial)
        self.arena.runs.append(run_id)
        wait_for(
            lambda: self.arena.client.call("runs_show", {"run_id": run_id})["phase"] == "ended",
            f"the end of {run_id}",
            self.arena.story,
        )
        return f"{run_id}:{rounds}"

    def held(self, name: str) -> FetchedVersion:
        client = self.arena.client
        return load(name, client.server_key, lambda: nullcontext(client))

    def spoiled(self) -> str:
        """Return a version whose weights are those of the better one, shuffled."""
        whole = self.held(self.better)
        shuffled = np.random.default_rng(5).permutation(whole.weights.vector)
        bad = FetchedVersion("shuffled", whole.weights.with_vector(shuffled))
        run_id = submit(self.arena.client, TASK, {"rounds": 1}, bad)
        self.arena.runs.append(run_id)
        self.arena.client.call("runs_stop", {"run_id": run_id})
        self.wait_version(f"{run_id}:0")
        return f"{run_id}:0"

    def wait_version(self, name: str) -> None:
        def look() -> bool:
            rows = self.arena.client.call("models_ls")["models"]
            return name in {row["name"] for row in rows}

        wait_for(look, f"{name} is listed", self.arena.story)

    def shown(self, name: str) -> dict[str, Any]:
        return self.arena.client.call("models_show", {"name": name})

    def production(self) -> str:
        name: str = self.shown(f"{TASK}@production")["name"]
        return name

    def promote(self, name: str) -> None:
        """Put a version into production without a canary."""
        self.arena.client.call("models_promote", {"name": name})
        assert self.production() == name

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``rengo models promote``."""
        root = str(self.arena.site.folder.root)
        argv = [sys.executable, "-m", "rengo", "models", "promote", "--data-dir", root, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        self.said.append(f"$ rengo models promote {' '.join(words)}\n{done.stdout}{done.stderr}")
        print(self.said[-1], f"exit code {done.returncode}")
        return done

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Have a device hear and say nothing meanwhile."""
        self.arena.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.arena.signal(name, signal.SIGCONT)

    def wait_held(self, names: list[str], version: str) -> None:
        """Return when these devices hold a version as the last good one."""

        def held(name: str) -> bool:
            try:
                model = rengo.production_model(TASK, data_dir=self.folder(name))
            except RengoError:
                return False
            return model.manifest.name == version

        wait_for(lambda: all(map(held, names)), f"{names} hold {version}", self.arena.story)


@contextmanager
def open_arena(root: Path) -> Iterator[Arena]:
    with scratch(root, gated.FOLDER), Opened(root, TASK) as arena:
        yield arena


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ExitStack() as stack:
        arena = stack.enter_context(open_arena(tmp_path_factory.mktemp("canary")))
        arena.start_own([spec_of(name) for name in [*TRAINERS, *EVALUATORS]])
        found = Ground(arena, stack)
        found.good = found.train(1)
        found.better = found.train(4, found.held(found.good))
        with pytest.raises(ConfigError) as refused:
            begin(arena.client, found.better, CanaryTrial())
        found.said.append(str(refused.value))
        found.promote(found.good)
        yield found


def test_without_production_there_is_nothing_to_compare_with(ground: Ground) -> None:
    assert "promote a first one without --canary" in ground.said[0]
    with pytest.raises(ConfigError, match="in production already"):
        begin(ground.arena.client, ground.production(), CanaryTrial())
    with pytest.raises(ConfigError, match="digits-none"):
        begin(ground.arena.client, "digits-none:3", CanaryTrial())


def test_a_good_candidate_is_promoted(ground: Ground) -> None:
    ground.promote(ground.good)
    done = ground.command(
        *(ground.better, "--canary", "20%", "--metric", "accuracy", "--max-drop", "0.01")
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 have measured both" in done.stdout
    assert f"{ground.better} is in production for task digits: accuracy is" in done.stdout
    assert ground.production() == ground.better
    assert ground.shown(ground.good)["stage"] == "archived"
    ground.wait_held(EVALUATORS + TRAINERS, ground.better)


def test_a_spoiled_candidate_is_rolled_back(ground: Ground) -> None:
    before, spoiled = ground.production(), ground.spoiled()
    done = ground.command(spoiled, "--canary", "20%", "--metric", "accuracy", "--max-drop", "0.01")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"{spoiled} was rolled back: accuracy is" in done.stderr
    assert ground.production() == before
    row = ground.shown(spoiled)
    assert row["stage"] == "archived"
    assert row["record"]["reason"] in done.stderr
    ground.wait_held(["eval-1"], before)


def test_a_lower_loss_is_better(ground: Ground) -> None:
    ground.promote(ground.good)
    shown = follow(
        ground.arena.client,
        begin(
            ground.arena.client,
            ground.spoiled(),
            CanaryTrial(share=0.2, metric="loss", max_drop=0.5, deadline_s=300.0),
        ),
        lambda _: None,
    )
    assert shown.verdict == "rolled_back", shown
    assert shown.candidate_mean > shown.production_mean + 0.5


def test_a_killed_server_goes_on_with_its_canary(ground: Ground) -> None:
    ground.promote(ground.good)
    arena, spoiled = ground.arena, ground.spoiled()
    with ground.stopped("eval-3"):
        canary_id = begin(arena.client, ground.better, WHOLE)
        others = len(EVALUATORS) - 1

        def pairs() -> int:
            shown = arena.client.call("canary_show", {"canary_id": canary_id})
            assert not shown["verdict"], shown
            return int(shown["pairs"])

        wait_for(lambda: pairs() == others, "all but one have measured both", arena.story)
        assert begin(arena.client, ground.better, WHOLE) == canary_id, "the very same wish"
        with pytest.raises(ConfigError, match="is in a canary"):
            arena.client.call("models_promote", {"name": ground.better})
        with pytest.raises(ConfigError, match="is in a canary"):
            arena.client.call("models_rm", {"name": ground.better})
        with pytest.raises(ConfigError, match="runs already"):
            begin(arena.client, spoiled, WHOLE)
        # the broker brings no request again that the server has acknowledged before this answer
        assert pairs() == others
        arena.kill("server")
    shown = follow(arena.client, canary_id, lambda _: None)
    assert (shown.verdict, shown.pairs) == ("promoted", len(EVALUATORS)), shown
    assert ground.production() == ground.better
    ground.wait_held(["eval-3", "t-1"], ground.better)


def test_a_device_that_vanishes_is_not_waited_for(ground: Ground) -> None:
    ground.promote(ground.good)
    arena = ground.arena
    try:
        arena.signal("eval-4", signal.SIGSTOP)
        canary_id = begin(arena.client, ground.better, WHOLE)
        arena.signal("eval-4", signal.SIGKILL)
        shown = follow(arena.client, canary_id, lambda _: None)
        assert (shown.verdict, shown.pairs) == ("promoted", len(EVALUATORS) - 1), shown
    finally:
        arena.own["eval-4"].kill()
        arena.start_own([spec_of("eval-4")])


def test_production_that_moves_meanwhile_ends_a_canary(ground: Ground) -> None:
    arena, spoiled = ground.arena, ground.spoiled()
    ground.promote(ground.good)
    with ground.stopped("eval-3"):
        canary_id = begin(arena.client, spoiled, WHOLE)
        ground.promote(ground.better)
        shown = follow(arena.client, canary_id, lambda _: None)
    assert shown.verdict == "inconclusive"
    assert f"{ground.better} is in production by now" in shown.reason
    assert ground.shown(spoiled)["stage"] == "archived"
    assert ground.production() == ground.better


def test_nobody_measures_what_no_device_reports(ground: Ground) -> None:
    ground.promote(ground.good)
    done = ground.command(ground.better, "--canary", "20%", "--metric", "f1", "--deadline", "60s")
    assert done.returncode == 3
    assert f"{ground.better} was not promoted, the canary is inconclusive: 0 of at least 1" in (
        done.stderr
    )
    assert "accuracy" in done.stderr
    assert ground.production() == ground.good


def test_another_device_cannot_say_what_is_in_production(ground: Ground) -> None:
    ground.promote(ground.better)
    ground.wait_held(EVALUATORS, ground.better)
    forger = read_identity(ground.identity("eval-5"))
    version = ground.arena.client.call("models_url", {"name": ground.good})
    document = ProductionDocument(
        task=TASK, manifest=version["manifest"].encode(), promotion=10_000, epoch=10_000
    )
    author = MessageSigner(forger.id, forger.secret_key)
    topic = Topics(forger.domain).model(TASK)
    ground.arena.own["eval-5"].stop()
    session = MqttSession(Endpoint.of(forger), [], lambda _: True)
    session.start()
    session.wait_connected(20)
    session.publish(author.sign(topic, document, retain=True))
    session.stop()
    ground.arena.start_own([spec_of("eval-5")])  # it gets what is retained
    third = ground.spoiled()
    ground.promote(third)
    ground.wait_held(EVALUATORS, third)  # whoever believed the forged number would refuse this
    for name in EVALUATORS:
        assert "not the sender's" not in ground.arena.log(name), "the broker let it through"


def test_the_last_good_model_outlives_the_site(ground: Ground) -> None:
    ground.promote(ground.better)
    ground.wait_held(["eval-1"], ground.better)
    expected = ground.held(ground.better).weights.vector
    data_dir = ground.folder("eval-1")
    ground.stack.close()  # no broker, no store, no server, no agent
    model = rengo.production_model(TASK, data_dir=data_dir)
    assert model.manifest.name == ground.better
    assert np.array_equal(model.weights.vector, expected)
    [path] = (data_dir / "production" / TASK).glob("*/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="as the server signed it"):
        rengo.production_model(TASK, data_dir=data_dir)

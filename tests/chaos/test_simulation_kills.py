"""``rengo simulate --out`` killed again and again: the same command goes on to the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from rengo.simulation.checkpoint import load
from tests.integration.commands import surroundings

RUN = (
    *(sys.executable, "-m", "rengo", "simulate", "digits", "--backend", "inline"),
    *("--clients", "8", "--cohort", "4", "--rounds", "80"),
    *("--set", "algorithm.name=scaffold", "--set", "training.local_epochs=1"),
    *("--set", "training.momentum=0", "--set", "training.learning_rate=0.05"),
    *("--set", "evaluation.every=10", "--set", "best.keep=true"),
)
PATIENCE_S = 60.0


def started(folder: Path, home: Path) -> subprocess.Popen[bytes]:
    argv = [*RUN, "--out", str(folder), "--checkpoint-every", "0", "--json", str(folder) + ".json"]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=surroundings(home))


def round_of(folder: Path) -> int:
    """Return the round that the checkpoint in a folder has reached, 0 where there is none."""
    saved = load(folder / "checkpoint.npz")
    return 0 if saved is None else saved.ledger.model.version


def killed_beyond(reached: int, folder: Path, home: Path) -> int:
    """Kill a simulation once it has gone beyond a round; returns the round that is saved."""
    process, deadline = started(folder, home), time.monotonic() + PATIENCE_S
    try:
        while round_of(folder) <= reached:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, f"no checkpoint beyond round {reached}"
            time.sleep(0.005)
    finally:
        process.kill()
        code = process.wait()
    assert code == -signal.SIGKILL
    return round_of(folder)


def test_what_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert started(whole, tmp_path).wait(PATIENCE_S) == 0
    reached = [0]
    for _ in range(2):
        reached.append(killed_beyond(reached[-1], cut, tmp_path))
    assert reached == sorted(set(reached))
    assert started(cut, tmp_path).wait(PATIENCE_S) == 0
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (cut / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    one, other = (json.loads(Path(f"{each}.json").read_text()) for each in (cut, whole))
    same = ("run_id", "model_sha256", "measured", "best_version", "rounds_completed", "devices")
    assert [one[key] for key in same] == [other[key] for key in same]
    assert sorted(path.name for path in cut.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )

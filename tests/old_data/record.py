"""Records a site's folder in the middle of its work, as this commit writes it.

    python -m tests.old_data.record            from the repository's root; a minute

It writes ``COMMIT.tar.xz``, which later commits must still be able to go on with
(``tests/integration/test_old_data.py``). What lies in it:

- run A, ended, with a version in production, a tag and two followers; run B, which began with
  that version, in the middle of round 2; a run whose version 0 is awaited;
- trainer ``t-1``: its update of round 2 is accepted; ``t-2``: its result is not receipted;
  ``t-3``: in its training, with a checkpoint; ``t-4``, a Pi: its update is on its way to the store;
- a canary that was rolled back, and one for which ``e-1`` has measured and ``e-2`` has not;
- a join token, a revoked device, a password that is being rotated (``t-3``'s), a signed task
  bundle, the audit log, and a device's store of samples.

All processes are held still (SIGSTOP) while the folder is copied, so it is what a power cut or a
``kill -9`` of everything would have left. The site then goes on to its end here: what came of it is
in ``expected.json`` and ``final.safetensors``, inside the same archive.

Every key, token and password in the archive was made for it and is used nowhere else.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from fl_client.datasets.sample import Sample
from fl_client.datasets.settings import SampleStoreSettings
from fl_client.datasets.store import SampleStore
from fl_server.rounds.facts import EvaluationRecorded, RoundCommitted
from rengo.operator.bundles import push
from rengo.operator.canary import CanaryTrial, begin, follow
from rengo.operator.models import load
from rengo.operator.runs import submit
from storage.versions.keys import RunKeys
from tests.bundles import bundle
from tests.chaos.arena import Arena, ChaosSite, wait_for
from tests.old_data.fleet import DEVICES, EVALUATORS, HERE, TASK, TASK_NAME, TRAINERS, spec_of
from tests.support import hold_still

PRODUCT = ("algorithms", "broker", "storage", "fl_client", "fl_server", "iot", "rengo", "runtime")
SITE = "site"
TRAINING = {"local_epochs": 40, "learning_rate": 0.05}
MIDDLE = {
    "rounds": 3,
    "seed": 7,
    "training": TRAINING,
    "cohort": {"size": 4, "quorum": 4, "deadline_s": 3600.0, "gather_s": 5.0},
    "evaluation": {"on": "evaluators", "deadline_s": 60.0},
}
PREPARED_BYTES = 9_000
MODEL_BYTES = 1 << 20
# what is of no use to a later start, and only makes the archive larger
LEFT_OUT = ("logs", "*.log", "*.sock", "*.lock", "*.pid", "cache", "*-shm")


class Recording:
    """One site that is driven to the moment, copied, and let go on."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.client = arena.client
        self.root = arena.site.folder.root

    # --- what was before ------------------------------------------------------------------------

    def past(self) -> str:
        """Bring a run to its end and its version into production; return the run."""
        ended = self.arena.submit(
            {"rounds": 2, "seed": 3, "training": {"local_epochs": 1}, "models": {"keep": 3}}
        )
        self.arena.finish(ended)
        self.client.call("models_promote", {"name": f"{ended}:2", "reason": "the first"})
        self.client.call("models_tag", {"name": f"{ended}:1", "label": "kept"})
        for name in DEVICES:
            self._wait_file(name, f"production/{TASK_NAME}/*/manifest.json")
        trial = CanaryTrial(share=1.0, max_drop=0.01, deadline_s=300.0)
        shown = follow(self.client, begin(self.client, f"{ended}:0", trial), lambda _: None)
        assert shown["verdict"] == "rolled_back", shown
        return ended

    def members(self) -> None:
        """Leave a token that nobody used, and a device that was taken out."""
        self.client.call("devices_invite", {"uses": 3, "lifetime_s": 300 * 24 * 3600.0})
        self.arena.site.member("revoked-1")
        self.client.call("devices_revoke", {"device_id": "revoked-1"})

    def wait_versions(self, run_id: str) -> None:
        """Return when the server has read its registry of models again."""
        wait_for(
            lambda: len(self.client.call("models_ls", {"run_id": run_id})["models"]) == 3,
            f"the versions of {run_id}",
            self.arena.story,
        )

    def bundle(self, folder: Path) -> None:
        """Leave a task bundle in the store."""
        path = folder / "tiny.rtask"
        path.write_bytes(bundle())
        push(self.client, path)

    # --- the moment -----------------------------------------------------------------------------

    def middle(self, ended: str) -> tuple[str, str]:
        """Bring a run into the middle of round 2, and a canary into its middle; return them."""
        arena = self.arena
        initial = load(f"{ended}:2", self.client.server_key, arena.site.connect)
        run_id = submit(self.client, TASK, MIDDLE, initial)
        arena.runs.append(run_id)
        self.client.call("runs_pause", {"run_id": run_id})
        arena.wait_fact(run_id, RoundCommitted, 1)
        wait_for(lambda: self._evaluated(run_id), "version 1 was measured", arena.story)
        wait_for(lambda: not self._jobs(DEVICES), "all have their receipts")
        for name in [*TRAINERS[1:], "e-2"]:
            arena.signal(name, signal.SIGSTOP)
        canary_id = self._half_a_canary(f"{ended}:1")
        self.client.call("devices_rotate", {"device_id": "t-3"})
        self.client.call("runs_resume", {"run_id": run_id})
        arena.wait_accepted(run_id, {"t-1"}, 2)
        wait_for(lambda: not self._jobs(["t-1"]), "t-1 has its receipt", arena.story)
        self.client.call(
            "runs_prepare", {"definition": {"task": TASK_NAME}, "size_bytes": PREPARED_BYTES}
        )
        # with this answer the broker knows that the requests before it were taken
        self.client.call("server_info")
        arena.signal("server", signal.SIGSTOP)
        self._result_without_receipt("t-2")
        self._checkpoint("t-3", run_id)
        self._update_under_way("t-4")
        return run_id, canary_id

    def _half_a_canary(self, name: str) -> str:
        canary_id = begin(
            self.client, name, CanaryTrial(share=1.0, max_drop=1.0, deadline_s=3600.0)
        )
        wait_for(
            lambda: self.client.call("canary_show", {"canary_id": canary_id})["pairs"] == 1,
            "one of the two has measured both",
            self.arena.story,
        )
        return canary_id

    def _evaluated(self, run_id: str) -> bool:
        told = self.arena.of(run_id, EvaluationRecorded, 1)
        return {fact.device_id for fact in told} == set(EVALUATORS)

    def _jobs(self, names: list[str]) -> set[str]:
        return set().union(*(self.arena.kept_stages(name) for name in names))

    def _result_without_receipt(self, name: str) -> None:
        self.arena.signal(name, signal.SIGCONT)
        wait_for(lambda: self._jobs([name]) == {"reporting"}, f"{name} waits for its receipt")
        self._hold(name)

    def _checkpoint(self, name: str, run_id: str) -> None:
        folder = self.root / "devices" / name
        self.arena.signal(name, signal.SIGCONT)
        self._wait_file(name, "checkpoints/*.ckpt")
        self._hold(name)
        assert list(folder.glob("checkpoints/*.ckpt")), "its training was over too soon"
        assert not list(folder.glob("updates/*.upd")), "its training was over too soon"
        assert not self._jobs([name]), f"{name} in {run_id}"

    def _update_under_way(self, name: str) -> None:
        self.arena.signal(name, signal.SIGCONT)
        self._wait_file(name, "checkpoints/*.ckpt")
        self.arena.signal("store", signal.SIGSTOP)
        wait_for(lambda: self._jobs([name]) == {"uploading"}, f"{name} has trained")
        self._hold(name)

    def _wait_file(self, name: str, pattern: str) -> None:
        folder = self.root / "devices" / name
        wait_for(lambda: list(folder.glob(pattern)), f"{name} has {pattern}", self.arena.story)

    def _hold(self, name: str) -> None:
        """Have an agent and its training process stand still."""
        agent = psutil.Process(self.arena.pid(name))
        for process in [agent, *agent.children(recursive=True)]:
            hold_still(process.pid)

    # --- the copy and what came of it ---------------------------------------------------------

    def copy(self, place: Path) -> None:
        """Copy the site's folder while nothing in it moves."""
        family = psutil.Process().children(recursive=True)
        for process in family:
            hold_still(process.pid)
        shutil.copytree(self.root, place, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for process in reversed(family):
            process.send_signal(signal.SIGCONT)
        # megabytes of pages of a database that is not ours
        with closing(sqlite3.connect(place / "store" / "meta.db")) as meta:
            meta.execute("PRAGMA journal_mode=DELETE")

    def end(self, ended: str, run_id: str, canary_id: str) -> tuple[dict[str, Any], bytes]:
        """Let everything go on; return what came of it and the middle run's final model."""
        report = self.arena.finish(run_id)
        verdict = follow(self.client, canary_id, lambda _: None)
        with self.arena.store.open(RunKeys("default", run_id).version(3)) as stream:
            model = stream.read(MODEL_BYTES)
        production = self.client.call("models_show", {"name": f"{TASK_NAME}@production"})
        return {
            "ended_run": self.client.call("runs_show", {"run_id": ended}),
            "middle_run": report,
            "canary": verdict,
            "production": production["name"],
            "versions": sorted(row["name"] for row in self.client.call("models_ls")["models"]),
        }, model


def samples(folder: Path) -> None:
    """Write a device's store of samples."""
    store = SampleStore(folder / "samples.sqlite", SampleStoreSettings())
    made = [
        Sample(bytes([number]) * 16, f"g{number % 2}", float(number % 3), array("f", [0.5, number]))
        for number in range(6)
    ]
    assert store.add(made, 1_010.0, 1.0, {"no label": 2}) == len(made)
    store.close()


@contextmanager
def running(folder: Path) -> Iterator[Recording]:
    """Start a site with its devices, whose trainings write checkpoints often."""
    os.environ["RENGO_AGENT_CHECKPOINT_S"] = "0.02"
    with ChaosSite(folder / SITE, mortal=False) as site, site.connect() as client:
        arena = Arena(site, client, TASK)
        try:
            arena.start_own([spec_of(name) for name in DEVICES])
            yield Recording(arena)
        finally:
            for child in arena.own.values():
                child.signal(signal.SIGCONT)
                child.stop()


def pack(folder: Path, archive: Path) -> None:
    """Write all files of a folder into an archive whose bytes depend on them alone."""
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(folder.rglob("*")):
            info = tar.gettarinfo(path, path.relative_to(folder).as_posix())
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            if info.isfile():
                tar.addfile(info, io.BytesIO(path.read_bytes()))
            elif info.isdir():
                tar.addfile(info)


def commit() -> str:
    """Return the last commit of the product, which must be what lies here."""
    changed = _git("status", "--porcelain", "--", *PRODUCT)
    if changed:
        sys.exit(f"commit first:\n{changed}")
    return _git("log", "-1", "--format=%h", "--abbrev=7", "--", *PRODUCT)


def _git(*words: str) -> str:
    argv = ["git", "-C", str(HERE.parents[1]), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    name = commit()
    with tempfile.TemporaryDirectory(prefix="rengo-old-data-") as temporary:
        made = Path(temporary) / "made"
        with running(Path(temporary)) as recording:
            ended = recording.past()
            recording.members()
            recording.bundle(Path(temporary))
            # a second life reads the registry of models, and copies it into its database
            recording.arena.kill("server")
            recording.wait_versions(ended)
            run_id, canary_id = recording.middle(ended)
            recording.copy(made / SITE)
            expected, model = recording.end(ended, run_id, canary_id)
        samples(made / "samples")
        (made / "final.safetensors").write_bytes(model)
        expected |= {
            "commit": name,
            "recorded": time.strftime("%Y-%m-%d", time.gmtime()),
            # what the embedded store writes into its own database
            "root": str(Path(temporary) / SITE),
        }
        (made / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True))
        pack(made, HERE / f"{name}.tar.xz")
    return 0


if __name__ == "__main__":
    sys.exit(main())

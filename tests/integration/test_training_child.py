"""The training child as a real process: jobs, failures, deaths, and what it never imports."""

from __future__ import annotations

import hashlib
import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from broker.wire.limits import MAX_EXCHANGE_BYTES
from fl_client.tasks.registry import load_task
from fl_client.training.child import (
    ChildDied,
    ChildEvent,
    ChildFailed,
    ChildFinished,
    ChildProgressed,
    ChildReady,
    ChildSettings,
    TrainingChild,
)
from fl_client.training.frames import Failed, TrainingJob, read_answer, write_frame
from runtime.errors import InvalidTransition
from storage.updates.header import read_header
from storage.updates.stream import verified_blocks
from storage.weights import Weights, read_safetensors, write_safetensors

DIGITS = ChildSettings("digits", "numpy", "edge-1", 1, 6)


class Site:
    """A folder with a model, and a child whose events are waited for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: queue.Queue[ChildEvent] = queue.Queue()
        self.children: list[TrainingChild] = []
        self.log = folder / "training.log"

    def child(self, settings: ChildSettings = DIGITS) -> TrainingChild:
        self.children.append(TrainingChild(settings, self.events.put, log=self.log))
        return self.children[-1]

    def wait(self, *kinds: type[Any]) -> Any:
        """Return the next event that is of one of the kinds."""
        while True:
            event = self.events.get(timeout=60)
            if isinstance(event, kinds):
                return event

    def model(self, weights: Weights | None = None) -> Path:
        path = self.folder / "model.safetensors"
        with path.open("wb") as out:
            write_safetensors(weights or load_task("digits").initial_weights(0), out)
        return path

    def job(self, **fields: Any) -> TrainingJob:
        model = self.folder / "model.safetensors"
        if not model.exists():
            self.model()
        given: dict[str, Any] = {
            "run_id": "run-1",
            "round": 3,
            "attempt": 1,
            "device_id": "edge-1",
            "seed": 7,
            "model_path": str(model),
            "base_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "update_path": str(self.folder / "out.upd"),
        }
        return TrainingJob(**{**given, **fields})

    def task(self, source: str) -> str:
        path = self.folder / "own.py"
        path.write_text(textwrap.dedent(source))
        return f"{path}:Own"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for child in made.children:
        child.kill()


def read_update(path: Path, done: ChildFinished) -> tuple[Any, np.ndarray[Any, Any]]:
    with path.open("rb") as stream:
        header = read_header(
            stream, header_sha256=str(done.result.header_sha256), max_bytes=1 << 28
        )
        blocks = [block.copy() for block in verified_blocks(stream, header, header.parameters)]
    return header, np.concatenate(blocks)


def test_a_job_leaves_an_update_that_verifies(site: Site) -> None:
    child, job = site.child(), site.job()
    child.submit(job)
    assert site.wait(ChildReady).pid == child.pid
    done = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert isinstance(done, ChildFinished), done
    assert done.job == job
    assert not child.busy
    path = Path(str(job.update_path))
    assert path.stat().st_size == done.result.size_bytes
    assert path.stat().st_mode & 0o777 == 0o600
    header, vector = read_update(path, done)
    assert (header.run_id, header.round, header.attempt) == ("run-1", 3, 1)
    assert header.base_sha256 == job.base_sha256
    assert header.layout_hash == read_safetensors(Path(job.model_path)).layout.hash
    assert header.num_examples == done.result.num_examples > 10
    assert set(done.result.metrics) == {"train_loss"}
    assert np.abs(vector).max() > 0.01
    assert done.result.train_s > 0
    assert 10e6 < done.result.peak_rss_bytes < 100e6
    assert sorted(p.name for p in site.folder.iterdir()) == [
        "model.safetensors",
        "out.upd",
        "training.log",
    ]


def test_evaluation_gives_metrics_and_writes_nothing(site: Site) -> None:
    child = site.child(replace(DIGITS, role="evaluator", index=0, count=1))
    child.submit(site.job(action="evaluate", update_path=None))
    done = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert isinstance(done, ChildFinished), done
    assert done.result.num_examples == 359
    assert set(done.result.metrics) == {"loss", "accuracy"}
    assert (done.result.header_sha256, done.result.size_bytes) == (None, 0)
    assert not (site.folder / "out.upd").exists()


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_the_same_job_gives_the_same_bytes_warm_and_in_a_new_process(
    site: Site, engine: str
) -> None:
    found = []
    settings = replace(DIGITS, engine=engine)
    for child in (warm := site.child(settings), warm, site.child(settings)):
        child.submit(site.job())
        done = site.wait(ChildFinished, ChildFailed, ChildDied)
        assert isinstance(done, ChildFinished), done
        found.append((site.folder / "out.upd").read_bytes())
    assert found[0] == found[1] == found[2]
    warm.submit(site.job(round=4))
    site.wait(ChildFinished)
    assert (site.folder / "out.upd").read_bytes() != found[0]


SPY = """
    import sys
    from fl_client.tasks.digits import Digits
    class Own(Digits):
        def metrics(self, outputs, targets):
            torch = sys.modules.get("torch")
            if torch is None:
                return {"torch": 0.0, "deterministic": 0.0}
            return {"torch": 1.0, "deterministic": torch.are_deterministic_algorithms_enabled()}
"""


def test_the_torch_child_does_not_load_torchs_compiler(site: Site) -> None:
    spec = site.task(
        """
        import sys
        from fl_client.tasks.digits import Digits
        class Own(Digits):
            def metrics(self, outputs, targets):
                return {"compiler": float("torch._inductor" in sys.modules)}
        """
    )
    child = site.child(replace(DIGITS, task=spec, engine="torch"))
    child.submit(site.job())
    assert isinstance(site.wait(ChildFinished, ChildFailed, ChildDied), ChildFinished)
    child.submit(site.job(action="evaluate"))
    # two CPU seconds at the start of every training process
    assert site.wait(ChildFinished).result.metrics["compiler"] == 0.0


def test_a_child_that_trains_on_numpy_holds_nothing_that_checks_messages(site: Site) -> None:
    spec = site.task(
        """
        import sys
        from fl_client.tasks.digits import Digits
        HEAVY = {"pydantic", "pydantic_core", "ssl", "http", "email", "sqlite3", "asyncio"}
        class Own(Digits):
            def metrics(self, outputs, targets):
                return {name: 1.0 for name in HEAVY & sys.modules.keys()}
        """
    )
    child = site.child(replace(DIGITS, task=spec))
    child.submit(site.job(checkpoint_path=str(site.folder / "c"), checkpoint_every_s=0.0))
    assert isinstance(site.wait(ChildFinished, ChildFailed, ChildDied), ChildFinished)
    child.submit(site.job(action="evaluate"))
    # as much as numpy itself takes, and a quarter of a second of a start
    assert site.wait(ChildFinished).result.metrics.keys() == {"loss"}


@pytest.mark.parametrize(("engine", "loaded"), [("numpy", 0.0), ("torch", 1.0)])
def test_the_numpy_child_holds_no_torch(site: Site, engine: str, loaded: float) -> None:
    spec = site.task(SPY)
    child = site.child(replace(DIGITS, task=spec, engine=engine))
    child.submit(site.job())
    assert isinstance(site.wait(ChildFinished, ChildFailed, ChildDied), ChildFinished)
    child.submit(site.job(action="evaluate"))
    metrics = site.wait(ChildFinished).result.metrics
    assert metrics["torch"] == loaded
    assert metrics["deterministic"] == loaded


def test_an_error_of_the_users_task_is_told_with_its_place(site: Site) -> None:
    spec = site.task(
        """
        from fl_client.tasks.digits import Digits
        class Own(Digits):
            def data(self, device):
                return {}["nothing here"]
        """
    )
    child = site.child(replace(DIGITS, task=spec))
    child.submit(site.job())
    failed = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert isinstance(failed, ChildFailed)
    assert failed.job == site.job()
    place = f"{site.folder / 'own.py'}:5"
    assert failed.reason == f"task own: data() raised KeyError: 'nothing here' ({place})"
    assert not failed.retryable
    assert failed.traceback[0] == "Traceback (most recent call last):"
    assert f'  File "{site.folder / "own.py"}", line 5, in data' in failed.traceback
    assert failed.traceback[-1] == "KeyError: 'nothing here'"
    assert "Traceback" in site.log.read_text()
    # the child lives on, and says so again
    child.submit(site.job())
    assert isinstance(site.wait(ChildFailed, ChildDied), ChildFailed)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('at import')", r"RuntimeError: at import \(.*own\.py:1\)"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_task_that_cannot_be_loaded_fails_the_job_and_ends_the_child(
    site: Site, source: str, said: str
) -> None:
    child = site.child(replace(DIGITS, task=site.task(source)))
    child.submit(site.job())
    failed = site.wait(ChildFailed, ChildDied)
    assert isinstance(failed, ChildFailed), failed
    assert failed.job == site.job()
    assert re.search(said, failed.reason)
    died = site.wait(ChildDied)
    assert (died.job, died.returncode, died.expected) == (None, 2, False)


DIVERGING = {
    "algorithm": "fedprox",
    "algorithm_settings": {"mu": 1e6},
    "training": {"learning_rate": 1e6},
}


@pytest.mark.parametrize(
    ("fields", "said", "retryable"),
    [
        ({"algorithm": "fedsomething"}, "no algorithm 'fedsomething'", False),
        ({"training": {"lr": 1}}, "training setting lr", False),
        ({"update_path": None}, "needs an update_path", False),
        (DIVERGING, "diverged", False),
        ({"model_path": "/nowhere/model"}, "/nowhere/model cannot be read", True),
        ({"update_path": "/proc/no/such.upd"}, "such.upd cannot be written", True),
    ],
)
def test_a_job_that_cannot_be_done_says_why(
    site: Site, fields: dict[str, Any], said: str, retryable: bool
) -> None:
    child = site.child()
    child.submit(site.job(**fields))
    failed = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert isinstance(failed, ChildFailed), failed
    assert said in failed.reason
    assert failed.retryable is retryable
    assert failed.unusable is (said == "diverged")


def test_a_damaged_model_is_retryable(site: Site) -> None:
    job = site.job()
    Path(job.model_path).write_bytes(Path(job.model_path).read_bytes()[:-9])
    child = site.child()
    child.submit(job)
    failed = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert isinstance(failed, ChildFailed)
    assert failed.retryable


SLOW = """
    import time
    from fl_client.tasks.digits import Digits
    class Own(Digits):
        def local_update(self, weights, context):
            print("this is no frame")
            context.round.progress(0.1, None)
            time.sleep(0.6)
            context.round.progress(0.5, 1.25)
            time.sleep(120)
"""


def slow(site: Site) -> TrainingChild:
    """Return a child in the middle of a long job."""
    child = site.child(replace(DIGITS, task=site.task(SLOW)))
    child.submit(site.job())
    progressed = site.wait(ChildProgressed, ChildFailed, ChildDied)
    assert progressed == ChildProgressed(site.job(), 0.5, 1.25)
    assert child.busy
    with pytest.raises(InvalidTransition, match="already has a job"):
        child.submit(site.job())
    return child


def test_a_child_killed_from_outside_is_an_event_and_the_next_job_starts_another(
    site: Site,
) -> None:
    child = slow(site)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    died = site.wait(ChildDied)
    assert (died.job, died.returncode, died.expected) == (site.job(), -signal.SIGKILL, False)
    assert died.reason == "training was killed (SIGKILL)"
    assert not child.busy
    child.submit(site.job())
    assert site.wait(ChildReady).pid not in (None, first)
    # what the user's code printed went to the log and not into the protocol
    assert "this is no frame" in site.log.read_text()


@pytest.mark.parametrize("end", [TrainingChild.stop, TrainingChild.kill])
def test_stop_and_kill_end_it_in_the_middle_of_a_job(
    site: Site, end: Callable[[TrainingChild], None]
) -> None:
    child = slow(site)
    process = psutil.Process(child.pid)
    end(child)
    assert not process.is_running()
    assert not child.running
    died = site.wait(ChildDied)
    assert died.job == site.job()
    assert died.expected


def started(site: Site) -> subprocess.Popen[bytes]:
    argv = replace(DIGITS, task=site.task(SLOW)).argv()
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def test_the_end_of_its_input_ends_it_also_while_it_trains(site: Site) -> None:
    with started(site) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert read_answer(process.stdout) is not None
        write_frame(process.stdin, site.job())
        assert read_answer(process.stdout) is not None
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("junk", [b"\xff" * 64, b"\0\0\0\1\xc1", b"\0\0\0\1\x80"])
def test_a_frame_that_is_none_ends_it_with_an_answer(site: Site, junk: bytes) -> None:
    with started(site) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert read_answer(process.stdout) is not None
        process.stdin.write(junk)
        process.stdin.flush()
        assert isinstance(read_answer(process.stdout), Failed)
        assert process.wait(10) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_it_dies_with_its_agent(site: Site) -> None:
    code = """
import pathlib, sys, time
from fl_client.training.child import ChildReady, ChildSettings, TrainingChild
def told(event):
    print(event.pid, flush=True)
log = pathlib.Path(sys.argv[1])
child = TrainingChild(ChildSettings("digits", "numpy", "edge-1"), told, log=log)
child.start()
time.sleep(60)
"""
    argv = [sys.executable, "-c", code, str(site.log)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        trainer = psutil.Process(int(agent.stdout.readline()))
        agent.kill()
        agent.wait()
    trainer.wait(10)


# --- tasks that train in their own way, and algorithms with state --------------------------------


def test_a_task_may_replace_local_training_whole(site: Site) -> None:
    spec = site.task(
        """
        import numpy as np
        from fl_client.tasks.base import Task
        from storage.weights import Weights
        class Own(Task):
            def initial_weights(self, seed):
                return Weights.from_arrays({"w": np.zeros(1000, np.float32)})
            def local_update(self, weights, context):
                noise = context.random().standard_normal(weights.size)
                return weights + noise.astype(np.float32), 5, {"seen": 1.0}
            def evaluate(self, weights, context):
                return 3, {"loss": float(abs(weights).sum()), "undefined": float("nan")}
        """
    )
    task = load_task(spec)
    site.model(task.initial_weights(0))
    child = site.child(replace(DIGITS, task=spec, engine="torch"))
    child.submit(site.job())
    done = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert isinstance(done, ChildFinished), done
    assert done.result.num_examples == 5
    assert done.result.metrics == {"seen": 1.0}
    # no engine was loaded, though this child would use torch
    assert done.result.peak_rss_bytes < 100e6
    _, vector = read_update(site.folder / "out.upd", done)
    assert vector.std() == pytest.approx(1, rel=0.1)
    child.submit(site.job(action="evaluate"))
    done = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert done.result.metrics == {"loss": 0.0}


def test_an_update_made_where_the_weights_were_takes_one_vector(site: Site) -> None:
    size = 24 << 20
    spec = site.task(
        f"""
        import numpy as np
        from fl_client.tasks.base import Task
        from storage.weights import Weights
        class Own(Task):
            def initial_weights(self, seed):
                return Weights.from_arrays({{"w": np.full({size}, 2, np.float32)}})
            def local_update(self, weights, context):
                own = context.own_weights()
                own *= np.float32(0.25)
                return own, 1, {{}}
        """
    )
    site.model(load_task(spec).initial_weights(0))
    child = site.child(replace(DIGITS, task=spec))
    for _ in range(2):  # the file is not what is overwritten
        child.submit(site.job())
        done = site.wait(ChildFinished, ChildFailed, ChildDied)
        assert isinstance(done, ChildFinished), done
        _, vector = read_update(site.folder / "out.upd", done)
        assert np.all(vector == 0.5)
        # 100 MB of them, and a process of 50 MB
        assert done.result.peak_rss_bytes < 4 * size + 100e6


def test_the_algorithms_state_is_pending_until_its_receipt(site: Site) -> None:
    spec = site.task(
        """
        import numpy as np
        from fl_client.models.local_round import LocalUpdate
        from fl_client.tasks.digits import Digits
        class Own(Digits):
            def local_update(self, weights, context):
                count = context.round.state.get("count", np.zeros(1, np.float32))
                state = {} if count[0] == 2 else {"count": count + 1}
                return LocalUpdate(weights, 1, {"count": float(count[0])}, state)
        """
    )
    state, pending = site.folder / "state", site.folder / "state.next"
    child = site.child(replace(DIGITS, task=spec))

    def count() -> float:
        child.submit(site.job(state_path=str(state)))
        done = site.wait(ChildFinished, ChildFailed, ChildDied)
        assert isinstance(done, ChildFinished), done
        return float(done.result.metrics["count"])

    assert count() == 0
    assert pending.exists()
    assert not state.exists()
    # no receipt came: the same job again begins from the same state
    assert count() == 0
    pending.replace(state)
    assert count() == 1
    pending.replace(state)
    # an update without a state leaves none, also none of an attempt before
    pending.write_bytes(b"stale")
    assert count() == 2
    assert not pending.exists()
    # no person is there to mend a card that has lost it
    state.write_bytes(b"damaged")
    assert count() == 0
    assert "the run's state on this device is lost" in site.log.read_text()


# --- exchanges ------------------------------------------------------------------------------------

EXCHANGING = """
    import numpy as np
    from fl_client.tasks.digits import Digits
    class Own(Digits):
        def exchange(self, context):
            if context.phase == "large":
                return b"x" * int(context.payload)
            if context.phase == "text":
                return "text"
            before = context.state.get("count", np.zeros(1))
            context.keep({"count": before + 1})
            said = f"{context.phase}/{context.seq}/{context.payload.decode()}/{int(before[0])}"
            norm = 0.0 if context.weights is None else float(abs(context.weights.vector).max())
            drawn = context.random().integers(1 << 30)
            return f"{said}/{context.device.id}/{drawn}".encode(), {"norm": norm}
    """


def exchange_job(site: Site, **fields: Any) -> TrainingJob:
    without = {"model_path": None, "base_sha256": "", "update_path": None}
    said = {"action": "exchange", "phase": "share", "seq": 4, "payload": b"said"}
    files = {
        "state_path": str(site.folder / "run.safetensors"),
        "next_state_path": str(site.folder / "run.next"),
    }
    return site.job(**{**without, **said, **files, **fields})


def answered(site: Site, child: TrainingChild, **fields: Any) -> ChildFinished:
    child.submit(exchange_job(site, **fields))
    done = site.wait(ChildFinished, ChildFailed, ChildDied)
    assert isinstance(done, ChildFinished), done
    return done


def test_a_task_answers_an_exchange_and_its_state_waits_for_the_receipt(site: Site) -> None:
    child = site.child(replace(DIGITS, task=site.task(EXCHANGING)))
    first = answered(site, child)
    said, _, drawn = first.result.payload.decode().rpartition("/")
    assert said == "share/4/said/0/edge-1"
    assert (first.result.num_examples, first.result.size_bytes) == (0, 0)
    assert first.result.keeps_state
    assert first.result.metrics == {"norm": 0.0}
    # killed before its receipt, it is asked again, and answers the same, in a new process too
    child.kill()
    assert site.wait(ChildDied).expected
    again = answered(site, child)
    assert again.result.payload == first.result.payload
    (site.folder / "run.next").replace(site.folder / "run.safetensors")
    after = answered(site, child, seq=5)
    assert after.result.payload.startswith(b"share/5/said/1/edge-1/")
    assert not after.result.payload.endswith(drawn.encode()), "each message has its own numbers"
    with_model = answered(
        site, child, model_path=str(site.model()), base_sha256="0" * 64, phase="other"
    )
    assert with_model.result.metrics["norm"] > 0


def test_an_answer_goes_to_a_file_where_the_order_has_an_upload(site: Site) -> None:
    child, path = (
        site.child(replace(DIGITS, task=site.task(EXCHANGING))),
        site.folder / "answer.upd",
    )
    size = MAX_EXCHANGE_BYTES + 1
    done = answered(site, child, phase="large", payload=str(size).encode(), update_path=str(path))
    assert path.read_bytes() == b"x" * size
    assert done.result.header_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (done.result.size_bytes, done.result.payload) == (size, b"")
    assert not done.result.keeps_state
    most = answered(site, child, phase="large", payload=str(MAX_EXCHANGE_BYTES).encode())
    assert len(most.result.payload) == MAX_EXCHANGE_BYTES


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"phase": "text"}, "exchange gave a str, not bytes"),
        (
            {"phase": "large", "payload": b"131073"},
            "a payload of 131073 bytes in phase 'large'; a message holds at most 131072",
        ),
    ],
)
def test_an_answer_that_is_none_is_told_with_what_it_may_be(
    fields: dict[str, Any], reason: str, site: Site
) -> None:
    child = site.child(replace(DIGITS, task=site.task(EXCHANGING)))
    child.submit(exchange_job(site, **fields))
    failed = site.wait(ChildFailed, ChildFinished, ChildDied)
    assert isinstance(failed, ChildFailed), failed
    assert reason in failed.reason
    assert not failed.retryable
    assert not (site.folder / "run.next").exists()


def test_a_task_that_takes_part_in_no_exchange_says_so(site: Site) -> None:
    child = site.child()
    child.submit(exchange_job(site))
    failed = site.wait(ChildFailed, ChildFinished, ChildDied)
    assert isinstance(failed, ChildFailed), failed
    assert failed.reason == (
        "task digits takes part in no exchange (phase 'share'): it does not define "
        "exchange(context)"
    )

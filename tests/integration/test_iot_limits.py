"""A training process is kept within its limits by real signals, limits and control groups."""

from __future__ import annotations

import os
import queue
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from iot.cgroups import ControlGroup
from iot.limits import CpuShare, Limiter
from iot.profile import Budget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are kept on Linux only")
MIB = 1 << 20
NOWHERE = Path("/nowhere")


def soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


class Workers:
    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, source: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def budget(**values: object) -> Budget:
    return Budget.model_validate(values)


HOLD = """
    held = bytearray({size})
    print("held", flush=True)
    input()
"""


def test_a_process_that_holds_too_much_is_ended(workers: Workers) -> None:
    limiter = Limiter(budget(memory="64MiB"), "test", root=NOWHERE)
    process = workers.start("input(); " + textwrap.dedent(HOLD.format(size=100 * MIB)))
    limiter.limit(process.pid)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(60) == -signal.SIGKILL
    assert limiter.method == "own measure"
    assert limiter.killed_for_memory()
    soon(lambda: not limiter.has_process)


def test_a_process_within_its_memory_stays_and_stands_back(workers: Workers) -> None:
    limiter = Limiter(budget(memory="64MiB", nice=7), "test", root=NOWHERE)
    process = workers.start(HOLD.format(size=10 * MIB))
    limiter.limit(process.pid)
    assert psutil.Process(process.pid).nice() == 7
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "800"
    assert resource.prlimit(process.pid, resource.RLIMIT_DATA)[0] == 256 * MIB
    assert limiter.has_process
    assert not limiter.killed_for_memory()
    limiter.close()
    assert process.poll() is None


def test_a_reservation_far_beyond_the_budget_is_an_error_and_not_a_kill(workers: Workers) -> None:
    limiter = Limiter(budget(memory="64MiB"), "test", root=NOWHERE)
    process = workers.start(
        """
        input()
        try:
            bytearray(1 << 30)
        except MemoryError:
            print("MemoryError", flush=True)
        """
    )
    limiter.limit(process.pid)
    assert process.communicate("\n", timeout=60)[0] == "MemoryError\n"


def state(pid: int) -> str:
    return psutil.Process(pid).status()


def test_a_process_rests_and_goes_on_and_so_does_the_next(workers: Workers) -> None:
    limiter = Limiter(budget(), "test", root=NOWHERE)
    process = workers.start(HOLD.format(size=1))
    limiter.limit(process.pid)
    limiter.set_paused(paused=True)
    soon(lambda: state(process.pid) == psutil.STATUS_STOPPED)
    following = workers.start(HOLD.format(size=1))
    limiter.limit(following.pid)
    soon(lambda: state(following.pid) == psutil.STATUS_STOPPED)
    limiter.set_paused(paused=False)
    assert following.communicate("\n", timeout=60)[0] == "held\n"
    assert limiter.has_process, "the first one waits"
    limiter.set_paused(paused=True)
    soon(lambda: state(process.pid) == psutil.STATUS_STOPPED)
    limiter.set_paused(paused=False)
    assert process.communicate("\n", timeout=60)[0] == "held\n"
    soon(lambda: not limiter.has_process)
    limiter.set_paused(paused=True)  # nobody is there: nothing happens
    limiter.close()


def test_a_resting_process_ends_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    source = f"""
        import subprocess, sys, time
        from pathlib import Path
        from iot.limits import Limiter
        from iot.profile import Budget
        limiter = Limiter(Budget(), "test", root=Path("/nowhere"))
        child = subprocess.Popen([sys.executable, "-c", "input()"], process_group=0,
                                 stdin=subprocess.PIPE)
        limiter.limit(child.pid)
        limiter.set_paused(paused=True)
        Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
        print("ready", flush=True)
        time.sleep(600)
    """
    agent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)], stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "ready\n"
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    soon(lambda: child.status() == psutil.STATUS_STOPPED)
    agent.kill()
    agent.communicate()
    # whoever collects orphans may leave a zombie
    soon(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_process_gets_its_share_of_a_core(workers: Workers) -> None:
    # so little that other work does not leave it less, and it has to be stopped
    limiter = Limiter(budget(cpu_share=0.05), "test", root=NOWHERE)
    process = workers.start("while True: pass")
    limiter.limit(process.pid)
    watched = psutil.Process(process.pid)
    seen: queue.Queue[str] = queue.Queue()
    began_s = time.monotonic()

    def used_s() -> float:
        seen.put(watched.status())
        return watched.cpu_times().user + watched.cpu_times().system

    soon(lambda: used_s() > 0.4)
    # a process never gets more than it is given; on a busy machine it may get less
    assert used_s() <= 0.05 * (time.monotonic() - began_s) + 0.3
    assert psutil.STATUS_STOPPED in [seen.get() for _ in range(seen.qsize())]
    limiter.close()
    soon(lambda: watched.status() != psutil.STATUS_STOPPED)


def test_a_share_is_kept_over_any_time() -> None:
    """A process that runs whenever it may, looked at every 50 ms."""
    share, now_s, used_s = CpuShare(0.25), 0.0, 0.0
    for _ in range(1000):
        still_s = share.charge(now_s, used_s)
        now_s += max(still_s, 0.05)
        used_s += 0.0 if still_s else 0.05
    assert used_s == pytest.approx(0.25 * now_s, abs=0.2)


def test_an_idle_process_saves_up_no_more_than_a_burst() -> None:
    share = CpuShare(0.5, burst_s=0.1)
    share.charge(0.0, 0.0)
    assert share.charge(1000.0, 0.1) == 0
    assert share.charge(1001.0, 1.1) == pytest.approx(1.8)


# --- control groups -------------------------------------------------------------------------------


def test_a_group_of_version_1_takes_limits_and_processes(tmp_path: Path) -> None:
    root = version_1(tmp_path)
    limits = budget(memory="96MiB", cpu_share=0.25)
    group = ControlGroup.create("rengo-d", limits, root=root)
    assert group is not None
    memory, cpu = group.folders
    assert memory == root / "sys/fs/cgroup/memory/site/rengo-d"
    assert (memory / "memory.limit_in_bytes").read_text() == str(96 * MIB)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "25000"
    assert group.add(42)
    assert (cpu / "cgroup.procs").read_text() == "42"
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert group.oom_kills() == 3


def version_1(root: Path) -> Path:
    for controller in ("memory", "cpu"):
        (root / f"sys/fs/cgroup/{controller}/site").mkdir(parents=True)
        (root / f"sys/fs/cgroup/{controller}/site/cgroup.procs").write_text("")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("4:memory:/site\n3:cpu,cpuacct:/site\n0::/\n")
    return root


def version_2(root: Path, members: str) -> Path:
    own = root / "sys/fs/cgroup/system.slice/rengo.service"
    own.mkdir(parents=True)
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    (own / "cgroup.controllers").write_text("cpu memory\n")
    (own / "cgroup.procs").write_text(members)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/system.slice/rengo.service\n")
    return own


def test_a_group_of_version_2_below_a_service_that_was_given_its_own(tmp_path: Path) -> None:
    own = version_2(tmp_path, f"{os.getpid()}\n")
    group = ControlGroup.create("rengo-d", budget(memory="96MiB", cpu_share=1.5), root=tmp_path)
    assert group is not None
    assert group.folders == (own / "rengo-d",)
    assert (own / "rengo-d/memory.max").read_text() == str(96 * MIB)
    assert (own / "rengo-d/cpu.max").read_text() == "150000 100000"
    assert (own / "agent/cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +cpu"


def test_a_group_that_holds_others_too_is_left_alone(tmp_path: Path) -> None:
    own = version_2(tmp_path, f"{os.getpid()}\n1\n")
    assert ControlGroup.create("rengo-d", budget(memory="96MiB"), root=tmp_path) is None
    assert not (own / "rengo-d").exists()


def test_without_limits_or_groups_none_is_made(tmp_path: Path) -> None:
    assert ControlGroup.create("rengo-d", budget(), root=version_1(tmp_path)) is None
    assert ControlGroup.create("rengo-d", budget(memory="1GiB"), root=NOWHERE) is None


def test_a_real_group_where_this_machine_lets_us(workers: Workers) -> None:
    limiter = Limiter(budget(memory="64MiB"), f"test-{os.getpid()}")
    if limiter.method != "control group":
        pytest.skip("no control group may be made here")
    try:
        process = workers.start("input(); " + textwrap.dedent(HOLD.format(size=100 * MIB)))
        limiter.limit(process.pid)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(60) == -signal.SIGKILL
        assert limiter.killed_for_memory()
        assert not limiter.killed_for_memory(), "it is told once"
    finally:
        limiter.close()

"""What holds for every test: determinism, and nothing left behind."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import psutil
import pytest
from botocore.loaders import create_loader
from hypothesis import settings
from xdist.remote import Producer

from tests.distribution import Scheduling, order_of
from tests.integration.commands import prepared
from tests.support import (
    CI_FLAG,
    SESSION_MARK,
    describe,
    own_listening_ports,
    wait_for_none_left,
)

# No deadline: on a busy machine a slow example is no failure. Derandomised by default, so that
# a run is a function of the code; HYPOTHESIS_PROFILE=search looks elsewhere each time.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile(
    "ci" if os.environ.get(CI_FLAG) == "1" else os.environ.get("HYPOTHESIS_PROFILE", "ci")
)

_GRACE_S = 5.0
_HERE = Path(__file__).parent
# where processes of others wait for the machine too: docs/decisions/0022-one-more-try.md
_REAL = tuple(_HERE / each for each in ("attacks", "chaos", "contract", "integration"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what may take long begin early, and try real servers once more."""
    items.sort(key=lambda item: order_of(item.nodeid))
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in _REAL):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Deal the tests out to the workers."""
    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why each test that was tried once more had failed: it may be a fault of the product."""
    first_failures = terminalreporter.stats.get("rerun", [])
    for report in first_failures:
        terminalreporter.section(f"FAILED AT FIRST: {report.nodeid}")
        terminalreporter.line(report.longreprtext)
    if first_failures:
        allowed = terminalreporter.config.option.max_suite_reruns
        terminalreporter.section(f"{len(first_failures)} failed at first, {allowed} may")
        for report in first_failures:
            terminalreporter.line(report.nodeid)


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """Undo what ``nohup`` and a shell's ``&`` leave to their children, and ours rightly keep."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the session when a process or a listening port outlives its test.

    Set up before every other fixture and so torn down after them. Children carry the mark in
    their environment, so that one whose parent has died is found as well.
    """
    mark = uuid.uuid4().hex
    os.environ[SESSION_MARK] = mark
    ports_before = own_listening_ports()
    yield
    left = wait_for_none_left(mark, _GRACE_S)
    lines = list(describe(left))
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    del os.environ[SESSION_MARK]
    ports = own_listening_ports() - ports_before
    assert not lines, "left running at the end of the tests:\n" + "\n".join(lines)
    assert not ports, f"still listening at the end of the tests: {sorted(ports)}"


@pytest.fixture(scope="session", autouse=True)
def one_loader() -> Iterator[None]:
    """Let botocore read what it knows of AWS once, not for each of hundreds of clients."""
    loader = create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", lambda *_: loader)
        yield


@pytest.fixture(scope="session", autouse=True)
def prepared_process(nothing_left_behind: None) -> Iterator[None]:
    """End the process that commands are forked from."""
    yield
    prepared.stop()

"""An update that is broken off: what the agent may run from stays."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import rengo.device.update
from rengo.device.update import LAUNCHER, AgentUpdate
from runtime.processes.environments import LINKS, Environments


class Agent:
    """Ends at once; the launcher's part is played for it, up to a commit where that is wanted."""

    def __init__(self, links: Environments, *, commits: bool) -> None:
        self._links = links
        self._commits = commits

    def ask(self, what: str) -> dict[str, Any]:
        assert what == "restart"
        (self._links.links / "next").rename(self._links.links / "trying")
        if self._commits:
            self._links.commit()
        return {"restarting": True}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where environments lie, one of which is this process's; installing makes a folder."""
    root = tmp_path / "opt"
    root.mkdir()
    (root / LAUNCHER).touch()
    monkeypatch.setattr(rengo.device.update, "this_environment", lambda: root / "venv")
    monkeypatch.setattr(AgentUpdate, "_install", lambda _self, fresh, _say: fresh.mkdir())
    monkeypatch.setattr(AgentUpdate, "_require_sound", lambda _self, _fresh: None)
    return root


def broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, commits: bool) -> Environments:
    """Update, and press Ctrl-C while the new version is awaited."""
    links = Environments(tmp_path / "agent" / LINKS)

    @contextlib.contextmanager
    def held(_self: AgentUpdate, _say: object) -> Iterator[Agent]:
        yield Agent(links, commits=commits)

    def waits(_self: AgentUpdate, _links: Environments, _fresh: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(AgentUpdate, "_held", held)
    monkeypatch.setattr(AgentUpdate, "_is_committed", waits)
    with pytest.raises(KeyboardInterrupt):
        AgentUpdate("", None, tmp_path / "agent", 1.0).carry_out([].append)
    return links


def fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update where the new version cannot be installed."""
    full = OSError(errno.ENOSPC, "the disk is full")
    monkeypatch.setattr(AgentUpdate, "_install", Mock(side_effect=full))
    with pytest.raises(OSError, match="full"):
        AgentUpdate("", None, tmp_path / "agent", 1.0).carry_out([].append)


@pytest.mark.parametrize("commits", [False, True])
def test_what_is_on_trial_or_was_just_taken_is_not_removed(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, commits: bool
) -> None:
    links = broken_off(tmp_path, monkeypatch, commits=commits)
    fresh = links.current if commits else links.trying
    assert fresh is not None
    assert fresh.is_dir()
    # nor does the next update remove it, before it has one of its own to offer
    fails_at_once(tmp_path, monkeypatch)
    assert [path for path in root.iterdir() if path.is_dir()] == [fresh]


def test_a_trial_that_failed_is_removed_by_the_next_update(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = broken_off(tmp_path, monkeypatch, commits=False)
    links.give_up()
    fails_at_once(tmp_path, monkeypatch)
    assert [path for path in root.iterdir() if path.is_dir()] == []

"""A command that is forked from the prepared process is one as a new interpreter runs it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from runtime.security.identity import new_identity, write_identity
from tests.integration.commands import rengo
from tests.prepared import Prepared


@pytest.fixture
def prepared() -> Iterator[Prepared]:
    made = Prepared()
    yield made
    made.stop()


def anew() -> None:
    """Given as ``before``, it makes of the command a new interpreter."""


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["runs", "ls"], ["runs", "nosuch"], ["doctor", "--bucket", "x"], []],
)
def test_it_says_and_returns_the_same(arguments: list[str], tmp_path: Path) -> None:
    forked, fresh = (
        rengo(*arguments, home=tmp_path / "none", before=before) for before in (None, anew)
    )
    assert (forked.code, forked.out, forked.err) == (fresh.code, fresh.out, fresh.err)
    assert forked.code in {0, 2}


def test_its_folder_and_environment_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = rengo("server", "--config", "none.toml")
    assert told.line == "none.toml does not exist"
    (tmp_path / "none.toml").write_text("")
    (tmp_path / "none.toml").chmod(0o600)
    told = rengo("server", "--config", "none.toml", environment={"RENGO_SERVER_DATA_DIR": "5"})
    assert "'identity': Field required" in told.line
    assert "'data_dir'" not in told.line


def test_one_that_does_not_end_in_time_is_killed(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    write_identity(path, new_identity("device", "home", "d", "127.0.0.1", 1))
    command = ["client", "--identity", str(path), "--data-dir", str(tmp_path / "data")]
    with pytest.raises(TimeoutError, match="ran for 3"):
        prepared.run(command, {}, 3.0, {})
    assert prepared._process is not None
    left = psutil.Process(prepared._process.pid).children(recursive=True)
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


def test_several_at_once_are_several(prepared: Prepared) -> None:
    with ThreadPoolExecutor(8) as pool:
        ends = [pool.submit(prepared.run, ["--version"], {}, 30.0, {}) for _ in range(8)]
    assert len({each.result() for each in ends}) == 1


def test_a_constant_has_another_value_in_it_alone() -> None:
    usage = {"rengo.cli.main.USAGE": 5}
    assert rengo(constants=usage).code == 5
    assert rengo().code == 2

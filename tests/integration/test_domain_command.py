"""``rengo domain`` as its owner meets it: the first start, the next one, and what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fl_server.operations.catalogue import DEVICES_INVITE
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from tests.chaos.arena import wait_for
from tests.integration.commands import rengo, surroundings

TERMS = {"group": "", "project": "default", "uses": 2, "lifetime_s": 300.0}


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a running domain, which must end in order."""
    argv = [sys.executable, "-m", "rengo", "domain", "--data-dir", str(folder), *words]
    process = subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, env=surroundings(None))
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def words_of(process: subprocess.Popen[str]) -> list[list[str]]:
    """Return the words of a process and of all below it, as anybody may list them."""
    whole = psutil.Process(process.pid)
    return [each.cmdline() for each in (whole, *whole.children(recursive=True))]


def test_a_domain_starts_by_a_token_once_and_without_it_from_then_on(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    with Site(tmp_path / "home", options=SiteOptions(domain="home")) as site, site.connect() as op:
        made = op.request(DEVICES_INVITE, TERMS)

        def state() -> str:
            rows = {each["id"]: each["status"] for each in op.call("devices_ls")["devices"]}
            return str(rows.get("b", "none"))

        same = rengo(
            *("domain", "--parent", made.url, "--token", made.token, "--name", "home"),
            *("--data-dir", tmp_path / "other"),
        )
        assert same.code == 2
        assert same.line == "the parent's own domain is called 'home'; choose another --name"
        first = ("--parent", made.url, "--name", "b", "--token", made.token)
        with started(folder, *first) as process:
            wait_for(lambda: state() == "draining", "it is there, with nobody below it")
            assert not any(made.token in word for words in words_of(process) for word in words)
            twice = rengo(
                *("domain", "--parent", made.url, "--name", "b", "--token", made.token),
                *("--data-dir", tmp_path / "twice"),
            )
            assert twice.code == 2
            assert "the server does not take this device in" in twice.line
        secrets = [path for path in (folder / "parent").rglob("*") if path.is_file()]
        assert secrets
        assert all(path.stat().st_mode & 0o077 == 0 for path in secrets)
        wait_for(lambda: state() in {"offline", "lost"}, "it has ended")
        with started(folder):
            wait_for(lambda: state() == "draining", "it is there again")
        other = rengo("domain", "--parent", "mqtt://127.0.0.1:1", "--data-dir", folder)
        assert other.code == 2
        assert "for another parent take another --data-dir" in other.line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a domain's first start needs --parent URL, --name NAME, and a join token"),
        (("--parent", "mqtt://127.0.0.1:1"), "a domain's first start needs"),
        (("--parent", "http://x", "--name", "b", "--token", "nonsense"), "token"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
        (("--local-rounds", "many"), "--local-rounds"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    told = rengo("domain", "--data-dir", tmp_path / "b", *words)
    assert told.code == 2
    assert said in told.err
    assert "Traceback" not in told.err

"""A version's file comes with its signed manifest, whatever happens on the way."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_server.operations.catalogue import Operation, R
from rengo.operator.models import (
    Client,
    download,
    fetch,
    find_model,
    load,
    manifest_path,
    part_path,
    verify_file,
)
from runtime.errors import AccessDenied, ConfigError, Corrupt
from runtime.retry import instant
from runtime.security.signing import SecretKey
from storage.transfer.files import Transfers, TransferSettings
from storage.versions.manifest import Manifest
from storage.weights import Weights, write_safetensors
from tests.integration.store_fixtures import Answer, RoughStore, rough_store  # noqa: F401

KEY, OTHERS = SecretKey.generate(), SecretKey.generate()
BODY = random.Random(11).randbytes(4_000_000)


def manifest(body: bytes = BODY, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        **{"project": "p", "run_id": "digits-1234", "version": 3, "attempt": 1},
        **{"task": "digits", "algorithm": "fedavg", "algorithm_settings": {}, "training": {}},
        **{"seed": 0, "parent": None, "cohort": ["d"], "cohort_size": 1, "num_examples": 9},
        **{"key": "projects/p/runs/digits-1234/global/000003.safetensors"},
        **{"sha256": hashlib.sha256(body).hexdigest(), "size_bytes": len(body)},
        **{"layout_hash": "0" * 64, "created_ms": 1},
    }
    return Manifest(**{**fields, **changes})


@dataclass
class Server:
    """Answers as the server does, of one version whose bytes lie in a store."""

    url: str
    manifest: Manifest = field(default_factory=manifest)
    key: SecretKey = KEY
    calls: list[str] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def server_key(self) -> Any:
        return KEY.public

    def request(self, operation: Operation[Any, R], arguments: Mapping[str, Any]) -> R:
        assert operation.name == "models_url"
        self.calls.append(arguments["name"])
        document = {
            "name": self.manifest.name,
            "url": self.url,
            "key": self.manifest.key,
            "sha256": self.manifest.sha256,
            "size_bytes": self.manifest.size_bytes,
            "manifest": self.manifest.encode(self.key).decode(),
            **self.answer,
        }
        return operation.result.read(document)

    def transfers(self, settings: TransferSettings) -> Transfers:
        return Transfers(settings)


@pytest.fixture
def rough(rough_store: RoughStore) -> RoughStore:  # noqa: F811
    rough_store.body = BODY
    return rough_store


@pytest.fixture
def server(rough: RoughStore) -> Iterator[Server]:
    with instant():
        yield Server(rough.url)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "model.safetensors"


def here(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


WHOLE = ["model.safetensors", "model.safetensors.manifest.json"]


# --- get --------------------------------------------------------------------------------------


def test_a_version_comes_with_its_manifest_and_is_verified_offline(
    server: Server, path: Path
) -> None:
    seen: list[int] = []
    assert download(server, find_model(server, "production"), path, seen.append) == len(BODY)
    assert path.read_bytes() == BODY
    assert here(path) == WHOLE
    assert seen == sorted(seen)
    assert seen[-1] == len(BODY)
    assert verify_file(path, manifest_path(path), KEY.public) == server.manifest
    assert fetch(server, "production", path) == server.manifest


def test_what_is_there_already_is_not_moved_again(
    server: Server, rough: RoughStore, path: Path
) -> None:
    download(server, find_model(server, "production"), path)
    sent = rough.sent
    assert download(server, find_model(server, "production"), path) == 0
    assert rough.sent == sent
    assert here(path) == WHOLE


def test_an_interrupt_keeps_what_has_come_and_the_next_call_goes_on(
    server: Server, rough: RoughStore, path: Path
) -> None:
    def interrupt(done: int) -> None:
        if done > 1_500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server, find_model(server, "production"), path, interrupt)
    assert here(path) == ["model.safetensors.part"]
    come = part_path(path).stat().st_size
    assert come > 1_500_000
    first: list[int] = []
    assert (
        download(server, find_model(server, "production"), path, first.append) == len(BODY) - come
    )
    assert rough.seen[-1].range == f"bytes={come}-"
    assert first[0] > come
    assert path.read_bytes() == BODY
    assert here(path) == WHOLE


KILLED = """
import os, signal, sys
from pathlib import Path
from rengo.operator.models import download, find_model
from tests.integration.test_model_files import Server, manifest

def kill(done):
    if done > 1_500_000:
        os.kill(os.getpid(), signal.SIGKILL)

server = Server(sys.argv[1])
download(server, find_model(server, "it"), Path(sys.argv[2]), kill)
"""


def test_a_kill_in_the_middle_costs_no_second_transfer(
    server: Server, rough: RoughStore, path: Path
) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, rough.url, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert here(path) == ["model.safetensors.part"]
    come = part_path(path).stat().st_size
    assert download(server, find_model(server, "production"), path) == len(BODY) - come
    assert 0 < come < len(BODY)
    assert path.read_bytes() == BODY


def test_cuts_and_a_url_that_has_expired_pass(
    server: Server, rough: RoughStore, path: Path
) -> None:
    rough.answers = [Answer(cut_after=700_000), Answer(status=403), Answer(cut_after=900_000)]
    assert download(server, find_model(server, "production"), path) == len(BODY)
    assert path.read_bytes() == BODY
    assert server.calls == ["production", "digits-1234:3"], "the same version, not what is now"


def test_a_url_that_stays_refused_is_an_error(
    server: Server, rough: RoughStore, path: Path
) -> None:
    rough.answers = [Answer(status=403)] * 9
    with pytest.raises(AccessDenied):
        download(server, find_model(server, "production"), path)


def test_a_tampered_object_is_refused_and_nothing_is_left_of_it(
    server: Server, rough: RoughStore, path: Path
) -> None:
    body = bytearray(BODY)
    body[2_000_000] ^= 1
    rough.body = bytes(body)
    with pytest.raises(Corrupt, match="digits-1234:3 was altered in the store"):
        download(server, find_model(server, "production"), path)
    assert here(path) == []


def test_another_version_takes_the_place_of_the_one_before(
    server: Server, rough: RoughStore, path: Path
) -> None:
    download(server, find_model(server, "production"), path)
    other = BODY[::-1]
    rough.body, server.manifest = other, manifest(other, version=4)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server, find_model(server, "production"), path, stop)
    assert path.read_bytes() == BODY
    assert not manifest_path(path).exists(), "no manifest beside a file that may change"
    download(server, find_model(server, "production"), path)
    assert path.read_bytes() == other
    assert verify_file(path, manifest_path(path), KEY.public).version == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": OTHERS}, "not signed by this site's server"),
        ({"answer": {"sha256": "0" * 64}}, "offers"),
        ({"answer": {"name": "digits-1234:4"}}, "offers"),
        ({"answer": {"manifest": "{}"}}, "not a Manifest"),
    ],
)
def test_a_manifest_that_is_not_the_server_s_stops_before_any_byte(
    changes: dict[str, Any], says: str, server: Server, rough: RoughStore, path: Path
) -> None:
    for name, value in changes.items():
        setattr(server, name, value)
    with pytest.raises(Corrupt, match=says):
        fetch(server, "production", path)
    assert rough.seen == []


# --- verify -----------------------------------------------------------------------------------


def altered(path: Path, how: str) -> None:
    beside = manifest_path(path)
    match how:
        case "a flipped bit":
            path.write_bytes(bytes([BODY[0] ^ 1]) + BODY[1:])
        case "a byte less":
            path.write_bytes(BODY[:-1])
        case "another key's signature":
            beside.write_bytes(manifest().encode(OTHERS))
        case "a changed manifest":
            beside.write_bytes(beside.read_bytes().replace(b"fedavg", b"fedprx"))
        case "another version's manifest":
            beside.write_bytes(manifest(BODY[::-1]).encode(KEY))
        case "an endless manifest":
            beside.write_bytes(b" " * (1 << 20))


@pytest.mark.parametrize(
    "how",
    [
        *("a flipped bit", "a byte less", "another key's signature", "a changed manifest"),
        *("another version's manifest", "an endless manifest"),
    ],
)
def test_what_was_altered_is_refused(how: str, server: Server, path: Path) -> None:
    download(server, find_model(server, "production"), path)
    altered(path, how)
    with pytest.raises(Corrupt):
        verify_file(path, manifest_path(path), KEY.public)


def test_a_missing_file_or_manifest_is_named(server: Server, path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        verify_file(path, manifest_path(path), KEY.public)
    download(server, find_model(server, "production"), path)
    manifest_path(path).unlink()
    with pytest.raises(ConfigError, match="rengo models get"):
        verify_file(path, manifest_path(path), KEY.public)


# --- load -------------------------------------------------------------------------------------


@contextmanager
def _connected(server: Server) -> Iterator[Client]:
    yield server


def connecting(server: Server) -> Any:
    def connect() -> AbstractContextManager[Client]:
        return _connected(server)

    return connect


def nobody() -> AbstractContextManager[Client]:
    raise AssertionError("no connection was needed")


@pytest.fixture
def small(rough: RoughStore, server: Server) -> Weights:
    weights = Weights.from_arrays({"w": np.arange(5, dtype=np.float32)})
    out = io.BytesIO()
    write_safetensors(weights, out)
    rough.body = out.getvalue()
    server.manifest = manifest(rough.body)
    return weights


def test_a_version_is_loaded_by_its_name_and_leaves_no_file(
    server: Server, small: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = load("digits@production", KEY.public, connecting(server))
    assert held.name == "digits-1234:3"
    assert held.manifest == server.manifest
    assert np.array_equal(held.weights.vector, small.vector)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_a_manifest_is_held_against_it(
    server: Server, small: Weights, path: Path
) -> None:
    download(server, find_model(server, "it"), path)
    assert load(str(path), KEY.public, nobody).manifest == server.manifest
    assert load(path, None, nobody).manifest is None, "no site here that could tell"
    altered(path, "another key's signature")
    with pytest.raises(Corrupt, match="not signed"):
        load(path, KEY.public, nobody)


@pytest.mark.parametrize("source", ["model.safetensors", "folder/model", Path("model")])
def test_a_file_that_is_not_there_is_not_asked_for_as_a_version(source: Path | str) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load(source, None, nobody)


def test_another_kind_of_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(ConfigError, match=r"not a safetensors file .*model\.pt"):
        load(tmp_path / "model.pt", None, nobody)

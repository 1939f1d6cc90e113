"""A folder of any name: what pastes the name into another syntax quotes it by that syntax."""

from __future__ import annotations

import shlex
import subprocess
import tomllib
from array import array
from pathlib import Path

import pytest

from broker.brokers.listener import ListenerTls
from broker.brokers.mosquitto import MosquittoBroker
from broker.brokers.nats import EmbeddedBroker, nats_server_binary
from broker.wire.access import BrokerUser, Grants
from fl_client.bundles.environment import link_lines
from fl_client.datasets.sample import Sample
from fl_client.datasets.settings import SampleStoreSettings
from fl_client.datasets.store import open_store, stored_refusals, stored_samples
from fl_server.persistence.journal import Journal
from fl_server.settings import ServerConfig
from rengo.device.install import settings_text
from rengo.device.systemd import ServiceUnit
from rengo.site.folder import SiteFolder
from runtime.errors import ConfigError
from runtime.files import make_folder
from runtime.processes.environments import launcher
from storage.store.servers.base import Keys, Listener, StoreServer
from storage.store.servers.juicefs import Juicefs
from storage.store.servers.seaweedfs import Seaweedfs
from tests.paths import LEGAL, NASTIEST, REFUSED

_USERS = [BrokerUser("server", "12345678", Grants((), ()))]


@pytest.fixture(params=LEGAL)
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with a name that means something elsewhere."""
    made = tmp_path / request.param
    made.mkdir()
    return made


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_name_is_taken(tmp_path: Path, name: str) -> None:
    assert SiteFolder(tmp_path / name).root.is_dir()


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_no_configuration_can_hold_is_refused_at_once(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="another folder") as refusal:
        SiteFolder(tmp_path / name / "below")
    assert not list(tmp_path.iterdir())
    text = str(refusal.value)
    assert text.isprintable(), "the message itself must be fit to be printed"
    assert text.isascii(), "the message itself must be fit to be printed"


def test_nats_reads_back_the_paths_it_is_given(folder: Path) -> None:
    tls = _certificate(folder)
    broker = EmbeddedBroker(folder, 20_000, tls=tls)
    broker.access.write(_USERS)
    broker.access.config.write_text(broker._configuration(20_000))
    argv = [nats_server_binary(), "-t", "-c", broker.access.config]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)
    # the certificate is found and then refused as none: its path was understood
    assert "no such file" not in done.stderr, done.stderr
    assert "tls: failed to find any PEM data" in done.stderr, done.stderr


def test_mosquitto_is_given_its_own_files_without_the_folder(folder: Path) -> None:
    assert str(folder) not in MosquittoBroker(folder, 20_000)._configuration(20_000)


@pytest.mark.parametrize("kind", [Juicefs, Seaweedfs])
def test_a_store_is_given_its_own_files_without_the_folder(
    folder: Path, kind: type[StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0))
    server = kind(folder, Listener("127.0.0.1", 20_000, None))
    argv = server.prepare(Keys(access_key="rengo", secret="12345678"), {})
    written = [each.read_text() for each in folder.glob("*.options")]
    assert not [each for each in (*argv, *written) if str(folder) in each]


def test_the_journal_is_where_it_was_told_to_be(folder: Path, tmp_path: Path) -> None:
    store = {"endpoint": "http://127.0.0.1:9", "access_key": "a", "secret": "b"}
    settings = ServerConfig.model_validate(
        {"identity": "i", "data_dir": folder / "server", "store": store}
    )
    (folder / "server").mkdir()
    Journal(settings.journal_place).close()
    assert (folder / "server" / "journal.sqlite").is_file()
    assert [each.name for each in tmp_path.iterdir()] == [folder.name]


def test_a_devices_samples_are_read_from_where_they_were_written(folder: Path) -> None:
    store = open_store(folder, SampleStoreSettings())
    store.add([Sample(b"1", "", 1.0, array("f", [0.5]))], 0.0, 0.0, {"type": 3})
    store.close()
    (path,) = folder.glob("*.sqlite")
    assert [each.id for each in stored_samples(path, 10)] == [b"1"]
    assert stored_refusals(path) == 3


def test_an_agents_file_names_its_folder(folder: Path) -> None:
    text = settings_text({"data_dir": str(folder), "tasks": ["digits", f"{folder}/a.py:A"]})
    assert tomllib.loads(text)["data_dir"] == str(folder)
    assert tomllib.loads(text)["tasks"][1] == f"{folder}/a.py:A"


def test_a_unit_starts_the_program_in_its_folder(folder: Path) -> None:
    unit = ServiceUnit("client", folder / "rengo-agent", folder / "agent.toml", folder)
    lines = dict(
        line.partition("=")[::2] for line in unit.text().splitlines() if line[:1].isalpha()
    )
    program, *arguments = _systemd_words(lines["ExecStart"])
    assert program == str(folder / "rengo-agent")
    assert [each.replace("$$", "$") for each in arguments] == [
        *("client", "--config", str(folder / "agent.toml"))
    ]
    assert all(each.count("$") == 2 * each.count("$$") for each in arguments), arguments
    assert _systemd_words(lines["ReadWritePaths"]) == [str(folder)]


def test_the_launcher_starts_the_program_in_its_folder(folder: Path, tmp_path: Path) -> None:
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    python.chmod(0o755)
    script = tmp_path / "launcher"
    script.write_text(launcher(folder, folder / "links", folder / "venv"), "utf-8")
    done = subprocess.run(["sh", script, "client"], capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [str(python), "-P", "-m", "rengo", "client"]


def test_a_bundles_interpreter_finds_the_agents_packages(folder: Path) -> None:
    seen: list[str] = []
    for line in link_lines([str(folder)]):
        assert line.isascii(), "Python reads such a file by the user's locale"
        exec(line.replace("import site; site.addsitedir", "add"), {"add": seen.append})
    assert seen == [str(folder)]


@pytest.mark.parametrize("kind", ["nats", "mosquitto"])
def test_a_broker_serves_from_the_nastiest_folder(tmp_path: Path, kind: str) -> None:
    made = {"nats": EmbeddedBroker, "mosquitto": MosquittoBroker}[kind]
    broker = made(tmp_path / NASTIEST)
    broker.start(_USERS)
    try:
        assert broker.running
    finally:
        broker.stop()
    assert [each.name for each in tmp_path.iterdir()] == [NASTIEST]


def _certificate(folder: Path) -> ListenerTls:
    for name in ("leaf.pem", "leaf.key"):
        (folder / name).write_text("not one")
    return ListenerTls(folder / "leaf.pem", folder / "leaf.key")


def _systemd_words(text: str) -> list[str]:
    """Return the words of a setting as systemd.syntax(7) and systemd.unit(5) have them."""
    words = shlex.split(text)
    assert all(each.count("%") == 2 * each.count("%%") for each in words), words
    return [each.replace("%%", "%") for each in words]


def test_make_folder_says_what_is_wrong_with_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"control character"):
        make_folder(tmp_path / "a\nb")
    with pytest.raises(ConfigError, match=r"UTF-8"):
        make_folder(tmp_path / "a\udce9b")

"""``rengo server | client | iot``: one role in the foreground."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rengo.cli.common import PARTITION_HELP, Commands, add_command, begin_role, serve
from runtime.broker_url import parse_url, url_of
from runtime.config import load, read_toml
from runtime.errors import AccessDenied, ConfigError, Unavailable
from runtime.files import make_folder
from runtime.processes.environments import UpdateTrial
from runtime.processes.locks import take_lock
from runtime.processes.memory import share_one_heap
from runtime.processes.notify import Notifier
from runtime.retry import retrying
from runtime.security.identity import Identity, TlsTrust, read_identity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fl_client.agent.status.server import StatusServer
    from fl_server.kinds.base import FlowKind
    from fl_server.server import Server, ServerSettings
    from fl_server.settings import ServerConfig
    from rengo.site.folder import SiteFolder
    from storage.store.s3 import S3Store

_LOG = logging.getLogger(__name__)
_START_S = 30.0
_BOARDS = ("pi", "pi-zero2", "pi3", "pi4", "pi5")


def add(commands: Commands) -> None:
    """Add the commands."""
    server = add_command(commands, "server", run_server, "run the server of a domain")
    server.add_argument("--config", type=Path, required=True, help="the server's TOML file")
    for name, action, summary in (
        ("client", run_client, "run a device's agent: a CPU or GPU edge"),
        ("iot", run_iot, "run a Raspberry Pi's agent, on the numpy engine"),
    ):
        parser = add_command(commands, name, action, summary)
        parser.add_argument("--identity", type=Path, help="the device's identity file")
        parser.add_argument("--id", help="which of the identities on this machine to take")
        parser.add_argument(
            "--server", metavar="URL", help="mqtt(s)://HOST:PORT instead of the file's"
        )
        add_agent_options(parser)
        if name == "client":
            add_engine_options(parser)
        else:
            parser.add_argument(
                "--profile", choices=_BOARDS, help="whose budgets hold (default: the board's own)"
            )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add what tells one client from another, and none from a Raspberry Pi."""
    parser.add_argument(
        "--engine",
        choices=("auto", "torch", "numpy"),
        help="what trains (default: auto, torch where it is installed)",
    )
    parser.add_argument(
        "--profile",
        choices=("cpu", "gpu"),
        help="gpu uses the accelerators (default: gpu where there are any)",
    )
    parser.add_argument(
        "--accelerators",
        metavar="NAMES",
        help="what orders run on: cuda:0,cuda:1 share each batch, all, cpu (default: auto, the "
        "first one of a gpu)",
    )


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """Add what an agent may be told beside its identity."""
    parser.add_argument("--config", type=Path, help="the agent's TOML file")
    parser.add_argument(
        "--task",
        action="append",
        help="what may run here: a task's name or FILE.py:CLASS; may repeat (default: digits)",
    )
    parser.add_argument("--data-dir", type=Path, help="the agent's own folder")
    parser.add_argument(
        "--role", choices=("trainer", "evaluator"), help="what it does (default: trainer)"
    )
    parser.add_argument("--index", type=int, help="which part of a shared data set is its own")
    parser.add_argument("--count", type=int, help="how many parts there are")
    parser.add_argument("--folder", type=Path, help="where the device's data lies")
    parser.add_argument("--partition", metavar="KIND", help=PARTITION_HELP)
    parser.add_argument(
        "--label",
        action="append",
        metavar="NAME=VALUE",
        help="a label, by which runs may choose this device; may repeat",
    )


def run_server(
    options: argparse.Namespace, flow_kinds: Mapping[str, FlowKind] | None = None
) -> int:
    """Serve a domain until it is told to stop.

    Args:
        options: of the command line.
        flow_kinds: kinds of flows beside those of every server, by name: for a program of one's
            own.
    """
    # a device's command needs no server
    from fl_server.settings import ServerConfig  # noqa: PLC0415

    begin_role(debug=options.debug)
    config = load(ServerConfig, options.config, "RENGO_SERVER")
    require_private(options.config)
    identity = identity_of("server", config.identity)
    with lock_folder(config.data_dir):
        settings = server_settings(config, identity)
        server = server_of(config, identity, replace(settings, flow_kinds=flow_kinds or {}))
        server.start(_START_S)
        serve(server.run_forever, server.stop)
    return 0


def server_settings(config: ServerConfig, identity: Identity) -> ServerSettings:
    """Return what a server is told of its configuration."""
    from fl_server.members.membership import SiteInfo  # noqa: PLC0415  see ``run_server``
    from fl_server.server import ServerSettings  # noqa: PLC0415

    site = SiteInfo(
        config.broker.public_url or url_of(identity),
        config.broker.ca_fingerprint,
        _text_of(config.store.ca),
    )
    return ServerSettings(
        config.data_dir, site, config.project, config.spool_memory_bytes, config.retention
    )


def server_of(config: ServerConfig, identity: Identity, settings: ServerSettings) -> Server:
    """Return a server that is not started, over a journal and a store that answer.

    Raises:
        ConfigError: an identity, a key or the journal is not usable.
        Unavailable: the store does not answer.
    """
    from fl_server.persistence.journal import Journal  # noqa: PLC0415  see ``run_server``
    from fl_server.server import Server  # noqa: PLC0415
    from storage.store.s3 import S3Store  # noqa: PLC0415

    operators = [identity_of("operator", path) for path in config.operators]
    journal = Journal(config.journal_place)
    store = _ready(S3Store(config.store, config.parts))
    return Server(settings, identity, operators, store, journal, config.broker.access())


def _text_of(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"store.ca {path} cannot be read: {error}") from error


def identity_of(role: str, path: Path) -> Identity:
    """Return the identity in a file; ConfigError where it is of another role."""
    identity = read_identity(path)
    if identity.role != role:
        raise ConfigError(f"identity {identity.id} is a {identity.role}'s, not a {role}'s")
    return identity


def run_client(options: argparse.Namespace) -> int:
    """Run an agent until it is told to stop."""
    from fl_client.agent.build import build_agent  # noqa: PLC0415  (other commands need no agent)
    from fl_client.machine.accelerators import of_this_machine  # noqa: PLC0415
    from iot.policy import machine_policy  # noqa: PLC0415
    from iot.settings import DeviceSettings  # noqa: PLC0415

    begin_role(debug=options.debug)
    _take_own_file(options)
    given = _given(options, ("engine", "profile", "accelerators"))
    with _Identity(options) as found:
        settings = load(DeviceSettings, options.config, "RENGO_AGENT", found.defaults | given)
        if "profile" not in settings.model_fields_set and of_this_machine():
            settings = settings.model_copy(update={"profile": "gpu"})
        identity = found.read(settings.identity)
        policy = machine_policy(settings, identity.id)
        agent = build_agent(settings, identity, status_server(), policy)
        serve(agent.run_forever, agent.stop)
    return 0


def run_iot(options: argparse.Namespace) -> int:
    """Run the Raspberry Pi runner until it is told to stop."""
    from iot.runner import make_agent  # noqa: PLC0415
    from iot.settings import PiSettings  # noqa: PLC0415

    begin_role(debug=options.debug)
    _take_own_file(options)
    given = _given(options, ("profile",))
    with _Identity(options) as found:
        settings = load(PiSettings, options.config, "RENGO_AGENT", found.defaults | given)
        agent = make_agent(settings, found.read(settings.identity), status_server())
        serve(agent.run_forever, agent.stop)
    return 0


def _take_own_file(options: argparse.Namespace) -> None:
    """Have an agent that is told neither a file nor an identity read this user's agent.toml."""
    if options.config is None and options.identity is None:
        from rengo.device.config_file import own_file  # noqa: PLC0415  an enrolled agent needs none

        options.config = own_file()
        if options.config is not None:
            _LOG.info("the settings are those of %s", options.config)


def status_server() -> StatusServer:
    """Return what answers questions of this machine about an agent."""
    from fl_client.agent.status.server import StatusServer  # noqa: PLC0415

    share_one_heap()
    return StatusServer(Notifier.of_environment(), UpdateTrial.of_environment())


def _given(options: argparse.Namespace, more: tuple[str, ...]) -> dict[str, Any]:
    names = ("identity", "data_dir", "role", "index", "count", "folder", "partition", *more)
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.task:
        given["tasks"] = options.task
    labels = labels_of(options)
    return given if labels is None else given | {"labels": labels}


def labels_of(options: argparse.Namespace) -> dict[str, str] | None:
    """Return the labels that an agent is told, None where it is told none."""
    labels = {}
    for text in options.label or ():
        name, equals, labels[name] = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--label {text!r} is no label; write NAME=VALUE, as in room=attic")
    return labels or None


def require_private(path: Path) -> None:
    """Raise ConfigError when the file holds the store's secret and others may read it."""
    holds_secret = "secret" in read_toml(path).get("store", {})
    if holds_secret and path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{path} holds a secret and is readable by others; run: "
            f"chmod 600 {shlex.quote(str(path))} (or set RENGO_SERVER_STORE__SECRET)"
        )


def lock_folder(folder: Path) -> IO[bytes]:
    """Return the lock of a server's folder; ConfigError where another server has it."""
    return take_lock(
        make_folder(folder) / "server.lock",
        f"another `rengo server` uses {folder}; stop it, or set another data_dir",
    )


def _ready(store: S3Store) -> S3Store:
    """Return the store when its bucket is there; the error says which keys to look at."""
    # boto3 is the server's alone
    from storage.store.lifecycle import ensure_rule  # noqa: PLC0415
    from storage.store.probe import check_encryption  # noqa: PLC0415

    endpoint = store.settings.endpoint
    try:
        retrying((Unavailable,), attempts=8, total_s=_START_S / 2)(store.ensure_bucket)
        check_encryption(store)
        _LOG.info("%s", ensure_rule(store))
    except Unavailable as error:
        raise Unavailable(
            f"the store does not answer at {endpoint}: {error}; is it running, and is "
            "store.endpoint right?"
        ) from error
    except AccessDenied as error:
        raise AccessDenied(
            f"the store at {endpoint} refuses the keys: {error}; check store.access_key and "
            "store.secret"
        ) from error
    return store


class _Identity:
    """Which identity an agent uses: the file it was given, or one of the site on this machine.

    Without ``--id`` it takes the first device's identity that no running agent holds, so that
    ``rengo client`` in two terminals is two devices.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._lock: IO[bytes] | None = None
        self.defaults: dict[str, Any] = {}

    def __enter__(self) -> _Identity:
        options = self._options
        given: dict[str, Any] = {} if options.config is None else read_toml(options.config)
        given |= {
            key: os.environ[f"RENGO_AGENT_{key.upper()}"]
            for key in ("identity", "data_dir", "index", "count")
            if f"RENGO_AGENT_{key.upper()}" in os.environ
        }
        named = options.identity or given.get("identity")
        if named and (options.data_dir or "data_dir" in given):
            return self
        # imported here: an agent with an identity and a folder of its own needs no site's folder
        from rengo.site.folder import SiteFolder, default_home  # noqa: PLC0415

        if named:
            self.defaults = {"data_dir": default_home() / "devices" / read_identity(Path(named)).id}
            return self
        folder = SiteFolder(default_home())
        path = self._named(folder) if options.id else self._first_free(folder)
        identity = read_identity(path)
        found = {
            "identity": path,
            "data_dir": folder.root / "devices" / identity.id,
            "index": identity.index,
            "count": identity.count,
        }
        self.defaults = {key: value for key, value in found.items() if key not in given}
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def read(self, path: Path) -> Identity:
        """Return the identity, at the server that ``--server`` names."""
        identity = read_identity(path)
        if self._options.server is None:
            return identity
        place = parse_url(self._options.server)
        tls = (identity.tls or TlsTrust()) if place.tls else None
        return identity.model_copy(update={"host": place.host, "port": place.port, "tls": tls})

    def _named(self, folder: SiteFolder) -> Path:
        path = folder.identity_path(self._options.id)
        if path.exists():
            return path
        # imported here: an enrolled agent needs none of this
        from rengo.site.local_enrolment import join  # noqa: PLC0415

        joined = join(folder, self._options.id, self._options.server)
        _LOG.info("this machine is now device %s", joined.stem)
        return joined

    def _first_free(self, folder: SiteFolder) -> Path:
        paths = [
            folder.identity_path(each.id)
            for each in folder.all_identities()
            if each.role == "device"
        ]
        for path in paths:
            lock = path.with_suffix(".lock").open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self._lock = lock
            return path
        what = "every device's identity is in use" if paths else "there is no device's identity"
        raise ConfigError(
            f"{what} in {folder.identities}; enrol this machine by `rengo enroll`, start a "
            "site with `rengo up`, or name a file by --identity"
        )
